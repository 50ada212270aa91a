"""What the engine asks of a store. Every read of a tenant's things takes the tenant: there is no other way in.

Reads are answered at once, from committed rows. Writes without `async` are queued and durable within 50 ms; they are
made beside a request, never before its first byte. Each move of a row is guarded by the state it must leave, so a
repeated or late write changes nothing.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from ringfence import wire
from ringfence.domain.errors import BadRequest
from ringfence.wire_egress import EgressSum

KEY_PREFIX: Final = "rf_"
E2B_PREFIX: Final = "e2b_"
_E2B_KEY: Final = re.compile(E2B_PREFIX + r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Key:
    """An API key as stored: its SHA-256 finds it, the key itself is nowhere."""

    id: str
    tenant: str
    name: str
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None

    def valid(self, now: float) -> bool:
        """True while neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


def digest_of(key: str) -> bytes:
    """What is stored of a key, in either spelling. A key holds 256 random bits, so a plain hash suffices."""
    return hashlib.sha256(_plain(key).encode("utf-8", "surrogatepass")).digest()


def e2b_spelling(key: str) -> str:
    """The same key for E2B's clients, some of which take nothing but `e2b_` and hexadecimal digits."""
    return E2B_PREFIX + base64.urlsafe_b64decode(key.removeprefix(KEY_PREFIX) + "=").hex()


def _plain(key: str) -> str:
    """The spelling that keys are made in."""
    if not _E2B_KEY.fullmatch(key):
        return key
    return KEY_PREFIX + base64.urlsafe_b64encode(bytes.fromhex(key.removeprefix(E2B_PREFIX))).decode().rstrip("=")


def key_name(tenant: str) -> str:
    """A tenant's name as given to `keys create`, checked. Raises BadRequest."""
    if not tenant or len(tenant) > 64 or not all(c.isalnum() or c in "-_." for c in tenant) or not tenant.isascii():
        raise BadRequest("a tenant's name is 1 to 64 letters, digits, '-', '_' or '.'", code="bad_tenant")
    return tenant


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event before the store gives it its id."""

    tenant: str
    type: str
    time: float
    sandbox: str | None = None
    run: str | None = None
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Claim:
    """Who uses an idempotency key for what: `digest` is the request body's."""

    tenant: str
    route: str
    key: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class Answered:
    """What an earlier use of the same key was answered."""

    digest: bytes
    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class PortRow:
    """A published port; `record` is the edge's own."""

    tenant: str
    sandbox: str
    port: int
    record: bytes


@dataclass(frozen=True, slots=True)
class SecretRow:
    """A secret: `record` is all that may be shown, `sealed` its value."""

    tenant: str
    name: str
    record: bytes
    sealed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class AuthorityRow:
    """A tenant's certificate authority; its key is sealed."""

    tenant: str
    certificate: str
    sealed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class CompatRow:
    """What a face of another protocol keeps of a living sandbox; `record` is that face's own."""

    tenant: str
    sandbox: str
    record: bytes


@dataclass(frozen=True, slots=True)
class BuiltRow:
    """A template that a tenant has built; `record` is the face's own."""

    tenant: str
    id: str
    record: bytes


@dataclass(frozen=True, slots=True)
class PauseRow:
    """What is kept of a paused sandbox, and until when."""

    sandbox: str
    tenant: str
    size: int
    digest: bytes
    expires: float
    begins: bytes = b""  # what it begins with, once it has its files again


@dataclass(frozen=True, slots=True)
class Filter:
    """What a list shows: newest first, older than the row named by `cursor`, carrying every one of `labels`."""

    limit: int = 100
    cursor: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    state: str | None = None


class Store(Protocol):
    """Keys, sandboxes, runs, events, secrets and idempotency keys."""

    def ready(self) -> bool:
        """False while writes cannot be kept; then nothing new may be started."""

    def key(self, digest: bytes) -> Key | None:
        """The key with this SHA-256, whatever its validity."""

    def run_started(self, tenant: str, run: wire.Run) -> None:
        """Queue a new row in state running."""

    def run_ended(self, tenant: str, run: wire.Run) -> None:
        """Queue the end of a running row; does nothing to a row that ended already. Output is not kept."""

    def run(self, tenant: str, run_id: str) -> wire.Run | None:
        """A run's record."""

    def runs(self, tenant: str, wanted: Filter) -> list[wire.Run]:
        """A tenant's runs. An unknown cursor gives none."""

    def running(self) -> list[tuple[str, str]]:
        """(tenant, run id) of every run not ended."""

    def sandbox_created(self, tenant: str, sandbox: wire.Sandbox) -> None:
        """Queue a new row, whatever its state; does nothing when the id is known."""

    def sandbox_changed(self, tenant: str, sandbox: wire.Sandbox) -> None:
        """Queue a new version of a row that is neither in a terminal state nor paused."""

    def sandbox(self, tenant: str, sandbox_id: str) -> wire.Sandbox | None:
        """A sandbox as last written."""

    def sandboxes(self, tenant: str, wanted: Filter) -> list[wire.Sandbox]:
        """A tenant's sandboxes. An unknown cursor gives none."""

    def live_sandboxes(self) -> list[tuple[str, wire.Sandbox]]:
        """(tenant, sandbox) of every row neither paused nor in a terminal state."""

    async def sandbox_paused(self, sandbox: wire.Sandbox, kept: PauseRow) -> bool:
        """A row becomes paused, with what is kept of it: durable on return, over a power cut too. False: it ended."""

    async def sandbox_unpaused(self, tenant: str, sandbox: wire.Sandbox) -> bool:
        """A paused row becomes something else, and nothing is kept of it: durable on return. False: it was not."""

    def pauses(self) -> list[PauseRow]:
        """What is kept of every paused sandbox."""

    def keyless_since(self, tenant: str) -> float | None:
        """Since when a tenant has had keys and none of them valid; may lie ahead. None while one never expires."""

    def event(self, event: NewEvent) -> None:
        """Queue an event."""

    def events(self, tenant: str, after: int, limit: int) -> list[wire.Event]:
        """A tenant's events with a larger id, oldest first."""

    def events_about(self, tenant: str, subject: str, limit: int) -> list[wire.Event]:
        """The newest events of one sandbox or run, oldest first."""

    def egress_sums(self, tenant: str, since: float, step: float, most: int) -> list[EgressSum]:
        """What a tenant's newest `most` connections since then came to, by destination and `step` seconds."""

    def last_event(self, tenant: str) -> int:
        """The largest event id of this tenant; 0 when it has none."""

    def on_events(self, callback: Callable[[], None] | None) -> None:
        """Call back after each commit, from any thread; None to stop."""

    def port_saved(self, row: PortRow) -> None:
        """Queue a published port, new or changed."""

    def port_removed(self, sandbox_id: str, port: int) -> None:
        """Queue the end of a published port; does nothing when there is none."""

    def ports(self) -> list[PortRow]:
        """Every published port whose sandbox is in no terminal state; queues the end of all others.

        But for port 0, under which it is kept that a sandbox published every port: see `ports_ended`.
        """

    def ports_ended(self, most: int) -> list[str]:
        """The ids of the newest sandboxes that published every port and ended, the newest last."""

    async def secret_saved(self, row: SecretRow) -> None:
        """Keep a secret, new or changed; returns once it is durable."""

    async def secret_removed(self, tenant: str, name: str) -> None:
        """Forget a secret; returns once that is durable."""

    def secrets(self, tenant: str, name: str | None = None) -> list[SecretRow]:
        """A tenant's secrets by name, or the one that is named."""

    async def authority_made(self, row: AuthorityRow) -> None:
        """Keep a tenant's authority; returns once it is durable. The first one kept stays."""

    def authority(self, tenant: str) -> AuthorityRow | None:
        """A tenant's authority."""

    def compat_saved(self, row: CompatRow) -> None:
        """Queue what a face keeps of a sandbox, new or changed."""

    def compat(self) -> list[CompatRow]:
        """What the faces keep of each sandbox in no terminal state; queues the end of all other rows."""

    def built_saved(self, row: BuiltRow) -> None:
        """Queue a template that a tenant has built, new or changed."""

    def built_removed(self, tenant: str, template_id: str) -> None:
        """Queue that it is forgotten; does nothing when there is none."""

    def built(self) -> list[BuiltRow]:
        """Every template that a tenant has built."""

    def answered(self, claim: Claim) -> Answered | None:
        """The kept answer to an earlier use of this idempotency key."""

    async def keep(self, claim: Claim, answer: Answered, until: float) -> None:
        """Keep an answer; returns once it is durable. The first one kept stays."""

    async def flush(self) -> None:
        """Return when everything queued before is durable."""

    async def tidy(self, before: float, keep_runs: int, keep_events: int) -> None:
        """Drop ended runs and sandboxes older than `before`, each tenant's surplus, and old answers."""

    def close(self) -> None:
        """Write what is queued and close; nothing may be called after."""
