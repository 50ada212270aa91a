"""`ringfence sandbox` and its companions, against a real server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringfence import Sandbox
from ringfence.cli.copying import tree_out
from ringfence.cli.output import Screen
from ringfence.domain.errors import BadRequest
from tests.support.served import served


@pytest.fixture(scope="module")
def sb() -> Iterator[Sandbox]:
    """A sandbox that the commands are tried on."""
    with served().client() as client, Sandbox.create(ttl=1200, client=client) as made:
        yield made


def test_a_sandbox_from_create_to_stop() -> None:
    """The id is the only thing on stdout, so that it can be kept in a variable."""
    made = served().run("sandbox", "create", "--ttl", "2m", "-l", "case=cli").stdout.decode().strip()
    listed = json.loads(served().run("sandbox", "list", "--json", "-l", "case=cli").stdout)
    assert listed["id"] == made
    assert made in served().run("sandbox", "list").stdout.decode()
    assert served().run("sandbox", "get", made).returncode == 0
    assert json.loads(served().run("sandbox", "extend", made, "10m", "--json").stdout)["id"] == made
    assert served().run("sandbox", "stop", made).stdout.decode().split() == [made, "stopped"]
    assert served().run("sandbox", "exec", made, "true").returncode == 126


def test_a_sandbox_is_reset_from_the_command_line() -> None:
    """What it starts with runs from the beginning and again; what was written is gone; the id stays."""
    made = served().run("sandbox", "create", "--start", "echo begun > mark; sleep 100").stdout.decode().strip()
    try:
        served().run("sandbox", "exec", made, "until [ -s mark ]; do sleep 0.02; done; echo mine > file")
        assert served().run("sandbox", "reset", made).stdout.decode().split() == [made, "reset"]
        shown = served().run("sandbox", "exec", made, "until [ -s mark ]; do sleep 0.02; done; ls; cat mark").stdout
        assert shown == b"mark\nbegun\n"
        assert json.loads(served().run("sandbox", "reset", made, "--json").stdout)["id"] == made
    finally:
        served().run("sandbox", "stop", made)
    assert served().run("sandbox", "reset", made).returncode == 126


def test_exec_gives_output_input_and_exit_code(sb: Sandbox) -> None:
    """A command in a sandbox behaves like one here."""
    done = served().run("sandbox", "exec", sb.id, "tr a-z A-Z; exit 3", stdin=b"shout")
    assert (done.stdout, done.returncode) == (b"SHOUT", 3)
    assert served().run("sandbox", "exec", sb.id, "printf", "%s,", "a b", "--c").stdout == b"a b,--c,"


def test_two_dashes_before_a_command_are_no_part_of_it(sb: Sandbox) -> None:
    """As one types it for other tools: `exec ID -- COMMAND`."""
    assert served().run("sandbox", "exec", sb.id, "--", "echo", "--", "x").stdout == b"-- x\n"


def test_a_detached_command_is_listed_and_its_output_read_later(sb: Sandbox) -> None:
    """Start it, leave it, read what it said."""
    pid = int(served().run("sandbox", "exec", "-d", sb.id, "echo said; sleep 600").stdout)
    assert str(pid) in served().run("sandbox", "ps", sb.id).stdout.decode()
    deadline = time.monotonic() + 60
    while not (said := served().run("sandbox", "logs", sb.id, str(pid)).stdout):  # until it has come to saying it
        assert time.monotonic() < deadline
    assert said == b"said\n"
    sb.process(pid).kill()
    assert served().run("sandbox", "logs", "--follow", sb.id, str(pid)).returncode == 0


def test_files_are_copied_both_ways(sb: Sandbox, tmp_path: Path) -> None:
    """A file, a pipe and a tree, in and out."""
    (tmp_path / "a.txt").write_text("alpha")
    assert served().run("sandbox", "cp", f"{tmp_path}/a.txt", f"{sb.id}:a.txt").returncode == 0
    assert served().run("sandbox", "cp", f"{sb.id}:a.txt", "-").stdout == b"alpha"
    assert served().run("sandbox", "cp", "-", f"{sb.id}:piped", stdin=b"\x00\xff").returncode == 0
    (tmp_path / "out").mkdir()
    served().run("sandbox", "cp", f"{sb.id}:piped", f"{tmp_path}/out")
    assert (tmp_path / "out" / "piped").read_bytes() == b"\x00\xff"
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "f").write_text("f")
    assert served().run("sandbox", "cp", "-r", f"{tmp_path}/tree", f"{sb.id}:tree").returncode == 0
    assert served().run("sandbox", "cp", "-r", f"{sb.id}:tree", f"{tmp_path}/back").returncode == 0
    assert (tmp_path / "back" / "deep" / "f").read_text() == "f"


def test_links_in_a_tree_are_left_behind_and_nothing_lands_outside(sb: Sandbox, tmp_path: Path) -> None:
    """A hostile tree cannot make a copy write anywhere but in its new directory."""
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    sb.exec(
        f"mkdir -p trap && cd trap && ln -s {victim} link && ln -s {tmp_path} dir && mkfifo pipe && echo x > ok"
    ).check()
    copied = tmp_path / "copied"
    with served().client() as client:
        files = Sandbox.connect(sb.id, client=client).files
        assert list(tree_out(files, "trap", copied, Screen())) == [2]
        with pytest.raises(BadRequest, match="cannot make"):
            list(tree_out(files, "trap", copied, Screen()))
    assert victim.read_text() == "untouched"
    assert [path.name for path in copied.iterdir()] == ["ok"]


def test_status_runtimes_templates_and_events_have_a_table_and_json() -> None:
    """Each report is readable by people and by programs."""
    for words in (["status"], ["runtimes"], ["templates", "list"], ["events"], ["sandbox", "list", "--all"]):
        people, programs = served().run(*words), served().run(*words, "--json")
        assert people.returncode == programs.returncode == 0
        assert b"\x1b" not in people.stdout
        assert all(json.loads(line) for line in programs.stdout.splitlines())


def test_keys_are_made_listed_and_revoked_while_the_server_runs() -> None:
    """A revoked key is refused at once."""
    made = json.loads(served().run("keys", "create", "--tenant", "brief", "--name", "x", "--json").stdout)
    assert served().run("status", RINGFENCE_KEY=made["key"]).returncode == 0
    listing = served().run("keys", "list").stdout.decode()
    assert made["id"] in listing
    assert made["key"] not in listing
    assert served().run("keys", "revoke", made["id"]).returncode == 0
    assert served().run("status", RINGFENCE_KEY=made["key"]).returncode == 126


def test_a_detached_server_is_found_again() -> None:
    """`serve --detach` twice is one server."""
    port = served().url.rpartition(":")[2]
    again = served().run("serve", "--detach", "--json", "--port", port)
    assert json.loads(again.stdout) == {"url": served().url, "started": False}
