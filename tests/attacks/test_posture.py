"""The posture of a live sandbox as the host sees it: every process, every thread, every field.

On the host's kernel, that is in the jail and in a container, these are a sandbox's own processes. Under gVisor the host
sees the kernel they run on, and the helpers of that kernel.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from ringfence.attack.host import namespaces
from ringfence.domain.errors import SandboxLost
from ringfence.domain.limits import Limits
from ringfence.guest import frames
from ringfence.node.live import Live
from tests.attacks.conftest import need
from tests.support import expected, ledger, outside, tools
from tests.support.node import Node

pytestmark = pytest.mark.row(83, 113)

LINGER = "import threading, time; threading.Thread(target=time.sleep, args=(300,)).start(); print('x'); time.sleep(300)"


RUNTIMES = ("jail", "container")


@pytest.fixture(scope="module", params=RUNTIMES)
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    """A node in this process, whose sandboxes' processes are the host's."""
    with opened(request.param) as node:
        yield node


@pytest.fixture(scope="module", params=("container", "gvisor"))
def tooled(request: pytest.FixtureRequest) -> Iterator[Node]:
    """A node whose sandboxes somebody else's tool makes."""
    with opened(request.param) as node:
        yield node


@contextlib.contextmanager
def opened(runtime: str) -> Iterator[Node]:
    """A node with this runtime alone."""
    need(runtime)
    if os.geteuid() != 0:
        pytest.skip("looking into a sandbox from outside needs root")
    with Node(f"attackpost{runtime}"[:12], runtime=runtime) as node:
        yield node


@pytest.fixture
def live(node: Node) -> Iterator[Live]:
    """A sandbox of its own for each test."""
    sandbox = node.claim()
    yield sandbox
    node.release(sandbox)


def start(node: Node, sandbox: Live, request: dict[str, object]) -> threading.Thread:
    """Begin a program that stays; the test looks while it runs."""

    def perform() -> None:
        with contextlib.suppress(SandboxLost):  # some tests end the sandbox under it
            node.perform(sandbox, request)

    thread = threading.Thread(target=perform, daemon=True)
    thread.start()
    return thread


def settled(sandbox: Live, tenants: int) -> list[outside.Seen]:
    """The posture once that many tenant threads are there."""
    deadline = time.monotonic() + 60
    while True:
        seen = outside.everyone(sandbox.started.pid)
        mature = sum(one.who == "tenant" and one.oom_score_adj == 1000 for one in seen)
        if (mature >= tenants and any(one.who == "agent" for one in seen)) or time.monotonic() > deadline:
            return seen
        time.sleep(0.1)


def wrong_with(node: Node, sandbox: Live, seen: list[outside.Seen]) -> list[str]:
    """Complaints about one sandbox."""
    settings = outside.group_settings(seen[0].groups)
    lone = sandbox.spec.lone
    return expected.complaints(seen, namespaces(), Limits(), settings, lone=lone, runtime=node.runtime)


def test_the_first_program_runs_under_every_layer(node: Node, live: Live) -> None:
    """A program forked from the warm interpreter, with two threads, and the agent have the expected posture."""
    node.perform(live, {"op": "run", "code": "print('first')"})
    start(node, live, {"op": "run", "code": LINGER})
    assert wrong_with(node, live, settled(live, 2)) == []


@pytest.mark.parametrize("node", ["jail"], indirect=True)
def test_a_lone_run_is_under_every_layer(node: Node) -> None:
    """An interpreter without an agent beside it: its process 1 may do even less."""
    sandbox = node.claim(lone=True)
    try:
        start(node, sandbox, {"op": "run", "code": LINGER})
        seen = settled(sandbox, 2)
        assert wrong_with(node, sandbox, seen) == []
        assert {one.who for one in seen} == {"agent", "tenant"}
    finally:
        node.release(sandbox)


def test_a_second_program_runs_under_every_layer(node: Node, live: Live) -> None:
    """A program that is exec'd later has the same posture, and so has the first one's successor."""
    node.perform(live, {"op": "exec", "argv": ["true"]})
    start(node, live, {"op": "exec", "argv": ["sleep", "600"]})
    start(node, live, {"op": "exec", "shell": "sleep 600; true"})
    assert wrong_with(node, live, settled(live, 3)) == []


def test_a_program_on_a_terminal_runs_under_every_layer(node: Node, live: Live) -> None:
    """A terminal adds its own descriptors and nothing else."""
    start(node, live, {"op": "exec", "argv": ["sleep", "600"], "pty": {"cols": 80, "rows": 24}})
    assert wrong_with(node, live, settled(live, 1)) == []


def test_two_sandboxes_share_nothing(node: Node, live: Live) -> None:
    """Two live sandboxes of one tenant have different users, groups and namespaces on the host."""
    other = node.claim()
    try:
        for sandbox in (live, other):
            start(node, sandbox, {"op": "exec", "argv": ["sleep", "600"]})
        first, second = settled(live, 1), settled(other, 1)
        assert expected.shared(first[-1], second[-1]) == []
    finally:
        node.release(other)


def test_only_the_loopback_is_in_the_network_namespace(node: Node, live: Live) -> None:
    """Seen from outside, a sandbox's network namespace holds one interface, and no packet can leave it."""
    with open(f"/proc/{live.started.pid}/net/dev") as file:
        names = [line.split(":")[0].strip() for line in file.readlines()[2:]]
    assert names == ["lo"]
    with open(f"/proc/{live.started.pid}/net/route") as file:
        assert file.readlines()[1:] == []


@pytest.mark.row(25)
def test_a_setuid_copy_helps_nobody_on_the_host(node: Node, live: Live) -> None:
    """A setuid shell made inside belongs, on the host, to a user of this sandbox alone, on a nosuid mount."""
    node.perform(live, {"op": "exec", "shell": "cp /bin/sh s && chmod 4755 s"})
    copy = Path(f"/proc/{live.started.pid}/root/home/user/s")
    first = int(Path(f"/proc/{live.started.pid}/uid_map").read_text().split()[1])
    assert copy.stat().st_mode & 0o4000
    assert first <= copy.stat().st_uid < first + 2048
    assert os.statvfs(copy).f_flag & os.ST_NOSUID


@pytest.mark.row(152)
def test_a_sandbox_dies_with_its_agent(node: Node) -> None:
    """Killing process 1 from the host takes every program of the sandbox with it."""
    sandbox = node.claim()
    start(node, sandbox, {"op": "exec", "argv": ["sleep", "600"]})
    members = [pid for pid in outside.members(sandbox.started.pid) if settled(sandbox, 1)]
    os.kill(sandbox.started.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{pid}") for pid in members) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in members if os.path.exists(f"/proc/{pid}")] == []


def test_nothing_is_left_of_a_stopped_sandbox(node: Node) -> None:
    """When stop has answered, its processes and its control groups are gone."""
    sandbox = node.claim()
    start(node, sandbox, {"op": "exec", "argv": ["sleep", "600"]})
    members = [one.status["Pid"] for one in settled(sandbox, 1)]
    node.release(sandbox)
    assert [pid for pid in members if os.path.exists(f"/proc/{pid}")] == []
    assert ledger.groups_called(sandbox.id) == set()


EXPECTED = {"container": {tools.TOOL}, "gvisor": {tools.TOOL, tools.GOFER, tools.KERNEL, tools.STUB}}


@pytest.fixture
def ringed(tooled: Node) -> Iterator[Live]:
    """A sandbox of such a node, with a program in it."""
    sandbox = tooled.claim()
    start(tooled, sandbox, {"op": "exec", "argv": ["sleep", "600"]})
    tooled.perform(sandbox, {"op": "run", "code": "print('first')"})
    yield sandbox
    tooled.release(sandbox)


def around(sandbox: Live) -> list[tools.Around]:
    """The tool and what it made beside the sandbox's own processes."""
    return tools.everyone(sandbox.started.tool_pid)  # type: ignore[attr-defined]


def test_what_stands_around_a_sandbox_has_nothing_to_give(tooled: Node, ringed: Live) -> None:
    """The tool, and gVisor's kernel, gofer and stubs, with every thread: no privilege outside, no way to a file."""
    seen = around(ringed)
    assert {one.kind for one in seen} == EXPECTED[tooled.runtime]
    assert tools.complaints(seen, namespaces(), ringed.id) == []


def test_nobody_else_is_in_a_sandboxs_group(tooled: Node, ringed: Live) -> None:
    """Whoever is charged to it is the tool, one of the tool's, or one of the sandbox's own: nobody is unaccounted."""
    known = {*ledger.tree(ringed.started.tool_pid)}  # type: ignore[attr-defined]
    charged = {pid for pid in ledger.pids() if f"/{ringed.id}" in ledger.group_of(pid)}
    assert charged
    assert charged - known - {*ledger.tree(ringed.started.tool_pid)} == set()  # type: ignore[attr-defined]


def test_two_sandboxes_of_a_tool_have_different_users(tooled: Node, ringed: Live) -> None:
    """Their uid ranges on the host do not meet, nor do their namespaces."""
    other = tooled.claim()
    try:
        first, second = (ledger.tree(one.started.tool_pid) for one in (ringed, other))  # type: ignore[attr-defined]
        users = [owners(pids) - {0} for pids in (first, second)]
        assert all(users)
        assert all(abs(a - b) >= tools.RANGE for a in users[0] for b in users[1])
        spaces = [mount_namespaces(pids) for pids in (first, second)]
        assert all(spaces)
        assert spaces[0] & spaces[1] == set()
    finally:
        tooled.release(other)


@pytest.mark.row(152)
def test_a_sandbox_dies_with_its_tool(tooled: Node) -> None:
    """Killing the tool from the host takes all it made along, gVisor's kernel included; runc by itself would not."""
    sandbox = tooled.claim()
    start(tooled, sandbox, {"op": "exec", "argv": ["sleep", "600"]})
    tooled.perform(sandbox, {"op": "run", "code": "print('first')"})
    tool = sandbox.started.tool_pid  # type: ignore[attr-defined]
    members = ledger.tree(tool)
    os.kill(tool, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in members) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in members if alive(pid)] == []


def owners(pids: Iterable[int]) -> set[int]:
    """The users that those of them still there run as; a helper of the tool's start may end while we look."""
    found = set()
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.add(os.stat(f"/proc/{pid}").st_uid)
    return found


def mount_namespaces(pids: Iterable[int]) -> set[str]:
    """The mount namespaces of those of them still there."""
    found = set()
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.add(os.readlink(f"/proc/{pid}/ns/mnt"))
    return found


def alive(pid: int) -> bool:
    """Whether it still runs; one that only waits to be reaped does not."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


WORSE = {
    "the host's mount namespace": lambda one: {"namespaces": {**one.namespaces, "mnt": namespaces()["mnt"]}},
    "a capability": lambda one: {"statuses": ({**one.statuses[0], "CapEff": "0000000000010000"},)},
    "no filter": lambda one: {"statuses": (*one.statuses, {**one.statuses[0], "Seccomp": "0"})},
    "new privileges": lambda one: {"statuses": ({**one.statuses[0], "NoNewPrivs": "0"},)},
    "the host's root": lambda one: {"statuses": ({**one.statuses[0], "Uid": "0 0 0 0"},)},
    "a group": lambda one: {"statuses": ({**one.statuses[0], "Groups": "27"},)},
    "a field nobody knows": lambda one: {"statuses": ({**one.statuses[0], "Surprise": "1"},)},
    "the host's files": lambda one: {"host_root": True},
    "an open directory": lambda one: {"descriptors": ("read ext2/ext3 /home",)},
    "a file to write": lambda one: {"descriptors": ("write overlayfs /root/etc/passwd",)},
    "a variable": lambda one: {"environment": frozenset({"SECRET=1"})},
    "another group": lambda one: {"groups": "0::/user.slice"},
    "first in line": lambda one: {"nice": -5},
    "last to go": lambda one: {"oom_score_adj": 0},
    "a writable mount": lambda one: {"mounts": ("rw,nosuid /",)},
}


def test_one_wrong_thing_around_a_sandbox_is_noticed() -> None:
    """Each field of what stands around it is judged: a kernel of gVisor's with one thing wrong draws a complaint."""
    ids = " ".join(["4293974016"] * 4)
    status = {
        "Uid": ids, "Gid": ids, "Groups": "", "NoNewPrivs": "1", "Seccomp": "2", "Seccomp_filters": "1",
        **dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), outside.NONE),
    }  # fmt: skip
    spaces = dict.fromkeys(outside.NAMESPACES, "another")
    good = tools.Around(
        tools.KERNEL, 7, (status,), spaces, 4293974016, ("ro /",), (), False, frozenset(), 500, 0, "0::/x/s1"
    )
    assert tools.complaints([good], namespaces(), "s1") == []
    unnoticed = [
        name
        for name, change in WORSE.items()
        if not tools.complaints([dataclasses.replace(good, **change(good))], namespaces(), "s1")
    ]
    assert unnoticed == []


def test_an_agent_that_breaks_protocol_costs_only_its_own_sandbox(node: Node, live: Live) -> None:
    """A frame no guest may send ends that sandbox's link; another sandbox goes on."""
    other = node.claim()
    lie = frames.HEADER.pack(0, frames.OPEN, 7)
    node.do(_hear(other, lie))
    assert other.link.lost.done()
    assert node.perform(live, {"op": "run", "code": "print(6 * 7)"}).said == {"text": "42\n"}


async def _hear(sandbox: Live, data: bytes) -> None:
    sandbox.link.data_received(data)
