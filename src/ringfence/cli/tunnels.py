"""`ringfence sandbox tunnel`: a port on this machine that leads to one inside a sandbox."""

from __future__ import annotations

import threading

import click

from ringfence.cli.groups import examples
from ringfence.cli.options import Shared, server_options
from ringfence.client import Sandbox


@click.command(
    epilog=examples(
        "ringfence sandbox exec -d ID python3 -m http.server 8000",
        "ringfence sandbox tunnel ID 8000 --local 9000     # then open http://127.0.0.1:9000",
    )
)
@click.argument("id_", metavar="ID")
@click.argument("port", type=click.IntRange(1, 65535))
@click.option("--local", type=click.IntRange(0, 65535), default=0, help="The port here (default: any free one).")
@server_options
def tunnel(shared: Shared, id_: str, port: int, local: int) -> None:
    """Lead a port on this machine's loopback to PORT inside a sandbox, until interrupted."""
    with shared.client() as client, Sandbox.connect(id_, client=client).tunnel(port, local_port=local) as open_:
        if shared.screen.json:
            shared.screen.data({"url": open_.url, "host": open_.host, "port": open_.port})
        else:
            shared.screen.line(open_.url)
            shared.screen.say("interrupt (Ctrl-C) to close it")
        threading.Event().wait()
