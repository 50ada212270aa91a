"""`ringfence demo`: what a newcomer sees first."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final

import click
from rich.text import Text

from ringfence import config
from ringfence.cli.daemon import Daemon
from ringfence.cli.demo import hostile, job
from ringfence.cli.groups import examples
from ringfence.cli.keys import key_ring
from ringfence.cli.options import screen_options
from ringfence.cli.output import Screen, span
from ringfence.client import Client
from ringfence.config import ServerSettings
from ringfence.domain.errors import Unauthenticated

CHART: Final = Path("out/demo-chart.png")
KEY_FILE: Final = "demo.key"
COLUMNS: Final = ("", "ATTACK", "WHAT HAPPENED", "ENDED", "WHY", "TIME")


@click.command(
    epilog=examples("ringfence demo", "ringfence demo --no-stay --state ./state --port 9000", "ringfence serve --stop")
)
@click.option("--state", metavar="DIR", help="The state directory (default: RINGFENCE_STATE).")
@click.option("--port", type=click.IntRange(1, 65535), help="The server's port (default: 8642).")
@click.option("--out", type=click.Path(path_type=Path), default=CHART, show_default=True, help="Where the chart goes.")
@click.option("--stay/--no-stay", default=True, help="Leave the server running at the end (default), or stop it.")
@screen_options
def demo(screen: Screen, state: str | None, port: int | None, out: Path, stay: bool) -> int:
    """See it work, in under a minute: a data job in a sandbox, then a tour of attacks, each in its own.

    Starts a server in the background, or uses the one of the same state directory. The exit code is 0 only when every
    attack was contained.
    """
    settings = config.read_server(state=state, port=port)
    daemon = Daemon(settings)
    began = time.monotonic()
    url, fresh = daemon.ensure()
    screen.say(f"server: {url} ({'started' if fresh else 'was running already'}, {span(time.monotonic() - began)})")
    try:
        key = _key(settings, url)
        with Client(url, key) as client:
            _job(screen, client, out)
            held = _tour(screen, client, settings.port)
    finally:
        if fresh and not stay:
            daemon.stop()
    _next(screen, url, key, stay=stay or not fresh, stop=f"serve --stop{f' --state {state}' if state else ''}")
    return 0 if held else 1


def _key(settings: ServerSettings, url: str) -> str:
    """The demo's own key, made once and kept where only this user reads it."""
    file = settings.state_dir / KEY_FILE
    if file.exists():
        kept = file.read_text().strip()
        try:
            with Client(url, kept) as client:
                client.status()
        except Unauthenticated:
            file.unlink()
        else:
            return kept
    with key_ring(str(settings.state_dir)) as ring:
        secret, _ = ring.add("demo", "ringfence demo")
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(secret)
    return secret


def _job(screen: Screen, client: Client, chart: Path) -> None:
    phases = job.Phases()
    if screen.json:
        found = job.perform(client, chart, phases)
        screen.data({"job": found, "chart": str(chart), "seconds": phases.seconds})
        return
    screen.heading(f"1. A data job: {job.ROWS:,} orders, made here, crunched by pandas in a sandbox")
    found = job.perform(client, chart, phases)
    rows = [(name, f"{count:,}", f"{mean:,.2f}", f"{total:,.0f}") for name, total, count, mean in found.regions]
    screen.table(("REGION", "ORDERS", "AVERAGE", "REVENUE"), rows)
    trend = f"{found.growth:+.1%} on the year before; best month {found.best_month}; best product {found.best_product}"
    screen.line(f"{found.rows:,} orders, {trend}")
    screen.line(f"chart: {chart} ({chart.stat().st_size >> 10} KiB)")
    screen.line("time: " + ", ".join(f"{name} {span(seconds)}" for name, seconds in phases.seconds.items()))


def _tour(screen: Screen, client: Client, port: int) -> bool:
    if not screen.json:
        screen.heading("2. A tour of attacks: real programs, each in a sandbox of its own, beside a neighbour")
    verdicts = []
    with screen.waiting("attacking") as tell:
        for verdict in hostile.tour(client, _address(), port):
            verdicts.append(verdict)
            tell(f"attacking: {verdict.title} is over")
    screen.show(verdicts, COLUMNS, _cells)
    held = sum(verdict.contained for verdict in verdicts)
    if not screen.json:
        screen.line(f"{held} of {len(verdicts)} contained")
    return held == len(verdicts)


def _cells(verdict: hostile.Verdict) -> tuple[Any, ...]:
    mark = Text("✓", style="green") if verdict.contained else Text("✗", style="bold red")
    return (mark, verdict.title, verdict.happened, verdict.how, verdict.why, span(verdict.seconds))


def _address() -> str:
    """This host's own address on its network, or loopback when it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent: the kernel only chooses the address it would use
        except OSError:
            return "127.0.0.1"
        address: str = probe.getsockname()[0]
        return address


def _next(screen: Screen, url: str, key: str, *, stay: bool, stop: str) -> None:
    if screen.json:
        screen.data({"url": url, "key": key, "running": stay})
        return
    if not stay:
        screen.heading("The server is stopped. Start one with: ringfence serve")
        return
    screen.heading(f"3. Your turn: the server stays at {url}")
    for line in _lines(url, key, stop):
        screen.line(line)


def _lines(url: str, key: str, stop: str) -> tuple[str, ...]:
    headers = """-H "Authorization: Bearer $RINGFENCE_KEY" -H "Content-Type: application/json\""""
    python = os.path.relpath(sys.executable) if Path(sys.executable).is_relative_to(Path.cwd()) else sys.executable
    command = "ringfence" if shutil.which("ringfence") else f"{python} -m ringfence"
    return (
        f"export RINGFENCE_URL={url} RINGFENCE_KEY={key}",
        f"""curl -s $RINGFENCE_URL/v1/runs {headers} -d '{{"code": "print(6 * 7)"}}'""",
        f"""{python} -c 'from ringfence import Client; print(Client().run("print(6 * 7)").stdout)'""",
        f"{command} sandbox shell $({command} sandbox create -t python)",
        f"{command} {stop}    # when you have seen enough",
    )
