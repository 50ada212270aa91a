"""Where a sandbox may write: places of ours, and a workspace where a template has an empty one."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringfence.guest import steps

USUAL = [place for _, place, _, _, _ in steps.SCRATCH_BINDS]


def places(root: Path) -> list[str]:
    """Where it may write."""
    return [place for _, place, _, _, _ in steps.binds(str(root))]


def test_an_empty_workspace_may_be_written(tmp_path: Path) -> None:
    """What agents' frameworks would make, were the root their own."""
    (tmp_path / "workspace").mkdir()
    assert places(tmp_path) == [*USUAL, "/workspace"]


@pytest.mark.parametrize("made", ["nothing", "a file", "a full one", "a link", "a link to nothing", "a closed one"])
def test_any_other_workspace_is_the_templates_own(tmp_path: Path, made: str) -> None:
    """Files of an image's are not covered, and a link is not followed to where it leads (CVE-2025-31133's kin)."""
    place = tmp_path / "workspace"
    (tmp_path / "etc").mkdir()
    if made == "a file":
        place.write_text("")
    elif made == "a full one":
        place.mkdir()
        (place / "README").write_text("")
    elif made.startswith("a link"):
        place.symlink_to("etc" if made == "a link" else "nowhere")
    elif made == "a closed one":
        place.mkdir()
        (place / "inside").mkdir()
        place.chmod(0)
    assert places(tmp_path) == USUAL
