"""`ringfence sandbox publish` and its companions: ports inside that have a URL."""

from __future__ import annotations

import click

from ringfence import wire
from ringfence.cli.groups import examples
from ringfence.cli.options import Shared, seconds, server_options
from ringfence.cli.output import moment
from ringfence.client import Sandbox, calls

PORT = click.IntRange(1, 65535)


def _port_or_any(_: click.Context, __: click.Parameter, value: str) -> int | None:
    """A port, or the word `any` for all of them, which becomes None."""
    return None if value == "any" else int(PORT(value))


@click.command(
    epilog=examples(
        "ringfence sandbox exec -d ID python3 -m http.server 8000",
        "ringfence sandbox publish ID 8000 --public        # for everybody",
        "ringfence sandbox publish ID 8000 --link 10m      # for whoever has the link, for ten minutes",
        "ringfence sandbox publish ID any                  # every port, for who sends the token that is printed",
        'curl -H "X-Ringfence-Access: $RINGFENCE_KEY" $(ringfence sandbox publish ID 8000)',
    )
)
@click.argument("id_", metavar="ID")
@click.argument("port", metavar="PORT|any", callback=_port_or_any)
@click.option("--public", is_flag=True, help="For everybody; without it, for holders of your key or of a link.")
@click.option(
    "--link", "link", type=seconds, metavar="TIME", help="Also make a link that lets its holder in this long."
)
@click.option("--once", is_flag=True, help="The link lets in one browser only.")
@click.option(
    "--wait",
    type=seconds,
    metavar="TIME",
    help="How long a request waits for the port (10s; any: not at all).",
)
@server_options
def publish(
    shared: Shared, id_: str, port: int | None, public: bool, link: float | None, once: bool, wait: float | None
) -> None:
    """Give a port in a sandbox a URL, and print it; with --link, print the link instead. `any` is every port."""
    if once and link is None:
        raise click.UsageError("--once goes with --link")
    if port is None:
        if link is not None:
            raise click.UsageError("--link is for one port")
        _publish_all(shared, id_, public=public, wait=wait or 0.0)
        return
    wait = 10.0 if wait is None else wait
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


def _publish_all(shared: Shared, id_: str, *, public: bool, wait: float) -> None:
    with shared.client() as client:
        made = Sandbox.connect(id_, client=client).publish_all(public=public, wait=wait)
    if shared.screen.json:
        shared.screen.data(made)
        return
    shared.screen.line(made.url)
    if made.token is not None:
        shared.screen.line(f"E2B-Traffic-Access-Token: {made.token}")
        shared.screen.say("the token is shown this once; your key as X-Ringfence-Access opens too")


@click.command()
@click.argument("id_", metavar="ID")
@click.argument("port", metavar="PORT|any", callback=_port_or_any)
@server_options
def unpublish(shared: Shared, id_: str, port: int | None) -> None:
    """Take a published port's URL away; `any` takes that of every port."""
    with shared.client() as client:
        place = Sandbox.connect(id_, client=client)
        if port is None:
            place.unpublish_all()
        else:
            place.unpublish(port)
    if shared.screen.json:
        shared.screen.data({"port": "any" if port is None else port, "published": False})


@click.command()
@click.argument("id_", metavar="ID")
@server_options
def ports(shared: Shared, id_: str) -> None:
    """List the ports a sandbox publishes."""
    with shared.client() as client:
        found = client.fetch(wire.PublishedPortList, calls.published(id_), None)
    shown = [*found.ports, *([] if found.any is None else [found.any])]
    shared.screen.show(shown, ("PORT", "FOR", "SINCE", "LINKS", "URL"), _row)


def _row(found: wire.PublishedPort | wire.PublishedAll) -> tuple[str, ...]:
    if isinstance(found, wire.PublishedAll):
        return "any", "everybody" if found.public else "key or token", moment(found.created_at), "", found.url
    whom = "everybody" if found.public else "key or link"
    return (str(found.port), whom, moment(found.created_at), str(len(found.links)), found.url)
