"""Every way to isolate that is here, by the same steps: from nothing, from the pool, on a live sandbox, and lying idle.

Beside them the container tools started by hand, as anybody can: what our warm pools are there to hide.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ringfence.bench.calm import Gate
from ringfence.bench.exchange import Connection
from ringfence.bench.groups import Groups
from ringfence.bench.latency import Pace
from ringfence.bench.peers import Found
from ringfence.bench.programs import PLAIN, timed
from ringfence.bench.server import Measured, settled
from ringfence.bench.stats import Summary, summary
from ringfence.domain.errors import PlatformFault
from ringfence.domain.limits import Limits

TEMPLATE: Final = "base"
WORD: Final = "here"
BY_HAND: Final = ("runc", "crun", "runsc")
IDLE: Final = 8  # sandboxes that lie idle while they are weighed
COLD: Final = 5
MIB: Final = 2**20
STEPS: Final = ("cold", "warm_code", "warm_exec", "live_exec", "live_code", "stop")


@dataclass(slots=True)
class Way:
    """One runtime being measured over one connection."""

    connection: Connection
    name: str
    shape: int = 0  # each cold start asks for limits nobody asked for before: no pool has it ready

    def _call(self, method: str, path: str, body: Any = None) -> tuple[Any, float]:
        answer, taken, _ = self.connection.timed(self.connection.target.request(method, path, body))
        return answer.json(), taken

    def _first(self, path: str, body: dict[str, Any]) -> float:
        """Milliseconds to the first byte of output."""
        request = self.connection.target.request("POST", path, {**body, "stream": True})
        answer, _, first = self.connection.timed(request, b'{"stdout":"')
        if first is None:
            raise PlatformFault(f"{self.name} wrote nothing: {answer.body[:300]!r}", code="no_output")
        return first

    def settled(self) -> None:
        """Wait until the pools hold what they want: what follows measures taking, not making."""
        settled(self.connection, self.name)

    def cold(self) -> float:
        """Create with nothing ready."""
        self.shape += 1
        limits = {"processes": Limits().processes + self.shape}
        made, taken = self._call("POST", "/v1/sandboxes", {**self._ask(), "limits": limits})
        self._call("DELETE", f"/v1/sandboxes/{made['id']}")
        return taken

    def _ask(self) -> dict[str, Any]:
        return {"template": TEMPLATE, "isolation": self.name}

    def warm(self, program: dict[str, Any]) -> float:
        """A one-shot run out of the pool, to its first output."""
        self.settled()
        return self._first("/v1/runs", {**self._ask(), **program})

    def live(self, rounds: int, until: float) -> dict[str, list[float]]:
        """Programs in one sandbox that stays, and its end."""
        self.settled()
        spent: dict[str, list[float]] = {"live_exec": [], "live_code": [], "stop": []}
        made, _ = self._call("POST", "/v1/sandboxes", self._ask())
        place = f"/v1/sandboxes/{made['id']}"
        try:
            for turn in range(rounds + 1):
                if turn > 1 and time.monotonic() > until:
                    break
                echo = self._first(f"{place}/processes", {"argv": ["/bin/echo", WORD]})
                code = self._first(f"{place}/processes", {"code": f"print('{WORD}')"})
                if turn:  # the first one finds nothing warm inside
                    spent["live_exec"].append(echo)
                    spent["live_code"].append(code)
        finally:
            spent["stop"].append(self._call("DELETE", place)[1])
        return spent

    def idle_mib(self, groups: Groups) -> float | None:
        """Memory charged per sandbox that nobody has asked anything."""
        self.settled()
        before = groups.charged_bytes()
        made = [self._call("POST", "/v1/sandboxes", self._ask())[0]["id"] for _ in range(IDLE)]
        self.settled()
        after = groups.charged_bytes()
        for one in made:
            self._call("DELETE", f"/v1/sandboxes/{one}")
        if before is None or after is None:
            return None
        return round((after - before) / IDLE / MIB, 3)


def groups_of(server: Measured, runtime: str) -> Groups:
    """The runtime's own groups: the jail's carry the server's name, another's that and its own."""
    if runtime == "jail":
        return server.groups

    def beside(path: Path | None) -> Path | None:
        return path.with_name(f"{path.name}-{runtime}") if path is not None else None

    return Groups(beside(server.groups.memory), beside(server.groups.cpu), server.groups.unified)


def measure(server: Measured, found: Sequence[Found], pace: Pace, gate: Gate) -> dict[str, Any]:
    """Every runtime that is here, and every tool by hand; milliseconds, and MiB per idle sandbox."""
    report: dict[str, Any] = {"template": TEMPLATE, "runtimes": {}, "by_hand": {}, "absent": {}}
    with Connection(server.target) as connection:
        offered = connection.ask("GET", "/v1/runtimes")["runtimes"]
        usable = [each["name"] for each in offered if each["available"]]
        report["absent"] = {each["name"]: each["reason"] for each in offered if not each["available"]}
        for name in usable:
            until = time.monotonic() + pace.seconds / len(usable)
            report["runtimes"][name] = _one(Way(connection, name), groups_of(server, name), pace.rounds, until, gate)
    for tool in found:
        if tool.peer.name in BY_HAND and PLAIN.name in tool.commands:
            report["by_hand"][tool.peer.name] = summary(
                [timed(tool.commands[PLAIN.name], PLAIN.printed) for _ in range(COLD)]
            )
    return report


def _one(way: Way, groups: Groups, rounds: int, until: float, gate: Gate) -> dict[str, Any]:
    code, echo = {"code": f"print('{WORD}')"}, {"argv": ["/bin/echo", WORD]}
    way.warm(code)  # the first of all makes the zygote, or the carried interpreter
    spent: dict[str, list[float]] = {step: [] for step in STEPS}
    steps: list[tuple[str, Callable[[], float], int]] = [
        ("warm_code", lambda: way.warm(code), rounds),
        ("warm_exec", lambda: way.warm(echo), rounds),
        ("cold", way.cold, COLD),
    ]
    for step, take, times in steps:
        for turn in range(times):
            if turn > 2 and time.monotonic() > until:
                break
            gate.wait()
            spent[step].append(take())
    for step, values in way.live(rounds, until).items():
        spent[step] += values
    idle: float | None = None
    with contextlib.suppress(OSError):
        idle = way.idle_mib(groups)
    found: dict[str, Summary | None] = {step: summary(values) for step, values in spent.items()}
    return {**found, "idle_charged_mib": idle}
