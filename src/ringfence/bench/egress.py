"""What an egress policy costs: a one-shot run without one, with `none` said, and with one; and a connection.

The runs alternate over one connection to the same server, each out of a warm pool, so that what is compared is the
policy alone. A connection is made to a server one wire away (see beyond.py), through the gate and directly.
"""

from __future__ import annotations

import random
import subprocess
from typing import Any, Final

import msgspec

from ringfence.bench.beyond import PORT, THERE, Beyond
from ringfence.bench.calm import Gate
from ringfence.bench.exchange import Connection
from ringfence.bench.latency import OverHttp, Pace, Rounds, Row, alternate
from ringfence.bench.programs import PLAIN, FailedRun, Outside, Program
from ringfence.bench.server import Measured, settled
from ringfence.bench.stats import Summary, apart, paired, summary
from ringfence.domain.errors import PlatformFault

RULES: Final = 20
POLICIES: Final[dict[str, dict[str, Any]]] = {
    "unsaid": {},
    "none": {"egress": "none"},
    "one_rule": {"egress": ["example.com"]},
    "many_rules": {"egress": [f"host{number}.example.com" for number in range(RULES)]},
}
WARM: Final = 4
CONNECTIONS: Final = 40  # in one turn of either side
TURNS: Final = 10
LOOK_SECONDS: Final = 30.0
DIALS: Final = f"""
import json, socket, time
taken = []
for _ in range({CONNECTIONS + 1}):
    began = time.perf_counter()
    line = socket.create_connection(("{THERE}", {PORT}), 5)
    line.sendall(b"x")
    assert line.recv(1) == b"x"
    taken.append((time.perf_counter() - began) * 1e3)
    line.close()
print(json.dumps(taken[1:]))
"""


def measure(server: Measured, outside: Outside, pace: Pace, gate: Gate, chance: random.Random) -> dict[str, Any]:
    """Both. Raises PlatformFault where sandboxes can have no network."""
    with Connection(server.target) as connection:
        _offered(connection)
        rounds = _runs(connection, pace, gate, chance)
        found: dict[str, Any] = {
            "latency_ms": {name: rounds.of(name) for name in POLICIES},
            "ratio_to_unsaid_in_pairs": {name: paired(rounds.samples, name, "unsaid") for name in POLICIES},
            "added_ms": {name: apart(rounds.samples, name, "unsaid") for name in POLICIES},
            "failures": rounds.failures,
            "reasons": rounds.reasons[:10],
            "rounds": len(rounds.samples),
        }
        try:
            with Beyond():
                found["connection_ms"] = _connections(connection, outside, gate)
        except (PlatformFault, OSError) as error:
            found["absent"] = {"connection": str(error)}
    return found


def _offered(connection: Connection) -> None:
    """Refuse in words where no policy can be enforced."""
    for each in connection.ask("GET", "/v1/runtimes")["runtimes"]:
        if each["name"] == "jail":
            why = each["capabilities"].get("offline") if each["available"] else each["reason"]
            if why:
                raise PlatformFault(f"no egress policy can be enforced here: {why}", code="egress_unsupported")


def _runs(connection: Connection, pace: Pace, gate: Gate, chance: random.Random) -> Rounds:
    def row(name: str, words: dict[str, Any]) -> Row:
        body = {"template": PLAIN.template, "code": PLAIN.code, "isolation": "jail", **words}
        way = OverHttp(connection, connection.target.request("POST", "/v1/runs", body), PLAIN.printed)

        def take() -> float:
            settled(connection, "jail")  # a warm slot, with its wire: what is measured is taking it
            return way()

        return Row(name, take, WARM)

    return alternate([row(name, words) for name, words in POLICIES.items()], pace, gate, chance)


def _connections(connection: Connection, outside: Outside, gate: Gate) -> dict[str, Summary | None]:
    """A connection and one byte each way, in turns: from a sandbox through the gate, and from a plain process."""
    spent: dict[str, list[float]] = {"direct": [], "gate": []}
    egress = [{"cidr": f"{THERE}/32", "ports": [PORT], "protocol": "tcp"}]
    limits = {"cpus": 1.0}
    body = {"template": PLAIN.template, "isolation": "jail", "egress": egress, "limits": limits}
    place = f"/v1/sandboxes/{connection.ask('POST', '/v1/sandboxes', body)['id']}"
    try:
        for _ in range(TURNS):
            gate.wait()
            result = connection.ask("POST", f"{place}/processes", {"code": DIALS})
            spent["gate"] += _said(result["stdout"] or "", result["stderr"] or "")
            gate.wait()
            spent["direct"] += _outside(outside)
    finally:
        connection.ask("DELETE", place)
    return {name: summary(values) for name, values in spent.items()}


def _outside(outside: Outside) -> list[float]:
    command = outside.command(Program("dials", PLAIN.template, DIALS, b""))
    done = subprocess.run(
        command.words, capture_output=True, text=True, timeout=LOOK_SECONDS, check=False, env=command.env
    )
    return _said(done.stdout, done.stderr)


def _said(stdout: str, stderr: str) -> list[float]:
    """The milliseconds a program printed. Raises FailedRun when it printed something else."""
    try:
        return msgspec.json.decode(stdout, type=list[float])
    except msgspec.DecodeError:
        raise FailedRun(f"connections could not be measured: {stderr[-300:]}") from None
