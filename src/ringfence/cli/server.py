"""`ringfence serve`: a server on this machine, in the foreground or in the background."""

from __future__ import annotations

from typing import Any

import click

from ringfence import config
from ringfence.cli.daemon import Daemon, with_port
from ringfence.cli.groups import examples
from ringfence.cli.lazy import loaded
from ringfence.cli.options import screen_options
from ringfence.cli.output import Screen


@click.command(
    epilog=examples(
        "sudo ringfence serve",
        "ringfence serve --state ./state --port 9000       as yourself, beside another one",
        "ringfence serve --detach && ringfence status",
        "ringfence serve --dev-domain sbx.test             https://<port>-<id>.sbx.test:9642, and how to trust it",
        "ringfence serve --stop",
    )
)
@click.option("--host", metavar="ADDRESS", help="Where it listens (default: 127.0.0.1).")
@click.option("--port", type=click.IntRange(0, 65535), help="On which port (default: 8642; 0: any free one).")
@click.option("--state", metavar="DIR", help="The state directory (default: RINGFENCE_STATE).")
@click.option("--templates", metavar="DIR", help="Where templates are (default: in the state directory).")
@click.option("--config", "file", metavar="FILE", help="The settings file (default: /etc/ringfence/server.toml).")
@click.option("--dev-domain", metavar="NAME", help="Serve ports and the API at NAME, as sbx.test, with TLS.")
@click.option("--detach", is_flag=True, help="Start it in the background, or find it running there.")
@click.option("--stop", is_flag=True, help="Stop the one of this state directory.")
@screen_options
def serve(screen: Screen, file: str | None, detach: bool, stop: bool, **flags: Any) -> int:
    """Start a server on this machine. As root it can put every layer in force; `ringfence doctor` tells.

    With --dev-domain it makes a certificate authority of its own, and says how to trust it and find its names.

    It needs a template (`ringfence templates build`) and a key (`ringfence keys create --tenant NAME`).
    """
    settings = config.read_server(file, **flags)
    settings = settings if stop else with_port(settings)
    daemon = Daemon(settings, file)
    if stop:
        pid = daemon.stop()
        _tell(screen, {"stopped": pid}, f"stopped (pid {pid})")
        return 0
    if detach:
        url, fresh = daemon.ensure()
        _tell(screen, {"url": url, "started": fresh}, f"{url} {'started' if fresh else 'was running already'}")
        return 0
    if settings.dev_domain:
        loaded("ringfence.edge.authority", "Authority")(settings.dev_dir, settings.dev_domain).ensure()
    with daemon.recorded():
        return int(loaded("ringfence.serve", "main")(settings))


def _tell(screen: Screen, facts: dict[str, Any], words: str) -> None:
    if screen.json:
        screen.data(facts)
    else:
        screen.line(words)
