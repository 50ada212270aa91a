"""Released pairs of E2B's clients and code interpreters, unmodified, each doing all that the smoke programs claim."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from ringfence.templates.catalog import Catalog
from tests.e2b import sdks
from tests.e2b.server import Served, serving
from tests.e2b.wire import Box, make
from tests.e2b_interpreter.harness import TEMPLATE, TEMPLATES
from tests.support import scale

HERE = Path(__file__).parent
#: Which client with which code interpreter, and whether both can be pointed at one URL for all sandboxes.
PAIRS = (
    ("newest", "newest", False),
    ("2.45.1", "2.9.1", False),
    ("2.31.0", "2.8.1", True),
    ("2.20.0", "2.6.0", True),
    ("2.2.4", "2.0.0", True),
    ("1.5.5", "1.5.0", True),
)
PYTHON = PAIRS if sdks.EVERY else (PAIRS[0], PAIRS[-1])
JAVASCRIPT = (("newest", False), ("newest", True), ("2.0.0", True)) if sdks.EVERY else (("newest", False),)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """A server with E2B's face."""
    if TEMPLATE not in Catalog(Path(TEMPLATES)).load():
        sdks.absent(f"run: ringfence templates build {TEMPLATE}")
    with serving() as made:
        yield made


def claims(words: list[str], env: dict[str, str]) -> dict[str, str | None]:
    """Run a smoke program; what each of its claims raised."""
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=230, check=False, cwd="/")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    errors = {line["claim"]: line["error"] for line in lines}
    whole = lines and done.returncode == sum(error is not None for error in errors.values())
    return errors if whole else {**errors, "the end": done.stderr[-3000:]}


def judged(errors: dict[str, str | None]) -> None:
    """Every claim held."""
    broken = {name: error for name, error in errors.items() if error}
    assert not broken, "\n".join(f"{name}: {error}" for name, error in broken.items())


def smoke(server: Served, words: list[str], env: dict[str, str], *, domain: bool = False) -> dict[str, str | None]:
    """The claims of one client."""
    return claims(words, {**server.env(domain=domain), **env})


def released(language: str, *versions: str) -> tuple[list[str], dict[str, str]]:
    """A smoke program with these releases: its words, and its further environment."""
    if language == "python":
        place = sdks.python_interpreter(versions[0], versions[-1])
        return [sys.executable, "-P", str(HERE / "smoke.py")], {"PYTHONPATH": str(place)}
    return [str(sdks.node()), str(HERE / "smoke.mjs"), str(sdks.javascript_interpreter(versions[0]))], {}


@pytest.mark.parametrize(("client", "interpreter", "domain"), PYTHON)
def test_python(server: Served, client: str, interpreter: str, domain: bool) -> None:
    """Every claim, with this pair, by a URL or by a domain."""
    judged(smoke(server, *released("python", client, interpreter), domain=domain))


@pytest.mark.parametrize(("version", "domain"), JAVASCRIPT)
def test_javascript(server: Served, version: str, domain: bool) -> None:
    """Every claim, with this release, by a URL or by a domain."""
    judged(smoke(server, *released("javascript", version), domain=domain))


def kernels(box: Box) -> list[int]:
    """Those that run, as our own API lists them."""
    headers = {"Authorization": f"Bearer {box.server.key}"}
    with httpx.Client(base_url=box.server.url, headers=headers, timeout=60) as client:
        listed = client.get(f"/v1/sandboxes/{box.id}/processes").raise_for_status().json()["processes"]
    return [each["pid"] for each in listed if each["running"]]


def test_a_sandbox_for_cells_starts_with_a_kernel(server: Served) -> None:
    """It is there before a cell is, it is the one that the first cell gets, and no command of the client's."""
    box = make(server, templateID=TEMPLATE)
    try:
        deadline = time.monotonic() + 60
        while not (first := kernels(box)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with box.client(**{"E2b-Sandbox-Port": "49999"}) as client:
            assert '"text": "2"' in client.post("/execute", json={"code": "1 + 1"}).text
        assert kernels(box) == first
        assert box.call("/process.Process/List", {}).json() == {"processes": []}
    finally:
        box.kill()


@pytest.mark.parametrize("isolation", scale.OTHERS)
def test_it_works_on_every_runtime(isolation: str) -> None:
    """The newest pair of each language, beside each other, with sandboxes that a container tool makes."""
    with serving(f'[e2b]\nisolation = "{isolation}"\n') as server:
        server.need(TEMPLATE)
        with ThreadPoolExecutor() as pool:
            done = [
                pool.submit(smoke, server, *released(language, sdks.NEWEST)) for language in ("python", "javascript")
            ]
        for each in done:
            judged(each.result())
