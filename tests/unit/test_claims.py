"""Numbers that only one server of this machine may use at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from ringfence.claims import Claims
from ringfence.domain.errors import SandboxRefused
from ringfence.runtimes.jail.runtime import UID_FLOOR
from tests.support.node import TEMPLATES, Node

HOLDS = """
import pathlib, sys
from ringfence.claims import Claims
claims = Claims("x", range(3), pathlib.Path(sys.argv[1]))
print(claims.take(), flush=True)
sys.stdin.read()
"""


def test_two_servers_never_have_the_same_number(tmp_path: Path) -> None:
    """What one has, the other passes over; what was given back is taken last."""
    one, two = Claims("x", range(4), tmp_path), Claims("x", range(4), tmp_path)
    assert [one.take(), two.take(), one.take(), two.take()] == [0, 1, 2, 3]
    one.give(0)
    assert two.take() == 0
    with pytest.raises(SandboxRefused) as refusal:
        one.take()
    assert refusal.value.code == "no_uid_range"
    two.close()
    assert one.take() == 3
    one.close()
    assert list(tmp_path.iterdir()) == []


def test_kinds_do_not_meet(tmp_path: Path) -> None:
    """A range for jails is no range for containers."""
    one, two = Claims("x", range(1), tmp_path), Claims("y", range(1), tmp_path)
    assert one.take() == two.take() == 0
    one.close()
    two.close()


def test_who_was_killed_holds_nothing(tmp_path: Path) -> None:
    """Its locks died with it; the file that it left goes when the next server looks."""
    words = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "0\n"
        claims = Claims("x", range(3), tmp_path)
        assert claims.take() == 1
        other.send_signal(signal.SIGKILL)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["x-0", "x-1"]
    claims.give(1)
    late = Claims("x", range(3), tmp_path)
    assert late.take() == 0
    assert [each.name for each in tmp_path.iterdir()] == ["x-0"]
    late.close()


def test_a_lock_on_a_file_that_was_removed_meanwhile_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last holder removes a number's file: whoever had just opened that one must look again."""
    one, two = Claims("x", range(1), tmp_path), Claims("x", range(1), tmp_path)
    one.take()
    real = os.open

    def meanwhile(path: str | Path, *more: int) -> int:
        opened = real(path, *more)
        one.give(0)
        return opened

    two._prepare()
    monkeypatch.setattr(os, "open", meanwhile)
    assert two.take() == 0
    monkeypatch.undo()
    assert (tmp_path / "x-0").exists()
    with pytest.raises(SandboxRefused):
        one.take()
    two.close()


def test_where_nothing_can_be_marked_it_is_refused(tmp_path: Path) -> None:
    """Rather than shared with a server that we cannot see."""
    (tmp_path / "file").touch()
    claims = Claims("x", range(3), tmp_path / "file/claims")
    with pytest.raises(SandboxRefused) as refusal:
        claims.take()
    assert refusal.value.code == "no_uid_range"
    assert refusal.value.remediation
    assert len(claims.free) == 3


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    """Nor is any file made elsewhere."""
    (tmp_path / "x-0").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SandboxRefused):
        Claims("x", range(1), tmp_path).take()
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="without root there is one uid")
@pytest.mark.skipif(not (TEMPLATES / "index/base.json").exists(), reason="no template: make setup")
def test_sandboxes_of_two_servers_share_no_uid() -> None:
    """Rlimits, signals and /proc go by uids: a neighbour on another server must not be us to the kernel."""
    names = [f"test-{uuid.uuid4().hex[:12]}" for _ in range(2)]
    with Node(names[0]) as one, Node(names[1]) as two:
        lives = [(node, node.claim()) for node in (one, two)]
        try:
            maps = [Path(f"/proc/{live.started.pid}/uid_map").read_text().split() for _, live in lives]
            ranges = [range(int(words[1]), int(words[1]) + int(words[2])) for words in maps]
            assert not set(ranges[0]) & set(ranges[1])
            assert min(ranges[0][0], ranges[1][0]) >= UID_FLOOR
        finally:
            for node, live in lives:
                node.release(live)
