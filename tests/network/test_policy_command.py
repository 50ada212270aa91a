"""`ringfence policy` and /v1/egress on a real server. Nothing here leaves this machine: rehearsals do not."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ringfence import Client
from ringfence.cli import policyfile
from ringfence.domain.egress import DEFAULT_FLOOR, policy_from
from ringfence.domain.errors import BadRequest, NotFound, RingfenceError
from ringfence.domain.meaning import meaning
from ringfence.domain.template import template_from_toml
from tests.network.lab import needed
from tests.support.served import Served, key, served
from tests.support.subjects import SUBJECTS

JAIL = next(subject for subject in SUBJECTS if subject.name == "jail")
REACH = """
import socket, ssl, urllib.request
for url in ("http://one.example.com/a?token=secret", "https://two.example.com/", "http://45.33.1.20:8081/"):
    try:
        urllib.request.urlopen(url, timeout=60)
    except OSError as error:
        print(type(error).__name__, "secret words of the program")
"""
RULES = {
    "one.example.com:80/http GET /a",
    "two.example.com:443/tls",
    "45.33.1.20/32:8081/tcp",
}


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


def texts(policy: object) -> set[str]:
    """The rules of a policy, as texts."""
    return {rule.text for rule in policy_from(policy).rules}


def test_learning_by_rehearsal(server: Served, client: Client, tmp_path: Path) -> None:
    """One command: the program runs, nothing passes, and the least policy is there as a file that works."""
    job, file = tmp_path / "job.py", tmp_path / "policy.toml"
    job.write_text(REACH)
    ran = server.run("policy", "learn", "--deny", "--save", str(file), str(job))
    shown = ran.stdout.decode()
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count(b"secret words of the program") == 3
    assert "secret" not in shown
    assert texts(policyfile.read(str(file))) == RULES
    assert "GET /a" in shown
    assert "rule 0" in shown
    again = server.run("policy", "learn", "--deny", "--json", "--egress", f"@{file}", "--code", "print(1)")
    answer = json.loads(again.stdout)
    assert (answer["policy"], answer["exit_code"]) == ({"allow": []}, 0)
    both = client.learned_egress(answer["run"], _run_of(shown, client))
    assert texts(both.policy) == RULES
    assert {event for each in both.seen for event in each.events}
    said = server.run("policy", "check", str(file)).stdout.decode()
    assert "plain HTTP to one.example.com at port 80, GET only, of /a only (seen 1 times" in said


def _run_of(_: str, client: Client) -> str:
    """The run before the last one, which rehearsed."""
    return [run.id for run in client.runs(page=2)][1]


def test_an_argv_is_learnt_too(server: Served) -> None:
    """What stands behind the dashes is run as it is; a program's own failure is the command's exit code."""
    words = ["policy", "learn", "--deny", "--json", "--", "python3", "-c", "import sys; sys.exit(7)"]
    ran = server.run(*words)
    assert ran.returncode == 7, ran.stderr
    assert json.loads(ran.stdout)["policy"] == {"allow": []}


def test_learning_by_letting_pass_is_the_operators_to_allow(server: Served, client: Client) -> None:
    """Refused with the reason and what to use instead, by every way to ask; nothing was started."""
    ran = server.run("policy", "learn", "--code", "print(1)")
    assert ran.returncode == 126
    assert b"the operator has not allowed" in ran.stderr
    assert b"rehearse" in ran.stderr
    with pytest.raises(BadRequest, match="operator"):
        client.run("print(1)", egress={"mode": "learn"})
    with pytest.raises(BadRequest, match="operator"):
        template_from_toml('name = "x"\n[egress]\nmode = "learn"\n')


def test_what_is_not_ones_own_is_not_learnt_from(server: Served, client: Client) -> None:
    """Another tenant's run, one that never was, none, too many: refused."""
    mine = client.run("print(1)", egress={"mode": "rehearse"}).id
    assert client.learned_egress(mine).seen == []
    with Client(server.url, key(server.state / "api" / "ringfence.db", "stranger")) as stranger:
        for other in (mine, "r" + "a" * 26, "sandbox", "s/../x", ""):
            with pytest.raises((NotFound, BadRequest)):
                stranger.learned_egress(other)
    for ids in ((), (mine,) * 51):
        with pytest.raises(BadRequest, match="1 to 50"):
            client.learned_egress(*ids)


BAD = [
    ("10.1.2.3/32", {"cidr": "10.1.2.3/32", "ports": [443]}, "below the operator's floor"),
    ("metadata", {"cidr": "169.254.169.254", "ports": [80]}, "below the operator's floor"),
    ("loopback name", "a.localhost", "below the operator's floor"),
    ("wildcard in the middle", "a.*.example.com", "wildcard"),
    ("homograph", "ex\u0430mple.com", "not plain ASCII"),
    ("encoded homograph", "xn--pple-43d.com", "mixes alphabets"),
    ("NUL", "a\0.example.com", "NUL"),
    ("upper case", "Example.com", "upper case"),
    ("trailing dot", "example.com.", "dot"),
    ("number", "2130706433", "number"),
    ("hexadecimal", "0x7f.1", "number"),
    ("octal", {"cidr": "0177.0.0.1/32", "ports": [1]}, "four plain numbers"),
    ("port", {"domain": "a.example.com", "ports": [0]}, "port"),
    ("unknown field", {"domain": "a.example.com", "host": "x"}, "unknown fields"),
    ("path", {"domain": "a.example.com", "protocol": "http", "paths": ["/a/../b"]}, "path"),
]


@pytest.mark.parametrize(("rule", "why"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_bad_rule_is_refused_the_same_everywhere(
    server: Served, client: Client, tmp_path: Path, rule: Any, why: str
) -> None:
    """With its index and the reason: as a run, a check, a file on the command line, a template."""
    policy = ["ok.example.com", rule]
    with pytest.raises(BadRequest, match="rule 1 ") as plainly:
        policy_from(policy)
    expected = plainly.value.cause
    assert why in expected
    with pytest.raises(BadRequest) as refused:
        client.run("print(1)", egress=policy)
    assert refused.value.cause == expected
    checked = client.check_egress(policy)
    assert [refusal.index for refusal in checked.refused] == [1]
    assert checked.error is not None
    assert checked.error.cause == expected
    with pytest.raises(BadRequest) as by_template:
        template_from_toml(f'name = "bad"\n{_toml(policy)}', DEFAULT_FLOOR)
    assert by_template.value.cause == expected
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(policy))
    by_file = server.run("run", "--egress", f"@{file}", "--code", "print(1)")
    assert by_file.returncode == 126
    assert b"rule 1 " in by_file.stderr


def _toml(policy: list[Any]) -> str:
    """A template's egress; the values of a rule are written as JSON, which is TOML for these."""
    rules = [rule if isinstance(rule, dict) else {"domain": rule} for rule in policy]
    rows = [", ".join(f"{key} = {json.dumps(value)}" for key, value in rule.items()) for rule in rules]
    return f"egress = [{', '.join('{' + row + '}' for row in rows)}]\n"


def test_ten_thousand_rules_are_refused_everywhere(server: Served, client: Client, tmp_path: Path) -> None:
    """By their number, before any is looked at for long."""
    policy = [f"h{n}.example.com" for n in range(10_000)]
    with pytest.raises(BadRequest, match="10000 rules"):
        client.run("print(1)", egress=policy)
    checked = client.check_egress(policy)
    assert checked.error is not None
    assert "rule 1000 is too many" in checked.error.cause
    with pytest.raises(BadRequest, match="10000 rules"):
        template_from_toml(f'name = "bad"\negress = {json.dumps(policy)}\n')
    file = tmp_path / "many.toml"
    file.write_text(f"allow = {json.dumps(policy)}\n")
    ran = server.run("policy", "check", str(file))
    assert ran.returncode == 126
    assert b"rule 1000 is too many" in ran.stdout


def test_check_names_every_bad_rule(server: Served, tmp_path: Path) -> None:
    """Not the first alone; and a template's own file is read as well, with or without a server."""
    file = tmp_path / "template.toml"
    file.write_text('name = "x"\n[egress]\nallow = ["Upper.example.com", "fine.example.com", "a.*.com"]\n')
    for env in ({}, {"RINGFENCE_URL": "", "RINGFENCE_KEY": ""}):
        ran = server.run("policy", "check", str(file), **env)
        lines = ran.stdout.decode().splitlines()
        assert ran.returncode == 126, ran.stderr
        assert [line.split()[1] for line in lines] == ["0", "2"]
    listed = json.loads(server.run("policy", "check", "--json", str(file)).stdout)
    assert [refusal["index"] for refusal in listed["refused"]] == [0, 2]


@pytest.mark.parametrize("text", ["", "allow = 5", "[[allow]]\n", "x = 1", "\xff", "allow = [[1]]", "mode = 3"])
def test_files_that_are_no_policies(server: Served, tmp_path: Path, text: str) -> None:
    """Refused in words; an empty one means what it says: nothing can be reached."""
    file = tmp_path / "odd.toml"
    file.write_bytes(text.encode("latin-1"))
    ran = server.run("policy", "check", str(file))
    assert ran.returncode == (0 if not text else 126), ran.stdout
    assert b"Traceback" not in ran.stderr


def test_bundles_and_gateways_are_listed(server: Served, client: Client) -> None:
    """With contents and reasons; gateways without credentials, none here."""
    shown = server.run("policy", "bundles").stdout.decode()
    assert "files.pythonhosted.org" in shown
    assert "where the index says that packages are" in shown
    assert {bundle.name for bundle in client.egress_bundles()} == {"pypi", "npm", "debian", "github"}
    assert client.egress_gateways() == []
    with pytest.raises(RingfenceError) as refused:
        client.run("print(1)", egress=[], egress_gateway="office")
    assert refused.value.code == "unknown_gateway"
    ran = server.run("run", "--egress", "pypi", "--egress-gateway", "office", "--code", "print(1)")
    assert b"no egress gateway 'office'" in ran.stderr


def test_what_went_where_is_summed(server: Served, client: Client) -> None:
    """By destination and step of time, for its own tenant alone; bounds are checked."""
    run = client.run(REACH, egress={"mode": "rehearse"})
    client.learned_egress(run.id)  # everything was told of
    sums = {(each.place, each.protocol): each for each in client.egress_report(3600, 60).sums}
    assert sums["one.example.com", "http"].denied == sums["one.example.com", "http"].times >= 1
    assert sums["45.33.1.20", "http"].port == 8081
    assert all(each.time % 60 == 0 for each in sums.values())
    with Client(server.url, key(server.state / "api" / "ringfence.db", "quiet")) as other:
        assert other.egress_report().sums == []
    for seconds, step in ((0, 60), (60, 0), (60, 1e12)):
        with pytest.raises(BadRequest):
            client.egress_report(seconds, step)
    assert "one.example.com" in server.run("policy", "report", "--since", "1h").stdout.decode()


def test_a_policy_file_reads_back(tmp_path: Path) -> None:
    """Whatever is in a reason or a note, as TOML and as JSON."""
    rule = {"domain": "a.example.com", "ports": [443], "protocol": "tls", "reason": 'odd "\\ ]] # é'}
    policy = {"bundles": ["pypi"], "allow": [rule]}
    for name in ("p.toml", "p.json"):
        policyfile.save(str(tmp_path / name), policy, ["a note\nwith = a line"])
        assert policyfile.read(str(tmp_path / name)) == policy
    assert policyfile.merged([str(tmp_path / "p.toml")], {"allow": ["b.example.com"]})["allow"] == [
        rule,
        "b.example.com",
    ]
    assert tomllib.loads(policyfile.to_toml({"allow": []}, [])) == {"allow": []}
    with pytest.raises(BadRequest, match="cannot be written"):
        policyfile.save(str(tmp_path / "no" / "p.toml"), policy, [])


def test_meaning_is_said_in_words() -> None:
    """For each mode, and each kind of rule."""
    policy = policy_from({
        "allow": [
            {"cidr": "45.33.1.0/24", "ports": [5432]},
            {"domain": "*.example.com", "protocol": "http", "methods": ["GET", "HEAD"], "paths": ["/x/*"]},
        ],
        "max_bytes": 1000,
    })  # fmt: skip
    assert meaning(policy)[1:] == [
        "at most 1000 bytes, sent and received together, over the sandbox's life",
        "anything over TCP to every address of 45.33.1.0/24 above the floor at port 5432",
        "plain HTTP to every name below example.com but not itself (whose name servers hear each name) at port 80, "
        "GET and HEAD only, of /x/* only",
    ]
    assert meaning(policy_from("none")) == ["no network at all: no interface but the loopback, no resolver"]
    assert meaning(policy_from([])) == ["a network on which nothing can be reached: no rule allows anything"]
    assert "told of in full" in meaning(policy_from({"mode": "rehearse"}))[0]
