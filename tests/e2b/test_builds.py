"""Templates that tenants build through E2B's protocol: by released clients, and by strangers."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2b import sdks
from tests.e2b.server import Served, serving
from tests.e2b.ways import judged, told
from tests.support import ledger, scale

HERE = Path(__file__).parent
PYTHON = (sdks.NEWEST, "2.31.0", "2.20.0") if sdks.EVERY else (sdks.NEWEST,)
# Small enough that a test can go past them.
SETTINGS = """
[e2b.builds]
at_once = 3
step_seconds = 20
seconds = 60
ready_seconds = 3
disk_mib = 700
files = 60000
upload_mib = 4
home_files = 50
templates = 40
log_lines = 300
"""
NOBODY = "00000000-0000-4000-8000-000000000000"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need jails, made with privileges")


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """A server whose builds have small bounds."""
    with serving(SETTINGS) as made:
        yield made


@pytest.fixture(scope="module")
def ada(server: Served) -> Iterator[httpx.Client]:
    """A tenant."""
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def bob(server: Served) -> Iterator[httpx.Client]:
    """Another."""
    with server.client(server.other_key) as client:
        yield client


def claims(server: Served, words: list[str], **env: str) -> None:
    """Run a program of claims; all must hold."""
    judged(told(words, {**server.env(domain=False), **env}))


@pytest.mark.timeout(270)
@pytest.mark.parametrize("version", PYTHON)
def test_a_released_python_client_builds_unmodified(version: str) -> None:
    """Every claim of `builds.py`, with this release."""
    with serving() as server:
        claims(server, [sys.executable, "-P", str(HERE / "builds.py")], PYTHONPATH=str(sdks.python(version)))


@pytest.mark.timeout(270)
def test_the_newest_javascript_client_builds_unmodified(server: Served) -> None:
    """Every claim of `builds.mjs`."""
    claims(server, [str(sdks.node()), str(HERE / "builds.mjs"), str(sdks.javascript(sdks.NEWEST))])


@pytest.mark.timeout(270)
@pytest.mark.parametrize("isolation", scale.OTHERS)
def test_what_was_built_runs_on_every_runtime(isolation: str) -> None:
    """Built in a jail; with an interpreter of ours for the agent, as for an image."""
    with serving(f'[e2b]\nisolation = "{isolation}"\n') as server:
        server.need()
        words = [sys.executable, "-P", str(HERE / "builds.py"), "each_step", "a_sandbox_of_it"]
        claims(server, words, PYTHONPATH=str(sdks.python(sdks.NEWEST)))


# -- by hand ----------------------------------------------------------------------------------------------------------


def announced(client: httpx.Client, name: str, **more: Any) -> tuple[str, str]:
    """A build that waits to be told what to do."""
    seen = client.post("/v3/templates", json={"name": name, **more})
    assert seen.status_code == 202, seen.text
    return seen.json()["templateID"], seen.json()["buildID"]


def uploaded(client: httpx.Client, template: str, data: bytes) -> str:
    """An archive, put where we are told to; its hash."""
    files = hashlib.sha256(data).hexdigest()
    seen = client.get(f"/templates/{template}/files/{files}")
    assert seen.status_code == 201, seen.text
    put = httpx.put(seen.json()["url"], content=data, timeout=20, trust_env=False)
    assert put.status_code == 200, put.text
    return files


def ended(client: httpx.Client, template: str, build: str, seconds: float = 60) -> dict[str, Any]:
    """A build once it is over, with all of its log."""
    deadline, entries = time.monotonic() + seconds, []
    while time.monotonic() < deadline:
        seen = client.get(f"/templates/{template}/builds/{build}/status?logsOffset={len(entries)}")
        assert seen.status_code == 200, seen.text
        body = seen.json()
        assert len(body["logEntries"]) <= 100
        entries += body["logEntries"]
        if body["status"] in {"ready", "error"} and not body["logEntries"]:
            return {**body, "lines": [entry["message"] for entry in entries]}
        time.sleep(0.1)
    raise AssertionError("the build does not end")


def built(client: httpx.Client, name: str, *each: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A build, to its end."""
    template, build = announced(client, name)
    words = {"fromTemplate": "base", "steps": list(each), **more}
    seen = client.post(f"/v2/templates/{template}/builds/{build}", json=words)
    assert seen.status_code == 202, seen.text
    return {**ended(client, template, build), "template": template, "build": build}


def run(command: str, user: str = "") -> dict[str, Any]:
    """A step."""
    return {"type": "RUN", "args": [command, user] if user else [command]}


def copied(client: httpx.Client, name: str, data: bytes) -> dict[str, Any]:
    """A build whose one step copies what is in an archive."""
    template, build = announced(client, name)
    files = uploaded(client, template, data)
    steps = [{"type": "COPY", "args": ["src", "to", "", ""], "filesHash": files}]
    seen = client.post(f"/v2/templates/{template}/builds/{build}", json={"fromTemplate": "base", "steps": steps})
    assert seen.status_code == 202, seen.text
    return ended(client, template, build)


def archive(*members: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    """A tar."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for member in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member[0])
            data = b"" if isinstance(member, tarfile.TarInfo) else member[1]
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def test_a_hostile_archive_fails_its_step_and_says_why(ada: httpx.Client) -> None:
    """The other kinds are tried where they are cheaper: tests/unit/test_e2b_builds.py."""
    link = tarfile.TarInfo("src/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/shadow"
    seen = copied(ada, "hostile", archive(("src/a", b"x"), link))
    assert seen["status"] == "error"
    assert seen["reason"]["step"] == "1"
    assert "leads out" in seen["reason"]["message"]
    assert copied(ada, "hostile", archive(("src/a", b"x"), ("../b", b"x")))["reason"]["step"] == "1"


def test_an_upload_s_url_is_good_for_one_upload_of_one_archive(ada: httpx.Client, bob: httpx.Client) -> None:
    """A wrong token, a used one, another archive's, one too large, an empty one: refused, nothing kept."""
    template, _ = announced(ada, "uploads")
    files, other = "b" * 64, "c" * 64
    url = ada.get(f"/templates/{template}/files/{files}").json()["url"]

    def put(where: str, data: bytes) -> int:
        return httpx.put(where, content=data, timeout=20, trust_env=False).status_code

    assert put(url.partition("?")[0], b"x") == 403
    assert put(url.partition("?")[0] + "?token=" + "0" * 64, b"x") == 403
    assert put(url.replace(files, other), b"x") == 403
    assert put(url, b"data") == 200
    assert put(url, b"data") == 403
    assert ada.get(f"/templates/{template}/files/{files}").json()["present"] is True
    theirs, _ = announced(bob, "uploads")
    assert bob.get(f"/templates/{theirs}/files/{files}").json()["present"] is False
    large = ada.get(f"/templates/{template}/files/{other}").json()["url"]
    assert put(large, bytes(5 << 20)) == 413
    empty = ada.get(f"/templates/{template}/files/{other}").json()["url"]
    assert put(empty, b"") == 400
    assert ada.get(f"/templates/{template}/files/{other}").json()["present"] is False
    assert ada.get(f"/templates/{template}/files/nonsense").status_code == 400
    assert ada.get(f"/templates/{template}/files/..%2f..%2fx").status_code == 400


def test_a_tenant_s_template_is_no_other_tenant_s(ada: httpx.Client, bob: httpx.Client) -> None:
    """Not seen, used, overwritten, built upon, tagged or deleted, by name or id, on any route; its cache neither."""
    made = built(ada, "mine", run("echo secret > ~/secret; echo built here"))
    assert made["status"] == "ready", made
    assert "built here" in made["lines"]
    template, build, node_name = made["template"], made["build"], "built-" + made["build"].replace("-", "")
    for name in (template, "mine"):
        for method, path, body in (
            ("GET", f"/templates/{name}", None),
            ("DELETE", f"/templates/{name}", None),
            ("GET", f"/templates/{name}/tags", None),
            ("GET", f"/templates/aliases/{name}", None),
            ("GET", f"/templates/{name}/files/{'a' * 64}", None),
            ("GET", f"/templates/{name}/builds/{build}/status", None),
            ("POST", f"/v2/templates/{name}/builds/{build}", {"fromTemplate": "base"}),
            ("POST", "/templates/tags", {"target": name, "tags": ["x"]}),
            ("DELETE", "/templates/tags", {"name": name, "tags": ["default"]}),
            ("POST", "/v2/sandboxes", {"templateID": name}),
            ("POST", "/v2/sandboxes", {"templateID": node_name}),
        ):
            seen = bob.request(method, path, json=body)
            assert seen.status_code == 404, (method, path, seen.text)
    assert not {template, "mine"} & {
        word for row in bob.get("/templates").json() for word in (row["templateID"], *row["names"])
    }
    for client, there in ((bob, False), (ada, True)):
        own = {"Authorization": f"Bearer {client.headers['x-api-key']}"}
        with httpx.Client(base_url=client.base_url, headers=own, timeout=20, trust_env=False) as plain:
            assert (node_name in plain.get("/v1/templates").text) is there
            for verb, words in (("sandboxes", {}), ("runs", {"code": "1"})):
                seen = plain.post(f"/v1/{verb}", json={"template": node_name, **words})
                assert (seen.status_code < 300) is there, seen.text
    theirs, other = announced(bob, "thief")
    for base in ("mine", template, node_name):
        seen = bob.post(f"/v2/templates/{theirs}/builds/{other}", json={"fromTemplate": base})
        assert seen.status_code == 404, seen.text
    # Names are each tenant's own, and so is what is kept of steps: the same build is done, not found.
    same = built(bob, "mine", run("echo secret > ~/secret; echo built here"))
    assert "built here" in same["lines"]
    assert ada.get("/templates/aliases/mine").json()["templateID"] == template
    assert bob.get("/templates/aliases/mine").json()["templateID"] != template


def test_a_name_of_the_server_s_own_cannot_be_taken(ada: httpx.Client) -> None:
    """By any spelling of it."""
    for name in ("base", "base:v2", "python", "code-interpreter-v1"):
        seen = ada.post("/v3/templates", json={"name": name})
        assert seen.status_code == 403, (name, seen.text)
    assert ada.get("/templates/aliases/base").status_code == 403
    assert ada.get("/templates/aliases/no-such").status_code == 404
    assert ada.delete("/templates/base").status_code == 404


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v3/templates", {"name": "A/B"}),
        ("/v3/templates", {"name": "x", "tags": ["a b"]}),
        ("/v3/templates", {"name": "x", "teamID": "t"}),
        ("/v3/templates", {"name": "x", "cpuCount": 0}),
        ("/v3/templates", {"name": "x", "memoryMB": 1 << 23}),
        ("/v3/templates", {"name": "x", "minFreeDiskMB": 1 << 23}),
        ("/v3/templates", ["x"]),
        ("build", {"fromImage": "127.0.0.1:5000/x", "steps": []}),
        ("build", {"fromImage": "x.example/y", "fromImageRegistry": {"type": "aws", "awsRegion": "r"}}),
        ("build", {"fromTemplate": "base", "fromImageRegistry": {"type": "registry"}}),
        ("build", {"fromTemplate": "base", "fromImage": "e2bdev/base"}),
        ("build", {"fromTemplate": "base", "steps": [{"type": "MOUNT", "args": ["/"]}]}),
        ("build", {"fromTemplate": "base", "steps": [{"type": "RUN", "args": ["x"], "secrets": ["y"]}]}),
        ("build", {"fromTemplate": "base", "steps": [{"type": "RUN", "args": ["x\0y"]}]}),
        ("build", {"fromTemplate": "base", "steps": [{"type": "RUN", "args": ["x"]}] * 301}),
        ("build", {"fromTemplate": "base", "startCmd": "a\0b"}),
        ("build", {"fromTemplate": "base", "network": {"allow": ["*"]}}),
    ],
)
def test_what_cannot_be_honoured_is_refused_and_never_ignored(ada: httpx.Client, path: str, body: Any) -> None:
    """A 400 with the reason; the build still waits to be told what can be done."""
    template, build = announced(ada, "refused") if path == "build" else ("", "")
    seen = ada.post(f"/v2/templates/{template}/builds/{build}" if path == "build" else path, json=body)
    assert seen.status_code == 400, seen.text
    assert seen.json()["message"]
    if path == "build":
        assert ada.get(f"/templates/{template}/builds/{build}/status").json()["status"] == "waiting"
        assert ada.delete("/templates/refused").status_code == 204


def test_a_build_is_told_what_to_do_once(ada: httpx.Client) -> None:
    """And what never was is not found."""
    made = built(ada, "once", run("true"))
    assert made["status"] == "ready", made
    again = ada.post(f"/v2/templates/{made['template']}/builds/{made['build']}", json={"fromTemplate": "base"})
    assert again.status_code == 409
    assert ada.get(f"/templates/{made['template']}/builds/{NOBODY}/status").status_code == 404
    assert ada.get(f"/templates/{made['template']}/builds/{made['build']}/status?logsOffset=-1").status_code == 400


def test_a_build_has_its_bounds(ada: httpx.Client) -> None:
    """Time, disk, log, what a home holds: each ends the build with its reason."""
    filled = built(ada, "bounds", run("head -c 900M /dev/zero > /opt/full", "root"))
    assert filled["status"] == "error", filled
    many = built(ada, "bounds", run("for n in $(seq 60); do echo > ~/$n; done"))
    assert many["reason"]["step"] == "finalize", many
    assert "gets a copy" in many["reason"]["message"] or "get a copy" in many["reason"]["message"]
    chatty = built(ada, "bounds", run("seq 5000"), {"type": "WORKDIR", "args": ["/opt/x"]})
    assert chatty["status"] == "ready", chatty
    assert len(chatty["lines"]) == 301
    never = built(ada, "bounds", readyCmd="false")
    assert never["reason"]["step"] == "finalize"
    assert "not ready" in never["reason"]["message"]


def test_a_step_cannot_reach_what_it_should_not(ada: httpx.Client) -> None:
    """No network, no device, no mount, no kernel's doors: its root is root over its own files alone."""
    tried = "; ".join(
        f"if {each} 2>/dev/null; then echo COULD {number}; fi"
        for number, each in enumerate((
            "mount -t tmpfs none /mnt", "mknod /opt/disk b 8 0", "unshare -U true", "chroot / true",
            "timeout 2 bash -c 'echo > /dev/tcp/127.0.0.1/1'", "echo 1 > /proc/sys/kernel/core_pattern",
            "test -e /sys/kernel", "ls /var/lib/ringfence",
        ))
    )  # fmt: skip
    grep = "grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status"
    made = built(ada, "fenced", run(f"{tried}; {grep}", "root"))
    assert made["status"] == "ready", made
    assert not [line for line in made["lines"] if line.startswith("COULD")], made["lines"]
    found = dict(line.split(":\t") for line in made["lines"] if ":\t" in line)
    assert (int(found["CapEff"], 16), found["NoNewPrivs"], found["Seccomp"]) == (0b1111_1011, "1", "2")


def test_a_template_whose_files_are_hostile_harms_itself_alone(ada: httpx.Client) -> None:
    """Its Python, variables of the linker's, links where we mount, files in our own places."""
    wrapper = (
        "mv /usr/bin/python3 /usr/bin/python3.real; printf '#!/bin/sh\\nexec /usr/bin/python3.real \"$@\"\\n'"
        " > /usr/bin/python3; chmod 755 /usr/bin/python3; mkdir -p /etc/skel/deep; ln -s /etc/shadow /etc/skel/x"
    )
    env = {"type": "ENV", "args": ["LD_PRELOAD", "/opt/evil.so", "PYTHONHOME", "/opt", "LD_LIBRARY_PATH", "/opt"]}
    made = built(ada, "hostile-files", run(wrapper, "root"))
    assert made["status"] == "ready", made
    with sandbox(ada, "hostile-files") as box:
        assert box
    last = built(ada, "hostile-env", run("true"), env)
    assert last["status"] == "ready", last
    with sandbox(ada, "hostile-env") as box:
        assert box
    for number, evil in enumerate(("rm -rf /tmp2; rmdir /mnt; ln -s /etc /mnt", "rm -rf /srv; ln -s / /home/user/all")):
        seen = built(ada, f"links-{number}", run(evil, "root"))
        assert seen["status"] in {"ready", "error"}
    refused = built(ada, "links", run("rmdir /mnt; ln -s /etc /mnt", "root"))
    assert refused["reason"]["step"] == "finalize", refused
    assert "symbolic link" in refused["reason"]["message"]


@contextlib.contextmanager
def sandbox(client: httpx.Client, template: str) -> Iterator[dict[str, Any]]:
    """A sandbox made of a template, while it is needed."""
    made = client.post("/v2/sandboxes", json={"templateID": template, "timeout": 60})
    assert made.status_code == 201, made.text
    try:
        yield made.json()
    finally:
        client.delete(f"/sandboxes/{made.json()['sandboxID']}")


def test_a_deleted_template_stays_for_those_that_use_it_and_then_goes(server: Served, ada: httpx.Client) -> None:
    """Nothing of it is left on disk once its last sandbox ended."""
    made = built(ada, "leaving", run("echo x > ~/x"))
    entry = server.state / "node" / "built" / "index" / f"built-{made['build'].replace('-', '')}.json"
    place = server.state / "node" / "built" / json.loads(entry.read_text())["digest"]
    with sandbox(ada, "leaving"):
        assert ada.delete("/templates/leaving").status_code == 204
        assert ada.post("/v2/sandboxes", json={"templateID": "leaving"}).status_code == 404
        assert place.is_dir()
    deadline = time.monotonic() + 20
    while (place.exists() or entry.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not place.exists()
    assert not entry.exists()


def test_as_many_builds_as_may_be_at_once(ada: httpx.Client) -> None:
    """The next is told to come later, and is as it was."""
    waiting = [announced(ada, f"many-{number}") for number in range(4)]
    words = {"fromTemplate": "base", "steps": [run("sleep 3")]}
    answers = [ada.post(f"/v2/templates/{template}/builds/{build}", json=words) for template, build in waiting]
    assert [answer.status_code for answer in answers] == [202, 202, 202, 429]
    for template, build in waiting[:3]:
        assert ended(ada, template, build)["status"] == "ready"
    template, build = waiting[3]
    assert ada.post(f"/v2/templates/{template}/builds/{build}", json={"fromTemplate": "base"}).status_code == 202
    assert ended(ada, template, build)["status"] == "ready"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("killed", ["api", "node"])
def test_a_build_ends_with_the_process_that_made_it(killed: str) -> None:
    """As an error with its reason; no sandbox, no file of it is left, and the next build is made."""
    with serving(SETTINGS) as server, server.client() as client:
        template, build = announced(client, "broken-off")
        words = {"fromTemplate": "base", "steps": [run("echo begun; sleep 600")]}
        assert client.post(f"/v2/templates/{template}/builds/{build}", json=words).status_code == 202
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            seen = client.get(f"/templates/{template}/builds/{build}/status").json()
            if "begun" in [entry["message"] for entry in seen["logEntries"]]:
                break
            time.sleep(0.1)
        os.kill(_pid_of(server, f"ringfence.{killed}"), signal.SIGKILL)
        while time.monotonic() < deadline + 30:
            with contextlib.suppress(httpx.HTTPError):
                seen = client.get(f"/templates/{template}/builds/{build}/status").json()
                if seen.get("status") == "error":
                    break
            time.sleep(0.2)
        assert seen["status"] == "error", seen
        assert seen["reason"]["message"]
        made = None
        while made is None and time.monotonic() < deadline + 60:
            with contextlib.suppress(httpx.HTTPError, AssertionError):
                made = built(client, "after", run("true"))
                made = made if made["status"] == "ready" else None
        assert made is not None
        assert not list((server.state / "node" / "built").glob("building-*"))
        state = server.state
    assert not left_of(state)


def left_of(state: Path) -> set[str]:
    """What there still is of a server that was stopped, once it had time to go."""
    deadline = time.monotonic() + ledger.GRACE_SECONDS
    while True:
        seen = ledger.snapshot(state)
        left = set(seen.processes | seen.zombies | seen.cgroups | seen.temporary)
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.2)


def _pid_of(server: Served, module: str) -> int:
    """The process of this server that runs a module."""
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (place / "cmdline").read_bytes().split(b"\0")
            mine = b"ringfence-e2b-" in b" ".join(words) or str(server.state).encode() in _environment(place, words)
            if module.encode() in words and mine and _under(place, server):
                return int(place.name)
    raise AssertionError(f"no {module} runs")


def _environment(place: Path, words: list[bytes]) -> bytes:
    return b" ".join(words) + os.readlink(place / "cwd").encode()


def _under(place: Path, server: Served) -> bool:
    parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
    return str(server.state).encode() in Path(f"/proc/{parent}/cmdline").read_bytes()
