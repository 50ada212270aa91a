"""`ringfence hosts`: names of sandboxes, found here: line by line in /etc/hosts, or by a small name server."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import click

from ringfence import config, wire
from ringfence.cli.groups import examples
from ringfence.cli.hostsfile import HostsFile, block
from ringfence.cli.nameserver import Zone, serve
from ringfence.cli.options import Shared, server_options
from ringfence.client import Client, Sandbox, calls
from ringfence.domain.errors import BadRequest, PlatformFault, RingfenceError

FILE: Final = "/etc/hosts"
# Where E2B's clients look for a sandbox, beside the ports that are published one by one.
EVERYWHERE: Final = (49983, 49999)
_PLAIN: Final = re.compile(r"[a-z0-9.-]{1,253}")  # whatever a server says, it is one word in a line of ours
HOW: Final = """\
every name in {domain} is {address}, and all else is refused, so that the next name server is asked
  /etc/resolv.conf:  "nameserver {server}" above the others (at port 53)
  systemd-resolved:  resolvectl dns lo {server}:{port}; resolvectl domain lo '~{domain}'
  macOS:             "nameserver {server}" and "port {port}" in /etc/resolver/{domain}
  dnsmasq, in place of this: address=/{domain}/{address}"""


@click.command(
    epilog=examples(
        "ringfence hosts                        the lines, to look at",
        "sudo ringfence hosts --write           into /etc/hosts; again after a port was published",
        "sudo ringfence hosts --remove          and out again",
        "sudo ringfence hosts --dns             a name server instead, for every name there can be",
        "ringfence hosts --dns 127.0.0.1:5353   at a port that needs no root",
    )
)
@click.option("--write", is_flag=True, help="Write them into the hosts file, in a block of their own.")
@click.option("--remove", is_flag=True, help="Take that block out of the hosts file.")
@click.option(
    "--dns",
    "server",
    is_flag=False,
    flag_value="127.0.0.1:53",
    metavar="ADDRESS:PORT",
    help="Answer for the whole domain as a name server, until interrupted (default: 127.0.0.1:53).",
)
@click.option("--domain", metavar="NAME", help="The domain (default: the server's, from its settings and state).")
@click.option("--address", default="127.0.0.1", metavar="ADDRESS", help="What the names lead to.")
@click.option("--file", default=FILE, metavar="FILE", help="The hosts file.")
@click.option("--state", metavar="DIR", help="The server's state directory (default: RINGFENCE_STATE).")
@server_options
def hosts(
    shared: Shared,
    *,
    write: bool,
    remove: bool,
    server: str | None,
    domain: str | None,
    address: str,
    file: str,
    state: str | None,
) -> None:
    """Find sandboxes by name on this machine: the domain, its API, and every port your key's sandboxes publish.

    A hosts file knows no wildcards, so it is written again when a port was published; a name server knows them all.
    """
    if write + remove + (server is not None) > 1:
        raise click.UsageError("--write, --remove and --dns are three different things")
    _check_address(address)
    if remove:
        changed = HostsFile(Path(file)).remove()
        _tell(shared, {"file": file, "changed": changed}, f"{file}: {'our names are out' if changed else 'had none'}")
        return
    name = _domain(domain, state)
    if server is not None:
        _name(shared, server, Zone(name, address), name, address)
        return
    names = [name, f"api.{name}", *_published(shared, name)]
    if write:
        changed = HostsFile(Path(file)).put(block(address, names))
        _tell(shared, {"file": file, "changed": changed, "names": names}, f"{file}: {len(names)} names")
    elif shared.screen.json:
        shared.screen.data({"address": address, "names": names})
    else:
        shared.screen.line(block(address, names).decode().rstrip())


def _tell(shared: Shared, facts: dict[str, object], words: str) -> None:
    if shared.screen.json:
        shared.screen.data(facts)
    else:
        shared.screen.line(words)


def _check_address(address: str) -> None:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        raise click.UsageError(f"--address {address!r:.80} is not an IP address") from None


def _domain(given: str | None, state: str | None) -> str:
    """The domain named, configured, or the one a server of this state directory made certificates for."""
    if given is not None:
        config.check_domain("--domain", given)
        return given
    settings = config.read_server(state=state)
    made = [place.name for place in sorted((settings.state_dir / "dev").glob("*")) if (place / "ca.crt").exists()]
    if settings.dev_domain or len(made) != 1:
        return settings.edge.domain
    config.check_domain("the development domain", made[0])
    return made[0]


def _published(shared: Shared, domain: str) -> Iterator[str]:
    """Names below the domain that lead somewhere now. Without a server or a key there are none to know."""
    try:
        with shared.client() as client:
            yield from (name for name in _names(client) if name.endswith("." + domain) and _PLAIN.fullmatch(name))
    except RingfenceError as error:
        shared.screen.say(f"published ports are left out: {error}", style="yellow")


def _names(client: Client) -> Iterator[str]:
    for sandbox in Sandbox.list(state="running", client=client):
        found = client.fetch(wire.PublishedPortList, calls.published(sandbox.id), None)
        for port in found.ports:
            yield urlsplit(port.url).hostname or ""
        if found.any is not None:
            yield from (urlsplit(found.any.url.replace("{port}", str(port))).hostname or "" for port in EVERYWHERE)


def _name(shared: Shared, where: str, zone: Zone, domain: str, address: str) -> None:
    server, _, port = where.rpartition(":")
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(server.strip("[]")).version == 6 else socket.AF_INET
        number = int(port)
    except ValueError:
        raise BadRequest(f"--dns {where!r:.80} is not ADDRESS:PORT", code="bad_address") from None
    with socket.socket(family, socket.SOCK_DGRAM) as listener:
        try:
            listener.bind((server.strip("[]"), number))
        except (OSError, OverflowError) as error:
            raise PlatformFault(f"no name server can be at {where}: {error}", code="cannot_listen") from None
        bound = listener.getsockname()
        shared.screen.say(HOW.format(domain=domain, address=address, server=bound[0], port=bound[1]))
        _tell(shared, {"server": bound[0], "port": bound[1], "domain": domain}, f"answering at {bound[0]}:{bound[1]}")
        serve(listener, zone)
