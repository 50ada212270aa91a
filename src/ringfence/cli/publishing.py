"""`ringfence sandbox publish` and its companions: ports inside that have a URL."""

from __future__ import annotations

import click

from ringfence import wire
from ringfence.cli.groups import examples
from ringfence.cli.options import Shared, seconds, server_options
from ringfence.cli.output import moment
from ringfence.client import Sandbox

PORT = click.IntRange(1, 65535)


@click.command(
    epilog=examples(
        "ringfence sandbox exec -d ID python3 -m http.server 8000",
        "ringfence sandbox publish ID 8000 --public        # for everybody",
        "ringfence sandbox publish ID 8000 --link 10m      # for whoever has the link, for ten minutes",
        'curl -H "X-Ringfence-Access: $RINGFENCE_KEY" $(ringfence sandbox publish ID 8000)',
    )
)
@click.argument("id_", metavar="ID")
@click.argument("port", type=PORT)
@click.option("--public", is_flag=True, help="For everybody; without it, for holders of your key or of a link.")
@click.option(
    "--link", "link", type=seconds, metavar="TIME", help="Also make a link that lets its holder in this long."
)
@click.option("--once", is_flag=True, help="The link lets in one browser only.")
@click.option("--wait", type=seconds, default="10s", metavar="TIME", help="How long a request waits for the port.")
@server_options
def publish(shared: Shared, id_: str, port: int, public: bool, link: float | None, once: bool, wait: float) -> None:
    """Give a port in a sandbox a URL, and print it; with --link, print the link instead."""
    if once and link is None:
        raise click.UsageError("--once goes with --link")
    with shared.client() as client:
        place = Sandbox.connect(id_, client=client)
        url = place.publish(port, public, wait=wait)
        made = None if link is None else place.share(port, ttl=link, once=once)
    if shared.screen.json:
        shared.screen.data({"url": url, "public": public, "link": made})
        return
    shared.screen.line(url if made is None else made.url or url)
    if not public and made is None:
        shared.screen.say("it is private: send your key as X-Ringfence-Access, make a --link, or publish it --public")


@click.command()
@click.argument("id_", metavar="ID")
@click.argument("port", type=PORT)
@server_options
def unpublish(shared: Shared, id_: str, port: int) -> None:
    """Take a published port's URL away."""
    with shared.client() as client:
        Sandbox.connect(id_, client=client).unpublish(port)
    if shared.screen.json:
        shared.screen.data({"port": port, "published": False})


@click.command()
@click.argument("id_", metavar="ID")
@server_options
def ports(shared: Shared, id_: str) -> None:
    """List the ports a sandbox publishes."""
    with shared.client() as client:
        found = Sandbox.connect(id_, client=client).published()
    shared.screen.show(found, ("PORT", "FOR", "SINCE", "LINKS", "URL"), _row)


def _row(found: wire.PublishedPort) -> tuple[str, ...]:
    whom = "everybody" if found.public else "key or link"
    return (str(found.port), whom, moment(found.created_at), str(len(found.links)), found.url)
