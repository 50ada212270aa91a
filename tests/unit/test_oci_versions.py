"""Which container tools may be used: what they say of themselves against the table."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ringfence.runtimes.oci.versions import TOOLS, Found, choose, judge, lacking, probe, version_of

RUNC, CRUN, RUNSC = TOOLS
DEBIAN_RUNC = "runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\nspec: 1.0.2-dev\ngo: go1.19.8\n"


@pytest.mark.parametrize(
    ("tool", "text", "expected"),
    [
        ("runc", DEBIAN_RUNC, ("1.1.5+ds1", (1, 1, 5))),
        ("runc", "runc version 1.3.7\ncommit: v1.3.7-0-gabc\n", ("1.3.7", (1, 3, 7))),
        ("crun", "crun version 1.21\ncommit: abc\nspec: 1.0.0\n", ("1.21", (1, 21))),
        ("runsc", "runsc version 0.0~20240729.0\nspec: 1.0.2-dev\n", ("0.0~20240729.0", (20240729,))),
        ("runsc", "runsc version release-20260925.0\nspec: 1.1.0-rc.1", ("release-20260925.0", (20260925,))),
        ("runsc", "runsc version release-20260925", ("release-20260925", (20260925,))),
        ("runc", "usage: runc", ("", ())),
        ("runsc", "", ("", ())),
    ],
)
def test_a_version_is_read(tool: str, text: str, expected: tuple[str, tuple[int, ...]]) -> None:
    """Every tool's own way to say it is understood."""
    assert version_of(tool, text) == expected


@pytest.mark.parametrize(
    ("text", "refused", "warned"),
    [
        ("runc version 1.1.11\n", True, False),
        ("runc version 1.1.12\n", False, True),
        ("runc version 1.3.7\n", False, False),
        ("runc version 1.10.0\n", False, False),
        (DEBIAN_RUNC, False, True),
        (DEBIAN_RUNC.replace("+deb12u1", ""), True, False),
        ("no version at all", True, False),
    ],
)
def test_the_table_decides(text: str, refused: bool, warned: bool) -> None:
    """Too old is refused, old is warned of, and a distribution's repair of an old number is known."""
    found = judge(RUNC, "/usr/sbin/runc", text)
    assert (bool(found.refusal), bool(found.warning)) == (refused, warned)
    assert found.usable != refused


def test_the_build_that_is_known_to_be_broken_is_refused() -> None:
    """Debian 12's own runsc of 2022 may not be used."""
    assert not judge(RUNSC, "/usr/bin/runsc", "runsc version 0.0~20221219.0\n").usable
    assert judge(RUNSC, "/usr/bin/runsc", "runsc version 0.0~20240729.0\n").usable


def test_the_first_that_may_be_used_is_chosen() -> None:
    """runc is preferred; where it is too old, crun takes its place; where neither is, that is said."""
    old, new = judge(RUNC, "/a", "runc version 1.0.0"), judge(RUNC, "/a", "runc version 1.3.7")
    crun = judge(CRUN, "/b", "crun version 1.31")
    assert choose("container", [new, crun]) == new
    assert choose("container", [old, crun]) == crun
    assert choose("container", [old]) is None
    assert "older than 1.1.12" in lacking("container", [old])
    assert lacking("container", []) == "runc or crun is not installed"
    assert lacking("gvisor", [crun]) == "runsc is not installed"
    assert lacking("container", [old, crun]) == ""


def test_a_tool_that_is_not_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is found where nothing is."""
    monkeypatch.setattr("ringfence.runtimes.oci.versions.SEARCH", "/nowhere")
    assert probe(RUNC) is None


@pytest.mark.parametrize(
    ("script", "why", "seconds"),
    [("exec /bin/sleep 600", "does not answer", 0.5), ("exit 1", "does not say its version", 60.0)],
)
def test_a_tool_that_says_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, why: str, seconds: float
) -> None:
    """A tool that hangs or fails when asked for its version costs a moment, and is not used."""
    (tmp_path / "runc").write_text(f"#!/bin/sh\n{script}\n")
    os.chmod(tmp_path / "runc", 0o755)
    monkeypatch.setattr("ringfence.runtimes.oci.versions.SEARCH", str(tmp_path))
    monkeypatch.setattr("ringfence.runtimes.oci.versions.PROBE_SECONDS", seconds)
    found = probe(RUNC)
    assert isinstance(found, Found)
    assert why in found.refusal
