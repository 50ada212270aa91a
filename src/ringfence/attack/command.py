"""`ringfence attack`: carry out the table and report. The exit code is 0 only when every fence held.

What comes in is what the command line parsed: `names` of probes (none: all), `list_`, `url` (none: a server is
started for this), `isolation` (none: what auto means), `all_` (every way to isolate), `save`, `state`, `json`,
`colour`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ringfence import config, wire
from ringfence.attack.matrix import Columns, markdown
from ringfence.attack.over_http import OverHttp
from ringfence.attack.own_server import OwnServer
from ringfence.attack.runner import BREACHED, DIFFERS, HELD, Attack, Row, carry_out_all
from ringfence.attack.table import PROBES, Probe
from ringfence.client import Client
from ringfence.domain.errors import BadRequest

ALL_HELD: Final = 0
SOME_BREACHED: Final = 1
AUTO: Final = "auto"
RED, GREEN, YELLOW, PLAIN = "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[0m"
COLOURS: Final = {HELD: GREEN, DIFFERS: YELLOW, BREACHED: RED}
SHOWN: Final = {HELD: "held", DIFFERS: "differs", BREACHED: "BREACH"}
WIDTH: Final = max(map(len, SHOWN.values()))


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


def painter(*, colour: bool) -> Callable[[str], str]:
    """Words for a screen, all of one width."""
    painted = colour and sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def paint(word: str) -> str:
        shown = f"{SHOWN[word]:{WIDTH}}"
        return f"{COLOURS[word]}{shown}{PLAIN}" if painted else shown

    return paint


def printer(columns: Columns, paint: Callable[[str], str]) -> Callable[[Row], None]:
    """One line a probe, with a column for each runtime; below it what was seen where a fence did not hold."""
    widths = [max(WIDTH, len(name)) for name in columns.runtimes]
    if len(widths) > 1:
        heads = " ".join(f"{name:{width}}" for name, width in zip(columns.runtimes, widths, strict=True))
        _write(f"{heads} {'class':12} probe")

    def tell(row: Row) -> None:
        words = [paint(one.word) + " " * (width - WIDTH) for one, width in zip(row, widths, strict=True)]
        first = row[0]
        seen = _clean(first.seen) if len(row) == 1 else ""
        _write(f"{' '.join(words)} {first.klass:12} {first.name:24} {seen}".rstrip())
        for one in row if len(row) > 1 else ():
            if not one.held:
                _write(f"    {one.runtime}: {_clean(one.seen)}")

    return tell


def _clean(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:300]


def columns(offered: Sequence[wire.Runtime], options: Mapping[str, Any]) -> Columns:
    """Which runtimes to attack. Raises BadRequest when one that was named, or every one, is absent."""
    present = tuple(found.name for found in offered if found.available)
    absent = {found.name: found.reason for found in offered if not found.available}
    if options.get("all_"):
        return Columns(present, absent)
    wanted = options.get("isolation") or AUTO
    if wanted != AUTO and wanted not in present:
        raise BadRequest(
            f"isolation {wanted} cannot be attacked here: {absent.get(wanted, 'there is no such runtime')}",
            code="runtime_absent",
            remediation="`ringfence doctor` says what would add it",
        )
    return Columns((wanted if wanted != AUTO else next(iter(present), AUTO),), {})


def applicable(
    offered: Sequence[wire.Runtime], columns: Columns, probes: Sequence[Probe]
) -> tuple[list[Probe], dict[str, str]]:
    """The probes that can be tried here; for each of the others what not every attacked runtime has for it."""
    attacked = [found for found in offered if found.name in columns.runtimes]
    users = set.intersection(*(set(found.capabilities.get("users", ())) for found in attacked)) if attacked else set()
    offline = next((why for found in attacked if (why := found.capabilities.get("offline", ""))), "")
    skipped = {probe.name: f"the user {probe.user}" for probe in probes if probe.user not in users}
    if offline:
        skipped |= {probe.name: f"a network ({offline})" for probe in probes if probe.egress is not None}
    return [probe for probe in probes if probe.name not in skipped], skipped


def _summary(
    columns: Columns, rows: Sequence[Row], skipped: Mapping[str, str], seconds: float, *, as_json: bool
) -> None:
    results = [result for row in rows for result in row]
    many = len(columns.runtimes) > 1
    breaches = [f"{one.name} on {one.runtime}" if many else one.name for one in results if not one.held]
    if as_json:
        found = {"held": not breaches, "breaches": breaches, "skipped": list(skipped), "absent": dict(columns.absent)}
        _write(json.dumps({**found, "seconds": seconds, "probes": [result.shape() for result in results]}))
        return
    for reason in dict.fromkeys(f"{one.runtime}: {one.differs}" for one in results if one.differs):
        sys.stderr.write(f"differs on {reason}\n")
    for name, why in columns.absent.items():
        sys.stderr.write(f"not attacked: {name}, for {why}\n")
    for want in dict.fromkeys(skipped.values()):
        names = ", ".join(name for name, why in skipped.items() if why == want)
        sys.stderr.write(f"not tried, for want of {want}: {names}\n")
    sys.stderr.write(f"{len(results) - len(breaches)} of {len(results)} held, in {seconds:.0f} s\n")
    if breaches:
        sys.stderr.write(f"breached: {', '.join(breaches)}\n")


def attacked(
    client: Client, columns: Columns, probes: Sequence[Probe], tell: Callable[[Row], None], tokens: tuple[str, ...] = ()
) -> list[Row]:
    """One round of attacks on each of the runtimes, side by side, each with a host's watch and a neighbour."""
    with contextlib.ExitStack() as stack:
        attacks = [stack.enter_context(Attack(OverHttp(client, name), tokens)) for name in columns.runtimes]
        return carry_out_all(attacks, probes, tell)


def main(options: Mapping[str, Any]) -> int:
    """Carry out the chosen probes; 0 when all held, 1 when any did not. Raises RingfenceError when none could run."""
    probes = chosen(list(options.get("names") or ()))
    as_json, paint = bool(options.get("json")), painter(colour=bool(options.get("colour", True)))
    if options.get("list_"):
        _listed(probes, as_json)
        return ALL_HELD
    if options.get("all_") and options.get("isolation"):
        raise BadRequest("--all attacks every way to isolate, --isolation one: choose", code="conflicting_options")
    begun = time.monotonic()
    with _client(options.get("url"), options.get("state")) as client:
        offered = client.runtimes()
        meant = columns(offered, options)
        probes, skipped = applicable(offered, meant, probes)
        tell = (lambda _: None) if as_json else printer(meant, paint)
        rows = attacked(client, meant, probes, tell)
    _summary(meant, rows, skipped, time.monotonic() - begun, as_json=as_json)
    if options.get("save"):
        Path(options["save"]).write_text(markdown(meant, rows, str(options["save"])))
    return ALL_HELD if all(result.held for row in rows for result in row) else SOME_BREACHED
