"""Carries the table out: run each probe, look at the neighbour and the host afterwards, judge."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from ringfence.attack.differences import verdict
from ringfence.attack.host import Host
from ringfence.attack.observation import Observation, Ran
from ringfence.attack.table import Probe
from ringfence.attack.target import Neighbour, Target

HELD: Final = "held"
DIFFERS: Final = "differs"
BREACHED: Final = "breached"
STRANGERS: Final = 3  # siblings, where each is started for itself and only chance could make two alike


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the report."""

    name: str
    rows: tuple[int, ...]
    klass: str
    tries: str
    runtime: str
    held: bool
    seen: str
    seconds: float
    differs: str = ""  # why this runtime was judged in a way of its own; empty for the usual one

    @property
    def word(self) -> str:
        """The verdict in one word."""
        if not self.held:
            return BREACHED
        return DIFFERS if self.differs else HELD

    def shape(self) -> dict[str, Any]:
        """As JSON shows it."""
        fields = asdict(self)
        return {"class": fields.pop("klass"), **fields}


class Attack:
    """One round against one target, with a neighbour and planted canaries. Use it in a `with`."""

    def __init__(self, target: Target, extra_tokens: tuple[str, ...] = ()) -> None:
        self._target = target
        self.host = Host(extra_tokens)
        self._secret = secrets.token_hex(16)
        self._neighbour: Neighbour | None = None

    def __enter__(self) -> Self:
        self.host.__enter__()
        try:
            self._neighbour = self._target.neighbour(self._secret)
        except BaseException:
            self.host.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._neighbour is not None:
                self._neighbour.close()
        finally:
            self.host.__exit__(None, None, None)

    def observe(self, probe: Probe) -> Observation:
        """Run the probe's copies, then look around."""
        neighbour = self._neighbour
        facts = {**self.host.facts(), "beside": dict(neighbour.namespaces) if neighbour else {}, **probe.facts}
        runs = self._copies(probe, facts)
        trouble = neighbour.trouble() if neighbour else "there is none"
        if trouble:
            self._renew()
        return Observation(runs, trouble, tuple(self.host.changed()))

    def _copies(self, probe: Probe, facts: dict[str, Any]) -> tuple[Ran, ...]:
        if probe.copies == 1:
            return (self._target.run(probe, facts),)
        copies = probe.copies if self._target.forks else min(probe.copies, STRANGERS)
        with ThreadPoolExecutor(probe.together) as pool:
            return tuple(pool.map(lambda _: self._target.run(probe, facts), range(copies)))

    def _renew(self) -> None:
        """A neighbour that was hurt is replaced, so that the next probe is judged on its own."""
        if self._neighbour is not None:
            self._neighbour.close()
            self._neighbour = self._target.neighbour(self._secret)

    def carry_out(self, probe: Probe) -> Result:
        """One probe, judged."""
        begun = time.monotonic()
        found = verdict(probe, self._target.runtime, self.observe(probe))
        return Result(
            name=probe.name,
            rows=probe.rows,
            klass=str(probe.klass),
            tries=probe.tries,
            runtime=self._target.runtime,
            held=found.held,
            seen=found.seen,
            seconds=time.monotonic() - begun,
            differs=found.differs,
        )


Row = tuple[Result, ...]


def carry_out_all(attacks: Sequence[Attack], probes: Iterable[Probe], tell: Callable[[Row], None]) -> list[Row]:
    """Every probe in turn, on all targets at once; `tell` hears each row as it is complete."""
    rows = []
    with ThreadPoolExecutor(len(attacks)) as pool:
        for probe in probes:
            row = tuple(pool.map(lambda attack, probe=probe: attack.carry_out(probe), attacks))
            tell(row)
            rows.append(row)
    return rows
