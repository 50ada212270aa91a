"""`ringfence sandbox pause` and `resume`."""

from __future__ import annotations

import click

from ringfence.cli.groups import examples
from ringfence.cli.options import Shared, seconds, server_options
from ringfence.cli.output import moment, size
from ringfence.client import Sandbox


@click.command(epilog=examples("ringfence sandbox pause ID", "ringfence sandbox resume ID --ttl 1h"))
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.option("--memory", is_flag=True, help="Keep running programs too; no runtime can do that yet.")
@server_options
def pause(shared: Shared, ids: tuple[str, ...], memory: bool) -> None:
    """Keep the files of sandboxes, and end everything else of them.

    What is in /home/user, /workspace, /tmp and /var/tmp is kept; programs end.
    """
    with shared.client() as client:
        for id_ in ids:
            info = Sandbox.connect(id_, client=client).pause(memory=memory)
            if shared.screen.json:
                shared.screen.data(info)
            elif info.paused is not None:
                until = moment(info.paused.expires_at)
                shared.screen.line(f"{info.id} {info.state}: {size(info.paused.bytes)} of files kept until {until}")


@click.command(epilog=examples("ringfence sandbox resume ID", "ringfence sandbox exec ID ls"))
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.option("--ttl", type=seconds, metavar="TIME", help="How long it lives (default: as long as it was last given).")
@server_options
def resume(shared: Shared, ids: tuple[str, ...], ttl: float | None) -> None:
    """Have paused sandboxes again, with the files they had."""
    with shared.client() as client:
        for id_ in ids:
            info = Sandbox.resume(id_, ttl=ttl, client=client).info
            if shared.screen.json:
                shared.screen.data(info)
            else:
                shared.screen.line(f"{info.id} {info.state} until {moment(info.expires_at)}")
