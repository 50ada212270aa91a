"""A server for one command alone, when none is configured."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ringfence.cli.output import Screen
from ringfence.config import read_server
from ringfence.serve import embedded


@contextlib.contextmanager
def server(screen: Screen) -> Iterator[tuple[str, str]]:
    """Start one and give its URL and its key; it ends with the `with`. On a terminal, say why this takes a moment."""
    if screen.err.is_terminal:
        screen.say("no server is configured: starting one for this run (see `ringfence serve --detach`)", style="dim")
    with embedded(read_server()) as private:
        yield private.url, private.key
