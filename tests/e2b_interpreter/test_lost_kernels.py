"""Kernels that ended under their contexts: no state is taken for another's in silence."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ringfence.templates.catalog import Catalog
from tests.e2b import sdks
from tests.e2b.server import Served, api_of, serving
from tests.e2b.wire import Box, make
from tests.e2b_interpreter.harness import TEMPLATE, TEMPLATES

NOTE = "[ringfence] a fresh kernel: the one before ended"


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """A server of its own: it is killed."""
    if TEMPLATE not in Catalog(Path(TEMPLATES)).load():
        sdks.absent(f"run: ringfence templates build {TEMPLATE}")
    with serving() as made:
        yield made


@pytest.fixture
def box(server: Served) -> Iterator[Box]:
    """A sandbox for cells."""
    made = make(server, templateID=TEMPLATE)
    yield made
    made.kill()


def asked(box: Box, method: str, path: str, body: Any = None) -> httpx.Response:
    """A request to the code interpreter."""
    with httpx.Client(
        base_url=box.server.url, headers=box.routed(**{"E2b-Sandbox-Port": "49999"}), timeout=60, trust_env=False
    ) as client:
        return client.request(method, path, json=body)


def cell(box: Box, code: str, **more: str) -> tuple[str, str, str]:
    """What it prints, what it complains of, and how it fails."""
    answer = asked(box, "POST", "/execute", {"code": code, **more})
    assert answer.status_code == 200, answer.text
    lines = [json.loads(line) for line in answer.text.splitlines()]
    texts = ["".join(line["text"] for line in lines if line["type"] == name) for name in ("stdout", "stderr")]
    return texts[0], texts[1], "".join(line["name"] for line in lines if line["type"] == "error")


def kept(box: Box) -> str:
    """A variable in the default context and in one of its own; the latter's id."""
    own: str = asked(box, "POST", "/contexts", {"language": "python"}).json()["id"]
    cell(box, "mine = 1")
    cell(box, "mine = 2", context_id=own)
    assert cell(box, "print(mine)") == ("1\n", "", "")
    assert cell(box, "print(mine)", context_id=own) == ("2\n", "", "")
    return own


def back(box: Box, dead: int) -> None:
    """Return when there is another api, and it knows the sandbox."""
    deadline = time.monotonic() + 60
    while True:
        try:
            if api_of(box.server) != dead and asked(box, "GET", "/health").status_code == 200:
                return
        except (httpx.TransportError, AssertionError):
            pass
        assert time.monotonic() < deadline, "it did not come back"
        time.sleep(0.1)


def test_after_a_killed_api_lost_state_is_told(box: Box) -> None:
    """A context of one's own is not found; the default one works, and its first cell says what was lost, once."""
    own, dead = kept(box), api_of(box.server)
    listed = {context["id"] for context in asked(box, "GET", "/contexts").json()}
    with box.server.client() as client:
        client.get("/v2/sandboxes").raise_for_status()  # what was queued for the store is durable by then
    os.kill(dead, signal.SIGKILL)
    back(box, dead)
    assert asked(box, "POST", "/execute", {"code": "mine", "context_id": own}).status_code == 404
    assert asked(box, "POST", f"/contexts/{own}/restart").status_code == 404
    assert not listed & {context["id"] for context in asked(box, "GET", "/contexts").json()}
    printed, complained, error = cell(box, "mine")
    assert (printed, error) == ("", "NameError")
    assert complained == f"{NOTE} (the server was started again)\n"
    assert cell(box, "print(2)") == ("2\n", "", "")
    assert cell(box, "echo 3", language="bash") == ("3\n", "", "")  # no cell of bash was run before: nothing was lost


def test_a_first_cell_after_a_killed_api_is_a_first_cell(box: Box) -> None:
    """Where no cell had run nothing is said, although a kernel had been waiting."""
    dead = api_of(box.server)
    os.kill(dead, signal.SIGKILL)
    back(box, dead)
    assert cell(box, "print(1)") == ("1\n", "", "")


def test_after_a_pause_lost_state_is_told(box: Box) -> None:
    """Files are kept, memory is not: in each context the first cell says so."""
    own = kept(box)
    cell(box, "open('file', 'w').write('kept')")
    with box.server.client() as client:
        client.post(f"/sandboxes/{box.id}/pause", json={"memory": False}).raise_for_status()
        client.post(f"/v2/sandboxes/{box.id}/connect", json={"timeout": 60}).raise_for_status()
    for words in ({}, {"context_id": own}):
        printed, complained, error = cell(box, "print(open('file').read()); mine", **words)
        assert (printed, error) == ("kept\n", "NameError")
        assert complained.startswith(NOTE)
        assert cell(box, "print(2)", **words) == ("2\n", "", "")
