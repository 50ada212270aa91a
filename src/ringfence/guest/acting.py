"""File requests served as another of the sandbox's users: each step of one is done with that user's rights.

A request is served by callbacks, from its stream, from timers, from descriptors. All that one request hands out is
wrapped, so that whatever of it runs, runs as the user asked for, and everything else as before.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from ringfence.guest import syscalls as sc
from ringfence.guest.annotations import Any, Final
from ringfence.guest.context import Context, Op
from ringfence.guest.loop import Loop, Timer
from ringfence.guest.steps import KEPT_CAPABILITIES
from ringfence.guest.stream import Handler, Stream

_SWITCH: Final = (1 << sc.CAP_SETUID) | (1 << sc.CAP_SETGID)


class Acting:
    """With this held, files are another user's."""

    def __init__(self, uid: int, gid: int) -> None:
        self._ids = uid, gid
        self._own = os.geteuid(), os.getegid()

    def __enter__(self) -> None:
        self._become(*self._ids)

    def __exit__(self, *_: object) -> None:
        self._become(*self._own)

    @staticmethod
    def _become(uid: int, gid: int) -> None:
        sc.execute(sc.set_capabilities(_SWITCH, KEPT_CAPABILITIES))
        try:
            os.setegid(gid)
            os.seteuid(uid)
        finally:
            sc.execute(sc.set_capabilities(0, KEPT_CAPABILITIES))

    def wrapped(self, callback: Callable[..., None]) -> Callable[..., None]:
        """The same callback, as that user."""

        def run(*args: Any) -> None:
            with self:
                callback(*args)

        return run


class _Loop:
    """The agent's loop, for one request's own callbacks."""

    def __init__(self, loop: Loop, acting: Acting) -> None:
        self._loop = loop
        self._acting = acting

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        self._loop.add_reader(fd, self._acting.wrapped(callback))

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        return self._loop.call_later(seconds, self._acting.wrapped(callback))


class _Handler(Handler):
    """A request's hooks, as that user."""

    def __init__(self, inner: Handler, acting: Acting) -> None:
        self.on_stdin = acting.wrapped(inner.on_stdin)  # type: ignore[method-assign]
        self.on_eof = acting.wrapped(inner.on_eof)  # type: ignore[method-assign]
        self.on_control = acting.wrapped(inner.on_control)  # type: ignore[method-assign]
        self.on_cancel = acting.wrapped(inner.on_cancel)  # type: ignore[method-assign]
        self.on_room = acting.wrapped(inner.on_room)  # type: ignore[method-assign]


def serve(op: Op, context: Context, stream: Stream, request: dict[str, Any], ids: tuple[int, int]) -> None:
    """Serve one file request as the user with these ids; relative paths start at that user's home all the same."""
    acting = Acting(*ids)
    loop: Any = _Loop(context.loop, acting)
    with acting:
        op(Context(loop=loop, home=context.home), stream, request)
    if not stream.closed:
        stream.handler = _Handler(stream.handler, acting)
