"""/v1/egress: what a policy means, what a program's own would be, which bundles and gateways there are."""

from __future__ import annotations

from typing import Any, Final

from litestar import get, post
from litestar.params import JSONBody

from ringfence.api.auth import KEY
from ringfence.api.context import AnyRequest, engine_of, tenant_of
from ringfence.engine import egress
from ringfence.wire import EgressRequest
from ringfence.wire_egress import EgressBundleList, EgressChecked, EgressGatewayList, EgressLearned, EgressLearnRequest


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


ROUTES: Final[list[Any]] = [check_egress, learned_egress, list_bundles, list_gateways]
