"""What this face keeps of each sandbox beside what the engine knows, for as long as it lives."""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import secrets
import time
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from ringfence import wire
from ringfence.domain.sandbox import State
from ringfence.engine.engine import Engine
from ringfence.store.base import CompatRow, Store

_log: Final = logging.getLogger(__name__)
TOKEN_BYTES: Final = 32
DOUBT_SECONDS: Final = 2.0
WOKEN_SECONDS: Final = 300.0  # E2B's documentation of auto-resume: five minutes, or the time at create if longer
SHELL: Final = "/bin/bash"
MOST_FINISHED: Final = 512  # started programs remembered of one sandbox


class Record(msgspec.Struct, kw_only=True):
    """What was asked for at create, and the tokens that were given out. Kept in the store."""

    token: str
    template: str
    traffic: str | None = None
    metadata: dict[str, str] = {}
    env: dict[str, str] = {}
    network: dict[str, Any] = {}
    internet: bool | None = None
    secure: bool = True  # false: a client before 2.0, which shows no token where cells are run
    kernels: list[str] = []  # those that ran cells in default contexts: if no process of ours knows them, they are lost
    auto_pause: bool = False
    auto_resume: bool = False
    seconds: float = 0.0  # its time at create
    first: bool = False  # made by the first create route, whose clients say some things whatever their user wants
    user: str = "user"  # whom the template says programs run as
    workdir: str | None = None  # and where they start; nothing: at home
    shell: str = SHELL  # what stands in for the one that clients name, where the template has none


def new_token() -> str:
    """A token of 256 random bits: nothing of it follows from the sandbox's id."""
    return secrets.token_hex(TOKEN_BYTES)


def same(given: str | None, token: str) -> bool:
    """Whether a token is the one, in a time that tells nothing."""
    return given is not None and hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


@dataclass(frozen=True, slots=True)
class Begun:
    """How a program was started, as `List` tells it. Known to this process alone."""

    config: dict[str, Any]
    terminal: bool


@dataclass(eq=False)
class Face:
    """A living sandbox as this protocol shows it."""

    tenant: str
    id: str
    record: Record
    ended: bool = False
    doubted: float = 0.0  # seen to end before the engine said so: until then it is taken for dead
    begun: dict[int, Begun] = field(default_factory=dict)
    watchers: dict[str, Any] = field(default_factory=dict)
    samples: list[tuple[float, float, dict[str, Any]]] = field(default_factory=list)

    @property
    def dead(self) -> bool:
        """Whether it is gone, as far as anybody here has seen."""
        return self.ended or time.monotonic() < self.doubted

    def doubt(self) -> None:
        """Something of it broke off: until the engine has heard why, it is not there. A reset may bring it back."""
        self.doubted = time.monotonic() + DOUBT_SECONDS

    def environment(self) -> dict[str, str]:
        """The variables every program here starts with, beside its template's."""
        own = {"E2B_SANDBOX": "true", "E2B_SANDBOX_ID": self.id, "E2B_TEMPLATE_ID": self.record.template}
        return {**own, **self.record.env}

    def remember(self, pid: int, begun: Begun) -> None:
        """Keep how a program was started, within a bound."""
        self.begun.pop(pid, None)
        while len(self.begun) >= MOST_FINISHED:
            del self.begun[next(iter(self.begun))]
        self.begun[pid] = begun

    def signed(self, words: Signed) -> bool:
        """Whether a file URL's signature was made with this sandbox's token."""
        parts = [words.path, words.operation, words.user, self.record.token, *words.expiry]
        digest = hashlib.sha256(":".join(parts).encode("utf-8", "surrogatepass")).digest()
        expected = "v1_" + base64.b64encode(digest).decode().rstrip("=")
        return same(words.signature, expected)


@dataclass(frozen=True, slots=True)
class Signed:
    """What a file URL's signature is over. `expiry` has Unix seconds as they were written, or nothing."""

    path: str
    operation: str
    user: str
    expiry: tuple[str, ...]
    signature: str

    def expired(self) -> bool:
        """Whether its time is over; a moment that is no number was over long ago."""
        return any(not each.isdecimal() or int(each[:20]) < time.time() for each in self.expiry)


class Registry:
    """Every living sandbox's face. One that our own API made gets one when it is first asked for here."""

    def __init__(self, engine: Engine, store: Store) -> None:
        self._engine = engine
        self._store = store
        self._faces: dict[str, Face] = {}
        self._holders: dict[bytes, str] = {}  # who was given a token, by its digest
        engine.ledger.on_gone.append(self.gone)
        engine.pauses.least = self.least

    def begin(self) -> None:
        """Read back what an earlier process kept."""
        for row in self._store.compat():
            try:
                record = msgspec.json.decode(row.record, type=Record)
            except msgspec.MsgspecError:
                _log.error("the E2B record of %s cannot be read back", row.sandbox)
                continue
            self._know(Face(row.tenant, row.sandbox, record))

    def _know(self, face: Face) -> None:
        self._faces[face.id] = face
        self._holders[_digest(face.record.token)] = face.id

    def keep(self, face: Face) -> None:
        """Make it known, and durable soon."""
        self._know(face)
        self._store.compat_saved(CompatRow(face.tenant, face.id, msgspec.json.encode(face.record)))

    def ran(self, face: Face, kernel: str) -> None:
        """A cell goes to the kernel of a default context. Whoever asks after a restart is told that it is lost."""
        if kernel not in face.record.kernels:
            face.record.kernels.append(kernel)
            self.keep(face)

    def find(self, sandbox_id: str) -> Face | None:
        """The face of a sandbox that lives or is paused, whoever owns it."""
        living, known = self._engine.ledger.living(sandbox_id), self._faces.get(sandbox_id)
        if known is not None:
            there = living is not None or self.asleep(known)
            return known if there and not known.dead else None
        return self._adopted(*living) if living is not None else None

    def least(self, sandbox_id: str) -> float:
        """How long one of ours lives at least that was woken by being used: what it was given last was to end it."""
        face = self._faces.get(sandbox_id)
        return max(face.record.seconds, WOKEN_SECONDS) if face is not None and face.record.auto_resume else 0.0

    def asleep(self, face: Face) -> bool:
        """Whether it is paused, or on its way into a pause or out of it."""
        return self._engine.turns.find(face.tenant, face.id) is not None

    def mine(self, tenant: str, sandbox_id: str) -> Face | None:
        """The same, where it is this tenant's."""
        face = self.find(sandbox_id)
        return face if face is not None and face.tenant == tenant else None

    def of(self, tenant: str) -> list[tuple[Face, wire.Sandbox]]:
        """A tenant's sandboxes, the paused ones as they were written down."""
        living = self._engine.ledger.living_of(tenant)
        ids = {sandbox.id for sandbox in living}
        for face in self._faces.values():
            if face.tenant == tenant and face.id not in ids and self.asleep(face):
                row = self._store.sandbox(tenant, face.id)
                living += [row] if row is not None else []
        pairs = [(self.find(sandbox.id), sandbox) for sandbox in living]
        return [(face, sandbox) for face, sandbox in pairs if face is not None]

    def signer(self, words: Signed) -> Face | None:
        """Whose token made this signature: a URL on a shared host names no sandbox."""
        for sandbox_id, face in self._faces.items():
            if face.signed(words):
                return self.find(sandbox_id)
        return None

    def holder(self, token: str) -> str | None:
        """The sandbox whose token this is: some releases name none where all share a host."""
        return self._holders.get(_digest(token))

    def _adopted(self, tenant: str, sandbox: wire.Sandbox) -> Face:
        face = Face(tenant, sandbox.id, Record(token=new_token(), template=sandbox.template, metadata=sandbox.labels))
        if sandbox.state is State.RUNNING:
            self.keep(face)
        return face

    def gone(self, sandbox_id: str) -> None:
        """A sandbox ended, whichever way."""
        face = self._faces.pop(sandbox_id, None)
        if face is None:
            return
        self._holders.pop(_digest(face.record.token), None)
        face.ended = True
        for watcher in face.watchers.values():
            watcher.stop()
        face.watchers.clear()
