"""A node on the lab's host: its gate's uplink is the lab's, and its sandboxes are real ones of every runtime."""

from __future__ import annotations

import asyncio
import json
import os
import textwrap
import time
import uuid
from collections.abc import Mapping
from typing import Any

import pytest

from ringfence.attack.observation import Ran
from ringfence.attack.table import Probe
from ringfence.attack.target import environment
from ringfence.domain.limits import Limits
from ringfence.network.network import Network
from ringfence.node.isolation import Isolation
from ringfence.node.live import Live
from ringfence.node.supervisor import Settings, Supervisor
from ringfence.runtimes.base import Runtime
from ringfence.runtimes.fake import Fake
from ringfence.runtimes.jail.cgroups.detect import detect
from ringfence.runtimes.jail.runtime import Jail
from ringfence.runtimes.oci.carried import Carried
from ringfence.runtimes.oci.runtime import Oci
from ringfence.runtimes.oci.versions import choose, installed
from ringfence.templates.catalog import Catalog
from tests.network.lab import NAMES, Lab
from tests.support.node import Collector, Node
from tests.support.subjects import SUBJECTS, TEMPLATES

RUNTIMES = ("jail", "container", "gvisor")
LIMITS = Limits(cpus=2.0)
#: What every program of these tests finds: one line for what came of asking.
PRELUDE = """
import os, socket, ssl, sys, time, urllib.request, urllib.error
def fetch(url):
    try:
        return urllib.request.urlopen(url, timeout=60).read().decode()
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read().decode()}"
    except Exception as error:
        return f"{type(error).__name__} {error}"
def reach(host, port):
    try:
        with socket.create_connection((host, port), 30) as connection:
            connection.sendall(b"x")
            return connection.recv(10).decode() or "closed"
    except OSError as error:
        return f"{type(error).__name__} {error}"
"""


def missing(runtime: str) -> str:
    """Why this way to isolate cannot be tried here; empty when it can."""
    return next(subject for subject in SUBJECTS if subject.name == runtime).missing()


def need(runtime: str) -> None:
    """Skip, or in CI fail, where it cannot be had."""
    if missing(runtime) and os.environ.get("CI") == "true":
        pytest.fail(f"{runtime}: {missing(runtime)}")
    if missing(runtime):
        pytest.skip(f"{runtime}: {missing(runtime)}")


class LabNode(Node):
    """A node that lives on the lab's host, with every runtime that this machine has, on one network."""

    def __init__(self, lab: Lab) -> None:
        self._loop = lab._loop
        self.forks = True
        self.runtime = "jail"
        self.network: Network
        self.supervisor = lab.do(self._opened())
        self.events: list[dict[str, Any]] = []
        lab.do(self._listening())

    async def _opened(self) -> Supervisor:
        self.network = Network(resolvers=((NAMES, 53),))
        instance = f"test-{uuid.uuid4().hex[:12]}"
        opened: list[Runtime] = [Jail(detect(instance, root=True), privileged=True, network=self.network)]
        for name in RUNTIMES[1:]:
            tool = choose(name, installed())
            if tool is not None:
                groups = detect(f"{instance}-{name}", root=True)
                opened.append(Oci(tool, groups, Carried(TEMPLATES), network=self.network))
        supervisor = Supervisor(Isolation(*opened, Fake()), Catalog(TEMPLATES), Settings())
        await supervisor.begin()
        return supervisor

    async def _listening(self) -> None:
        self.supervisor.listen(self.events.append)

    def close(self) -> None:
        """Stop everything; the loop is the lab's."""
        self.do(self.supervisor.close())

    def made(self, egress: object = None, tenant: str = "a", *, one_shot: bool = False, **more: object) -> Live:
        """A sandbox with a policy."""
        ask = {"tenant": tenant, "template": "base", "wait_seconds": 60, **more}
        if egress is not None:
            ask["egress"] = egress
        return self.do(self.supervisor.claim(ask, LIMITS, 600, one_shot=one_shot))[0]

    def allow(self, live: Live, egress: object) -> None:
        """Change its policy."""
        self.do(self.supervisor.allow(live, egress))

    def python(self, live: Live, code: str, **more: object) -> str:
        """What a program of it says."""
        return self.said(live, {"op": "run", "code": PRELUDE + textwrap.dedent(code), **more})

    def said(self, live: Live, request: Mapping[str, object]) -> str:
        """What any program says, both outputs one after the other."""
        return self.do(self._said(live, request))

    async def _said(self, live: Live, request: Mapping[str, object]) -> str:
        collector = Collector()
        relay = collector.relay = self.supervisor.open(live, json.dumps(request).encode(), collector, program=True)
        await asyncio.wait_for(relay.ended, 150)
        return (collector.stdout + collector.stderr).decode().strip()

    def told(self, live: Live, *kinds: str, count: int = 1) -> list[dict[str, Any]]:
        """Events of these kinds about it. They come a moment after the program's own answer: so many are waited for."""
        deadline = time.monotonic() + 60
        while True:
            found = [one["data"] for one in list(self.events) if one["type"] in kinds and one["sandbox"] == live.id]
            if len(found) >= count or time.monotonic() > deadline:
                return found
            time.sleep(0.02)

    def probe(self, runtime: str, probe: Probe, facts: Mapping[str, Any]) -> Ran:
        """A probe of the table, under its own policy."""
        egress = probe.egress(facts) if probe.egress is not None else None
        live = self.made(egress, isolation=runtime)
        try:
            request = {"op": "run", "code": probe.program, "env": environment(facts), "user": probe.user}
            return self.perform(live, request, probe.timeout)
        finally:
            self.release(live)
