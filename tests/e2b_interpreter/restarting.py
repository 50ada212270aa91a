"""A server that may be killed, and cells as its clients ask for them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from ringfence.templates.catalog import Catalog
from tests.e2b import sdks
from tests.e2b.server import Served, api_of, serving
from tests.e2b.wire import Box
from tests.e2b_interpreter.harness import TEMPLATE, TEMPLATES

NOTE = "[ringfence] a fresh kernel: the one before ended"


@contextmanager
def restartable(isolation: str = "jail") -> Iterator[Served]:
    """A server of one's own."""
    if TEMPLATE not in Catalog(Path(TEMPLATES)).load():
        sdks.absent(f"run: ringfence templates build {TEMPLATE}")
    with serving(f'[e2b]\nisolation = "{isolation}"\n') as made:
        made.need(TEMPLATE)
        yield made


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
    deadline = time.monotonic() + 150
    while True:
        try:
            if api_of(box.server) != dead and asked(box, "GET", "/health").status_code == 200:
                return
        except (httpx.TransportError, AssertionError):
            pass
        assert time.monotonic() < deadline, "it did not come back"
        time.sleep(0.1)


def durable(box: Box) -> None:
    """Return when what was queued for the store is there: a list waits for that."""
    with box.server.client() as client:
        client.get("/v2/sandboxes").raise_for_status()


def killed(box: Box, number: int = signal.SIGKILL) -> None:
    """End the api, and wait for the next one."""
    durable(box)
    dead = api_of(box.server)
    os.kill(dead, number)
    back(box, dead)


def kernels(box: Box) -> set[int]:
    """Those that run, as our own API lists them."""
    headers = {"Authorization": f"Bearer {box.server.key}"}
    with httpx.Client(base_url=box.server.url, headers=headers, timeout=60, trust_env=False) as client:
        listed = client.get(f"/v1/sandboxes/{box.id}/processes").raise_for_status().json()["processes"]
    return {each["pid"] for each in listed if each["running"] and (each["tag"] or "").startswith("kernel-")}
