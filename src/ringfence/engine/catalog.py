"""Which templates and runtimes the node has, remembered for a moment: a run must not ask for them each time."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from ringfence import wire
from ringfence.domain.errors import BadRequest, RingfenceError
from ringfence.domain.limits import Limits
from ringfence.engine.answers import RuntimesEnd, TemplatesEnd
from ringfence.engine.nodeclient import NodeClient
from ringfence.engine.policy import Policy

UNBOUNDED: Final = frozenset({"scratch_files"})  # limits that are a layer, which a runtime can lack
FRESH_SECONDS: Final = 1.0  # a template built or removed is seen within this
ASK_AGAIN_SECONDS: Final = 0.2  # unknown names do not make the node list its templates more often


class Catalog:
    """Answers from memory, refreshes behind the request, asks at once only for a name it does not know."""

    def __init__(self, node: NodeClient, policy: Policy) -> None:
        self._node = node
        self._policy = policy
        self._templates: dict[str, wire.Template] = {}
        self._runtimes: dict[str, wire.Runtime] = {}
        self._asked = -1e9
        self._asks = self._heard = 0
        self._refreshing: asyncio.Task[None] | None = None
        self._answering: asyncio.Future[None] | None = None  # done once the last question is answered, or will not be

    async def refresh(self) -> None:
        """Ask the node now. An answer that comes after a later question's is old, and what it lacks is not gone."""
        self._asked = time.monotonic()
        self._asks += 1
        mine = self._asks
        answering = self._answering = asyncio.get_running_loop().create_future()
        try:
            templates, runtimes = await asyncio.gather(
                self._node.ask({"verb": "templates"}, TemplatesEnd), self._node.ask({"verb": "runtimes"}, RuntimesEnd)
            )
        finally:
            asyncio.get_running_loop().call_soon(answering.set_result, None)  # when what was heard is known
        if mine < self._heard:
            return
        self._heard = mine
        self._templates = {template.name: template for template in templates.templates}
        self._runtimes = {runtime.name: runtime for runtime in runtimes.runtimes}

    async def _refresh_quietly(self) -> None:
        try:
            async with asyncio.timeout(10):
                await self.refresh()
        except (RingfenceError, TimeoutError):
            return  # the request that needs the node will say so itself

    def _refresh_behind(self) -> None:
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.get_running_loop().create_task(self._refresh_quietly())

    async def templates(self, tenant: str) -> list[wire.Template]:
        """Every template that is everybody's or this tenant's, as of now."""
        await self._node.wait_up()
        await self.refresh()
        return [template for template in self._templates.values() if template.owner in {"", tenant}]

    async def runtimes(self) -> list[wire.Runtime]:
        """Every runtime, as of now."""
        await self._node.wait_up()
        await self.refresh()
        return list(self._runtimes.values())

    async def resolve(self, tenant: str, template: str, isolation: str, wanted: dict[str, object]) -> Limits:
        """The limits a sandbox will have. Raises BadRequest for an unknown template, runtime or limit."""
        found = self._templates.get(template)
        if found is None or (isolation != "auto" and isolation not in self._runtimes):
            await self._ask_again()
            found = self._templates.get(template)
        elif time.monotonic() - self._asked > FRESH_SECONDS:
            self._refresh_behind()
        self._policy.isolation(isolation)
        if isolation != "auto":
            self._check_runtime(isolation)
        if found is None or found.owner not in {"", tenant}:
            mine = sorted(name for name, known in self._templates.items() if known.owner in {"", tenant})
            names = ", ".join(mine[:20]) or "none; build one first"
            raise BadRequest(
                f"unknown template {template!r:.70}", code="unknown_template", remediation=f"known are: {names}"
            )
        self._check_bounded(isolation, found, wanted)
        return self._policy.ceiling(tenant).limits(wanted, found.limits or Limits())

    def everybodys(self, template: str) -> bool:
        """Whether a template, as last heard of, is the operator's."""
        found = self._templates.get(template)
        return found is not None and not found.owner

    def image(self, template: str) -> wire.TemplateImage | None:
        """The image a known template was made from, if it was."""
        found = self._templates.get(template)
        return found.image if found is not None else None

    def _check_runtime(self, isolation: str) -> None:
        known = self._runtimes.get(isolation)
        if known is not None and known.available:
            return
        usable = sorted(name for name, runtime in self._runtimes.items() if runtime.available)
        raise BadRequest(
            f"unknown runtime {isolation!r:.40}" if known is None else f"no {isolation} here: {known.reason}",
            code="unknown_runtime" if known is None else "runtime_absent",
            remediation=f'use "auto" or one of {", ".join(usable)}; see `ringfence doctor`',
        )

    def _check_bounded(self, isolation: str, template: wire.Template, wanted: dict[str, object]) -> None:
        """A limit that was asked for and cannot be kept is refused: gVisor counts no files. Raises BadRequest."""
        if UNBOUNDED.isdisjoint(wanted):
            return
        runtime = self._runtimes.get(self._chosen(isolation, template))
        for layer in runtime.layers if runtime is not None else ():
            if layer.name in wanted and layer.name in UNBOUNDED and not layer.in_force:
                raise BadRequest(
                    f"limits.{layer.name} is not enforced here: {layer.reason}",
                    code="limit_unenforced",
                    remediation=f"leave it out, or choose another isolation than {runtime.name if runtime else ''}",
                )

    def _chosen(self, isolation: str, template: wire.Template) -> str:
        """What the node will choose: the request's word, else the template's, else the first that suits."""
        named = next((word for word in (isolation, template.runtime) if word not in {"", "auto"}), "")
        suited = (name for name, runtime in self._runtimes.items() if runtime.available)
        if template.image is not None:
            suited = (name for name in suited if name != "jail")
        return named or next(suited, "")

    async def _ask_again(self) -> None:
        await self._node.wait_up()
        if time.monotonic() - self._asked > ASK_AGAIN_SECONDS:
            await self.refresh()
        elif self._answering is not None:  # asked just now: its answer may be on its way
            await asyncio.wait([self._answering])
