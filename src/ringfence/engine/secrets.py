"""A tenant's secrets: kept sealed, shown without their values, and handed on for one sandbox at a time.

A value leaves here only in the node's words for a sandbox that asks for it by name; nothing here makes text of one.
"""

from __future__ import annotations

import secrets
import time
from typing import Any, Final, Protocol

import msgspec

from ringfence import wire, wire_secrets
from ringfence.domain.egress import Floor
from ringfence.domain.errors import BadRequest, NotFound, OverQuota, PlatformFault
from ringfence.domain.secrets import (
    MOST_SECRETS,
    PREFIX,
    Authority,
    Held,
    Part,
    Secret,
    authority_to,
    checked_value,
    held_to,
    secret_from,
    secret_name,
)
from ringfence.engine.answers import NodeAnswer
from ringfence.engine.nodeclient import NodeClient
from ringfence.store.base import AuthorityRow, SecretRow, Store

MOST_KEPT: Final = 200  # of one tenant
TRUST_FILE: Final = "/run/ringfence-authorities.pem"
# How common clients are told which authorities to trust: OpenSSL and Python, requests and pip, curl, git, Node.
TRUST_ENV: Final = (
    "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS",
)  # fmt: skip
_encode: Final = msgspec.json.Encoder().encode
_record: Final = msgspec.json.Decoder(wire_secrets.Secret)


class Sealer(Protocol):
    """What keeps values unreadable while they are stored."""

    def seal(self, data: bytes, about: str) -> bytes:
        """Bytes that only open() gives back."""
        ...

    def open(self, sealed: bytes, about: str) -> bytes:
        """What was sealed about this. Raises PlatformFault."""
        ...

    def new_authority(self) -> Authority:
        """A certificate authority that nobody else has."""
        ...


class Secrets:
    """Every tenant's."""

    def __init__(self, store: Store, node: NodeClient, floor: Floor, sealer: Sealer | None, roots: bytes) -> None:
        """`roots` are the authorities that a sandbox trusts besides its tenant's own, as PEM. No sealer: no secrets."""
        self._store = store
        self._node = node
        self._floor = floor
        self._sealer = sealer
        self._roots = roots

    def _opened(self) -> Sealer:
        if self._sealer is None:
            raise PlatformFault("this server keeps no secrets", code="no_vault")
        return self._sealer

    # --- kept ---

    async def put(self, tenant: str, name: str, request: wire_secrets.SecretRequest) -> wire_secrets.Secret:
        """Keep a secret, new or in the place of one; in force in living sandboxes too when this returns."""
        secret = secret_from(
            name,
            request.hosts,
            headers=request.headers,
            queries=request.queries,
            body=request.body,
            env=request.env,
            floor=self._floor,
        )
        value = checked_value(request.value, secret.places)
        known = self._store.secrets(tenant)
        former = next((_record.decode(row.record) for row in known if row.name == name), None)
        if former is None and len(known) >= MOST_KEPT:
            raise OverQuota(f"a tenant keeps at most {MOST_KEPT} secrets", remediation="remove some")
        now = time.time()
        shown = _shown(secret, former.created_at if former else now, now)
        sealed = self._opened().seal(value.encode(), _about(tenant, name))
        await self._store.secret_saved(SecretRow(tenant, name, _encode(shown), sealed))
        if former is not None:
            await self._tell(tenant, name, secret, value)
        return shown

    async def _tell(self, tenant: str, name: str, secret: Secret | None, value: str = "") -> None:
        """Living sandboxes have what is kept, or nothing."""
        words = None
        if secret is not None:
            words = held_to(Held(name, secret.hosts, secret.places, _placeholder(), value))
        await self._node.call({"verb": "secret", "tenant": tenant, "name": name, "secret": words}, NodeAnswer)

    def get(self, tenant: str, name: str) -> wire_secrets.Secret:
        """What may be shown of one. Raises NotFound."""
        rows = self._store.secrets(tenant, name)
        if not rows:
            raise NotFound(f"no secret {name[:80]!r}", remediation="list them with `ringfence secrets list`")
        return _record.decode(rows[0].record)

    def page(self, tenant: str) -> list[wire_secrets.Secret]:
        """What may be shown of all, by name."""
        return [_record.decode(row.record) for row in self._store.secrets(tenant)]

    async def remove(self, tenant: str, name: str) -> None:
        """Forget one, here and in living sandboxes, whose placeholders are worth nothing then. Raises NotFound."""
        self.get(tenant, name)
        await self._store.secret_removed(tenant, name)
        await self._tell(tenant, name, None)

    # --- handed on ---

    async def granted(self, tenant: str, wanted: list[str], egress: wire.Egress) -> dict[str, Any]:
        """The node's words for a sandbox that asks for secrets by name; none for none. Raises BadRequest."""
        if not wanted:
            return {}
        if len(wanted) > MOST_SECRETS or len(set(wanted)) != len(wanted):
            raise BadRequest(f"secrets are at most {MOST_SECRETS} names, each once", code="bad_secret")
        if egress == "none":
            raise BadRequest(
                'secrets and egress "none" contradict each other: secrets are for hosts outside',
                code="bad_secret",
                remediation="leave egress out: the hosts of the secrets are allowed by themselves",
            )
        held, env = [], {}
        for name in wanted:
            each, variable = self._held(tenant, secret_name(name))
            if variable in env:
                raise BadRequest(f"two secrets want the variable {variable}", code="bad_secret")
            held.append(held_to(each))
            env[variable] = each.placeholder
        authority = await self._authority(tenant)
        bundle = self._roots.decode() + authority.certificate
        env |= dict.fromkeys(TRUST_ENV, TRUST_FILE)
        furnish = {"env": env, "path": TRUST_FILE, "text": bundle}
        return {"secrets": held, "authority": authority_to(authority), "furnish": furnish}

    def kept(self, tenant: str, wanted: list[str]) -> list[bytes]:
        """What some secrets are now, as it is sealed: equal to what it was while nobody changed one."""
        return [row.sealed for name in wanted for row in self._store.secrets(tenant, name)]

    def _held(self, tenant: str, name: str) -> tuple[Held, str]:
        rows = self._store.secrets(tenant, name)
        if not rows:
            raise BadRequest(
                f"no secret {name!r}", code="unknown_secret", remediation=f"keep it: ringfence secrets set {name}"
            )
        shown = _record.decode(rows[0].record)
        secret = secret_from(
            name, shown.hosts, headers=shown.headers, queries=shown.queries, body=shown.body, env=shown.env
        )
        value = self._opened().open(rows[0].sealed, _about(tenant, name)).decode()
        return Held(name, secret.hosts, secret.places, _placeholder(), value), secret.env

    async def _authority(self, tenant: str) -> Authority:
        """The tenant's own, made when it is first needed."""
        row = self._store.authority(tenant)
        sealer, about = self._opened(), _about(tenant, "authority")
        if row is None:
            made = sealer.new_authority()
            sealed = sealer.seal(made.key.encode(), about)
            await self._store.authority_made(AuthorityRow(tenant, made.certificate, sealed))
            row = self._store.authority(tenant)  # another request may have been first
        if row is None:
            raise PlatformFault("the tenant's authority could not be kept")
        return Authority(row.certificate, sealer.open(row.sealed, about).decode())


def _placeholder() -> str:
    return PREFIX + secrets.token_hex(16)


def _about(tenant: str, name: str) -> str:
    """What a sealed value is bound to: moved to another row, it opens no more."""
    return f"{tenant}\0{name}"


def _shown(secret: Secret, created: float, changed: float) -> wire_secrets.Secret:
    return wire_secrets.Secret(
        name=secret.name,
        hosts=list(secret.hosts),
        headers=[place.name for place in secret.places if place.part is Part.HEADER],
        queries=[place.name for place in secret.places if place.part is Part.QUERY],
        body=any(place.part is Part.BODY for place in secret.places),
        env=secret.env,
        created_at=created,
        changed_at=changed,
    )
