"""What a request may ask of a runtime: a limit that cannot be kept is refused, never ignored."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from ringfence import wire
from ringfence.domain.errors import BadRequest
from ringfence.engine.answers import RuntimesEnd, TemplatesEnd
from ringfence.engine.catalog import Catalog
from ringfence.engine.policy import Policy
from ringfence.guest.boot import GVISOR, PLAIN
from ringfence.runtimes.oci import fences


class Slow:
    """A node that lists its templates when it is asked, and whose answers arrive when a test lets them."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.arrive: list[asyncio.Event] = []

    async def ask(self, header: dict[str, Any], _: type) -> Any:
        """See NodeClient."""
        if header["verb"] != "templates":
            return RuntimesEnd()
        found = TemplatesEnd(templates=[wire.Template(name) for name in self.names])
        self.arrive.append(asyncio.Event())
        await self.arrive[-1].wait()
        return found

    async def wait_up(self) -> None:
        """It is."""


class Known(Catalog):
    """A catalog that heard of these already, from a node that is not asked."""

    def __init__(self, *runtimes: str, **templates: wire.Template) -> None:
        super().__init__(None, Policy())  # type: ignore[arg-type]
        self._asked = time.monotonic() + 1e6
        self._templates = templates
        self._runtimes = {name: wire.Runtime(name, available=True, layers=layers_of(name)) for name in runtimes}


def layers_of(runtime: str) -> list[wire.Layer]:
    """As the node lists them."""
    if runtime == "jail":
        return []
    found = fences.layers(GVISOR if runtime == "gvisor" else PLAIN, {}, 5)
    return [wire.Layer(layer.name, layer.in_force, layer.reason) for layer in found]


IMAGE = wire.Template("t", image=wire.TemplateImage(reference="r", digest="d"))
ASK: dict[str, Any] = {"scratch_files": 1000}


@pytest.mark.parametrize(
    ("runtimes", "isolation", "template", "refused"),
    [
        (("jail", "gvisor"), "gvisor", wire.Template("t"), True),
        (("jail", "gvisor"), "auto", wire.Template("t"), False),
        (("jail", "gvisor"), "auto", wire.Template("t", runtime="gvisor"), True),
        (("jail", "container", "gvisor"), "auto", IMAGE, False),
        (("jail", "gvisor"), "auto", IMAGE, True),
        (("jail", "container", "gvisor"), "container", wire.Template("t"), False),
    ],
)
def test_a_bound_on_files_is_refused_where_nobody_counts_them(
    runtimes: tuple[str, ...], isolation: str, template: wire.Template, refused: bool
) -> None:
    """Whichever way the request comes to gVisor: by its own word, its template's, or because nothing else suits."""
    known = Known(*runtimes, t=template)
    if not refused:
        assert asyncio.run(known.resolve("ada", "t", isolation, ASK)).scratch_files == 1000
        return
    with pytest.raises(BadRequest) as refusal:
        asyncio.run(known.resolve("ada", "t", isolation, ASK))
    assert refusal.value.code == "limit_unenforced"
    assert "counts bytes, not files" in refusal.value.cause
    asyncio.run(known.resolve("ada", "t", isolation, {"scratch_bytes": 2**24}))


@pytest.mark.anyio
async def test_an_old_answer_does_not_take_back_what_a_later_one_told() -> None:
    """A template that was built between two questions is there, whichever answer comes last."""
    node = Slow()
    catalog = Catalog(node, Policy())  # type: ignore[arg-type]
    early = asyncio.create_task(catalog.refresh())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    node.names.append("fresh")
    late = asyncio.create_task(catalog.refresh())
    while len(node.arrive) < 2:  # noqa: ASYNC110 - both have asked within a few turns
        await asyncio.sleep(0)
    node.arrive[1].set()
    await late
    node.arrive[0].set()
    await early
    assert await catalog.resolve("ada", "fresh", "auto", {})


@pytest.mark.anyio
async def test_a_question_under_way_is_waited_for() -> None:
    """Who asks for a template just after it became one is not told that there is none while the answer is coming."""
    node = Slow()
    catalog = Catalog(node, Policy())  # type: ignore[arg-type]
    node.names.append("fresh")
    early = asyncio.create_task(catalog.refresh())
    while not node.arrive:  # noqa: ASYNC110 - it asks within a few turns
        await asyncio.sleep(0)
    asking = asyncio.create_task(catalog.resolve("ada", "fresh", "auto", {}))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not asking.done()
    node.arrive[0].set()
    assert await asking
    await early
