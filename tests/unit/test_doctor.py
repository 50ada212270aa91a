"""The doctor: each setting judged by its text, each verdict by its findings, and this machine's own report."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ringfence.doctor import features, host, network, report, trial
from ringfence.doctor.features import Feature
from ringfence.network import rules

SETTINGS = {setting.name: setting for setting in host.SETTINGS}


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("kernel.io_uring_disabled", "2", "0"),
        ("kernel.perf_event_paranoid", "3", "-1"),
        ("dev.tty.legacy_tiocsti", "0", "1"),
        ("kernel.core_pattern", "core", "|/usr/lib/systemd/systemd-coredump"),
        ("swap", "Filename Type Size", "Filename Type Size\n/dev/sda2 partition 100"),
        ("kernel modules", "ext4 1 0 - Live", "tls 1 0 - Live\next4 1 0 - Live"),
        ("kernel release", "6.18.44-generic", "6.18.20"),
        ("nested virtualisation (Intel)", "N", "Y"),
    ],
)
def test_a_setting_is_told_good_from_bad(name: str, good: str, bad: str) -> None:
    """The wanted value is accepted, the dangerous one is not."""
    assert host.look(SETTINGS[name], good).ok
    assert not host.look(SETTINGS[name], bad).ok


def test_an_absent_setting_is_fine_only_where_the_danger_is_absent_with_it() -> None:
    """A kernel without KVM has no nested virtualisation; a kernel without Yama has no ptrace scope."""
    assert host.look(SETTINGS["nested virtualisation (AMD)"], None).ok
    assert not host.look(SETTINGS["kernel.yama.ptrace_scope"], None).ok


@pytest.mark.parametrize(
    ("release", "ok"),
    [
        ("6.1.177", True),
        ("6.1.176", False),
        ("6.12.95-1-amd64", True),
        ("5.10.250", False),
        ("7.2.0", True),
        ("x", False),
    ],
)
def test_kernel_releases_are_compared_within_their_series(release: str, ok: bool) -> None:
    """A release counts when its own series has the mends, or when it is of a newer series than any known."""
    assert host.mended(release) is ok


def test_every_setting_says_why_and_how() -> None:
    """No warning without its reason and its remedy."""
    assert [s.name for s in host.SETTINGS if not (s.why and s.fix and s.wanted)] == []


@pytest.mark.parametrize(
    ("mountinfo", "kind"),
    [
        ("30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "v2"),
        ("30 24 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu", "v1"),
        ("1 2 0:1 / /a rw - cgroup2 x rw\n3 4 0:2 / /b rw - cgroup x rw", "v1 and v2 (hybrid)"),
        ("22 27 0:21 / /proc rw - proc proc rw", "none"),
    ],
)
def test_the_kind_of_control_groups_is_read_from_the_mounts(mountinfo: str, kind: str) -> None:
    """v1, v2, both or none."""
    assert features.cgroup_kind(mountinfo) == kind


def runtime(usable: bool | None, *, missing: int = 0) -> dict[str, Any]:
    """What a trial might answer."""
    layers = [{"name": f"layer{n}", "in_force": n >= missing, "reason": "because"} for n in range(5)]
    return trial.blank("jail") | {"layers": layers, "limits_by": "x", "usable": usable}


def feature(*, ok: bool, needed: bool) -> Feature:
    """A feature that is there or not."""
    return Feature("thing", ok, needed, "there" if ok else "gone", "why", "fix")


@pytest.mark.parametrize(
    ("found", "seen", "code"),
    [
        (feature(ok=True, needed=True), runtime(usable=True), report.SOUND),
        (feature(ok=False, needed=False), runtime(usable=True), report.SOUND),
        (feature(ok=True, needed=True), runtime(usable=True, missing=1), report.DEGRADED),
        (feature(ok=True, needed=True), runtime(usable=False), report.UNUSABLE),
        (feature(ok=False, needed=True), runtime(usable=True), report.UNUSABLE),
        (feature(ok=True, needed=True), runtime(usable=None), report.SOUND),
    ],
)
def test_the_exit_code_tells_sound_degraded_and_unusable_apart(found: Feature, seen: dict[str, Any], code: int) -> None:
    """0 with every layer, 1 with one missing, 2 when nothing can run; a template not yet built is no fault."""
    assert report.verdict([found], [seen]) == code


@pytest.mark.parametrize(
    ("other", "code"),
    [
        (runtime(usable=True), report.SOUND),
        (runtime(usable=True, missing=1), report.SOUND),
        (runtime(usable=False), report.DEGRADED),
        (trial.blank("gvisor") | {"usable": None, "absent": True}, report.SOUND),
    ],
)
def test_another_runtime_that_fails_does_not_make_the_jail_unusable(other: dict[str, Any], code: int) -> None:
    """What is here and does not work is told; what is absent is no fault."""
    assert report.verdict([feature(ok=True, needed=True)], [runtime(usable=True), other]) == code


def test_a_runtime_is_not_tried_where_the_kernel_lacks_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The missing feature is named, and no trial is begun."""
    monkeypatch.setattr(features, "FEATURES", (("wings", lambda: "none", True, "to fly", "grow some"),))
    found = report.gather(Path("/nonexistent"), attempt=lambda _: pytest.fail("tried all the same"))
    assert found["exit"] == report.UNUSABLE
    assert "wings" in found["runtimes"][0]["trouble"]


def test_this_machines_report_is_json_and_complete(capsys: pytest.CaptureFixture[str]) -> None:
    """One line of JSON with every part, whatever this machine offers and whoever asks."""
    code = report.main({"json": True, "colour": False, "state": None})
    found = json.loads(capsys.readouterr().out)
    assert code == found["exit"]
    assert {row["name"] for row in found["host"]} >= set(SETTINGS)
    assert {row["name"] for row in found["features"]} == {row[0] for row in features.FEATURES}
    assert found["runtimes"][0]["name"] == "jail"
    assert set(found["network"]) == {"ok", "reason", "fix"}


def test_whether_sandboxes_can_have_a_network_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is missing, in words, with what adds it; where nothing is missing it was opened and closed for real."""
    found = network.examine()
    assert found.ok or (found.reason and found.fix)
    if os.geteuid() == 0 and os.access(rules.NFT, os.X_OK):
        assert found == network.Found(ok=True)
    monkeypatch.setattr(rules, "NFT", str(tmp_path / "nft"))
    lacking = network.examine()
    assert not lacking.ok
    assert "root" in lacking.reason or "nft is missing" in lacking.reason
    assert "nftables" in lacking.fix


def test_a_network_that_does_not_open_is_no_crash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A tool that fails is a reason, and nothing of the attempt is left."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    before = set(os.listdir("/proc/self/fd"))
    broken = tmp_path / "nft"
    broken.write_text("#!/bin/sh\necho no such chain >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(rules, "NFT", str(broken))
    found = network.examine()
    assert not found.ok
    assert "no such chain" in found.reason
    assert set(os.listdir("/proc/self/fd")) == before
