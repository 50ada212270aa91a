"""The REST control plane: each route of E2B's as verbs of the engine."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from ringfence import wire
from ringfence.api.compat.e2b import listing, network, shapes, view
from ringfence.api.compat.e2b.asks import Ask, Reply
from ringfence.api.compat.e2b.http import Exchange
from ringfence.api.compat.e2b.pausing import Pausing, on_timeout
from ringfence.api.compat.e2b.records import Face, Record, Registry, new_token
from ringfence.api.compat.e2b.refusals import missing
from ringfence.api.compat.e2b.templates.built import BuiltTemplates, Chosen
from ringfence.api.compat.e2b.templates.serving import plain_name as template_of
from ringfence.config import E2bSettings
from ringfence.domain.errors import BadRequest, Conflict, RingfenceError
from ringfence.edge.ports import Ports
from ringfence.engine import checks
from ringfence.engine.engine import Engine
from ringfence.engine.policy import RESERVED
from ringfence.store.base import Claim

DEFAULT_SECONDS: Final = 300
SOONEST: Final = 0.001  # seconds: a timeout of 0 means now
_KEY: Final = re.compile(r"[a-z0-9-]{1,255}")
_encode: Final = msgspec.json.Encoder().encode


def labels_of(metadata: dict[str, str]) -> dict[str, str]:
    """The metadata as labels, as far as labels can hold it; all of it is kept in the record."""
    fitting: dict[str, str] = {}
    for name, value in list(metadata.items())[: checks.MOST_LABELS]:
        try:
            checks.labels({name: value})
        except RingfenceError:
            continue
        if not name.startswith(RESERVED):
            fitting[name] = value
    return fitting


class Control:
    """What the routes do."""

    def __init__(
        self,
        engine: Engine,
        registry: Registry,
        settings: E2bSettings,
        ports: Ports,
        domain: Callable[[Exchange], str | None],
        warm: Callable[[Face], None],
        templates: BuiltTemplates | None = None,
    ) -> None:
        self._engine = engine
        self._registry = registry
        self._settings = settings
        self._ports = ports
        self._domain = domain
        self._warm = warm
        self._pausing = Pausing(engine, settings)
        self._templates = templates

    # --- one sandbox ---

    def _face(self, ask: Ask) -> Face:
        face = self._registry.mine(ask.tenant, ask.sandbox)
        if face is None:
            raise missing(ask.sandbox)
        return face

    async def _look(self, ask: Ask) -> tuple[Face, wire.Sandbox]:
        """A living sandbox as it is now. Raises NotFound."""
        face = self._face(ask)
        sandbox = await self._engine.sandboxes.get(ask.tenant, face.id)
        if sandbox.ended_at is not None:
            raise missing(face.id)
        return face, sandbox

    # --- making ---

    async def create_v1(self, ask: Ask) -> Reply:
        """A new sandbox, as clients before 2.51 ask for it."""
        return await self._created(ask, first=True)

    async def create(self, ask: Ask) -> Reply:
        """A new sandbox."""
        return await self._created(ask, first=False)

    async def _created(self, ask: Ask, *, first: bool) -> Reply:
        body = await ask.exchange.body(shapes.MOST_BODY)
        asked = shapes.read(body, shapes.NewSandbox)
        key = ask.exchange.header(b"idempotency-key")
        domain = self._domain(ask.exchange)

        async def work() -> tuple[int, bytes]:
            return 201, _encode(view.made(await self._make(ask.tenant, asked, first=first), domain))

        if key is None:
            status, encoded = await work()
            return Reply(status, encoded=encoded)
        if not _KEY.fullmatch(key):
            raise BadRequest("Idempotency-Key is 1 to 255 of a-z, 0-9 and '-'", code="bad_idempotency")
        claim = Claim(ask.tenant, "e2b sandboxes", key, hashlib.sha256(body).digest())
        status, encoded = await self._engine.idempotency.once(claim, work, lambda whole: whole)
        return Reply(status, encoded=encoded)

    async def _make(self, tenant: str, asked: shapes.NewSandbox, *, first: bool) -> Face:
        metadata, env = asked.metadata or {}, asked.env or {}
        checks.environment(env)
        pause = on_timeout(asked, self._settings, always_said=first)
        policy = network.egress(asked.network, asked.allow_internet_access, self._settings, always_said=first)
        seconds = max(DEFAULT_SECONDS if asked.timeout is None else asked.timeout, SOONEST)
        public = asked.network.allow_public_traffic if asked.network is not None else None
        chosen = await self._chosen(tenant, asked.template)
        record = Record(
            token=new_token(),
            traffic=new_token() if public is False else None,
            template=asked.template,
            metadata=metadata,
            env=env,
            network=network.told(asked.network),
            internet=asked.allow_internet_access,
            secure=asked.secure is not False,
            auto_pause=pause,
            auto_resume=asked.auto_resume is not None and asked.auto_resume.enabled,
            seconds=seconds,
            first=first,
            user=chosen.user,
            workdir=chosen.workdir,
            shell=chosen.shell,
        )
        request = wire.SandboxRequest(
            template=chosen.name,
            start=chosen.start,
            isolation=self._settings.isolation,
            limits=self._limits(tenant),
            labels=labels_of(metadata),
            ttl_seconds=seconds,
            egress=policy,
            **self._pausing.words(record),
        )
        sandbox = await self._engine.sandboxes.create(tenant, request)
        face = Face(tenant, sandbox.id, record)
        self._registry.keep(face)
        if self._ports.listening:
            await self._publish(face)
        if chosen.ready and self._templates is not None:
            await self._templates.await_ready(face.tenant, face.id, chosen)
        if request.template in self._settings.warm_kernels:
            self._warm(face)
        return face

    async def _chosen(self, tenant: str, name: str) -> Chosen:
        """The template a client means: one of everybody's, else one that its tenant has built."""
        plain = template_of(name)
        return await self._templates.chosen(tenant, name) if self._templates is not None else Chosen(plain)

    async def _publish(self, face: Face) -> None:
        """Let its ports be reached, by anybody or by whoever has the traffic token; as was asked or not at all."""
        try:
            await self._ports.publish_all(face.tenant, face.id, face.record.traffic)
        except BaseException:
            await self._engine.sandboxes.stop(face.tenant, face.id, "its ports could not be published as asked")
            raise

    def _limits(self, tenant: str) -> dict[str, Any]:
        """The operator's limits for these sandboxes, none above the tenant's own."""
        most = self._engine.policy.ceiling(tenant).most
        return {
            name: value if most is None else min(value, getattr(most, name))
            for name, value in self._settings.limits.items()
        }

    # --- finding again ---

    async def connect(self, ask: Ask) -> Reply:
        """Find it again; resumed when it was paused. Its time is only ever made longer."""
        asked = await ask.read(shapes.Connect)
        return await self._joined(ask, asked, resumed=201, running=200)

    async def resume(self, ask: Ask) -> Reply:
        """The same for clients before 2.6, which expect 201."""
        asked = await ask.read(shapes.Connect)
        if asked.auto_pause:
            on_timeout(shapes.NewSandbox(auto_pause=True), self._settings)
        face, sandbox = await self._look(ask)
        if view.state_of(sandbox) != "paused":
            raise Conflict(f"sandbox {face.id} is running already", code="not_paused")
        return await self._joined(ask, asked, resumed=201, running=201)

    async def _joined(self, ask: Ask, asked: shapes.Connect, *, resumed: int, running: int) -> Reply:
        face, sandbox = await self._look(ask)
        seconds = max(DEFAULT_SECONDS if asked.timeout is None else asked.timeout, SOONEST)
        status = running
        if view.state_of(sandbox) == "paused":
            await self._pausing.resume(face, seconds)
            status = resumed
        elif time.time() + seconds > (sandbox.expires_at or 0.0):
            await self._engine.sandboxes.extend(ask.tenant, face.id, seconds)
        return Reply(status, view.made(face, self._domain(ask.exchange)))

    async def info(self, ask: Ask) -> Reply:
        """All there is to know."""
        face, sandbox = await self._look(ask)
        return Reply(200, view.detail(face, sandbox, self._domain(ask.exchange)))

    async def listed(self, ask: Ask) -> Reply:
        """A page of sandboxes."""
        wanted = listing.wanted(ask.exchange.query())
        shown, rest = listing.page(self._registry.of(ask.tenant), wanted, view.state_of)
        return Reply(200, [view.listed(*pair) for pair in shown], {"x-next-token": rest} if rest else {})

    async def listed_v1(self, ask: Ask) -> Reply:
        """Every running sandbox, as clients before 2.0 ask for it."""
        query = ask.exchange.query()
        wanted = listing.Wanted(
            metadata=listing.metadata_of(query.get("metadata", "")), states=frozenset({"running"}), limit=2**31
        )
        shown, _ = listing.page(self._registry.of(ask.tenant), wanted, view.state_of)
        return Reply(200, [view.listed(*pair) for pair in shown])

    # --- changing ---

    async def kill(self, ask: Ask) -> Reply:
        """End it, paused or not."""
        face = self._face(ask)
        face.ended = True
        try:
            await self._engine.sandboxes.stop(ask.tenant, face.id, "killed by its owner")
        except RingfenceError:
            face.ended = False
            raise
        return Reply(204)

    async def timeout(self, ask: Ask) -> Reply:
        """It ends so many seconds from now, sooner or later than before."""
        asked = await ask.read(shapes.Timeout)
        face = self._face(ask)
        await self._engine.sandboxes.extend(ask.tenant, face.id, max(asked.timeout, SOONEST))
        return Reply(204)

    async def refresh(self, ask: Ask) -> Reply:
        """It lives at least so much longer."""
        asked = await ask.read(shapes.Refresh)
        face, sandbox = await self._look(ask)
        seconds = float(asked.duration or DEFAULT_SECONDS)
        if time.time() + seconds > (sandbox.expires_at or 0.0):
            await self._engine.sandboxes.extend(ask.tenant, face.id, seconds)
        return Reply(204)

    async def pause(self, ask: Ask) -> Reply:
        """Keep its files, and end its programs."""
        asked = await ask.read(shapes.Pause)
        face, sandbox = await self._look(ask)
        if view.state_of(sandbox) == "paused":
            raise Conflict(f"sandbox {face.id} is paused already", code="already_paused")
        await self._pausing.pause(face, asked)
        return Reply(204)

    async def network(self, ask: Ask) -> Reply:
        """Replace what it may reach."""
        asked = await ask.read(shapes.Network)
        if asked.allow_public_traffic is not None:
            raise BadRequest("allowPublicTraffic is decided at create", code="unsupported_network")
        face = self._face(ask)
        policy = network.egress(asked, asked.allow_internet_access, self._settings)
        await self._engine.sandboxes.allow(ask.tenant, face.id, policy)
        kept = {k: v for k, v in face.record.network.items() if k == "allowPublicTraffic"}
        face.record.network, face.record.internet = {**network.told(asked), **kept}, asked.allow_internet_access
        self._registry.keep(face)
        return Reply(204)
