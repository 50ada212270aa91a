"""What every op is given, and what ops share: checked fields, refusals, and long work done in slices.

A request reaches an op after the api checked it; an op checks its types again, because a crash here costs a sandbox.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Generator

from ringfence.guest.annotations import Any, Final
from ringfence.guest.loop import Loop, Timer
from ringfence.guest.stream import Handler, Stream

PATH_BYTES: Final = 4096  # PATH_MAX (Linux limits.h)
SLICE: Final = 0.005  # seconds a long piece of work may hold the loop

Steps = Generator[None, None, None]  # long work: each yield is a place where it may rest

# The kernel's word to ours. What is not listed is "io".
CODES: Final[dict[int, str]] = {
    errno.ENOENT: "not_found",
    errno.ESTALE: "not_found",
    errno.EISDIR: "not_a_file",
    errno.ENXIO: "not_a_file",  # a socket, or a FIFO nobody reads
    errno.ENODEV: "not_a_file",
    errno.EEXIST: "exists",
    errno.ENOTEMPTY: "exists",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
    errno.EROFS: "permission",
    errno.ENOTDIR: "bad_request",
    errno.ENAMETOOLONG: "bad_request",
    errno.ELOOP: "bad_request",
    errno.EINVAL: "bad_request",
    errno.EXDEV: "bad_request",
    errno.ENOSPC: "no_space",
    errno.EDQUOT: "no_space",
    errno.EFBIG: "no_space",
    errno.EBUSY: "busy",
    errno.ETXTBSY: "busy",
    errno.EMFILE: "busy",
    errno.ENFILE: "busy",
    errno.ENOMEM: "busy",
}


class Context:
    """What an op may use besides its stream."""

    __slots__ = ("home", "loop")

    def __init__(self, loop: Loop, home: str) -> None:
        self.loop = loop
        self.home = home


Op = Callable[[Context, Stream, dict[str, Any]], None]


class Refused(Exception):
    """The request is not served; the opener is told a code and a cause."""

    def __init__(self, code: str, cause: str) -> None:
        super().__init__(cause)
        self.code = code


def refuse(stream: Stream, error: OSError | Refused) -> None:
    """Answer with what went wrong."""
    if isinstance(error, Refused):
        stream.fail(error.code, str(error))
    else:
        stream.fail(CODES.get(error.errno or 0, "io"), error.strerror or type(error).__name__)


def guarded(op: Op) -> Op:
    """The op, with what it raises answered on its stream."""

    def serve(context: Context, stream: Stream, request: dict[str, Any]) -> None:
        try:
            op(context, stream, request)
        except (OSError, Refused) as error:
            refuse(stream, error)

    return serve


def whole(request: dict[str, Any], name: str, least: int, most: int) -> int | None:
    """An integer field within bounds; None when it is absent or null. Raises Refused."""
    value = request.get(name)
    if value is None:
        return None
    if type(value) is not int or not least <= value <= most:  # type(): True is an int to isinstance()
        raise Refused("bad_request", f"{name} must be a whole number from {least} to {most}")
    return value


def flag(request: dict[str, Any], name: str, default: bool) -> bool:
    """A yes or no field; `default` when it is absent or null. Raises Refused."""
    value = request.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise Refused("bad_request", f"{name} must be true or false")
    return value


def path(context: Context, request: dict[str, Any], name: str = "path") -> bytes:
    """An absolute path without "." and empty parts; what is relative starts at home. Raises Refused.

    ".." stays: only the kernel knows where it leads. Nothing here confines: the sandbox's own root does.
    """
    value = request.get(name)
    if not isinstance(value, str) or not value or "\0" in value:
        raise Refused("bad_request", f"{name} must be a non-empty text without NUL")
    try:
        raw = os.path.join(context.home, value).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise Refused("bad_request", f"{name} must be Unicode text") from None
    if len(raw) > PATH_BYTES:
        raise Refused("bad_request", f"{name} must not exceed {PATH_BYTES} bytes")
    return b"/" + b"/".join(part for part in raw.split(b"/") if part not in {b"", b"."})


class Slices:
    """Runs a generator a few milliseconds at a time, so that long work never holds the loop."""

    def __init__(self, loop: Loop, steps: Steps, failed: Callable[[OSError | Refused], None]) -> None:
        self._loop = loop
        self._steps = steps
        self._failed = failed
        self._timer: Timer | None = None
        self._run()

    def _run(self) -> None:
        until = time.monotonic() + SLICE
        try:
            for _ in self._steps:
                if time.monotonic() >= until:
                    self._timer = self._loop.call_later(0, self._run)
                    return
        except (OSError, Refused) as error:
            self._failed(error)

    def stop(self) -> None:
        """Abandon the rest; the generator's own `finally` gives back what it holds."""
        if self._timer is not None:
            self._timer.cancel()
        self._steps.close()


class Sliced(Handler):
    """Serves a stream by one generator, which ends the stream itself; CANCEL abandons it."""

    def __init__(self, context: Context, stream: Stream, steps: Steps) -> None:
        self._stream = stream
        stream.handler = self
        self._slices = Slices(context.loop, steps, lambda error: refuse(stream, error))

    def on_cancel(self) -> None:
        """Stop where it is; what was done stays done."""
        self._slices.stop()
        self._stream.end({})
