"""Images that tenants' builds hold: whose they are, for how long, and which go when there are too many."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from ringfence.domain.egress import DEFAULT_FLOOR
from ringfence.domain.errors import BadRequest
from ringfence.domain.template import Template
from ringfence.node import pulling
from ringfence.node.pulling import PULLED, Kept, Pulls
from ringfence.templates.catalog import Built

pytestmark = pytest.mark.anyio


def kept(pulls: Pulls, place: Path, tenant: str, letter: str, *, pins: int = 0) -> str:
    """An image as if it had been pulled; its name."""
    root = place / (letter * 64) / "root"
    root.mkdir(parents=True)
    (root / "file").write_text("x")
    built = Built(Template("pulled"), letter * 64, root, 10, time.time(), "recipe", tenant, Path("/"), foreign=True)
    pulls._kept[PULLED + letter * 64] = Kept(built, time.monotonic(), "/bin/sh", pins)
    return PULLED + letter * 64


def there(place: Path) -> list[str]:
    """What is on disk, by its first letter."""
    return sorted(each.name[0] for each in place.iterdir()) if place.exists() else []


async def test_an_image_is_found_by_a_build_that_holds_it_and_by_nobody_else(tmp_path: Path) -> None:
    """Not by another tenant's, and not once no build holds it."""
    pulls = Pulls(tmp_path)
    held, left = kept(pulls, tmp_path, "ada", "a", pins=1), kept(pulls, tmp_path, "ada", "b")
    assert pulls.read("ada", held).digest == "a" * 64
    for tenant, name in (("bob", held), ("ada", left), ("ada", PULLED + "c" * 64), ("ada", "base")):
        with pytest.raises(BadRequest):
            pulls.read(tenant, name)


async def test_the_longest_unused_goes_and_what_a_build_holds_stays(tmp_path: Path) -> None:
    """Each tenant's room is its own."""
    pulls = Pulls(tmp_path)
    for letter, tenant, pins in (("a", "ada", 1), ("b", "ada", 0), ("c", "ada", 0), ("d", "bob", 0)):
        kept(pulls, tmp_path, tenant, letter, pins=pins)
    await pulls._make_room("ada", 20)
    assert there(tmp_path) == ["a", "c", "d"]
    await pulls._make_room("ada", 0)
    assert there(tmp_path) == ["a", "d"]
    await pulls.begin()
    assert there(tmp_path) == []


async def test_room_is_made_twice_at_once(tmp_path: Path) -> None:
    """Two builds of a tenant that begin together remove each image once."""
    pulls = Pulls(tmp_path)
    for letter in "abcd":
        kept(pulls, tmp_path, "ada", letter, pins=letter == "d")
    await asyncio.gather(pulls._make_room("ada", 0), pulls._make_room("ada", 0))
    assert there(tmp_path) == ["d"]


async def test_what_was_just_pulled_is_held_while_its_traces_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another build of the same tenant that makes room in that moment leaves it."""
    pulls = Pulls(tmp_path)
    name, swept = kept(pulls, tmp_path, "ada", "a"), asyncio.Event()

    async def known(*_: Any) -> dict[str, Any]:
        return {"key": "a" * 64, "known": True}

    async def elsewhere(action: Any, place: Path, **_: Any) -> None:
        if place.name.startswith("building-"):
            swept.set()
            await pulls._make_room("ada", 0)
        action(place)

    monkeypatch.setattr(pulling, "_puller", known)
    monkeypatch.setattr(asyncio, "to_thread", elsewhere)
    numbers = dict.fromkeys(("seconds", "disk_bytes", "files", "step_seconds", "stall_seconds", "kept_bytes"), 9)
    words = {"reference": "busybox", "allow": [], "username": "", "password": "", "home": {}}
    trusted = pulls._kept[name].built
    ask = {"tenant": "ada", "bounds": numbers, **words}
    async with pulls.held(ask, trusted, DEFAULT_FLOOR, lambda _: None):
        assert swept.is_set()
        assert pulls.read("ada", name).digest == "a" * 64
    assert pulls._kept[name].pins == 0
