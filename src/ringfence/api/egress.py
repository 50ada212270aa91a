"""/v1/egress: what a policy means, what a program's own would be, which bundles and gateways there are."""

from __future__ import annotations

from typing import Annotated, Any, Final

from litestar import get, post
from litestar.params import JSONBody, QueryParameter

from ringfence.api.auth import KEY
from ringfence.api.context import AnyRequest, engine_of, tenant_of
from ringfence.engine import egress
from ringfence.wire import EgressRequest
from ringfence.wire_egress import (
    EgressBundleList,
    EgressChecked,
    EgressGatewayList,
    EgressLearned,
    EgressLearnRequest,
    EgressReport,
)

Span = Annotated[float, QueryParameter(ge=1, le=10 * 366 * 86_400, description="How far to look back.")]
Step = Annotated[float, QueryParameter(ge=1, le=366 * 86_400, description="How much time one row stands for.")]


@post("/v1/egress/check", opt=KEY, status_code=200, tags=["egress"])
async def check_egress(request: AnyRequest, data: JSONBody[EgressRequest]) -> EgressChecked:
    """Say what a policy means here; for one that is refused, which rules and why. Starts nothing."""
    return engine_of(request).egress.check(data.egress)


@post("/v1/egress/learned", opt=KEY, status_code=200, tags=["egress"])
async def learned_egress(request: AnyRequest, data: JSONBody[EgressLearnRequest]) -> EgressLearned:
    """Propose the least policy for what runs and sandboxes did, with the evidence for each rule."""
    return await engine_of(request).egress.learned(tenant_of(request), data)


@get("/v1/egress/bundles", opt=KEY, tags=["egress"])
async def list_bundles() -> EgressBundleList:
    """Every bundle: destinations that go by one name."""
    return EgressBundleList(bundles=egress.bundles())


@get("/v1/egress/gateways", opt=KEY, tags=["egress"])
async def list_gateways(request: AnyRequest) -> EgressGatewayList:
    """The gateways by which this tenant's sandboxes may leave."""
    return EgressGatewayList(gateways=engine_of(request).egress.gateways(tenant_of(request)))


@get("/v1/egress/report", opt=KEY, tags=["egress"])
async def report_egress(request: AnyRequest, seconds: Span = 86_400.0, step: Step = 3600.0) -> EgressReport:
    """What went where, in bytes and connections, by destination and step of time; of what was told of and is kept."""
    return await engine_of(request).egress.report(tenant_of(request), seconds, step)


ROUTES: Final[list[Any]] = [check_egress, learned_egress, list_bundles, list_gateways, report_egress]
