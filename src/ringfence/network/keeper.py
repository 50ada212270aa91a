"""The node's handle on the gate: starts it, tells it the policies, and starts another when it dies.

The node keeps no copy of the doors: while there is no gate, nobody listens, and the kernel refuses every connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from ringfence.domain.egress import Floor, Policy, policy_to
from ringfence.domain.errors import PlatformFault, SandboxRefused
from ringfence.domain.gateways import Gateway, gateway_to
from ringfence.network import words
from ringfence.network.router import Doors

GATE: Final = "ringfence.network.gate"
READY_SECONDS: Final = 20.0
ANSWER_SECONDS: Final = 10.0
AGAIN_SECONDS: Final = 0.2  # between a gate's death and the next
GONE_SECONDS: Final = 10.0
READ: Final = 256 * 1024
_SOURCE: Final = Path(__file__).parent.parent.parent
_TEXTS: Final = ("sandbox", "verdict", "protocol", "name", "address", "rule", "reason", "method", "path")
_NUMBERS: Final = ("port", "sent", "received", "seconds", "swallowed")
Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ward:
    """A sandbox the gate is told about."""

    id: str
    address: IPv4Address
    policy: Policy


def resolvers_of(text: str) -> tuple[tuple[str, int], ...]:
    """The name servers in the text of a resolv.conf; the loopback where it has none, as the C library does."""
    rows = (line.split() for line in text.splitlines())
    found = tuple((row[1].partition("%")[0], 53) for row in rows if len(row) > 1 and row[0] == "nameserver")
    return found[:3] or (("127.0.0.1", 53),)


def event_from(words_: Any) -> Event | None:
    """An event as it may be passed on: known fields of the right kind and bounded size. The gate reads strangers."""
    if not isinstance(words_, dict):
        return None
    event: Event = {name: str(words_.get(name, ""))[:500] for name in _TEXTS}
    for name in _NUMBERS:
        value = words_.get(name, 0)
        event[name] = value if isinstance(value, int | float) and not isinstance(value, bool) else 0
    return event


class Process:
    """One running gate, as long as it runs."""

    def __init__(self, control: socket.socket, pid: int) -> None:
        self._control = control
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)

    @classmethod
    def launch(cls, doors: Doors, config: dict[str, Any], name: str) -> Process:
        """Start it in the network namespace of the calling thread, and give the doors away.

        `name` is on its command line for people and for whoever counts what is left; it reads it not.
        """
        ours, theirs = socket.socketpair()
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, 2, 1),
            (os.POSIX_SPAWN_DUP2, theirs.fileno(), 3),
        ]
        argv = [sys.executable, "-B", "-s", "-m", GATE, *([name] if name else [])]
        try:
            pid = os.posix_spawn(sys.executable, argv, {"PYTHONPATH": str(_SOURCE)}, file_actions=actions)
            socket.send_fds(ours, [json.dumps(config).encode()], [door.fileno() for door in doors.all])
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
            doors.close()
        return cls(ours, pid)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Its words, and ours to it."""
        return await asyncio.open_connection(sock=self._control)

    def kill(self) -> None:
        """End it. Harmless when it has ended: a number that was given back may be another process's by now."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    async def end(self) -> None:
        """Kill it, and wait until it is gone."""
        self.kill()
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        loop.add_reader(self.pidfd, gone.set)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GONE_SECONDS):
                await gone.wait()
        loop.remove_reader(self.pidfd)
        os.close(self.pidfd)
        self.pidfd = -1
        _reap(self.pid)


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


class Keeper:
    """Keeps one gate alive, and keeps it informed."""

    def __init__(
        self,
        doors: Callable[[], Awaitable[Doors]],
        resolvers: tuple[tuple[str, int], ...],
        floor: Floor,
        heard: Callable[[Event], None],
        gateways: Mapping[str, Gateway] = MappingProxyType({}),
        name: str = "",
    ) -> None:
        self._doors = doors
        self._floor = floor
        self._heard = heard
        self._name = name
        self._config = {
            "resolvers": [list(server) for server in resolvers],
            "floor": {
                "closed": [str(network) for network in floor.closed],
                "opened": [str(network) for network in floor.opened],
                "names": list(floor.names),
            },
            "gateways": {name: gateway_to(gateway) for name, gateway in gateways.items()},
        }
        self._wards: dict[IPv4Address, Ward] = {}
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._process: Process | None = None
        self._ready = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        self.deaths = 0

    @property
    def pid(self) -> int:
        """The gate's process; 0 while there is none."""
        return self._process.pid if self._process is not None and self._ready.is_set() else 0

    async def open(self) -> None:
        """Return when a gate serves. Raises SandboxRefused."""
        self._keeping = asyncio.get_running_loop().create_task(self._keep())
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._ready.wait()
        except TimeoutError:
            await self.close()
            raise SandboxRefused("the gate does not start", code="no_gate") from None

    async def _keep(self) -> None:
        while True:
            try:
                await self._one_life()
            except (OSError, words.BadWords, SandboxRefused) as error:
                os.write(2, f"ringfence node: the gate failed: {error}\n"[:500].encode())
            self.deaths += 1
            await asyncio.sleep(AGAIN_SECONDS)

    async def _one_life(self) -> None:
        """Start a gate, tell it everything there is to know, hear it until it is gone."""
        process = self._process = Process.launch(await self._doors(), self._config, self._name)
        try:
            reader, self._writer = await process.connect()
            parser = words.Parser(words.MOST_TO_NODE)
            while data := await reader.read(READ):
                for message in parser.feed(data):
                    self._hear(message)
        finally:
            self._ready.clear()
            self._lost()
            await process.end()

    def _hear(self, message: dict[str, Any]) -> None:
        if "ready" in message:
            for ward in self._wards.values():
                self._send({"do": "set", **_told(ward)})
            self._ready.set()
        elif "event" in message:
            event = event_from(message["event"])
            if event is not None:
                self._heard(event)
        waiting = self._waiting.pop(message.get("done", 0), None)
        if waiting is not None and not waiting.done():
            error = message.get("error")
            if error:
                waiting.set_exception(PlatformFault(f"the gate refuses: {error!s:.300}"))
            else:
                waiting.set_result(None)

    def _lost(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(PlatformFault("the gate died"))

    def _send(self, message: dict[str, Any]) -> asyncio.Future[None]:
        number = next(self._numbers)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.add_done_callback(lambda future: future.cancelled() or future.exception())
        if self._writer is None:
            done.set_exception(PlatformFault("there is no gate at the moment"))
            return done
        self._waiting[number] = done
        self._writer.write(words.encode({**message, "number": number}))
        return done

    async def set(self, sandbox_id: str, address: IPv4Address, policy: Policy) -> None:
        """Let a sandbox reach what its policy allows, from when this returns. Raises PlatformFault.

        Connections that a changed policy does not allow are cut before this returns.
        """
        ward = self._wards[address] = Ward(sandbox_id, address, policy)
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._ready.wait()  # one that died is replaced within a second
        except TimeoutError:
            raise PlatformFault("there is no gate") from None
        await self._answered(self._send({"do": "set", **_told(ward)}))

    async def forget(self, address: IPv4Address) -> None:
        """Cut everything a sandbox has open, and let it reach nothing. Never fails: a gate that died has forgotten."""
        if self._wards.pop(address, None) is not None:
            with contextlib.suppress(PlatformFault):
                await self._answered(self._send({"do": "forget", "address": str(address)}))

    async def _answered(self, done: asyncio.Future[None]) -> None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await done
        except TimeoutError:
            if self._process is not None:
                self._process.kill()  # it is stuck: end it, and with it whatever it still lets pass
            raise PlatformFault("the gate does not answer") from None

    async def close(self) -> None:
        """End the gate."""
        if self._keeping is not None:
            self._keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeping
            self._keeping = None


def _told(ward: Ward) -> dict[str, Any]:
    words = {"sandbox": ward.id, "address": str(ward.address), "policy": policy_to(ward.policy)}
    return {**words, "gateway": ward.policy.gateway}
