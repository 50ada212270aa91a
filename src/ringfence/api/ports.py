"""/v1/sandboxes/{id}/ports: ports inside that have a URL, and the links to private ones."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Final, cast

from litestar import delete, get, post
from litestar.params import JSONBody, PathParameter

from ringfence import wire
from ringfence.api.auth import KEY
from ringfence.api.context import AnyRequest, Id, tenant_of
from ringfence.domain.errors import BadRequest
from ringfence.edge.ports import Ports

BASE: Final = "/v1/sandboxes/{sandbox_id:str}/ports"
Port = Annotated[int, PathParameter(ge=1, le=65_535)]


def _ports(request: AnyRequest) -> Ports:
    return cast("Ports", request.app.state.ports)


@post(BASE, opt=KEY, status_code=201, tags=["ports"])
async def publish_port(request: AnyRequest, sandbox_id: Id, data: JSONBody[wire.PublishRequest]) -> wire.PublishedPort:
    """Give a port inside a URL: for the holder of a key or a link, or for everybody with `public`.

    Repeating it changes how the port is published. It ends with its sandbox.
    """
    return await _ports(request).publish(tenant_of(request), sandbox_id, data)


@get(BASE, opt=KEY, tags=["ports"])
async def list_ports(request: AnyRequest, sandbox_id: Id) -> wire.PublishedPortList:
    """The ports a sandbox publishes, with the links that are still good."""
    return await _ports(request).page(tenant_of(request), sandbox_id)


@post(BASE + "/any", opt=KEY, status_code=201, tags=["ports"])
async def publish_all(request: AnyRequest, sandbox_id: Id, data: JSONBody[wire.PublishAllRequest]) -> wire.PublishedAll:
    """Give every port inside a URL: for who sends the token, made when none is given, or with `public` for all.

    Repeating it changes how, and makes a new token. It ends with its sandbox.
    """
    if data.public and data.token is not None:
        raise BadRequest("public ports take no token", remediation="give one of public and token")
    token = None if data.public else data.token or secrets.token_urlsafe(32)
    return await _ports(request).publish_all(tenant_of(request), sandbox_id, token, data.wait_seconds)


@delete(BASE + "/any", opt=KEY, status_code=204, tags=["ports"])
async def unpublish_all(request: AnyRequest, sandbox_id: Id) -> None:
    """Publish every port no longer; those published one by one stay."""
    await _ports(request).unpublish_all(tenant_of(request), sandbox_id)


@delete(BASE + "/{port:int}", opt=KEY, status_code=204, tags=["ports"])
async def unpublish_port(request: AnyRequest, sandbox_id: Id, port: Port) -> None:
    """Take the URL away; connections through it are cut."""
    await _ports(request).unpublish(tenant_of(request), sandbox_id, port)


@post(BASE + "/{port:int}/links", opt=KEY, status_code=201, tags=["ports"])
async def create_link(
    request: AnyRequest, sandbox_id: Id, port: Port, data: JSONBody[wire.LinkRequest]
) -> wire.PortLink:
    """A signed link to a private port, for somebody without a key. It is shown this once."""
    return await _ports(request).link(tenant_of(request), sandbox_id, port, data)


@delete(BASE + "/{port:int}/links/{link:str}", opt=KEY, status_code=204, tags=["ports"])
async def revoke_link(request: AnyRequest, sandbox_id: Id, port: Port, link: Id) -> None:
    """End a link and everything it let in."""
    await _ports(request).revoke(tenant_of(request), sandbox_id, port, link)


@delete(BASE + "/{port:int}/links", opt=KEY, status_code=204, tags=["ports"])
async def revoke_links(request: AnyRequest, sandbox_id: Id, port: Port) -> None:
    """End every link to a port."""
    await _ports(request).revoke(tenant_of(request), sandbox_id, port, None)


ROUTES: Final[list[Any]] = [
    publish_port,
    list_ports,
    publish_all,
    unpublish_all,
    unpublish_port,
    create_link,
    revoke_link,
    revoke_links,
]
