"""`sudo` in a sandbox: root of the sandbox, nobody outside; and what a hostile program makes of its door."""

from __future__ import annotations

import pytest

from tests.e2b_interpreter.harness import Sandbox

HOSTILE = """
import json, os, socket
NAME = "\\0ringfence-sudo"
def say(data, fds=()):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as talk:
        talk.connect(NAME)
        socket.send_fds(talk, [data], list(fds))
        talk.settimeout(60)
        return talk.recv(4096).decode()
"""


@pytest.mark.parametrize(
    ("line", "printed"),
    [
        ("sudo id -u", "0\n"),
        ("sudo -n whoami; whoami", "root\nuser\n"),
        ("sudo -u user id -u", "1000\n"),
        ("echo a b | sudo tee /tmp/of-root; stat -c %U /tmp/of-root; sudo rm /tmp/of-root", "a b\nroot\n"),
        ("sudo sh -c 'exit 7'; echo $?", "7\n"),
        ("sudo A=1 sh -c 'echo $A $USER $SUDO_USER'", "1 root user\n"),
        ("cd /tmp; sudo -D /usr pwd; sudo pwd", "/usr\n/tmp\n"),
        ("sudo sh -c 'kill -9 $$'; echo $?", "137\n"),
        ("sudo -v && sudo -k && echo fine", "fine\n"),
        ("sudo grep -c '0000000000000000' /proc/self/status | head -1 | grep -qE '[3-9]' && echo none", "none\n"),
    ],
)
def test_sudo_runs_commands_as_root_of_the_sandbox(sandbox: Sandbox, line: str, printed: str) -> None:
    """Who one is, what one inherits, how it ended; and that there is no capability."""
    assert sandbox.run(line, language="bash").printed() == printed


@pytest.mark.parametrize("line", ["sudo touch /etc/x", "sudo chown root /home/user", "sudo -u nobody-here id", "sudo"])
def test_sudo_gives_no_power_over_the_sandbox(sandbox: Sandbox, line: str) -> None:
    """The template stays read-only, owners stay, and nonsense is refused."""
    done = sandbox.run(line, language="bash")
    assert done.error["name"] == "CommandFailed"
    assert done.printed("stderr")


def test_a_command_whose_asker_was_killed_goes_too(sandbox: Sandbox) -> None:
    """Nothing of root's is left that the user could not end."""
    code = (
        "import os, subprocess, time\n"
        "asker = subprocess.Popen(['sudo', 'sh', '-c', 'while :; do date > /tmp/beat; sleep .05; done'])\n"
        "while not os.path.exists('/tmp/beat'): time.sleep(.05)\n"
        "asker.kill(); asker.wait()\n"
        "for _ in range(100):\n"  # it may beat once more before it hears of it
        "    first = os.stat('/tmp/beat').st_mtime_ns; time.sleep(.4)\n"
        "    if os.stat('/tmp/beat').st_mtime_ns == first: break\n"
        "os.stat('/tmp/beat').st_mtime_ns == first"
    )
    assert sandbox.run(code).text == "True"


@pytest.mark.parametrize(
    "said",
    [
        "say(b'no json', [0, 1, 2])",
        "say(b'[]', [0, 1, 2])",
        "say(b'{}', [0, 1, 2])",
        "say(json.dumps({'argv': ['id']}).encode())",
        r"say(json.dumps({'argv': ['a\0b']}).encode(), [0, 1, 2])",
        "say(json.dumps({'argv': ['id'], 'user': 7}).encode(), [0, 1, 2])",
        "say(json.dumps({'argv': ['id'], 'cwd': '/proc/self'}).encode(), [0, 1, 2])",
        "say(json.dumps({'argv': ['id'], 'env': {'a=b': 'c'}}).encode(), [0, 1, 2])",
        "say(json.dumps({'argv': ['id']}).encode(), [0] * 200)[:0] + say(b'[' * 100000, [0, 1, 2])",
    ],
)
def test_nonsense_at_the_door_is_refused(sandbox: Sandbox, said: str) -> None:
    """The agent answers with an error and lives on."""
    done = sandbox.run(HOSTILE + said)
    assert "error" in done.text, done.lines
    assert sandbox.run("sudo id -u", language="bash").printed() == "0\n"


def test_a_crowd_at_the_door(sandbox: Sandbox) -> None:
    """More askers than there is room for are turned away; when they are gone there is room again."""
    code = HOSTILE + (
        "crowd = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(200)]\n"
        "for each in crowd:\n    each.setblocking(False)\n    try: each.connect(NAME)\n    except OSError: pass\n"
        "for each in crowd: each.close()"
    )
    assert not sandbox.run(code).error
    assert sandbox.run("sudo id -u", language="bash").printed() == "0\n"
