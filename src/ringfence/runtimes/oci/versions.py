"""Which container tools this host has, whether they may be used, and whether they should be newer."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import Final

PROBE_SECONDS: Final = 10.0
#: Where tools are looked for: never where a user's PATH points.
SEARCH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

Version = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tool:
    """A program we know how to drive."""

    name: str
    isolation: str  # which of our runtimes it serves
    least: Version  # older ones are refused: known to be broken, or never tried
    safe: Version  # older ones are used with a warning: advisories have been published since
    why: str


#: In the order of preference. `least` is what the conformance suite has been seen to pass on; `safe` is what the
#: published advisories up to September 2026 ask for.
TOOLS: Final = (
    Tool("runc", "container", (1, 1, 12), (1, 3, 7), "CVE-2024-21626: a leaked descriptor leads to the host's files"),
    Tool("crun", "container", (1, 8, 1), (1, 31), "what is older was never tried"),
    Tool("runsc", "gvisor", (20240729,), (20260925,), "the 2022 build has no systrap and does not run on new kernels"),
)
#: Distributions keep a number and repair what is behind it: (tool, what its version text must match, why it may pass).
REPAIRED: Final = (
    ("runc", re.compile(r"1\.1\.5\+ds1-1\+deb12u[1-9]"), "Debian 12's 1.1.5 has the repair of CVE-2024-21626"),
)


@dataclass(frozen=True, slots=True)
class Found:
    """A tool on this host. `refusal` says why it may not be used, `warning` why it should be newer."""

    tool: Tool
    path: str
    version: str
    refusal: str = ""
    warning: str = ""

    @property
    def usable(self) -> bool:
        """Whether sandboxes may be made with it."""
        return not self.refusal


def version_of(tool: str, text: str) -> tuple[str, Version]:
    """The version in what `TOOL --version` prints: as words and as numbers; ("", ()) when there is none."""
    if tool == "runsc":  # "runsc version release-20250820.0" or, from Debian, "runsc version 0.0~20240729.0"
        found = re.search(r"version (\S*?(\d{8})(?:\.\d+)?)\s", text + "\n")
        return (found[1], (int(found[2]),)) if found else ("", ())
    found = re.search(r"version (\d+(?:\.\d+)+)\S*", text)
    return (found[0].removeprefix("version "), tuple(map(int, found[1].split(".")))) if found else ("", ())


def judge(tool: Tool, path: str, text: str) -> Found:
    """Compare what a tool says of itself with the table."""
    words, version = version_of(tool.name, text)
    if not version:
        return Found(tool, path, "unknown", refusal=f"{path} does not say its version")
    least, safe = (".".join(map(str, v)) for v in (tool.least, tool.safe))
    repaired = any(name == tool.name and pattern.search(text) for name, pattern, _ in REPAIRED)
    if version < tool.least and not repaired:
        return Found(tool, path, words, refusal=f"{tool.name} {words} is older than {least}: {tool.why}")
    if version < tool.safe:
        return Found(tool, path, words, warning=f"{tool.name} {words} is older than {safe}, which has known repairs")
    return Found(tool, path, words)


def probe(tool: Tool) -> Found | None:
    """Look for a tool and ask it its version; None when it is not installed."""
    path = shutil.which(tool.name, path=SEARCH)
    if path is None:
        return None
    try:
        said = subprocess.run(
            [path, "--version"],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=PROBE_SECONDS,
            env={"PATH": SEARCH},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Found(tool, path, "unknown", refusal=f"{path} --version does not answer: {error}")
    return judge(tool, path, said.stdout[:4096].decode("utf-8", "replace"))


def installed() -> list[Found]:
    """Every tool of the table that this host has, in the order of preference."""
    return [found for tool in TOOLS if (found := probe(tool)) is not None]


def choose(isolation: str, found: list[Found]) -> Found | None:
    """The tool for one of our runtimes: the first that may be used."""
    return next((each for each in found if each.tool.isolation == isolation and each.usable), None)


def lacking(isolation: str, found: list[Found]) -> str:
    """Why there is no such runtime on this host; empty when there is."""
    if choose(isolation, found) is not None:
        return ""
    refusals = [each.refusal for each in found if each.tool.isolation == isolation]
    names = " or ".join(tool.name for tool in TOOLS if tool.isolation == isolation)
    return "; ".join(refusals) or f"{names} is not installed"
