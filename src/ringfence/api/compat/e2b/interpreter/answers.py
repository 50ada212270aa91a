"""A kernel's messages in E2B's words: one object a line, in ASCII, never an empty line."""

from __future__ import annotations

import json
import time
from typing import Any, Final

from ringfence.api.compat.e2b.interpreter.messages import Failed, Message, Output, Shown, Started

FIELDS: Final = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
    "e2b/data": "data",
    "e2b/chart": "chart",
}
TABLES: Final = frozenset({"data", "chart"})
ANY: Final = frozenset({"json"})
KEEPALIVE: Final = b'{"type": "keepalive"}\n'
END: Final = b'{"type": "end_of_execution"}\n'


def line(fields: dict[str, Any]) -> bytes:
    """One line. In ASCII: JavaScript clients decode each piece of a stream alone."""
    return json.dumps(fields).encode("ascii") + b"\n"


def error(name: str, value: str, traceback: str = "") -> bytes:
    """The line that says why a cell failed."""
    return line({"type": "error", "name": name, "value": value, "traceback": traceback})


def answer(message: Message) -> bytes:
    """A message as a line; empty for what a client is not told."""
    match message:
        case Started(count=count):
            return line({"type": "number_of_executions", "execution_count": count})
        case Output(name=name, text=text):
            return line({"type": name, "text": text, "timestamp": time.time_ns()})
        case Shown():
            return line({"type": "result", "is_main_result": message.main, **_representations(message.data)})
        case Failed():
            return error(message.name, message.value, message.traceback)
        case _:
            return b""


def _representations(data: dict[str, Any]) -> dict[str, Any]:
    """Known media types under their names, if they have the shape that clients expect; all others under `extra`."""
    found: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for media, value in data.items():
        name = FIELDS.get(media)
        if name is None or not _fits(name, value):
            extra[media] = value
        else:
            found[name] = _unquoted(value) if name == "text" else value
    return {**found, "extra": extra} if extra else found


def _fits(name: str, value: Any) -> bool:
    return name in ANY or isinstance(value, dict if name in TABLES else str)


def _unquoted(text: str) -> str:
    """A string's representation without the quotes around it."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text
