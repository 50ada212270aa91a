"""What the gate is, seen from the host: nobody, with nothing but its sockets; and what is left of it all: nothing."""

from __future__ import annotations

import asyncio
import glob
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ringfence.domain.errors import SandboxRefused
from ringfence.network import rules
from ringfence.network.gate.confine import UID
from ringfence.network.keeper import Keeper, event_from, resolvers_of
from ringfence.network.network import Network
from ringfence.network.words import BadWords, Parser, encode
from tests.network.lab import Lab, needed, opened


def status_of(pid: int) -> dict[str, str]:
    """/proc/PID/status as a table."""
    rows = (line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: value.strip() for name, value in rows}


def eventually(check: Callable[[], bool]) -> bool:
    """Whether it comes true within some seconds."""
    deadline = time.monotonic() + 60
    while not (found := check()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def namespaces() -> set[str]:
    """Network namespaces that any thread on this machine is in."""
    found = set()
    for task in glob.glob("/proc/[0-9]*/task/[0-9]*/ns/net"):  # pathlib's raises when a process ends meanwhile
        try:
            found.add(os.readlink(task))
        except OSError:
            continue
    return found


def held() -> int:
    """Descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def test_the_gate_has_given_up_everything(lab: Lab) -> None:
    """Its own uid, no capability in any set, no new privilege, a filter, an empty root, no descriptor but sockets."""
    gate = lab.do(lab.network.status())["gate"]
    status = status_of(gate)
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(UID)}
    assert status["Groups"] == ""
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"], status["Threads"]) == ("1", "2", "1")
    assert os.listdir(f"/proc/{gate}/root") == []
    for kind in ("mnt", "ipc", "uts", "cgroup"):
        assert os.readlink(f"/proc/{gate}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
    kinds = {os.readlink(f"/proc/{gate}/fd/{name}").partition(":")[0] for name in os.listdir(f"/proc/{gate}/fd")}
    assert kinds <= {"socket", "anon_inode", "/dev/null", "pipe", *(os.readlink(f"/proc/self/fd/{n}") for n in (2,))}
    assert (
        Path(f"/proc/{gate}/environ").read_bytes() == b"" or b"SECRET" not in Path(f"/proc/{gate}/environ").read_bytes()
    )


def test_the_router_has_no_way_out(lab: Lab) -> None:
    """Its loopback and the sandboxes' wires, no default route, no forwarding, no IPv6."""
    lab.sandbox("one", [])

    def look() -> tuple[list[str], str, str, str]:
        routes = subprocess.run(
            ["ip", "-4", "route", "show", "table", "all"], capture_output=True, text=True, check=True
        ).stdout
        forward = Path("/proc/sys/net/ipv4/ip_forward").read_text().strip()
        sixes = (
            Path("/proc/thread-self/net/if_inet6").read_text()
            if Path("/proc/thread-self/net/if_inet6").exists()
            else ""
        )
        return os.listdir("/sys/class/net"), routes, forward, sixes

    _, routes, forward, sixes = lab.do(lab.network._router._there(look))
    assert "default" not in routes
    assert forward == "0"
    assert not [line for line in sixes.splitlines() if not line.endswith(" lo")]


def test_nothing_is_left(tmp_path: Path) -> None:
    """After its end: no process, no namespace, no interface, no descriptor, no thread, and no rule on the host."""
    needed()
    asyncio.run(asyncio.sleep(0))
    before = held(), threading.active_count()
    with opened(tmp_path) as lab:
        made = [lab.sandbox(f"s{number}", ["good.example.com"]) for number in range(5)]
        gate = lab.do(lab.network.status())["gate"]
        spaces = {each.space.run(lambda: os.readlink("/proc/thread-self/ns/net")) for each in made}
        spaces.add(lab.do(lab.network._router._there(lambda: os.readlink("/proc/thread-self/ns/net"))))
        assert len(spaces) == 6
        assert spaces <= namespaces()
    assert eventually(lambda: not spaces & namespaces())
    assert eventually(lambda: held() <= before[0] + 1 and threading.active_count() <= before[1] + 1)
    assert eventually(lambda: not Path(f"/proc/{gate}").exists())
    assert not [name for name in os.listdir("/sys/class/net") if name.startswith(rules.WIRE)]
    on_host = subprocess.run([rules.NFT, "list", "tables"], capture_output=True, text=True, check=False).stdout
    assert "ringfence" not in on_host


NODE = """
import asyncio, os
from ringfence.network.network import Network
async def main():
    network = Network(resolvers=(("127.0.0.1", 9),))
    await network.open()
    space = await network._router._there(lambda: os.readlink("/proc/thread-self/ns/net"))
    print((await network.status())["gate"], space, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def test_a_killed_node_takes_everything_along() -> None:
    """No clean-up ran: the gate dies with it, and with both the namespace."""
    needed()
    source = str(Path(__file__).parent.parent.parent / "src")
    with subprocess.Popen([sys.executable, "-c", NODE], stdout=subprocess.PIPE, env={"PYTHONPATH": source}) as node:
        assert node.stdout is not None
        gate, space = node.stdout.readline().decode().split()
        assert space in namespaces()
        assert status_of(int(gate))["Name"]
        node.send_signal(signal.SIGKILL)
    assert eventually(lambda: not Path(f"/proc/{gate}").exists() or status_of(int(gate))["State"].startswith("Z"))
    assert eventually(lambda: space not in namespaces())


def test_a_host_without_the_packet_filter_has_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused with what to install, and nothing is left behind; nothing runs without its rules."""
    needed()
    monkeypatch.setattr(rules, "NFT", "/nonexistent/nft")

    async def attempt() -> None:
        with pytest.raises(SandboxRefused, match="nftables"):
            await Network().open()
        network = Network()
        with pytest.raises(SandboxRefused, match="nft does not run"):
            await network._router.open()

    before = held()
    asyncio.run(attempt())
    assert held() <= before + 1


def test_bad_rules_are_no_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel or an nft that does not take them is a refusal, not a router without them."""
    needed()
    monkeypatch.setattr(rules, "RULESET", "table inet ringfence { chain broken { nonsense } }")

    async def attempt() -> None:
        with pytest.raises(SandboxRefused, match="refuses the rules"):
            await Network()._router.open()

    asyncio.run(attempt())


def test_the_hosts_resolvers_are_read() -> None:
    """As the C library would, three at most, the loopback for want of any."""
    rows = ["# x", "nameserver 10.0.0.1", "search a.b", "nameserver fe80::1%eth0", "nameserver"]
    text = "\n".join([*rows, "nameserver 1.1.1.1", "nameserver 2.2.2.2", ""])
    assert resolvers_of(text) == (("10.0.0.1", 53), ("fe80::1", 53), ("1.1.1.1", 53))
    assert resolvers_of("") == (("127.0.0.1", 53),)


@pytest.mark.parametrize("words", [None, 7, "event", [], ["sandbox"]])
def test_an_event_that_is_none_is_dropped(words: object) -> None:
    """The gate reads strangers; the node does not trust its words."""
    assert event_from(words) is None


def test_an_event_is_cut_to_size() -> None:
    """Unknown fields go, long texts are cut, numbers are numbers."""
    event = event_from(
        {"sandbox": "s", "name": "x" * 9999, "port": "80", "sent": True, "evil": {"a": 1}, "reason": ["y"]}
    )
    assert event is not None
    texts = {"sandbox", "verdict", "protocol", "name", "address", "rule", "reason", "method", "path"}
    assert set(event) == texts | {"port", "sent", "received", "seconds", "swallowed"}
    assert len(event["name"]) == 500
    assert event["port"] == event["sent"] == 0


def test_words_are_bounded() -> None:
    """Cut anywhere they are put together again; too long or no object is an error."""
    data = encode({"a": 1}) + encode({"b": 2})
    parser = Parser(100)
    assert [m for at in range(len(data)) for m in parser.feed(data[at : at + 1])] == [{"a": 1}, {"b": 2}]
    for bad in (b"\0\0\1\0", b"\0\0\0\2[]", b"\0\0\0\1{", b"\0\0\0\3\xff\xff\xff"):
        with pytest.raises(BadWords):
            Parser(100).feed(bad)


def test_the_keeper_is_idle_until_it_is_opened() -> None:
    """Without a gate nothing can be set, and forgetting what was never told is fine."""

    async def attempt() -> None:
        keeper = Keeper(lambda: (_ for _ in ()).throw(OSError("never")), (), Network()._keeper._floor, lambda _: None)
        assert keeper.pid == 0
        await keeper.close()

    asyncio.run(attempt())
