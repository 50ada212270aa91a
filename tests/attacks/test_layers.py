"""Each layer taken away in turn: somebody must notice, and what stands behind it must still hold the host away."""

from __future__ import annotations

import ctypes
import functools
import os
import threading
import time
from collections.abc import Iterator

import pytest

from ringfence.attack import table
from ringfence.attack.host import namespaces
from ringfence.attack.runner import Attack
from ringfence.domain.errors import SandboxRefused
from ringfence.domain.limits import Limits
from ringfence.guest import steps
from tests.attacks.conftest import TEMPLATES
from tests.support import expected, outside
from tests.support.node import Node

pytestmark = [
    pytest.mark.row(156),
    pytest.mark.skipif(os.geteuid() != 0, reason="layers are taken away on a privileged node"),
    pytest.mark.skipif(not (TEMPLATES / "index" / "base.json").exists(), reason="no built template"),
]

LIMITS = ("memory_limit", "cpu_limit", "pids_limit")
LAYERS = (
    *steps.NAMESPACES,
    "time_namespace",
    *(n for n in steps.LAYERS if n not in steps.NAMESPACES),
    "reseed",
    *LIMITS,
)

# Not fences by themselves, or fences that cannot be left out while anything lives to look from.
EXCUSED = {
    "verified": "it asks whether the others are in force; tests/attacks/test_faults.py shows that it refuses",
    "scratch": "without it there is nowhere to live: leaving it out has no effect",
    "agent_memory": "giving up uid 0 makes the agent undumpable already; test_posture.py looks at it from outside",
    "keyring": "no probe can ask while seccomp refuses keyctl; see the test of its own below",
    "nested_namespaces": "no probe can ask while seccomp refuses unshare; see the test of its own below",
}
# What must hold whichever one layer is missing: the host's secrets, its network, its devices.
CONTAINED = ("host-secrets", "network", "devices")


def from_outside(node: Node) -> list[str]:
    """What the host sees to be wrong with a sandbox of this node."""
    sandbox = node.claim()
    request = {"op": "exec", "argv": ["sleep", "600"]}
    threading.Thread(target=lambda: node.perform(sandbox, request), daemon=True).start()
    deadline = time.monotonic() + 60
    seen = outside.everyone(sandbox.started.pid)
    while not any(one.comm == "sleep" for one in seen) and time.monotonic() < deadline:
        seen = outside.everyone(sandbox.started.pid)
    settings = outside.group_settings(seen[0].groups)
    try:
        return expected.complaints(seen, namespaces(), Limits(), settings)
    finally:
        node.release(sandbox)


@functools.cache
def usual_complaints() -> frozenset[str]:
    """What is found on a node with every layer: nothing, or else it must not count as noticing."""
    with Node("attacklayers0") as node:
        return frozenset(from_outside(node))


@functools.cache
def holds(name: str) -> bool:
    """Whether a probe is green when nothing is missing: a red one cannot notice anything."""
    with Node("attacklayers0") as node, Attack(node) as attack:
        return attack.carry_out(table.named(name)).held


def noticed_by(layer: str) -> str:
    """Who notices that the layer is missing: a probe, the host's look, or the start itself. Empty: nobody."""
    try:
        with Node("attacklayers1", without=frozenset({layer})) as node, Attack(node) as attack:
            for probe in (p for p in table.PROBES if layer in p.layers and not p.name.endswith("-root")):
                result = attack.carry_out(probe)
                if not result.held and holds(probe.name):
                    return f"{probe.name}: {result.seen}"
            new = set(from_outside(node)) - usual_complaints()
            return f"the host: {min(new)}" if new else ""
    except SandboxRefused as refusal:
        return f"the start: {refusal.cause}"


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if layer not in EXCUSED])
def test_a_missing_layer_is_noticed(layer: str) -> None:
    """With one layer left out, a probe turns red, the host's look complains, or nothing starts."""
    assert noticed_by(layer) != ""


@pytest.mark.row(1, 86)
@pytest.mark.parametrize("layer", LAYERS)
def test_one_missing_layer_does_not_open_the_host(layer: str) -> None:
    """With one layer left out, the host's secrets, network and devices stay out of reach, or nothing starts."""
    try:
        with Node("attacklayers2", without=frozenset({layer})) as node, Attack(node) as attack:
            results = [attack.carry_out(table.named(name)) for name in CONTAINED]
    except SandboxRefused:
        return
    assert [f"{result.name}: {result.seen}" for result in results if not result.held] == []


def test_every_layer_is_named_here() -> None:
    """The list above is the runtime's own: a new layer must be noticed too."""
    with Node("attacklayers0") as node:
        assert {layer.name for layer in node.supervisor.isolation.present["jail"].layers()} == set(LAYERS)


KEYCTL, JOIN_SESSION_KEYRING = 250, 1
UNSHARE = "import ctypes; l = ctypes.CDLL(None, use_errno=True); print(l.unshare(0x10000000), ctypes.get_errno())"
KEYRING = "import ctypes; print(ctypes.CDLL(None).syscall(250, 0, -3, 0))"


@pytest.fixture
def unfiltered() -> Iterator[Node]:
    """A node whose sandboxes have no seccomp filter, in a session with a keyring: the second fence must hold alone."""
    ctypes.CDLL(None).syscall(KEYCTL, JOIN_SESSION_KEYRING, 0)
    with Node("attacklayers3", without=frozenset({"seccomp"})) as node:
        yield node


def answer(node: Node, code: str) -> str:
    """What a program printed in a fresh sandbox."""
    sandbox = node.claim()
    try:
        return str(node.perform(sandbox, {"op": "run", "code": code}).said["text"]).strip()
    finally:
        node.release(sandbox)


@pytest.mark.row(45)
def test_no_user_namespace_can_be_made_even_without_the_filter(unfiltered: Node) -> None:
    """max_user_namespaces is 0 inside, and where that layer is missing as well the call goes through."""
    assert answer(unfiltered, UNSHARE).startswith("-1 ")
    with Node("attacklayers4", without=frozenset({"seccomp", "nested_namespaces"})) as bare:
        assert answer(bare, UNSHARE).startswith("0 ")


@pytest.mark.row(51)
def test_every_sandbox_has_a_session_keyring_of_its_own(unfiltered: Node) -> None:
    """Two sandboxes see two keyrings, and where that layer is missing they see one."""
    assert answer(unfiltered, KEYRING) != answer(unfiltered, KEYRING)
    with Node("attacklayers4", without=frozenset({"seccomp", "keyring"})) as bare:
        assert answer(bare, KEYRING) == answer(bare, KEYRING)
