"""Contexts: made, listed, restarted, removed."""

from __future__ import annotations

import time

import pytest

from tests.e2b_interpreter.harness import Sandbox


def test_the_usual_ones_are_there_unasked(sandbox: Sandbox) -> None:
    """python and javascript are listed before anything ran."""
    listed = sandbox.http.get("/contexts").json()
    assert {"python", "javascript"} <= {context["language"] for context in listed}
    assert all(context["cwd"] == "/home/user" for context in listed[:2])


def test_a_context_of_ones_own(sandbox: Sandbox) -> None:
    """It has its own namespace and its folder, which is made; and is the last of the list."""
    made = sandbox.http.post("/contexts", json={"language": "python", "cwd": "/home/user/deep/er"}).json()
    assert sandbox.http.get("/contexts").json()[-1] == made
    assert made["cwd"] == "/home/user/deep/er"
    sandbox.run("mine = 1", context_id=made["id"])
    assert sandbox.run("import os; os.getcwd()", context_id=made["id"]).text == "/home/user/deep/er"
    assert sandbox.run("mine").error["name"] == "NameError"
    assert sandbox.http.delete(f"/contexts/{made['id']}").status_code == 200
    assert sandbox.refused("POST", "/execute", {"code": "1", "context_id": made["id"]})[0] == 404


@pytest.mark.parametrize("language", ["js", "ts", "bash"])
def test_contexts_of_other_languages(sandbox: Sandbox, language: str) -> None:
    """Each language starts where it is told."""
    made = sandbox.http.post("/contexts", json={"language": language, "cwd": "/tmp"}).json()
    done = sandbox.run("pwd" if language == "bash" else "process.cwd()", context_id=made["id"])
    assert (done.text or done.printed().strip()) == "/tmp"
    sandbox.http.delete(f"/contexts/{made['id']}").raise_for_status()


def test_a_restart_forgets(sandbox: Sandbox) -> None:
    """The context stays, what was in it is gone, counting starts anew."""
    made = sandbox.http.post("/contexts", json={}).json()
    sandbox.run("kept = 1", context_id=made["id"])
    assert sandbox.http.post(f"/contexts/{made['id']}/restart").status_code == 200
    done = sandbox.run("kept", context_id=made["id"])
    assert done.error["name"] == "NameError"
    assert done.lines[0]["execution_count"] == 1
    sandbox.http.delete(f"/contexts/{made['id']}").raise_for_status()


def test_no_kernel_is_left_of_a_removed_context(sandbox: Sandbox) -> None:
    """Its process goes with it."""
    before = sandbox.programs()
    made = sandbox.http.post("/contexts", json={}).json()
    own = sandbox.programs() - before
    assert len(own) == 1
    sandbox.http.delete(f"/contexts/{made['id']}").raise_for_status()
    until = time.monotonic() + 60
    while own & sandbox.programs():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/execute", {"code": "1", "context_id": "x", "language": "python"}, 400),
        ("POST", "/execute", {"code": "1", "context_id": "nowhere"}, 404),
        ("POST", "/execute", {"code": 1}, 400),
        ("POST", "/execute", {}, 400),
        ("POST", "/execute", [], 400),
        ("POST", "/execute", {"code": "1", "env_vars": {"a=b": "c"}}, 400),
        ("POST", "/execute", {"code": "1", "env_vars": {"a": "\0"}}, 400),
        ("POST", "/contexts", {"cwd": "/a/../b"}, 400),
        ("POST", "/contexts", {"cwd": "x\0y"}, 400),
        ("POST", "/contexts", {"cwd": "/proc/nowhere"}, 500),
        ("POST", "/contexts", {"language": "cobol"}, 500),
        ("DELETE", "/contexts/nowhere", None, 404),
        ("POST", "/contexts/nowhere/restart", None, 404),
        ("GET", "/execute", None, 404),
        ("POST", "/contexts/a/b/c", None, 404),
    ],
)
def test_what_is_refused(sandbox: Sandbox, method: str, path: str, body: object, status: int) -> None:
    """A few words and a status; the interpreter goes on."""
    answered, words = sandbox.refused(method, path, body)
    assert answered == status, words
    assert words
    assert sandbox.run("1").text == "1"


def test_a_body_that_is_no_json(sandbox: Sandbox) -> None:
    """Neither is run."""
    for body in (b"{", b"\xff", b"[" * 100_000, b'{"code": "\\ud800'):
        assert sandbox.http.post("/execute", content=body).status_code == 400
    assert sandbox.http.post("/execute", content=b'"' + b"x" * (17 << 20)).status_code == 413


def test_what_later_clients_add_is_not_looked_at(sandbox: Sandbox) -> None:
    """E2B's own server ignores fields it does not know; nulls are as nothing."""
    assert sandbox.run("3", context_id=None, language=None, env_vars=None, later="x").text == "3"
