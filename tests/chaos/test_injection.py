"""Every system call of the set-up made to fail, or to kill, in turn (catalogue rows 150 and 156).

strace changes what the kernel answers: each call of the set-up is refused once, and whoever makes it is killed once.
However it goes, there are two good ends: the sandbox is refused and nothing of it is left, or it runs and everything
that holds an untouched sandbox holds this one too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ringfence.domain.errors import SandboxRefused
from ringfence.runtimes.jail.cgroups.detect import detect
from ringfence.runtimes.jail.runtime import Jail
from tests.chaos.look import look
from tests.support import ledger
from tests.support.scale import ROUNDS
from tests.support.subjects import SMALL, SUBJECTS

JAIL = next(subject for subject in SUBJECTS if subject.name == "jail")
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
]
# What a sandbox's own process calls between its fork and its first word, and what its zygote calls to make it.
CALLS = (
    "clone3",
    "sendmsg",
    "mount",
    "umount2",
    "pivot_root",
    "unshare",
    "setresuid",
    "setresgid",
    "setgroups",
    "prctl",
    "capset",
    "landlock_create_ruleset",
    "landlock_add_rule",
    "landlock_restrict_self",
    "prlimit64",
    "close_range",
    "sethostname",
    "keyctl",
    "chdir",
    "mkdir",
    "chmod",
    "chown",
    "ioctl",
    "socket",
    "openat",
    "write",
    "dup2",
    "epoll_create1",
)
# The launcher's, on its way to becoming a zygote.
LAUNCHING = (
    "mount",
    "umount2",
    "pivot_root",
    "unshare",
    "clone3",
    "setresuid",
    "setresgid",
    "setgroups",
    "sethostname",
    "prctl",
    "mkdir",
)


# Every call of every kind when the promise is checked; in an ordinary run the first of each, and a few that kill.
THOROUGH = ROUNDS > 5
DEPTH = ROUNDS if THOROUGH else 1
FAILING, KILLING = "error=EPERM", "signal=SIGKILL"
SET_UP = [(call, FAILING) for call in CALLS]
SET_UP += [(call, KILLING) for call in (CALLS if THOROUGH else ("clone3", "write", "mount", "prctl"))]
LAUNCH = [(call, FAILING) for call in (LAUNCHING if THOROUGH else ("mount", "clone3", "mkdir"))]
LAUNCH += [(call, KILLING) for call in (LAUNCHING if THOROUGH else ("mkdir",))]


@asynccontextmanager
async def injecting(pid: int, call: str, what: str, when: int) -> AsyncIterator[Path]:
    """Have strace change the `when`th such call of every process that `pid` forks."""
    with tempfile.TemporaryDirectory() as place:
        log = Path(place) / "log"
        words = [
            "strace",
            "-f",
            "-qq",
            "-o",
            str(log),
            "-e",
            f"trace={call}",
            "-e",
            f"inject={call}:{what}:when={when}",
        ]
        tracer = await asyncio.create_subprocess_exec(*words, "-p", str(pid), stderr=subprocess.DEVNULL)
        try:
            async with asyncio.timeout(60):
                while "TracerPid:\t0" in ledger._text(f"/proc/{pid}/status"):  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(0.005)
            yield log
        finally:
            with contextlib.suppress(ProcessLookupError):  # it ends with the last it traces
                tracer.send_signal(signal.SIGINT)
            await tracer.wait()


def zygote_pid(jail: Jail) -> int:
    """The process that forks sandboxes: the launcher's child."""
    (zygote,) = jail._zygotes.values()
    return next(pid for pid in ledger.pids() if ledger.parent_of(pid) == zygote.launcher_pid)


async def outcome(jail: Jail) -> dict[str, Any]:
    """Start a sandbox and look; what was refused says why."""
    spec = JAIL.spec("chaos", SMALL)
    try:
        async with asyncio.timeout(60):
            started = await jail.start(spec)
            seen = await look(started)
    except SandboxRefused as refusal:
        seen = {"refused": refusal.cause}
    finally:
        await jail.stop(spec.id)
    return seen


@pytest.mark.parametrize(("call", "what"), SET_UP)
async def test_a_call_of_the_set_up_that_fails(call: str, what: str) -> None:
    """Refused, or as well held as any other; and nothing is left."""
    instance = f"test-{uuid.uuid4().hex[:12]}"
    jail = Jail(detect(instance, root=True), privileged=True)
    try:
        whole = await outcome(jail)
        assert "layers" in whole
        for when in range(1, DEPTH + 1):
            assert await outcome(jail) == whole, f"after call {when - 1}"
            async with injecting(zygote_pid(jail), call, what, when) as log:
                seen = await outcome(jail)
                await asyncio.sleep(0.02)
                hit = seen != whole or any(sign in log.read_text() for sign in ("INJECTED", "= ?"))
            for left in await jail.found():  # a zygote that was hit itself: the next sweep's
                assert left.startswith("zygote-")
                await jail.stop(left)
            assert await jail.found() == set()
            assert hit or when > 1, "this call is not made at all: the list above is out of date"
            assert "refused" in seen or "lost" in seen or seen == whole, (
                f"call {when} failed and the sandbox ran with less"
            )
            if not hit:
                break
        assert await outcome(jail) == whole
    finally:
        await jail.close()
    assert ledger.groups_of(instance) == set()


DRIVER = """
import asyncio, sys
from ringfence.runtimes.jail.cgroups.detect import detect
from ringfence.runtimes.jail.runtime import Jail
from ringfence.domain.errors import RingfenceError
from tests.chaos.test_injection import outcome
async def main():
    jail = Jail(detect(sys.argv[1], root=True), privileged=True)
    try:
        print(sorted(await outcome(jail)))
    except (RingfenceError, OSError) as error:
        print(['refused'])
    await jail.close()
asyncio.run(main())
"""


@pytest.mark.parametrize(("call", "what"), LAUNCH)
async def test_a_call_of_the_launcher_that_fails(call: str, what: str) -> None:
    """The same for what a zygote is made of: it is refused or whole, and whoever comes after can clean up."""
    for when in range(1, max(1, DEPTH // 5) + 1):
        instance = f"test-{uuid.uuid4().hex[:12]}"
        done = await driven(instance, call, what, when)
        if what == FAILING and done.stdout:
            assert "refused" in done.stdout or "layers" in done.stdout, done.stdout + done.stderr[-2000:]
        await swept(instance)
        assert ledger.groups_of(instance) == set()
        assert orphans() == []


def orphans() -> list[str]:
    """Launchers and zygotes whose node is gone."""
    deadline = time.monotonic() + 60
    while True:
        left = [
            ledger._text(f"/proc/{pid}/cmdline")
            for pid in ledger.pids()
            if ledger.parent_of(pid) == 1 and "runtimes.jail" in ledger._text(f"/proc/{pid}/cmdline")
        ]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


async def driven(instance: str, call: str, what: str, when: int) -> subprocess.CompletedProcess[str]:
    """A whole life of a jail under strace."""
    inject = [
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        f"trace={call}",
        "-e",
        f"inject={call}:{what}:when={when}",
    ]
    words = [*inject, sys.executable, "-c", DRIVER, instance]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(["src", ".", os.environ.get("PYTHONPATH", "")])}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, env=env, capture_output=True, text=True, timeout=90, check=False)

    return await asyncio.get_running_loop().run_in_executor(None, run)


async def swept(instance: str) -> None:
    """What the next node does first: remove what an earlier one left."""
    jail = Jail(detect(instance, root=True), privileged=True)
    for name in await jail.found():
        await jail.stop(name)
    assert await jail.found() == set()
    with contextlib.suppress(OSError):
        await jail.close()
