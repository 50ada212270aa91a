"""The store on SQLite, through the standard library: one writing thread, one reading connection, WAL.

A commit survives the death of any process of ours. `synchronous = NORMAL` may lose the last commits at a power cut,
never the database.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sqlite3
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from ringfence import wire
from ringfence.domain.errors import PlatformFault
from ringfence.domain.sandbox import new_id
from ringfence.store.base import (
    KEY_PREFIX,
    Answered,
    AuthorityRow,
    BuiltRow,
    Claim,
    CompatRow,
    Filter,
    Key,
    NewEvent,
    PauseRow,
    PortRow,
    SecretRow,
    digest_of,
    key_name,
)
from ringfence.store.queries import (
    BUILT_SCHEMA,
    COMPAT_SCHEMA,
    KEYS_SCHEMA,
    PORTS_SCHEMA,
    SCHEMA,
    SECRETS_SCHEMA,
    SQL,
    UPGRADES,
)
from ringfence.store.writer import Writer
from ringfence.wire_egress import EgressSum

VERSIONS: Final = {SCHEMA: 2, KEYS_SCHEMA: 1}
MOST_ANSWERS: Final = 20_000  # kept per tenant
MOST_ANSWER_BYTES: Final = 256 * 1024 * 1024  # kept per tenant
_run: Final = msgspec.json.Decoder(wire.Run)
_sandbox: Final = msgspec.json.Decoder(wire.Sandbox)
_data: Final = msgspec.json.Decoder(dict[str, Any])
_encode: Final = msgspec.json.Encoder().encode


def connect(path: Path, schema: str = SCHEMA) -> sqlite3.Connection:
    """A connection to the database at `path`, made if absent. Raises PlatformFault for one that is not ours."""
    if path.exists() and not stat.S_ISREG(path.lstat().st_mode):
        raise PlatformFault(f"{path} is not a regular file", code="store_unusable")
    old = os.umask(0o077)
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    finally:
        os.umask(old)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA trusted_schema = OFF")
    _prepare(connection, schema)
    return connection


def _prepare(connection: sqlite3.Connection, schema: str) -> None:
    connection.execute("BEGIN IMMEDIATE")  # two processes may open a new file at once
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    wanted = VERSIONS[schema]
    scripts = [schema] if version == 0 else [UPGRADES[step] for step in range(version + 1, wanted + 1)]
    for statement in ";\n".join(scripts).split(";\n"):
        connection.execute(statement)
    connection.execute("COMMIT")
    if version > wanted:
        raise PlatformFault(
            f"the store has version {version}, this program needs {wanted}",
            code="store_version",
            remediation="use the ringfence release that made it",
        )


def _key(row: tuple[Any, ...]) -> Key:
    return Key(id=row[0], tenant=row[1], name=row[2], created_at=row[3], expires_at=row[4], revoked_at=row[5])


def _event(row: tuple[Any, ...]) -> wire.Event:
    return wire.Event(id=row[0], type=row[1], time=row[2], sandbox=row[3], run=row[4], data=_data.decode(row[5]))


def _keys_beside(path: Path) -> Path:
    """Keys have a file of their own: read at every request, it must not lose its cached pages to every commit."""
    return path.with_name("keys.db")


class KeyRing:
    """Keys alone, for the CLI: each call is one committed statement, seen by a running server at once."""

    def __init__(self, path: Path) -> None:
        """Open the keys that belong to the database at `path`."""
        self._connection = connect(_keys_beside(path), KEYS_SCHEMA)

    def add(self, tenant: str, name: str = "", expires_at: float | None = None) -> tuple[str, Key]:
        """A new key for a tenant: (the key itself, shown this once; its record). Raises BadRequest for a bad name."""
        key_name(tenant)
        secret = KEY_PREFIX + secrets.token_urlsafe(32)
        made = Key(new_id("k"), tenant, name, time.time(), expires_at)
        self._connection.execute(
            SQL["key_add"],
            {
                "id": made.id,
                "digest": digest_of(secret),
                "tenant": tenant,
                "name": name,
                "created": made.created_at,
                "expires": expires_at,
            },
        )
        return secret, made

    def list(self, tenant: str | None = None) -> list[Key]:
        """Every key, or one tenant's; the keys themselves are not known."""
        return [_key(row) for row in self._connection.execute(SQL["key_list"], {"tenant": tenant})]

    def revoke(self, key_id: str) -> bool:
        """True when the key was valid until now."""
        return self._connection.execute(SQL["key_revoke"], {"id": key_id, "now": time.time()}).rowcount == 1

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class SqliteStore:
    """See Store (store/base.py) for every contract."""

    def __init__(self, path: Path) -> None:
        """Open the files now; the writing thread begins with start()."""
        self._read = connect(path)
        self._write = connect(path)
        for statement in (PORTS_SCHEMA, COMPAT_SCHEMA, BUILT_SCHEMA, *SECRETS_SCHEMA.split(";\n")):
            self._write.execute(statement)
        self._keys = connect(_keys_beside(path), KEYS_SCHEMA)
        # Both the WAL and its index are opened by name at first use: use them before privileges and paths are gone.
        self._write.execute("BEGIN IMMEDIATE")
        self._write.execute("COMMIT")
        self._read.execute("SELECT count(*) FROM runs").fetchone()
        self._keys.execute("SELECT count(*) FROM keys").fetchone()
        self._on_events: Callable[[], None] | None = None
        self._writer = Writer(self._write, self._committed)

    def start(self) -> None:
        """Begin to write."""
        self._writer.start()

    def ready(self) -> bool:
        """See Store."""
        return self._writer.ready

    def _committed(self) -> None:
        if self._on_events is not None:
            self._on_events()

    # --- keys ---

    def key(self, digest: bytes) -> Key | None:
        """See Store."""
        row = self._keys.execute(SQL["key_by_digest"], {"digest": digest}).fetchone()
        return _key(row) if row else None

    # --- runs ---

    def run_started(self, tenant: str, run: wire.Run) -> None:
        """See Store."""
        self._writer.put(SQL["run_started"], (run.id, tenant, run.created_at, run.state, _encode(run)))
        self._label(tenant, run.id, run.labels)

    def run_ended(self, tenant: str, run: wire.Run) -> None:
        """See Store."""
        if run.stdout or run.stderr or run.stdout_base64 or run.stderr_base64 or run.files:
            run = msgspec.structs.replace(
                run, stdout=None, stderr=None, stdout_base64=None, stderr_base64=None, files={}
            )
        self._writer.put(SQL["run_ended"], (run.state, _encode(run), run.id, tenant))

    def run(self, tenant: str, run_id: str) -> wire.Run | None:
        """See Store."""
        row = self._read.execute(SQL["run_by_id"], {"id": run_id, "tenant": tenant}).fetchone()
        return _run.decode(row[0]) if row else None

    def runs(self, tenant: str, wanted: Filter) -> list[wire.Run]:
        """See Store."""
        return [_run.decode(row[0]) for row in self._listed("run_list", tenant, wanted)]

    def running(self) -> list[tuple[str, str]]:
        """See Store."""
        return self._read.execute(SQL["run_open"]).fetchall()

    # --- sandboxes ---

    def sandbox_created(self, tenant: str, sandbox: wire.Sandbox) -> None:
        """See Store."""
        row = (sandbox.id, tenant, sandbox.created_at, sandbox.state.value, _encode(sandbox))
        self._writer.put(SQL["sandbox_created"], row)
        self._label(tenant, sandbox.id, sandbox.labels)

    def sandbox_changed(self, tenant: str, sandbox: wire.Sandbox) -> None:
        """See Store."""
        self._writer.put(SQL["sandbox_changed"], (sandbox.state.value, _encode(sandbox), sandbox.id, tenant))

    def sandbox(self, tenant: str, sandbox_id: str) -> wire.Sandbox | None:
        """See Store."""
        row = self._read.execute(SQL["sandbox_by_id"], {"id": sandbox_id, "tenant": tenant}).fetchone()
        return _sandbox.decode(row[0]) if row else None

    def sandboxes(self, tenant: str, wanted: Filter) -> list[wire.Sandbox]:
        """See Store."""
        return [_sandbox.decode(row[0]) for row in self._listed("sandbox_list", tenant, wanted)]

    def live_sandboxes(self) -> list[tuple[str, wire.Sandbox]]:
        """See Store."""
        return [(row[0], _sandbox.decode(row[1])) for row in self._read.execute(SQL["sandbox_live"])]

    async def sandbox_paused(self, sandbox: wire.Sandbox, kept: PauseRow) -> bool:
        """See Store."""
        row = (sandbox.state.value, _encode(sandbox), sandbox.id, kept.tenant)
        kept_row = (kept.sandbox, kept.tenant, kept.size, kept.digest, kept.expires, kept.begins)

        def work(connection: sqlite3.Connection) -> bool:
            if connection.execute(SQL["sandbox_changed"], row).rowcount != 1:
                return False
            connection.execute(SQL["pause_add"], kept_row)
            return True

        return bool(await self._writer.ask(work, hard=True))

    async def sandbox_unpaused(self, tenant: str, sandbox: wire.Sandbox) -> bool:
        """See Store."""
        row = (sandbox.state.value, _encode(sandbox), sandbox.id, tenant)

        def work(connection: sqlite3.Connection) -> bool:
            if connection.execute(SQL["sandbox_unpaused"], row).rowcount != 1:
                return False
            connection.execute(SQL["pause_remove"], (sandbox.id, tenant))
            return True

        return bool(await self._writer.ask(work))

    def pauses(self) -> list[PauseRow]:
        """See Store."""
        return [PauseRow(*row) for row in self._read.execute(SQL["pause_list"])]

    def keyless_since(self, tenant: str) -> float | None:
        """See Store."""
        found: float | None = self._keys.execute(SQL["tenant_keyless"], {"tenant": tenant}).fetchone()[0]
        return found

    def _listed(self, query: str, tenant: str, wanted: Filter) -> list[tuple[bytes]]:
        values: dict[str, Any] = {
            "tenant": tenant,
            "state": wanted.state,
            "cursor": wanted.cursor,
            "limit": wanted.limit,
        }
        if wanted.labels:
            query += "_by_label"
            values["name"], values["value"] = wanted.labels[0]
            values["others"] = _encode(wanted.labels[1:]).decode()
        return self._read.execute(SQL[query], values).fetchall()

    def _label(self, tenant: str, subject: str, labels: dict[str, str]) -> None:
        for name, value in labels.items():
            self._writer.put(SQL["label_add"], (tenant, name, value, subject))

    # --- events ---

    def event(self, event: NewEvent) -> None:
        """See Store."""
        row = (event.tenant, event.type, event.time, event.sandbox, event.run, _encode(event.data))
        self._writer.put(SQL["event_add"], row)

    def events(self, tenant: str, after: int, limit: int) -> list[wire.Event]:
        """See Store."""
        values = {"tenant": tenant, "after": after, "limit": limit}
        return [_event(row) for row in self._read.execute(SQL["event_list"], values)]

    def events_about(self, tenant: str, subject: str, limit: int) -> list[wire.Event]:
        """See Store."""
        query = "event_about_run" if subject.startswith("r") else "event_about_sandbox"
        rows = self._read.execute(SQL[query], {"tenant": tenant, "subject": subject, "limit": limit})
        return [_event(row) for row in rows][::-1]

    def egress_sums(self, tenant: str, since: float, step: float, most: int) -> list[EgressSum]:
        """See Store."""
        values = {"tenant": tenant, "since": since, "step": step, "most": most}
        rows = self._read.execute(SQL["egress_sums"], values)
        return [
            EgressSum(
                time=float(begins),
                place=str(place),
                protocol=str(protocol),
                port=int(port or 0),
                times=times,
                denied=denied,
                sent=int(sent),
                received=int(received),
            )
            for begins, place, protocol, port, times, denied, sent, received in rows
        ]

    def last_event(self, tenant: str) -> int:
        """See Store."""
        found: int = self._read.execute(SQL["event_last"], {"tenant": tenant}).fetchone()[0]
        return found

    def on_events(self, callback: Callable[[], None] | None) -> None:
        """See Store; called on the writing thread, so the callback hands over to its loop."""
        self._on_events = callback

    # --- published ports ---

    def port_saved(self, row: PortRow) -> None:
        """See Store."""
        self._writer.put(SQL["port_saved"], (row.sandbox, row.port, row.tenant, row.record))

    def port_removed(self, sandbox_id: str, port: int) -> None:
        """See Store."""
        self._writer.put(SQL["port_removed"], (sandbox_id, port))

    def ports(self) -> list[PortRow]:
        """See Store."""
        self._writer.put(SQL["port_tidy"], ())
        return [PortRow(*row) for row in self._read.execute(SQL["port_live"])]

    def ports_ended(self, most: int) -> list[str]:
        """See Store."""
        return [row[0] for row in self._read.execute(SQL["port_ended"], (most,))]

    # --- secrets ---

    async def secret_saved(self, row: SecretRow) -> None:
        """See Store."""
        values = {"tenant": row.tenant, "name": row.name, "record": row.record, "sealed": row.sealed}
        await self._writer.ask(lambda connection: connection.execute(SQL["secret_saved"], values).rowcount)

    async def secret_removed(self, tenant: str, name: str) -> None:
        """See Store."""
        values = {"tenant": tenant, "name": name}
        await self._writer.ask(lambda connection: connection.execute(SQL["secret_removed"], values).rowcount)

    def secrets(self, tenant: str, name: str | None = None) -> list[SecretRow]:
        """See Store."""
        return [SecretRow(*row) for row in self._read.execute(SQL["secret_list"], {"tenant": tenant, "name": name})]

    async def authority_made(self, row: AuthorityRow) -> None:
        """See Store."""
        values = {"tenant": row.tenant, "certificate": row.certificate, "sealed": row.sealed}
        await self._writer.ask(lambda connection: connection.execute(SQL["authority_made"], values).rowcount)

    def authority(self, tenant: str) -> AuthorityRow | None:
        """See Store."""
        row = self._read.execute(SQL["authority_of"], {"tenant": tenant}).fetchone()
        return AuthorityRow(*row) if row else None

    # --- other protocols' faces ---

    def compat_saved(self, row: CompatRow) -> None:
        """See Store."""
        self._writer.put(SQL["compat_saved"], (row.sandbox, row.tenant, row.record))

    def compat(self) -> list[CompatRow]:
        """See Store."""
        self._writer.put(SQL["compat_tidy"], ())
        return [CompatRow(*row) for row in self._read.execute(SQL["compat_live"])]

    def built_saved(self, row: BuiltRow) -> None:
        """See Store."""
        self._writer.put(SQL["built_saved"], (row.id, row.tenant, row.record))

    def built_removed(self, tenant: str, template_id: str) -> None:
        """See Store."""
        self._writer.put(SQL["built_removed"], (template_id, tenant))

    def built(self) -> list[BuiltRow]:
        """See Store."""
        return [BuiltRow(*row) for row in self._read.execute(SQL["built_all"])]

    # --- idempotency ---

    @staticmethod
    def _claim_id(claim: Claim) -> bytes:
        return hashlib.sha256(_encode([claim.tenant, claim.route, claim.key])).digest()

    def answered(self, claim: Claim) -> Answered | None:
        """See Store."""
        values = {"digest": self._claim_id(claim), "tenant": claim.tenant, "now": time.time()}
        row = self._read.execute(SQL["answer_find"], values).fetchone()
        return Answered(digest=row[0], status=row[1], body=row[2]) if row else None

    async def keep(self, claim: Claim, answer: Answered, until: float) -> None:
        """See Store."""
        row = (self._claim_id(claim), claim.tenant, answer.digest, answer.status, answer.body, until)
        await self._writer.ask(lambda connection: connection.execute(SQL["answer_keep"], row).rowcount, hurry=False)

    # --- upkeep ---

    async def flush(self) -> None:
        """See Store."""
        await self._writer.ask(lambda _connection: None)

    async def tidy(self, before: float, keep_runs: int, keep_events: int) -> None:
        """See Store."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(SQL["tidy_answers"], {"now": time.time()})
            connection.execute(SQL["compat_tidy"])
            for (tenant,) in connection.execute(SQL["tidy_tenants"]).fetchall():
                connection.execute(SQL["tidy_events"], {"tenant": tenant, "keep": keep_events})
                bounds = {"tenant": tenant, "most": MOST_ANSWERS, "bytes": MOST_ANSWER_BYTES}
                connection.execute(SQL["tidy_surplus_answers"], bounds)
                wanted = {"tenant": tenant, "before": before, "keep": keep_runs}
                floor = connection.execute(SQL["tidy_floor"], wanted).fetchone()[0]
                for query in ("tidy_run_labels", "tidy_runs"):
                    connection.execute(SQL[query], {"tenant": tenant, "floor": floor})
                for query in ("tidy_sandbox_labels", "tidy_sandboxes"):
                    connection.execute(SQL[query], {"tenant": tenant, "before": before})

        await self._writer.ask(work)

    def close(self) -> None:
        """See Store."""
        self._writer.stop()
        self._keys.close()
        self._read.close()
        self._write.close()
