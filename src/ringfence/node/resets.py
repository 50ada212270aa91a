"""A sandbox made anew under its own id: what its owner gave it stays, its processes and files do not."""

from __future__ import annotations

import asyncio

from ringfence.domain.errors import BadRequest
from ringfence.domain.process import How
from ringfence.domain.sandbox import State
from ringfence.node.beginning import begin
from ringfence.node.live import Live
from ringfence.node.supervisor import Supervisor


async def reset(node: Supervisor, live: Live) -> bytes:
    """Make it anew, and return what begin() says. Whoever names it meanwhile waits in settled().

    Raises BadRequest for a one-shot run's own. Any other failure ends it: there is nothing under its id to be used.
    """
    if live.spec.one_shot:
        raise BadRequest("a sandbox made for one run takes nothing else", code="one_run_only")
    live.doomed = (How.STOPPED, "reset by its owner")
    live.state = State.STARTING
    task = asyncio.get_running_loop().create_task(_reset(node, live))
    node.resets[live.id] = task
    task.add_done_callback(lambda _: node.resets.pop(live.id, None))
    return await asyncio.shield(task)  # half a reset would be a sandbox that is none


async def _reset(node: Supervisor, old: Live) -> bytes:
    try:
        old.link.close()
        await old.by.stop(old.id)
        new = await node.again(old)
    except BaseException as error:
        node.failed(old, f"it could not be made anew: {error}")
        raise
    node.emit("sandbox.reset", new)
    return await begin(new)


async def settled(node: Supervisor, tenant: str, sandbox_id: str) -> None:
    """Wait while the tenant's sandbox is being reset."""
    while (task := node.resets.get(sandbox_id)) is not None:
        live = node.table.find(sandbox_id)
        if live is None or live.spec.tenant != tenant:
            return
        await asyncio.wait([task])
