"""Choose the test modules: `python -m tests.compat.survey` writes modules.txt from what the host itself can do.

Chosen is a module that on the host ends within BRIEF seconds, writes the same twice, and has a test that ran; those
about what isolation touches may take longer. What is left out is written beside it, with the reason.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ringfence.templates.catalog import Catalog
from tests.compat.places import OnHost
from tests.compat.programs import MODULES, of_module

BRIEF = 12.0
PATIENT = 60.0
#: About processes, signals, descriptors, sockets and the like: too telling to be left out for being slow.
TELLING = (
    "test.test_asyncio.test_runners",
    "test.test_asyncio.test_subprocess",
    "test.test_asyncio.test_taskgroups",
    "test.test_concurrent_futures.test_process_pool",
    "test.test_faulthandler",
    "test.test_ftplib",
    "test.test_logging",
    "test.test_multiprocessing_fork.test_processes",
    "test.test_multiprocessing_spawn.test_threads",
    "test.test_os",
    "test.test_selectors",
    "test.test_signal",
    "test.test_socket",
    "test.test_ssl",
    "test.test_subprocess",
    "test.test_threading",
)
DEEPEST = 3  # dots in a name: below are the parts of modules that are there themselves
NOT_PROGRAMS = ("test.test_regrtest", "test.test_tkinter", "test.test_ttk", "test.test_idle", "test.test_gdb")


def candidates(root: Path) -> list[str]:
    """Every test module of the template."""
    base = root / "usr/lib/python3.13"
    found = (path.relative_to(base).with_suffix("") for path in (base / "test").rglob("test_*.py"))
    names = (".".join(path.parts) for path in found)
    return sorted(name for name in names if name.count(".") <= DEEPEST)


def verdict(host: OnHost, name: str) -> str:
    """Why the module is left out; empty when it is chosen."""
    if name.startswith(NOT_PROGRAMS):
        return "drives other tests, or needs a screen"
    begun = time.monotonic()
    seconds = PATIENT if name in TELLING else BRIEF
    first = host.run(of_module(name), seconds)
    took = time.monotonic() - begun
    if first.how != "exited":
        return f"{first.how} on the host"
    if b" ok\n" not in first.stdout:
        return "nothing ran on the host"
    if not first.same_as(host.run(of_module(name), seconds)):
        return "differs from itself on the host"
    print(f"{took:6.1f} {name}", file=sys.stderr, flush=True)
    return ""


def main() -> None:
    """Ask every module, two at a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--templates", type=Path, default=Path("/var/lib/ringfence/templates"))
    options = parser.parse_args()
    os.nice(19)
    built = Catalog(options.templates).load()
    host, names = OnHost(built), candidates(built["compat"].root)
    with ThreadPoolExecutor(2) as pool:
        verdicts = dict(zip(names, pool.map(lambda name: verdict(host, name), names), strict=True))
    left_out = [f"# {name}: {why}" for name, why in verdicts.items() if why]
    chosen = [name for name, why in verdicts.items() if not why]
    words = ["# Written by tests/compat/survey.py.", *chosen, "", "# Left out:", *left_out]
    MODULES.write_text("\n".join(words) + "\n")
    print(f"{len(chosen)} chosen, {len(left_out)} left out")


if __name__ == "__main__":
    main()
