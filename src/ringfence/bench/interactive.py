"""A sandbox that stays, as its user meets it: create, first output, first code, a turn, the end."""

from __future__ import annotations

import time
from typing import Any, Final

from ringfence.bench.calm import Gate
from ringfence.bench.exchange import Connection
from ringfence.bench.latency import Pace
from ringfence.bench.stats import summary
from ringfence.domain.errors import PlatformFault

STEPS: Final = ("create", "create_to_first_byte", "first_code", "next_code", "delete")
WORD: Final = "here"
WARM: Final = 2


def measure(connection: Connection, template: str, pace: Pace, gate: Gate) -> dict[str, Any]:
    """Percentiles of each step in milliseconds, over as many sandboxes as the pace allows."""
    spent: dict[str, list[float]] = {step: [] for step in STEPS}
    for _ in range(WARM):
        _one(connection, template)
    until = time.monotonic() + pace.seconds
    for turn in range(pace.rounds):
        if time.monotonic() > until and turn:
            break
        gate.wait()
        for step, taken in _one(connection, template).items():
            spent[step].append(taken)
    return {"template": template, **{step: summary(values) for step, values in spent.items()}}


def _one(connection: Connection, template: str) -> dict[str, float]:
    target = connection.target
    answer, created, _ = connection.timed(target.request("POST", "/v1/sandboxes", {"template": template}))
    place = f"/v1/sandboxes/{answer.json()['id']}"
    echo = target.request("POST", f"{place}/processes", {"argv": ["/bin/echo", WORD], "stream": True})
    _, _, first = connection.timed(echo, b'{"stdout":"')
    if first is None:
        raise PlatformFault("an echo in a new sandbox wrote nothing", code="no_output")
    code = target.request("POST", f"{place}/processes", {"code": f"print('{WORD}')"})
    spent = {"create": created, "create_to_first_byte": created + first}
    for step in ("first_code", "next_code"):
        answer, spent[step], _ = connection.timed(code)
        if answer.json()["stdout"] != f"{WORD}\n":
            raise PlatformFault(f"code in a new sandbox answered {answer.body[:200]!r}", code="no_output")
    answer, spent["delete"], _ = connection.timed(target.request("DELETE", place))
    answer.json()
    return spent
