"""Idle density: many sandboxes alive at once, what each costs by three counts, and whether every one still answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from ringfence.bench.exchange import Connection, Target
from ringfence.bench.processes import machine_cost, meminfo, pss_bytes
from ringfence.bench.server import Measured
from ringfence.domain.errors import RingfenceError

MIB: Final = 2**20
HANDS: Final = 8  # connections that create, ask and stop
TTL_SECONDS: Final = 7200
STEADY_SECONDS: Final = 5.0
STEADY_BYTES: Final = 256 * 1024
WORDS: Final = "alive"
WHOLE: Final = 4096.0  # MiB: the memory of the small machine that densities are told for


@dataclass(frozen=True, slots=True)
class Weight:
    """What is held at one moment, by each count, in bytes."""

    charged: int | None
    available: int
    cost: dict[str, int]
    server: int

    @classmethod
    def now(cls, server: Measured) -> Weight:
        """As of now."""
        processes = pss_bytes(server.pids.values())
        return cls(server.groups.charged_bytes(), meminfo().get("MemAvailable", 0), machine_cost(), processes)


def spread(target: Target, calls: Sequence[bytes], seen: Callable[[int, Any], None]) -> int:
    """Make every call, HANDS at a time; `seen` gets index and decoded answer. How many failed."""

    def hand(first: int) -> int:
        failed = 0
        with Connection(target) as connection:
            for at in range(first, len(calls), HANDS):
                try:
                    seen(at, connection.exchange(calls[at]).json())
                except (RingfenceError, OSError):
                    failed += 1
        return failed

    with ThreadPoolExecutor(HANDS) as pool:
        return sum(pool.map(hand, range(HANDS)))


def steady(server: Measured) -> None:
    """Wait until what is charged no longer moves: pools shrink and freed memory comes back a moment later."""
    until, last = time.monotonic() + STEADY_SECONDS, server.groups.charged_bytes()
    while last is not None and time.monotonic() < until:
        time.sleep(0.5)
        now = server.groups.charged_bytes() or 0
        if abs(now - last) < STEADY_BYTES:
            return
        last = now


class Crowd:
    """N sandboxes of one template, created, asked and stopped through the API."""

    def __init__(self, server: Measured, template: str, count: int) -> None:
        self._server = server
        self._template = template
        self._count = count
        self._ids: dict[int, str] = {}

    def measure(self) -> dict[str, Any]:
        """Everything, with the sandboxes gone again at the end."""
        steady(self._server)
        before = Weight.now(self._server)
        base_pss = before.server + pss_bytes(self._server.inside())
        try:
            creating = self._timed(self._create)
            steady(self._server)
            idle, pss = Weight.now(self._server), pss_bytes(self._server.inside())
            answered, asking = self._ask()
            used = Weight.now(self._server)
            status = self._connection_ask("GET", "/v1/status")
        finally:
            stopping = self._timed(self._stop)
        alive = len(self._ids)
        found = {
            "template": self._template,
            "asked_for": self._count,
            "alive": alive,
            "alive_by_status": status["sandboxes"],
            "execs_answered": answered,
            "create_seconds": creating,
            "exec_seconds": asking,
            "stop_seconds": stopping,
        }
        return {**found, **_each(before, idle, used, pss, base_pss, alive)} if alive else found

    def _timed(self, act: Callable[[], Any]) -> float:
        began = time.monotonic()
        act()
        return round(time.monotonic() - began, 2)

    def _connection_ask(self, method: str, path: str) -> Any:
        with Connection(self._server.target) as connection:
            return connection.ask(method, path)

    def _create(self) -> None:
        body = {"template": self._template, "ttl_seconds": TTL_SECONDS}
        call = self._server.target.request("POST", "/v1/sandboxes", body)
        spread(self._server.target, [call] * self._count, lambda at, made: self._ids.update({at: made["id"]}))

    def _ask(self) -> tuple[int, float]:
        said: dict[int, str | None] = {}
        body = {"argv": ["/bin/echo", WORDS]}
        calls = [
            self._server.target.request("POST", f"/v1/sandboxes/{each}/processes", body) for each in self._ids.values()
        ]
        began = time.monotonic()
        spread(self._server.target, calls, lambda at, result: said.update({at: result["stdout"]}))
        return sum(text == f"{WORDS}\n" for text in said.values()), round(time.monotonic() - began, 2)

    def _stop(self) -> None:
        calls = [self._server.target.request("DELETE", f"/v1/sandboxes/{each}") for each in self._ids.values()]
        spread(self._server.target, calls, lambda _at, _sandbox: None)


def _each(before: Weight, idle: Weight, used: Weight, pss: int, base_pss: int, alive: int) -> dict[str, Any]:
    """Per sandbox, in MiB, and how many would fit beside what the server itself takes."""

    def charged(after: Weight) -> float | None:
        if before.charged is None or after.charged is None:
            return None
        return round((after.charged - before.charged) / alive / MIB, 3)

    idle_charged = charged(idle)
    fixed = base_pss / MIB
    kinds = {name: round((idle.cost[name] - before.cost[name]) / alive / MIB, 3) for name in idle.cost}
    return {
        "idle_charged_mib": idle_charged,
        "used_charged_mib": charged(used),
        "pss_mib": round(pss / alive / MIB, 3) if pss else None,  # the kernel may not let us look
        "node_and_api_mib": round((idle.server - before.server) / alive / MIB, 3),
        "machine_mib": round(sum(kinds.values()), 3),
        "machine_mib_by_kind": kinds,
        "available_mib": round((before.available - idle.available) / alive / MIB, 3),
        "server_mib": round(fixed, 1),
        "fit_in_4_gib": int((WHOLE - fixed) / idle_charged) if idle_charged and idle_charged > 0 else None,
    }
