"""Attacks on what a machine has: the neighbour and the server are measured, not only the culprit."""

from __future__ import annotations

import contextlib
import socket
import time

import httpx
import pytest

from ringfence.attack.own_server import OwnServer
from tests.attacks.conftest import Held, Run, output
from tests.support import ledger

MIB = 1024 * 1024
MEMORY_WAYS = ("anonymous", "shared", "memfd", "shm", "scratch", "sysv", "sockets", "pipes", "children")


def resident(server: OwnServer) -> int:
    """Bytes of the server's own processes together; the sandboxes' are not counted."""
    assert server.process is not None
    mine = [pid for pid in ledger.tree(server.process.pid) if "/ringfence/" not in ledger.group_of(pid)]
    total = 0
    for pid in mine:
        with contextlib.suppress(OSError):  # one that has just ended holds nothing
            total += ledger.process(pid).resident_bytes
    return total


@pytest.mark.row(70)
def test_spinning_gets_no_more_than_the_quota(held: Held) -> None:
    """Sixteen spinning threads in four processes get a quarter of a core when that is the limit."""
    held("processor")


@pytest.mark.row(70)
def test_the_limit_of_processor_time_ends_a_run(run: Run) -> None:
    """A program that ignores SIGXCPU and spins is ended by its limit of processor seconds."""
    code = "import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    ran = run(code, limits={"cpu_seconds": 1, "cpus": 1.0}, timeout=60)
    assert ran["exit"]["how"] in {"timed_out", "signalled"}
    assert ran["usage"]["cpu_seconds"] < 10


@pytest.mark.row(71)
@pytest.mark.parametrize("way", MEMORY_WAYS)
def test_memory_stops_at_the_limit(held: Held, way: str) -> None:
    """However memory is taken, it ends at the sandbox's limit, and a neighbour goes on."""
    held(f"memory-{way}")


@pytest.mark.row(71)
def test_running_out_of_memory_is_reported_and_given_back(run: Run) -> None:
    """The run ends as out_of_memory, and the host has its memory again: nothing is left that would be charged."""
    ran = run("x = bytearray(400 << 20); x[::4096] = b'x' * len(x[::4096])", limits={"memory_bytes": 64 * MIB})
    assert ran["exit"]["how"] == "out_of_memory"
    deadline = time.monotonic() + 60
    while ledger.groups_called(ran["sandbox"]) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ledger.groups_called(ran["sandbox"]) == set()


@pytest.mark.row(72, 78)
def test_the_kernels_memory_is_bounded(held: Held) -> None:
    """Descriptors, watches, timers, queued signals and descriptors in flight are refused or counted."""
    held("kernel-memory")


@pytest.mark.row(74, 75)
def test_the_disk_cannot_be_filled(held: Held) -> None:
    """Bytes and files stop at the scratch's size in every place that can be written."""
    held("scratch")


@pytest.mark.row(74)
def test_a_full_disk_is_reported_as_such(run: Run) -> None:
    """A program that dies of ENOSPC ends as disk_full."""
    ran = run("open('f', 'wb').write(b'x' * (64 << 20))", limits={"scratch_bytes": 8 * MIB})
    assert ran["exit"]["how"] == "disk_full"


@pytest.mark.row(76)
@pytest.mark.parametrize("way", ["lines", "one-line", "bytes"])
def test_an_output_flood_is_cut(held: Held, way: str) -> None:
    """Endless lines, one line of a gigabyte and alternating single bytes end as output_capped."""
    held(f"output-{way}")


@pytest.mark.row(76)
def test_an_output_flood_costs_the_server_no_memory(run: Run, server: OwnServer) -> None:
    """Exactly the limit comes back, marked as truncated, and the server is no larger for it."""
    run("print(1)")
    before = resident(server)
    for _ in range(5):
        ran = run("while True: print('x' * 1000)", limits={"output_bytes": 10 * MIB})
        assert ran["exit"]["how"] == "output_capped"
        assert ran["truncated"] is True
        assert len(output(ran)) + len(output(ran, "stderr")) == 10 * MIB
    assert resident(server) - before < 128 * MIB


@pytest.mark.row(77)
def test_a_client_that_stops_reading_costs_only_its_own_run(server: OwnServer, run: Run) -> None:
    """Twenty clients that ask for a flood and never read leave the server small, answering, and in the end clean."""
    before = resident(server)
    body = b'{"code": "while True: print(1)", "stream": true, "limits": {"output_bytes": 100000000}, "timeout": 20}'
    head = f"POST /v1/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {server.key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    port = httpx.URL(server.url).port or 80
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    for client in clients:
        client.sendall(head.encode() + body)
    time.sleep(3)
    assert output(run("print(6 * 7)")) == b"42\n"
    assert resident(server) - before < 128 * MIB
    for client in clients:
        client.close()


@pytest.mark.row(81)
def test_control_groups_cannot_be_reached(held: Held) -> None:
    """No control file can be written, no hierarchy mounted, and /proc/self/cgroup shows only /."""
    held("control-groups")


@pytest.mark.row(85)
def test_an_idle_sandbox_is_stopped(http: httpx.Client) -> None:
    """A sandbox with a hard limit on idleness is gone after it."""
    made = http.post("/v1/sandboxes", json={"template": "base", "limits": {"idle_hard_seconds": 1}}).json()
    deadline = time.monotonic() + 60
    while http.get(f"/v1/sandboxes/{made['id']}").json().get("state") == "running" and time.monotonic() < deadline:
        time.sleep(0.5)
    assert http.get(f"/v1/sandboxes/{made['id']}").json().get("state") != "running"
