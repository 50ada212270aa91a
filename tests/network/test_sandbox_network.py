"""Real sandboxes of every runtime with a network: the node's own verbs, the test internet, its captured uplink."""

from __future__ import annotations

import fcntl
import os
import signal
import statistics
import time
import uuid
from pathlib import Path

import pytest

from ringfence.domain.egress import policy_to
from ringfence.domain.errors import BadRequest, SandboxRefused
from ringfence.domain.limits import Limits
from ringfence.domain.sandbox import new_id
from ringfence.domain.template import template_from_toml
from ringfence.network import rules
from ringfence.network.network import Network
from ringfence.runtimes.base import StartSpec
from ringfence.runtimes.jail.cgroups.detect import detect
from ringfence.runtimes.oci.carried import Carried
from ringfence.runtimes.oci.runtime import Oci
from ringfence.runtimes.oci.versions import choose, installed
from ringfence.runtimes.wired import Wired
from ringfence.templates.catalog import Catalog, template_fields
from tests.network.lab import ALLOWED, FORBIDDEN, METADATA, NAMES, PEER, UPLINK, Lab, needed
from tests.network.labnode import LabNode, need
from tests.support import scale
from tests.support.subjects import TEMPLATES

GOOD, EVIL = "good.example.com", "evil.example.net"
NS_GET_USERNS = 0xB701  # linux/nsfs.h
NO_WAY = ((101, "Network is unreachable"), (113, "No route to host"))  # Linux's and gVisor's word for the same
WEB = [GOOD, {"domain": GOOD, "protocol": "http"}]


def test_an_allowed_site_is_fetched_and_told_of(lab: Lab, node: LabNode, runtime: str) -> None:
    """By an ordinary program, with the resolver it finds where it looks for one; its owner sees the event."""
    live = node.made(WEB, isolation=runtime)
    assert node.python(live, f"print(open('/etc/resolv.conf').read(), fetch('http://{GOOD}/page'))") == (
        f"nameserver {rules.GATEWAY}\noptions timeout:3 attempts:2\n {ALLOWED} /page 0:"
    )
    assert [(flow["name"], flow["port"]) for flow in node.told(live, "egress.allowed")] == [(GOOD, 80)]
    assert live.describe()["egress"]["allow"][0]["domain"] == GOOD
    node.release(live)
    assert lab.capture.destinations() == {NAMES, ALLOWED}


def test_a_one_shot_run_has_its_network_at_once(lab: Lab, node: LabNode, runtime: str) -> None:
    """A lone run, without an agent, is no exception."""
    live = node.made(WEB, one_shot=True, lone=True, isolation=runtime)
    assert f"{ALLOWED} /lone" in node.python(live, f"print(fetch('http://{GOOD}/lone'))")
    node.release(live)
    assert FORBIDDEN not in lab.capture.destinations()


def test_what_is_not_allowed_is_refused_in_words_and_at_once(lab: Lab, node: LabNode, runtime: str) -> None:
    """A name, an address, a metadata service, another port: each in well under a second, and no packet leaves."""
    live = node.made(WEB, isolation=runtime)
    said = node.python(
        live,
        f"""
        began = time.monotonic()
        print(fetch('http://{EVIL}/'))
        print(fetch('http://{FORBIDDEN}/'))
        print(fetch('http://{METADATA}/latest/meta-data/'))
        print(reach('{FORBIDDEN}', 443), reach('{ALLOWED}', 22), reach('{UPLINK}', 22), reach('8.8.8.8', 853))
        print(time.monotonic() - began)
        """,
    )
    lines = said.splitlines()
    assert "resolution" in lines[0] or "not known" in lines[0]
    assert "403 ringfence: denied: " in said
    assert said.count("Reset") >= 3
    assert float(lines[-1]) < 12.0
    node.release(live)
    assert lab.capture.destinations() == set()
    assert not lab.visits[METADATA]
    assert node.told(live, "egress.denied")


def test_no_policy_means_no_interface(node: LabNode, runtime: str) -> None:
    """As before: the loopback alone, an empty list of resolvers, and nothing of the network was even started for it."""
    live = node.made(isolation=runtime)
    said = node.python(live, f"print(socket.if_nameindex(), open('/etc/resolv.conf').read(), reach('{ALLOWED}', 80))")
    assert said in {f"[(1, 'lo')]  OSError [Errno {number}] {words}" for number, words in NO_WAY}
    assert live.describe()["egress"] == {"mode": "none"}
    node.release(live)


def test_the_wire_cannot_be_changed_from_inside(lab: Lab, node: LabNode, runtime: str) -> None:
    """Raw and packet sockets, routes, addresses, flags, the resolver's file: none is its own root's to touch."""
    live = node.made(WEB, isolation=runtime)
    said = node.python(
        live,
        """
        import fcntl, struct
        def tried(call):
            try:
                call()
                return 'ok'
            except OSError as error:
                return type(error).__name__
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
            name = struct.pack('16s24x', b'eth0')
            flags = struct.pack('16sh22x', b'eth0', 0)
            address = struct.pack('16sHxx4s16x', b'eth0', 2, socket.inet_aton('198.18.0.9'))
            print(tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)),
                  tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 255)),
                  tried(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3)),
                  tried(lambda: fcntl.ioctl(plain, 0x8914, flags)),
                  tried(lambda: fcntl.ioctl(plain, 0x8916, address)),
                  tried(lambda: plain.bind(('198.18.0.77', 0))),
                  tried(lambda: open('/etc/resolv.conf', 'w')),
                  tried(lambda: os.unlink('/etc/resolv.conf')),
                  tried(lambda: os.rename('/tmp', '/etc/resolv.conf')))
        """,
    )
    assert "ok" not in said.split()
    assert len(said.split()) == 9
    node.release(live)
    assert lab.capture.destinations() == set()


def test_neighbours_of_one_tenant_and_of_another_are_strangers(lab: Lab, node: LabNode, runtime: str) -> None:
    """Whatever the policy allows: the address of a sandbox is below the floor."""
    everything = [{"cidr": "0.0.0.0/0", "ports": [8000]}]
    victim, own, other = (
        node.made(everything, isolation=runtime),
        node.made(everything, isolation=runtime),
        node.made(everything, tenant="b", isolation=runtime),
    )
    address = node.python(victim, "s = socket.socket(2, 2); s.connect(('8.8.8.8', 9)); print(s.getsockname()[0])")
    assert address.startswith("198.18.")
    for live in (own, other):
        assert "Reset" in node.python(live, f"print(reach('{address}', 8000))")
    for live in (victim, own, other):
        node.release(live)
    assert lab.capture.destinations() == set()


def test_a_policy_is_changed_while_it_lives(lab: Lab, node: LabNode, runtime: str) -> None:
    """Wider and narrower, from the next connection on."""
    live = node.made([], isolation=runtime)
    assert "name resolution" in (said := node.python(live, f"print(fetch('http://{GOOD}/'))")) or "not known" in said
    node.do(node.supervisor.allow(live, WEB))
    assert ALLOWED in node.python(live, f"print(fetch('http://{GOOD}/'))")
    node.do(node.supervisor.allow(live, "none"))
    assert ALLOWED not in node.python(live, f"print(fetch('http://{GOOD}/'))")
    with pytest.raises(BadRequest, match="rule 0"):
        node.do(node.supervisor.allow(live, ["*"]))
    node.release(live)
    bare = node.made(isolation=runtime)
    with pytest.raises(BadRequest, match="made without a network"):
        node.do(node.supervisor.allow(bare, WEB))
    node.release(bare)


@pytest.mark.parametrize("egress", [["10.0.0.1"], [{"cidr": "10.0.0.0/8", "ports": [80]}], "everything", ["*.com"]])
def test_a_bad_policy_starts_nothing(node: LabNode, egress: object) -> None:
    """The node checks again what the api has checked."""
    before = len(node.supervisor.table)
    with pytest.raises(BadRequest, match="egress"):
        node.made(egress)
    assert len(node.supervisor.table) == before


def test_a_runtime_that_cannot_enforce_a_policy_refuses_it(node: LabNode) -> None:
    """Rather than running without one; and a jail without a network says why."""
    with pytest.raises(BadRequest, match="fake cannot enforce an egress policy") as refused:
        node.made(WEB, isolation="fake")
    assert refused.value.code == "egress_unsupported"
    live = node.made("none", isolation="fake")
    node.release(live)


def test_a_gate_that_dies_is_replaced_under_living_sandboxes(node: LabNode, runtime: str) -> None:
    """Closed meanwhile, and as before afterwards."""
    live = node.made(WEB, isolation=runtime)
    gate = node.do(node.network.status())["gate"]
    os.kill(gate, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while node.do(node.network.status())["gate"] in {0, gate} and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ALLOWED in node.python(live, f"print(fetch('http://{GOOD}/'))")
    assert "403" in node.python(live, f"print(fetch('http://{FORBIDDEN}/'))")
    node.release(live)


def test_nothing_of_an_ended_sandbox_is_left(node: LabNode, runtime: str) -> None:
    """No wire in the router, no row at the gate, whoever ended it and however."""

    def wires() -> set[str]:
        return set(node.network._router._slots)

    one, two = node.made(WEB, tenant="c", isolation=runtime), node.made(WEB, tenant="c", isolation=runtime)
    assert {one.id, two.id} <= wires()
    node.release(one)
    os.kill(two.started.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while {one.id, two.id} & wires() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not {one.id, two.id} & wires()
    assert {ward.id for ward in node.network._keeper._wards.values()}.isdisjoint({one.id, two.id})


def test_a_policy_costs_little(node: LabNode) -> None:
    """From a warm sandbox, putting a policy in force adds milliseconds; none adds nothing at all."""

    def claims(egress: object) -> float:
        took = []
        for _ in range(12):
            began = time.monotonic()
            live = node.made(egress, tenant="d")
            took.append(time.monotonic() - began)
            node.release(live)
            time.sleep(0.05)
        return statistics.median(took[2:])

    none, some = claims("none"), claims(WEB)
    assert some - none < 2.0  # on a busy machine; a quiet one shows below 3 ms


def test_a_template_may_bring_a_policy(tmp_path: Path) -> None:
    """Read from its file, kept in the catalog, and refused where it is bad."""
    needed()
    template = template_from_toml('name = "web"\n[egress]\nbundles = ["pypi"]\nallow = ["api.example.com"]\n')
    assert [rule.domain for rule in template.egress.rules][:2] == ["api.example.com", "pypi.org"]
    assert template_fields(template)["egress"] == policy_to(template.egress)
    assert template_from_toml('name = "web"\n').egress.networked is False
    with pytest.raises(BadRequest, match="rule 0"):
        template_from_toml('name = "web"\negress = ["Pypi.org"]\n')


def test_a_peer_by_any_protocol(lab: Lab, node: LabNode, runtime: str) -> None:
    """A rule for an address range and a port lets through exactly that."""
    live = node.made([{"cidr": f"{PEER}/32", "ports": [8080]}])
    said = node.python(live, f"print(fetch('http://{PEER}:8080/x'), fetch('http://{PEER}/y'))")
    assert f"{PEER} /x" in said
    assert f"{PEER} /y" not in said
    node.release(live)
    assert lab.capture.destinations() == {PEER}


@pytest.mark.parametrize("runtime", scale.OTHERS)
def test_a_start_that_fails_takes_its_wire_along(lab: Lab, runtime: str) -> None:
    """A guest that refuses its network, after the wire was laid: no wire, no namespace, no descriptor is left."""
    need(runtime)

    async def refused() -> tuple[set[str], set[str], list[str]]:
        network = Network(resolvers=((NAMES, 53),))
        await network.open()
        tool = choose(runtime, installed())
        assert tool is not None
        groups = detect(f"test-{uuid.uuid4().hex[:12]}", root=True)
        oci = Oci(tool, groups, Carried(TEMPLATES), network=network, fault="network_namespace")
        await oci._in_thread(oci._carried.tree)
        before = set(os.listdir("/proc/self/fd"))
        built = Catalog(TEMPLATES).read("base")
        spec = StartSpec(new_id("s"), "a", built.template, built.root, built.digest, Limits(), networked=True)
        with pytest.raises(SandboxRefused, match="network_namespace"):
            await oci.start(spec)
        after, wires = set(os.listdir("/proc/self/fd")), list(network._router._slots)
        await oci.close()
        return before, after, wires

    before, after, wires = lab.do(refused())
    assert wires == []
    assert len(after) <= len(before)


def test_one_network_serves_every_runtime_until_the_last_lets_go(lab: Lab) -> None:
    """The first to close leaves it to the others; who listens by way of several hears everything once."""

    async def shared() -> tuple[list[int], int]:
        network = Network(resolvers=((NAMES, 53),))
        runtimes = [Wired(network), Wired(network)]
        heard: list[str] = []

        def hear(sandbox: str, _: object) -> None:
            heard.append(sandbox)

        for each in runtimes:
            each.on_flow(hear)
        await network.open()
        gates = []
        network._heard({"sandbox": "s1"})
        for each in runtimes:
            gates.append((await network.status())["gate"])
            await each.close()
        gates.append((await network.status())["gate"])
        return gates, len(heard)

    gates, heard = lab.do(shared())
    assert gates[0] == gates[1] > 0
    assert gates[2] == 0
    assert heard == 1


def test_the_root_of_a_container_has_no_power_over_its_network(node: LabNode) -> None:
    """Its namespace is not its user namespace's: even with every capability of its own it could change nothing."""
    need("container")
    live = node.made(WEB, isolation="container")
    with open(f"/proc/{live.started.pid}/ns/net") as wired, open(f"/proc/{live.started.pid}/ns/user") as user:
        owner = fcntl.ioctl(wired, NS_GET_USERNS)
        try:
            assert os.path.samestat(os.fstat(owner), os.stat("/proc/self/ns/user"))
            assert not os.path.samestat(os.fstat(owner), os.fstat(user.fileno()))
        finally:
            os.close(owner)
    node.release(live)
