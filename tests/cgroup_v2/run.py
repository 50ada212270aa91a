"""Run tests in a virtual machine that has only cgroup v2: `python -m tests.cgroup_v2.run [OPTION...] [PYTEST WORD...]`.

The guest is Debian's own kernel and a minimal Debian held in memory; it has no disk and no network. The first run
builds it (a minute, from Debian's mirror) and keeps it in ~/.cache/ringfence; later runs only add this checkout.
The processor is emulated, so that it works everywhere: expect everything to take ten times as long.

    python -m tests.cgroup_v2.run                                 the resource group tests
    python -m tests.cgroup_v2.run --jail                          those, and the jail's conformance and node tests
    python -m tests.cgroup_v2.run tests/attacks -m cgroup_v2      others
    python -m tests.cgroup_v2.run --extra /var/lib/ringfence/templates=$PWD/templates tests/...
    python -m tests.cgroup_v2.run --suite trixie                  a newer kernel

Exits with pytest's own status, 124 when the time is up, 125 when the guest ended without an answer.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from tests.cgroup_v2 import image

TESTS = sorted(str(path.relative_to(image.CHECKOUT)) for path in image.CHECKOUT.glob("tests/unit/test_cgroups*.py"))
DISTRIBUTIONS = ("pytest", "pytest-timeout")
#: With --jail: what needs a template, which comes along, and asyncio in its tests.
JAIL_TESTS = ["tests/conformance/test_runtime.py", "tests/unit/test_node_jail.py"]
JAIL_DISTRIBUTIONS = ("anyio", "idna", "typing_extensions")
TEMPLATES = Path(os.environ.get("RINGFENCE_TEMPLATES", "/var/lib/ringfence/templates"))
MARK = "guest: pytest ended with"
MIB = 1024 * 1024
#: Memory for the guest beside twice its image, which is there packed and unpacked while it boots.
ROOM_MIB = 2048
TIMED_OUT, NO_ANSWER = 124, 125
#: Seconds one test may take in the guest; on real processors it is far less.
PATIENCE = 600


def options(words: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Our own options; everything else is for pytest in the guest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extra", action="append", default=[], metavar="GUESTPATH=DIRECTORY", help="copy it in")
    parser.add_argument(
        "--with", dest="also", action="append", default=[], metavar="PACKAGE", help="an installed package"
    )
    parser.add_argument("--jail", action="store_true", help="run the jail's tests too, on the base template")
    parser.add_argument("--minutes", type=float, default=15, help="at most")
    parser.add_argument("--suite", default="bookworm", help="Debian release of the guest and its kernel")
    parser.add_argument("--cache", type=Path, default=image.cache_directory())
    return parser.parse_known_args(words)


def names_tests(word: str) -> bool:
    """Whether a word for pytest is a path, in this checkout or in the guest, rather than an option."""
    return word.startswith("/") or (image.CHECKOUT / word.partition("::")[0]).exists()


def qemu(kernel: Path, initrd: Path) -> list[str]:
    """The machine: two processors, a serial line, nothing else."""
    memory = ROOM_MIB + 2 * initrd.stat().st_size // MIB
    # Dies with us, even when we are killed.
    command = [
        "setpriv",
        "--pdeathsig",
        "KILL",
        "qemu-system-x86_64",
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max",
        "-smp",
        "2",
    ]
    command += ["-m", str(memory), "-nodefaults", "-nic", "none", "-display", "none", "-serial", "stdio", "-no-reboot"]
    command += ["-kernel", str(kernel), "-initrd", str(initrd)]
    return [*command, "-append", "console=ttyS0 loglevel=3 panic=-1 cgroup_no_v1=all rdinit=/init"]


def boot(command: list[str], seconds: float) -> int:
    """Run the guest, pass on what it says, and find its verdict."""
    verdict: int | None = None
    expired = threading.Event()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as guest:

        def expire() -> None:
            expired.set()
            guest.kill()

        timer = threading.Timer(seconds, expire)
        timer.start()
        try:
            for line in guest.stdout or ():
                text = line.decode(errors="replace").rstrip()
                if text.startswith(MARK):
                    verdict = int(text.removeprefix(MARK))
                    break
                print(text, flush=True)
        finally:
            timer.cancel()
            guest.kill()
    return verdict if verdict is not None else TIMED_OUT if expired.is_set() else NO_ANSWER


def base_template(work: Path) -> dict[str, str]:
    """What to copy into the guest so that it has the base template, and no other."""
    index = work / "index"
    index.mkdir()
    shutil.copy(TEMPLATES / "index" / "base.json", index)
    digest = json.loads((index / "base.json").read_text())["digest"]
    guest = "/var/lib/ringfence/templates"
    return {f"{guest}/index": str(index), f"{guest}/{digest}": str(TEMPLATES / digest)}


def say(text: str) -> None:
    """Talk goes to stderr; stdout is the guest's."""
    sys.stderr.write(f"cgroup_v2: {text}\n")


def main() -> int:
    """Build, boot, report."""
    chosen, arguments = options()
    lacking = [tool for tool in ("qemu-system-x86_64", "mmdebstrap", "setpriv") if not shutil.which(tool)]
    if lacking:
        say(f"needs {', '.join(lacking)} (Debian: apt-get install qemu-system-x86 mmdebstrap util-linux)")
        return NO_ANSWER
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    start = time.monotonic()
    kernel, base = image.base(chosen.cache, chosen.suite)
    with tempfile.TemporaryDirectory(prefix="ringfence-guest-") as work:
        initrd = Path(work) / "initrd"
        extra = dict(each.split("=", 1) for each in chosen.extra)
        if chosen.jail:
            extra |= base_template(Path(work))
            arguments += [*TESTS, *JAIL_TESTS, "-k", "not fake"]
        image.boot_image(
            initrd,
            base,
            arguments=arguments if any(names_tests(word) for word in arguments) else [*arguments, *TESTS],
            distributions=[*DISTRIBUTIONS, *(JAIL_DISTRIBUTIONS if chosen.jail else ()), *chosen.also],
            extra=extra,
            mark=MARK,
            patience=PATIENCE,
        )
        built = time.monotonic()
        status = boot(qemu(kernel, initrd), chosen.minutes * 60)
    say(f"built in {built - start:.0f} s, ran in {time.monotonic() - built:.0f} s, status {status}")
    return status


if __name__ == "__main__":
    sys.exit(main())
