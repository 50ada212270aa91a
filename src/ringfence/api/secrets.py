"""/v1/secrets: kept, shown without their values, forgotten."""

from __future__ import annotations

from typing import Any, Final

from litestar import delete, get, put
from litestar.params import JSONBody

from ringfence import wire_secrets
from ringfence.api.auth import KEY
from ringfence.api.context import AnyRequest, Id, engine_of, tenant_of

BASE: Final = "/v1/secrets"


@put(BASE + "/{name:str}", opt=KEY, status_code=200, tags=["secrets"])
async def put_secret(request: AnyRequest, name: Id, data: JSONBody[wire_secrets.SecretRequest]) -> wire_secrets.Secret:
    """Keep a secret, or change it: its value, which is never shown again, and the hosts and places it is for.

    Living sandboxes that have it use the new value from when this is answered.
    """
    return await engine_of(request).secrets.put(tenant_of(request), name, data)


@get(BASE, opt=KEY, tags=["secrets"])
async def list_secrets(request: AnyRequest) -> wire_secrets.SecretList:
    """Every secret, by name; never a value."""
    return wire_secrets.SecretList(secrets=engine_of(request).secrets.page(tenant_of(request)))


@get(BASE + "/{name:str}", opt=KEY, tags=["secrets"])
async def get_secret(request: AnyRequest, name: Id) -> wire_secrets.Secret:
    """One secret; never its value."""
    return engine_of(request).secrets.get(tenant_of(request), name)


@delete(BASE + "/{name:str}", opt=KEY, status_code=204, tags=["secrets"])
async def remove_secret(request: AnyRequest, name: Id) -> None:
    """Forget a secret. In living sandboxes its placeholder is worth nothing from then on."""
    await engine_of(request).secrets.remove(tenant_of(request), name)


ROUTES: Final[list[Any]] = [put_secret, list_secrets, get_secret, remove_secret]
