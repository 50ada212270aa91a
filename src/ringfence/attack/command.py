"""`ringfence attack`: carry out the table and report. The exit code is 0 only when every fence held.

What comes in is what the command line parsed: `names` of probes (none: all), `list_`, `url` (none: a server is
started for this), `runtime`, `state`, `json`, `colour`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from ringfence import config
from ringfence.attack.over_http import OverHttp
from ringfence.attack.own_server import OwnServer
from ringfence.attack.runner import Attack, Result, carry_out_all
from ringfence.attack.table import PROBES, Probe
from ringfence.client import Client
from ringfence.domain.errors import BadRequest

HELD: Final = 0
BREACHED: Final = 1
RED, GREEN, PLAIN = "\x1b[31m", "\x1b[32m", "\x1b[0m"


def chosen(names: Sequence[str]) -> list[Probe]:
    """The probes of these names, or all. Raises BadRequest for a name that is not one."""
    known = {probe.name: probe for probe in PROBES}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BadRequest(
            f"no probe called {', '.join(unknown)}",
            code="unknown_probe",
            remediation="`ringfence attack --list` names them",
        )
    return [known[name] for name in dict.fromkeys(names)] if names else list(PROBES)


@contextlib.contextmanager
def _client(url: str | None, state: str | None) -> Iterator[Client]:
    if url is not None:
        with Client(url) as client:
            if not client.target.loopback:
                raise BadRequest(
                    "canaries are planted on this machine, so only a server on this machine can be attacked",
                    code="not_local", remediation="run `ringfence attack` on the machine that holds the sandboxes",
                )  # fmt: skip
            yield client
        return
    settings = config.read_server(state=state)
    with OwnServer(settings.templates_dir) as server, Client(server.url, server.key) as client:
        yield client


def _listed(probes: Sequence[Probe], as_json: bool) -> None:
    for probe in probes:
        if as_json:
            row = {"name": probe.name, "rows": probe.rows, "class": str(probe.klass), "tries": probe.tries}
            _write(json.dumps({**row, "layers": probe.layers}))
        else:
            _write(f"{probe.name:24} {probe.klass!s:12} {probe.tries}")


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _printer(as_json: bool, colour: bool) -> Any:
    painted = colour and sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def tell(result: Result) -> None:
        if as_json:
            return
        word = "held" if result.held else "BREACH"
        if painted:
            word = f"{GREEN if result.held else RED}{word}{PLAIN}"
        seen = "".join(c if c.isprintable() else "?" for c in result.seen)[:300]
        _write(f"{word:{15 if painted else 6}} {result.klass:12} {result.name:24} {seen}")

    return tell


def _applicable(client: Client, probes: Sequence[Probe]) -> tuple[list[Probe], list[str]]:
    """The probes that can be tried here, and the names of those that need a user this server does not offer."""
    offered = {user for runtime in client.runtimes() for user in runtime.capabilities.get("users", ())}
    skipped = [probe.name for probe in probes if probe.user not in offered]
    return [probe for probe in probes if probe.user in offered], skipped


def _summary(results: Sequence[Result], skipped: Sequence[str], seconds: float, as_json: bool) -> None:
    breaches = [result.name for result in results if not result.held]
    if as_json:
        found = {"held": not breaches, "breaches": breaches, "skipped": list(skipped), "seconds": seconds}
        _write(json.dumps({**found, "probes": [result.shape() for result in results]}))
        return
    if skipped:
        sys.stderr.write(f"not tried, for want of the user they run as: {', '.join(skipped)}\n")
    sys.stderr.write(f"{len(results) - len(breaches)} of {len(results)} held, in {seconds:.0f} s\n")
    if breaches:
        sys.stderr.write(f"breached: {', '.join(breaches)}\n")


def main(options: Mapping[str, Any]) -> int:
    """Carry out the chosen probes; 0 when all held, 1 when any did not. Raises RingfenceError when none could run."""
    probes = chosen(list(options.get("names") or ()))
    as_json, colour = bool(options.get("json")), bool(options.get("colour", True))
    if options.get("list_"):
        _listed(probes, as_json)
        return HELD
    begun = time.monotonic()
    with _client(options.get("url"), options.get("state")) as client:
        probes, skipped = _applicable(client, probes)
        target = OverHttp(client, options.get("runtime") or "auto")
        with Attack(target) as attack:
            results = carry_out_all(attack, probes, _printer(as_json, colour))
    _summary(results, skipped, time.monotonic() - begun, as_json)
    return HELD if all(result.held for result in results) else BREACHED
