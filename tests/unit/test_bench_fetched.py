"""Packages that are fetched: kept whole or not at all, and told when they cannot be had."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ringfence.bench.e2b import fetched
from ringfence.domain.errors import PlatformFault

Command = Callable[[Path], list[str]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that nobody else has."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def shell(line: str) -> Command:
    """A way to fetch."""
    return lambda place: ["sh", "-c", f"cd '{place}' && {line}"]


def test_what_was_fetched_is_not_fetched_again() -> None:
    """A release never changes."""
    place = fetched.fetched("a-1.0", shell("echo first > it"))
    assert fetched.fetched("a-1.0", shell("echo second > it")) == place
    assert (place / "it").read_text() == "first\n"


def test_the_newest_of_a_moment_is_looked_for_again_after_a_day() -> None:
    """And stays what it was when nothing newer can be had."""
    place = fetched.fetched("a-newest", shell("echo first > it"))
    mark = fetched.cache() / "a-newest.complete"
    os.utime(mark, (0, time.time() - 2 * fetched.NEWEST_SECONDS))
    fetched.fetched("a-newest", shell("exit 1"))
    assert (place / "it").read_text() == "first\n"
    fetched.fetched("a-newest", shell("echo second > it"))
    assert (place / "it").read_text() == "second\n"


@pytest.mark.parametrize("command", [shell("echo no such host >&2; exit 1"), lambda _: ["/no such host"]])
def test_what_cannot_be_had_is_said_with_the_reason(command: Command) -> None:
    """Half of something is never taken for it."""
    with pytest.raises(PlatformFault, match=r"a-1\.0 cannot be fetched: .*no such host"):
        fetched.fetched("a-1.0", command)
    assert not (fetched.cache() / "a-1.0").exists()
    assert fetched.fetched("a-1.0", shell("touch it")).joinpath("it").exists()
