"""`ringfence keys`: create, list and revoke keys in the store of this machine's server."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
from rich.text import Text

from ringfence import config
from ringfence.cli.groups import Subcommands, examples
from ringfence.cli.options import screen_options
from ringfence.cli.output import Screen, moment
from ringfence.domain.errors import NotFound, PlatformFault
from ringfence.store.base import Key, e2b_spelling
from ringfence.store.sqlite import KeyRing

DAY = 86_400
state_option = click.option("--state", metavar="DIR", help="The state directory (default: RINGFENCE_STATE).")


@click.group(
    cls=Subcommands,
    epilog=examples(
        "export RINGFENCE_KEY=$(ringfence keys create --tenant ada)",
        "ringfence keys create --tenant ci --name github --expires 90",
        "ringfence keys list",
        "ringfence keys revoke KEY_ID",
    ),
)
def keys() -> None:
    """Create, list and revoke keys of the server on this machine. A running server sees the change at once."""


@keys.command()
@click.option("--tenant", required=True, metavar="NAME", help="Whose key: sandboxes and quotas belong to a tenant.")
@click.option("--name", default="", metavar="TEXT", help="What it is for.")
@click.option(
    "--expires", type=click.IntRange(1, 36_500), metavar="DAYS", help="Days until it expires (default: never)."
)
@state_option
@screen_options
def create(screen: Screen, tenant: str, name: str, expires: int | None, state: str | None) -> None:
    """Create a key and print it. It is shown this once: only its hash is kept."""
    until = None if expires is None else time.time() + expires * DAY
    with key_ring(state) as ring:
        secret, made = ring.add(tenant, name, until)
    if screen.json:
        screen.data({"key": secret, "e2b_key": e2b_spelling(secret), **_fields(made)})
    else:
        screen.line(secret)
        screen.say(f"id {made.id}, tenant {made.tenant}; it is not shown again")
        screen.say(f"as E2B_API_KEY: {e2b_spelling(secret)}")


@keys.command(name="list")
@click.option("--tenant", metavar="NAME", help="Only this tenant's.")
@state_option
@screen_options
def list_(screen: Screen, tenant: str | None, state: str | None) -> None:
    """List keys: their ids and whose they are, never the keys themselves."""
    with key_ring(state) as ring:
        found = ring.list(tenant)
    if screen.json:
        for key in found:
            screen.data(_fields(key))
        return
    screen.table(("ID", "TENANT", "NAME", "CREATED", "EXPIRES", "STATE"), map(_row, found))


def _fields(key: Key) -> dict[str, object]:
    table: dict[str, object] = msgspec.to_builtins(key)
    return table


def _row(key: Key) -> tuple[str | Text, ...]:
    valid = key.valid(time.time())
    word = "valid" if valid else "revoked" if key.revoked_at else "expired"
    state = Text(word, style="green" if valid else "red")
    return (key.id, key.tenant, key.name, moment(key.created_at), moment(key.expires_at), state)


@keys.command()
@click.argument("ids", nargs=-1, required=True, metavar="KEY_ID...")
@state_option
@screen_options
def revoke(screen: Screen, ids: tuple[str, ...], state: str | None) -> None:
    """Revoke keys by their ids, for good. Requests already admitted go on."""
    with key_ring(state) as ring:
        for id_ in ids:
            if not ring.revoke(id_):
                raise NotFound(f"no valid key {id_}", remediation="see `ringfence keys list`")
            if screen.json:
                screen.data({"id": id_, "revoked": True})
            else:
                screen.line(f"{id_} revoked")


@contextlib.contextmanager
def key_ring(state: str | None) -> Iterator[KeyRing]:
    """Open the keys of the server on this machine. Raises PlatformFault where they cannot be read."""
    database = config.read_server(state=state).database
    try:
        database.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _as_owner(database.parent):
            ring = KeyRing(database)
            try:
                yield ring
            finally:
                ring.close()
    except PermissionError as error:
        hint = "run this as the user who runs the server (often: sudo), or name its --state"
        raise PlatformFault(f"cannot open {database}: {error.strerror}", remediation=hint) from None


@contextlib.contextmanager
def _as_owner(directory: Path) -> Iterator[None]:
    """Act as a directory's owner, so that root leaves no file there which the server may not write."""
    if os.geteuid() != 0:
        yield
        return
    owner = directory.stat()
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
