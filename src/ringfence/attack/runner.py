"""Carries the table out: run each probe, look at the neighbour and the host afterwards, judge."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Self

from ringfence.attack.host import Host
from ringfence.attack.observation import Observation, Ran, judge
from ringfence.attack.table import Probe
from ringfence.attack.target import Neighbour, Target


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
        with ThreadPoolExecutor(probe.together) as pool:
            return tuple(pool.map(lambda _: self._target.run(probe, facts), range(probe.copies)))

    def _renew(self) -> None:
        """A neighbour that was hurt is replaced, so that the next probe is judged on its own."""
        if self._neighbour is not None:
            self._neighbour.close()
            self._neighbour = self._target.neighbour(self._secret)

    def carry_out(self, probe: Probe) -> Result:
        """One probe, judged."""
        begun = time.monotonic()
        verdict = judge(probe.judge, self.observe(probe))
        return Result(
            name=probe.name,
            rows=probe.rows,
            klass=str(probe.klass),
            tries=probe.tries,
            runtime=self._target.runtime,
            held=verdict.held,
            seen=verdict.seen,
            seconds=time.monotonic() - begun,
        )


def carry_out_all(attack: Attack, probes: Iterable[Probe], tell: Callable[[Result], None]) -> list[Result]:
    """Every probe in turn; `tell` hears each result as it comes."""
    results = []
    for probe in probes:
        result = attack.carry_out(probe)
        tell(result)
        results.append(result)
    return results
