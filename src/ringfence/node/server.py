"""The node's one door: a Unix socket that speaks frames, open to the api's uid and to root."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from ringfence.domain.errors import BadRequest, Forbidden, PlatformFault, RingfenceError
from ringfence.domain.limits import Limits, limits_from
from ringfence.domain.process import How
from ringfence.domain.sandbox import START_BYTES
from ringfence.guest import frames
from ringfence.node.beginning import begin
from ringfence.node.building import Intake, building_sandbox, pulled_image, works_of
from ringfence.node.link import GuestLink
from ringfence.node.live import Live
from ringfence.node.pausing import awake, hold, left, let_go, restored
from ringfence.node.relay import Relay, after
from ringfence.node.resets import reset, settled
from ringfence.node.supervisor import MAX_TTL, Supervisor
from ringfence.node.trusted import change_secret

MAX_CONNECTIONS: Final = 64
MOST_LIMITS: Final = 256  # sets of limits remembered as checked
MAX_EARLY: Final = frames.WINDOW  # frames of at least one byte each
_PEER: Final = struct.Struct("3i")


def split(payload: bytes) -> tuple[dict[str, Any], bytes]:
    """An OPEN from the api: our header, then bytes for the guest. Raises BadRequest."""
    try:
        size = int.from_bytes(payload[:4], "big")
        header = json.loads(payload[4 : 4 + size])
        if len(payload) < 4 + size or not isinstance(header["verb"], str):
            raise ValueError("short")
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BadRequest("not a request the node knows", code="bad_header") from None
    return header, payload[4 + size :]


def join(header: dict[str, Any], guest: bytes = b"") -> bytes:
    """An END for the api: our header, then the guest's own answer, unread."""
    data = json.dumps(header).encode()
    return len(data).to_bytes(4, "big") + data + guest


def _furnishing(ask: dict[str, Any]) -> bytes:
    """The api's words for a new sandbox's agent: variables, and one file."""
    words = ask.get("furnish")
    return json.dumps({**words, "op": "furnish"}).encode() if words else b""


class Call:
    """One stream of one api connection."""

    def __init__(self, connection: Connection, stream: int) -> None:
        self._connection = connection
        self.stream = stream
        self.relay: Relay | Intake | None = None
        self.task: asyncio.Task[None] | None = None
        self.early: list[tuple[int, bytes]] = []  # frames that came before the guest stream was open
        self.holder: object = connection
        self.unsubscribe: Callable[[], None] | None = None
        self.one_shot = False
        self.quiet = False  # whoever asked takes the answer in one piece: that it started is no news

    def send(self, type_: int, payload: bytes = b"") -> None:
        """One frame up."""
        if type_ == frames.CONTROL and self.quiet:
            return
        self._connection.write(frames.encode(type_, self.stream, payload))

    def throttle(self, link: GuestLink) -> None:
        """Hold the guest while the api is behind with reading."""
        self._connection.throttle(link)

    def end(self, header: dict[str, Any], guest: bytes = b"") -> None:
        """Answer, and forget the stream."""
        self._connection.forget(self.stream)
        self.send(frames.END, join(header, guest))

    def fail(self, error: RingfenceError) -> None:
        """Answer with an error."""
        body = {"code": error.code, "cause": error.cause, "remediation": error.remediation, "status": error.status}
        self.end({"error": body})

    def attach(self, relay: Relay | Intake) -> None:
        """From now on frames go straight through."""
        self.relay = relay
        for type_, payload in self.early:
            relay.from_above(type_, payload)
        self.early.clear()

    def hear(self, type_: int, payload: bytes) -> None:
        """One frame from above."""
        if type_ == frames.CANCEL:
            self.cancel()
        elif self.relay is not None:
            self.relay.from_above(type_, payload)
        elif len(self.early) < MAX_EARLY:
            self.early.append((type_, payload))
        else:
            self._connection.abort()  # more frames than credit allows bytes

    def cancel(self) -> None:
        """The asker lost interest: what it alone wanted stops."""
        if self.unsubscribe is not None:
            self.unsubscribe()
            self.end({})
        if self.relay is not None and not self.relay.ended.done():
            if self.one_shot:
                self.relay.condemn(How.STOPPED, "its client went away")
            else:
                self.relay.from_above(frames.CANCEL, b"")
        elif self.relay is None and self.task is not None:
            self.task.cancel()
            self.end({})


class Verbs:
    """What the node does on the api's word: one method a verb."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.node = self._node = supervisor
        self._known: dict[tuple[Any, ...], Limits] = {}
        self.table: dict[str, Callable[[Call, dict[str, Any], bytes], Awaitable[None]]] = {
            name: getattr(self, f"verb_{name}")
            for name in (
                "run", "create", "open", "get", "list", "extend", "allow", "secret", "reset", "stop",
                "pause", "unpause", "restore", "wake",
                "pull", "build", "publish", "unpublish",
                "templates", "runtimes", "status", "events", "warm",
            )
        }  # fmt: skip

    def _limits(self, wanted: dict[str, Any]) -> Limits:
        """Checked again on this side of the socket; the same words give the same limits."""
        key = (tuple(wanted.items()), tuple(map(type, wanted.values())))  # True is 1 to a dict
        known = self._known.get(key)
        if known is None:
            known = limits_from(wanted, Limits())
            if len(self._known) >= MOST_LIMITS:
                self._known.clear()
            self._known[key] = known
        return known

    async def verb_run(self, call: Call, ask: dict[str, Any], guest: bytes) -> None:
        """One program in a sandbox of its own: claimed, run, answered, and only then torn down."""
        limits = self._limits(ask["limits"])
        live, timings = await self._node.claim(ask, limits, limits.wall_seconds + 60, one_shot=True)
        try:
            relay = self._node.open(live, guest, call, program=True)
            seconds = min(limits.wall_seconds, float(ask.get("timeout", limits.wall_seconds)))
            why = f"ran longer than the limit of {seconds:g} seconds"
            call_off = after(relay, seconds, How.TIMED_OUT, why)
            call.one_shot, call.quiet = True, ask.get("quiet") is True
            call.attach(relay)
            ended = await relay.ended
            call_off()
            header = self._node.account(relay, ended, timings, time.monotonic())
            call.end(header, ended.answer or b"")
        finally:
            # Beside the answer, not before it: the caller need not wait for the kernel to take memory apart.
            self._node.end_beside(live, How.STOPPED, "its one run is over")

    async def verb_create(self, call: Call, ask: dict[str, Any], guest: bytes) -> None:
        """A sandbox that stays until its time is over or its owner stops it. `guest` is the program it begins with."""
        limits = self._limits(ask["limits"])
        if len(guest) > START_BYTES:
            raise BadRequest("the program it begins with is too large", code="bad_header")
        live, timings = await self._node.claim(ask, limits, min(float(ask["ttl_seconds"]), MAX_TTL), one_shot=False)
        live.begins, live.furnishing, begun = guest, _furnishing(ask), False
        try:
            refused = await begin(live)
            begun = not refused
        finally:
            if not begun:
                self._node.end_beside(live, How.STOPPED, "its program could not be started")
        call.end({"sandbox": live.describe(), "timings": timings}, refused)

    async def verb_open(self, call: Call, ask: dict[str, Any], guest: bytes) -> None:
        """A stream into a live sandbox."""
        live = await self._find(ask)
        kind = ask.get("kind", "program")
        relay = self._node.open(live, guest, call, program=kind in {"program", "kernel"}, capped=kind != "kernel")
        call.attach(relay)
        ended = await relay.ended
        call.end(self._node.account(relay, ended, {}, time.monotonic()), ended.answer or b"")

    async def _find(self, ask: dict[str, Any], *, held: bool = False) -> Live:
        await settled(self._node, ask["tenant"], ask["sandbox"])
        return self._node.table.get(ask["tenant"], ask["sandbox"], held=held)

    async def verb_get(self, call: Call, ask: dict[str, Any], _: bytes) -> None:
        """One sandbox."""
        live = await self._find(ask, held=True)
        call.end({"sandbox": {**live.describe(), "usage": self._node.usage(live)}})

    async def verb_list(self, call: Call, ask: dict[str, Any], _: bytes) -> None:
        """A tenant's sandboxes, or all."""
        found = self._node.table.of(ask.get("tenant"))
        call.end({"sandboxes": [live.describe() for live in found if not live.building]})

    async def verb_extend(self, call: Call, ask: dict[str, Any], _: bytes) -> None:
        """A new expiry, counted from now."""
        live = await self._find(ask)
        live.live_for(min(float(ask["ttl_seconds"]), MAX_TTL))
        live.touch()
        call.end({"sandbox": live.describe()})

    async def verb_allow(self, call: Call, ask: dict[str, Any], _: bytes) -> None:
        """Another egress policy; in force when this is answered."""
        live = await self._find(ask)
        await self._node.allow(live, ask["egress"])
        call.end({"sandbox": live.describe()})

    async def verb_reset(self, call: Call, ask: dict[str, Any], _: bytes) -> None:
        """Make a sandbox anew; answered when it can be used, and what it begins with runs."""
        refused = await reset(self._node, await self._find(ask))
        call.end({"sandbox": (await self._find(ask)).describe()}, refused)

    async def verb_secret(self, call: Call, ask: dict[str, Any], _: bytes) -> None:
        """Another value, other hosts or places for a secret of a tenant's, or its end; in force when answered."""
        await change_secret(self._node.table, ask)
        call.end({})

    async def verb_stop(self, call: Call, ask: dict[str, Any], _: bytes) -> None:
        """End a sandbox; answered when nothing of it is left."""
        live = await self._find(ask, held=True)
        usage = self._node.usage(live)
        reason = str(ask.get("reason") or "stopped by its owner")[:500]
        await self._node.stop(live, How.STOPPED, reason)
        call.end({"sandbox": {**live.describe(), "usage": usage, "exit": {"how": "stopped", "reason": reason}}})

    async def verb_pause(self, call: Call, ask: dict[str, Any], guest: bytes) -> None:
        """A stream into a sandbox that nobody else comes to from now on: until it is stopped, or let go on."""
        live = await self._find(ask)
        relay = hold(self._node, live, call.holder, guest, call, expired=ask.get("expired") is True)
        call.attach(relay)
        ended = await relay.ended
        header = self._node.account(relay, ended, {}, time.monotonic())
        begins = base64.b64encode(live.begins).decode()
        call.end({**header, "described": live.describe(), "begins": begins}, ended.answer or b"")

    async def verb_unpause(self, call: Call, ask: dict[str, Any], _: bytes) -> None:
        """Nothing came of its pausing: it goes on, without the programs it had."""
        live = await self._find(ask, held=True)
        if live.held is call.holder:
            let_go(self._node, live, str(ask.get("reason") or "")[:500])
        call.end({"sandbox": live.describe()})

    async def verb_restore(self, call: Call, ask: dict[str, Any], guest: bytes) -> None:
        """A sandbox that was paused, to be given its files. `guest` is what it begins with, once it has them."""
        limits, ttl = self._limits(ask["limits"]), min(float(ask["ttl_seconds"]), MAX_TTL)
        live, timings = await restored(self._node, ask, limits, ttl, guest)
        live.furnishing = _furnishing(ask)
        call.end({"sandbox": live.describe(), "timings": timings})

    async def verb_wake(self, call: Call, ask: dict[str, Any], _: bytes) -> None:
        """It has its files."""
        live = await self._find(ask)
        await awake(self._node, live, min(float(ask["ttl_seconds"]), MAX_TTL))
        call.end({"sandbox": live.describe()})

    async def verb_pull(self, call: Call, ask: dict[str, Any], _: bytes) -> None:
        """An image to build upon, for as long as the asker holds this stream; how it goes is told meanwhile."""

        def tell(text: str) -> None:
            call.send(frames.CONTROL, json.dumps({"said": text}).encode())

        async with pulled_image(self._node, ask, tell) as pulled:
            call.send(frames.CONTROL, json.dumps({"pulled": pulled}).encode())
            await asyncio.get_running_loop().create_future()

    async def verb_build(self, call: Call, ask: dict[str, Any], _: bytes) -> None:
        """A sandbox whose root may be changed, for as long as the asker holds this stream."""
        async with building_sandbox(self._node, ask, self._limits(ask["limits"])) as live:
            call.send(frames.CONTROL, json.dumps({"sandbox": live.id}).encode())
            await asyncio.wait([live.link.lost])
        call.end({})

    async def verb_publish(self, call: Call, ask: dict[str, Any], _: bytes) -> None:
        """Make a template of what a build left, which its asker sends; or of what is here already."""
        call.end(await works_of(self._node).publish(self._node, call, ask))

    async def verb_unpublish(self, call: Call, ask: dict[str, Any], _: bytes) -> None:
        """Forget templates that a tenant has built."""
        await works_of(self._node).unpublish(ask["tenant"], ask["names"])
        self._node.forgotten(ask["names"])
        call.end({})

    async def verb_templates(self, call: Call, _: dict[str, Any], __: bytes) -> None:
        """Every built template."""
        call.end({"templates": self._node.templates()})

    async def verb_runtimes(self, call: Call, _: dict[str, Any], __: bytes) -> None:
        """What isolates here, and how well."""
        call.end({"runtimes": self._node.runtimes()})

    async def verb_status(self, call: Call, _: dict[str, Any], __: bytes) -> None:
        """Numbers for operators."""
        call.end(self._node.status())

    async def verb_warm(self, call: Call, ask: dict[str, Any], _: bytes) -> None:
        """Fill a pool before it is needed."""
        self._node.warm(ask["tenant"], ask["template"])
        call.end({})

    async def verb_events(self, call: Call, _: dict[str, Any], __: bytes) -> None:
        """Everything that happens, until the asker leaves."""
        call.unsubscribe = self._node.listen(
            lambda event: call.send(frames.CONTROL, json.dumps({"event": event}).encode())
        )


class Connection(asyncio.Protocol):
    """One api process."""

    def __init__(self, verbs: Verbs, allowed: frozenset[int], open_connections: set[Connection]) -> None:
        self._verbs = verbs
        self._allowed = allowed
        self._all = open_connections
        self._parser = frames.Parser()
        self._calls: dict[int, Call] = {}
        self._behind = False
        self._held: set[GuestLink] = set()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Admit the api and root, nobody else."""
        self._transport = transport  # type: ignore[assignment]
        peer = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        if _PEER.unpack(peer)[1] not in self._allowed or len(self._all) >= MAX_CONNECTIONS:
            transport.abort()  # type: ignore[attr-defined]
            return
        self._all.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Whatever only this api wanted stops; sandboxes with a time to live go on."""
        self._all.discard(self)
        for call in list(self._calls.values()):
            call.cancel()
        self._calls.clear()
        left(self._verbs.node, self)
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Parse and act."""
        try:
            for frame in self._parser.feed(data):
                self._dispatch(frame)
        except frames.FrameError:
            self.abort()

    def pause_writing(self) -> None:
        """The api reads more slowly than its guests speak."""
        self._behind = True

    def resume_writing(self) -> None:
        """It caught up: hear its guests again."""
        self._behind = False
        held, self._held = self._held, set()
        for link in held:
            link.hold(held=False)

    def throttle(self, link: GuestLink) -> None:
        """Hold a guest that speaks while the api is behind."""
        if self._behind and link not in self._held:
            self._held.add(link)
            link.hold(held=True)

    def abort(self) -> None:
        """Hang up now."""
        if self._transport is not None:
            self._transport.abort()

    def _dispatch(self, frame: frames.Frame) -> None:
        if frame.type != frames.OPEN:
            call = self._calls.get(frame.stream)
            if call is not None:
                call.hear(frame.type, frame.payload)
            return
        if frame.stream in self._calls:
            raise frames.FrameError("a stream id is used twice")
        call = self._calls[frame.stream] = Call(self, frame.stream)
        call.task = asyncio.get_running_loop().create_task(self._serve(call, frame.payload))

    async def _serve(self, call: Call, payload: bytes) -> None:
        try:
            ask, guest = split(payload)
            verb = self._verbs.table.get(ask["verb"])
            if verb is None:
                raise BadRequest(f"no verb {ask['verb']!r:.40}", code="unknown_verb")
            await verb(call, ask, guest)
        except RingfenceError as error:
            call.fail(error)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            call.fail(BadRequest(f"the request lacks or garbles {error!s:.200}", code="bad_header"))
        except (OSError, RuntimeError) as error:
            call.fail(PlatformFault(f"the node failed: {error}"))

    def forget(self, stream: int) -> None:
        """A stream was answered."""
        self._calls.pop(stream, None)

    def write(self, data: bytes) -> None:
        """Send; credit bounds what can pile up here."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)


def _clear_place(path: Path) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if path.parent.stat().st_uid != os.geteuid():
        raise Forbidden(f"{path.parent} belongs to somebody else")
    path.unlink(missing_ok=True)


async def listen(supervisor: Supervisor, path: Path, api_uid: int) -> asyncio.Server:
    """Open the door at `path`, for `api_uid` and root only. Raises Forbidden if the place is not ours."""
    _clear_place(path)
    verbs, connections = Verbs(supervisor), set[Connection]()
    allowed = frozenset({0, os.geteuid(), api_uid})
    old = os.umask(0o177)
    try:
        server = await asyncio.get_running_loop().create_unix_server(
            lambda: Connection(verbs, allowed, connections), str(path)
        )
    finally:
        os.umask(old)
    if os.geteuid() == 0 and api_uid:
        os.chown(path, api_uid, -1)
    return server
