"""When a build says that it is ready, it is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ringfence.api.compat.e2b.templates.records import BUILDING, READY, Build, Template
from ringfence.api.compat.e2b.templates.running import Log, Running
from ringfence.domain.building import Recipe
from ringfence.engine.builds import Made

pytestmark = pytest.mark.anyio


async def test_a_build_is_ready_only_when_sandboxes_can_be_made_of_it() -> None:
    """The catalogue knows it before its state says so: who waits for that state makes a sandbox at once."""
    build = Build(id="00-11", tags=["default"], status=BUILDING)
    seen: list[tuple[str, bool]] = []

    async def refresh() -> None:
        seen.append((build.status, bool(template.tags)))

    async def built(*_: Any) -> Made:
        return Made("d" * 64, 1, 0, Recipe("base", ()), "/bin/bash")

    template = Template(id="t", name="mine", created_at=0.0, updated_at=0.0)
    engine: Any = SimpleNamespace(ledger=SimpleNamespace(on_gone=[]), catalog=SimpleNamespace(refresh=refresh))
    builds: Any = SimpleNamespace(build=built)
    templates: Any = SimpleNamespace(keep=lambda *_: None, every=lambda _: [])
    running = Running(engine, builds, templates, most_bytes=0)
    await running._built("ada", template, build, Recipe("base", ()), {}, {}, Log(10))
    assert seen == [(BUILDING, False)]
    assert (build.status, list(template.tags)) == (READY, ["default"])
