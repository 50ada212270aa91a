"""Program output as JSON can carry it: text where it is UTF-8, base64 where it is not."""

from __future__ import annotations

import codecs
from typing import Any, Final, Literal

from ringfence import wire

Name = Literal["stdout", "stderr"]
_utf8: Final = codecs.getincrementaldecoder("utf-8")


def whole(data: bytes | bytearray, *, truncated: bool) -> tuple[str | None, bytes | None]:
    """(text, None) or (None, bytes). A character cut in two by a cap is dropped rather than spoiling the text."""
    try:
        return (_utf8().decode(data, final=False) if truncated else data.decode()), None
    except UnicodeDecodeError:
        return None, bytes(data)


def fields(out: bytes | bytearray, err: bytes | bytearray, *, truncated: bool) -> dict[str, Any]:
    """The four output fields of a Run or a ProcessResult."""
    stdout, stdout_base64 = whole(out, truncated=truncated)
    stderr, stderr_base64 = whole(err, truncated=truncated)
    return {"stdout": stdout, "stdout_base64": stdout_base64, "stderr": stderr, "stderr_base64": stderr_base64}


class Texts:
    """Turns one stream's pieces into lines of an NDJSON answer; holds back at most an unfinished character."""

    def __init__(self, name: Name) -> None:
        self._name = name
        self._decoder = _utf8()

    def feed(self, data: bytes, *, final: bool = False) -> wire.Line | None:
        """The line for this piece, or None when it only began a character."""
        held = self._decoder.getstate()[0]
        try:
            text = self._decoder.decode(data, final=final)
        except UnicodeDecodeError:
            self._decoder.reset()
            raw = held + data
            return wire.Line(stdout_base64=raw) if self._name == "stdout" else wire.Line(stderr_base64=raw)
        if not text:
            return None
        return wire.Line(stdout=text) if self._name == "stdout" else wire.Line(stderr=text)
