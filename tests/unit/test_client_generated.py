"""The synchronous SDK is the asynchronous one, translated; nobody edits it by hand."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from types import ModuleType

import pytest

from ringfence import client

TOOL = Path(__file__).parents[2] / "tools" / "unasync.py"


@pytest.fixture(scope="module")
def unasync() -> ModuleType:
    """The translator, loaded from tools/."""
    spec = importlib.util.spec_from_file_location("unasync", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_files_are_current(unasync: ModuleType) -> None:
    """What is on disk is what the translator would write today."""
    assert unasync.stale(unasync.wanted()) == []


@pytest.mark.parametrize(
    ("asynchronous", "synchronous"),
    [
        ("async def f(): await g()\n", "def f(): g()\n"),
        ("async with await AsyncSandbox.create() as s: pass\n", "with Sandbox.create() as s: pass\n"),
        ("x = [y async for y in z]\n", "x = [y for y in z]\n"),
        ("return (await self.a()).b\n", "return (self.a()).b\n"),
        ("async def __aenter__(self): ...\n", "def __enter__(self): ...\n"),
        ('"""Use `async with AsyncClient() as c:`."""\n', '"""Use `with Client() as c:`."""\n'),
        ("from a._async.b import AsyncLink  # AsyncLink\n", "from a._sync.b import Link  # Link\n"),
        ("awaited = asyncio_like\n", "awaited = asyncio_like\n"),
    ],
)
def test_the_translation_of_one_line(unasync: ModuleType, asynchronous: str, synchronous: str) -> None:
    """Keywords go, names change, layout stays."""
    assert unasync.translated(asynchronous) == synchronous


def test_both_faces_have_the_same_verbs() -> None:
    """Whatever an asynchronous class can do, its synchronous twin can do by the same name."""
    pairs = [
        (getattr(client, f"Async{name}"), getattr(client, name)) for name in ("Client", "Sandbox", "Files", "Process")
    ]
    for asynchronous, synchronous in pairs:
        theirs = {n for n, _ in inspect.getmembers(asynchronous, callable) if not n.startswith("_")} - {"aclose"}
        ours = {n for n, _ in inspect.getmembers(synchronous, callable) if not n.startswith("_")} - {"close"}
        assert theirs == ours


def test_the_exported_names_exist() -> None:
    """Every name the SDK promises can be imported from it."""
    assert all(hasattr(client, name) for name in client.__all__)
