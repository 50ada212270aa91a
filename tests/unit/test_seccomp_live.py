"""The same filter in the kernel: a forked child lives under it, and its errnos agree with the policy."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ringfence.runtimes.jail.seccomp.compile import compile_filter
from ringfence.runtimes.jail.seccomp.model import Verdict
from ringfence.runtimes.jail.seccomp.numbers import architecture
from ringfence.runtimes.jail.seccomp.policy import DEFAULT
from tests.support import ordinary
from tests.support.seccomp import ERRNO, X32_BIT, in_child, intent, load, syscall

TABLE = architecture("x86_64")
FILTER = compile_filter()
BAD = (1 << 64) - 1  # an impossible descriptor, pointer, flag word and length at once
HIGH = 1 << 32
# The kernel lets its own probes' calls past every filter.
PASSED_BY_THE_KERNEL = {335, 336}

# Calls that only ever fail when every argument is BAD, and with neither EPERM nor ENOSYS.
HARMLESS_NAMES = """
read write readv writev pread64 pwrite64 lseek open openat openat2 close dup dup2 dup3 fcntl flock sendfile
copy_file_range fsync fdatasync fallocate ftruncate truncate fadvise64 poll epoll_ctl epoll_wait
inotify_add_watch inotify_rm_watch stat fstat newfstatat statx access faccessat2 statfs fstatfs getdents64
chdir fchdir mkdir mkdirat rmdir unlink unlinkat rename renameat2 link linkat symlink readlink chmod fchmod fchmodat2
chown utimensat getxattr listxattr setxattr munmap mremap mprotect execve execveat wait4 waitid prlimit64
timer_gettime timer_settime timer_delete clock_gettime nanosleep getrandom uname sysinfo bind listen accept4 connect
shutdown getsockname getpeername getsockopt shmat semop msgsnd mq_open capget pidfd_open pidfd_send_signal
landlock_create_ruleset landlock_add_rule landlock_restrict_self memfd_create pipe2 eventfd2 signalfd4 epoll_pwait2
mseal membarrier close_range timerfd_settime rt_sigaction rseq
"""

# (name, arguments) where what is let through does no more than fail or answer.
BY_ARGUMENT: list[tuple[str, tuple[int, ...]]] = [
    *(("clone", (flags,)) for flags in (0x800, 0x10000000, 0x20000000, 0x7E020000, HIGH | 0x800, 0x80 | 0x800)),
    *(("socket", (family, 1, 0)) for family in range(46)),
    *(("socket", (HIGH | family, kind, 0)) for family in (1, 2, 38, 40) for kind in (1, 2, 3, 10)),
    *(("socket", (2, 1, protocol)) for protocol in (6, 132, 256, 262)),
    *(("socket", (16, 3, protocol)) for protocol in (0, 6, 12, HIGH)),
    *(("socketpair", (family, 1, 0, BAD)) for family in (1, 2, 40, HIGH | 1)),
    *(("setsockopt", (BAD, level, name)) for level in (0, 1, 6, 17, 41, 282) for name in (1, 20, 26, 31, 64, 100)),
    ("setsockopt", (BAD, HIGH | 6, HIGH | 31)),
    *(("ioctl", (BAD, high | request)) for high in (0, HIGH) for request in range(0x5400, 0x5460)),
    *(("ioctl", (BAD, high | request)) for high in (0, HIGH) for request in (0x80045430, 0x40045431, 0x8946, 0x4B4D)),
    *(("futex", (1, high | flags | op)) for high in (0, HIGH) for flags in (0, 128) for op in range(14)),
    *(
        (name, (BAD, 0, flags, flags))
        for name in ("sendmsg", "recvmsg", "sendmmsg")
        for flags in (0, 1, HIGH | 1, HIGH)
    ),
    *((name, (BAD, 0, 0, flags)) for name in ("sendto", "recvfrom", "recvmmsg") for flags in (0, 1, HIGH | 1, HIGH)),
    *(("mknod", (BAD, kind << 12)) for kind in range(16)),
    *(("mknodat", (BAD, BAD, high | kind << 12)) for high in (0, HIGH) for kind in range(16)),
    *(("personality", (persona,)) for persona in (0xFFFFFFFF, BAD, 0x40000, 8, HIGH | 0x40000)),
    *(("prctl", (option, BAD, BAD, BAD, BAD)) for option in (15, 16, 22, 28, 35, 53, 59, 62, 67, 999)),
    *(("prctl", (47, which, BAD, BAD, BAD)) for which in (1, 2, 3, 5, HIGH | 1)),
    *(("madvise", (1, 0, advice)) for advice in (4, 12, 100, 101, 102, 999, HIGH | 12)),
]


def meant(number: int, args: tuple[int, ...]) -> Verdict:
    """What the policy means for one call."""
    return intent(DEFAULT, TABLE, TABLE.audit, number, (*args, *(0,) * (6 - len(args))))


def answers(calls: list[tuple[int, tuple[int, ...]]]) -> list[int]:
    """Make the calls in a child under the filter and return each one's errno."""
    status, errnos = in_child(lambda: [syscall(number, *args) for number, args in calls], FILTER)
    assert status == 0
    return list(errnos)


def test_every_refused_number_is_refused_by_the_kernel_with_the_errno_meant() -> None:
    """EPERM and ENOSYS come back for 0 to 600 exactly where the policy puts them."""
    args = (BAD,) * 6
    refused = [n for n in range(601) if n not in PASSED_BY_THE_KERNEL and meant(n, args) in ERRNO]
    assert answers([(number, args) for number in refused]) == [ERRNO[meant(number, args)] for number in refused]


def test_allowed_calls_reach_the_kernel() -> None:
    """Called with nonsense, they fail for the nonsense's sake and not for the filter's."""
    names = HARMLESS_NAMES.split()
    errnos = dict(zip(names, answers([(TABLE.numbers[name], (BAD,) * 6) for name in names]), strict=True))
    assert {name for name, error in errnos.items() if error in ERRNO.values()} == set()


def test_argument_rules_hold_in_the_kernel_high_bits_and_all() -> None:
    """Each rule lets through and refuses what the policy says; a set high bit changes nothing."""
    calls = [(TABLE.numbers[name], args) for name, args in BY_ARGUMENT]
    wrong = []
    for (name, args), (number, _), error in zip(BY_ARGUMENT, calls, answers(calls), strict=True):
        expected = ERRNO.get(meant(number, args))
        if (error != expected) if expected else (error in ERRNO.values()):
            wrong.append((name, [hex(arg) for arg in args], errno.errorcode.get(error, error)))
    assert wrong == []


def call_through_the_32_bit_door() -> int:
    """Execute `mov eax, 20; int 0x80; ret`: getpid as a 32-bit program asks for it."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(bytes.fromhex("b814000000cd80c3"))
    return int(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))())


def test_a_32_bit_call_kills() -> None:
    """int 0x80, whose numbers mean other calls, ends the process with SIGSYS."""
    plain, pid = in_child(call_through_the_32_bit_door)
    if plain != 0 or pid <= 0:
        pytest.skip("this kernel has no 32-bit door")
    status, answer = in_child(call_through_the_32_bit_door, FILTER)
    assert (os.WIFSIGNALED(status), os.WTERMSIG(status), answer) == (True, signal.SIGSYS, None)


@pytest.mark.parametrize("number", [39, 16, 512, 545])
def test_an_x32_call_kills(number: int) -> None:
    """The x32 bit ends the process with SIGSYS, whether or not the kernel speaks x32."""
    status, answer = in_child(lambda: syscall(X32_BIT | number), FILTER)
    assert (os.WIFSIGNALED(status), os.WTERMSIG(status), answer) == (True, signal.SIGSYS, None)


def test_a_filter_is_in_force_and_cannot_be_added_to() -> None:
    """The kernel reports mode 2, and both ways to load another filter are shut."""

    def body() -> Any:
        with open("/proc/self/status") as lines:
            modes = [line.split()[1] for line in lines if line.startswith("Seccomp:")]
        return [modes, syscall(TABLE.numbers["seccomp"], 1, 0, BAD), syscall(TABLE.numbers["prctl"], 22, 2, BAD)]

    assert in_child(body, FILTER) == (0, [["2"], errno.EPERM, errno.EPERM])


def test_a_priority_inheriting_lock_is_refused_before_it_could_fail_to_lock() -> None:
    """glibc's own probe sees ENOSYS and says so, instead of handing out locks that do not lock."""
    if "glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""):
        pytest.skip("another libc")

    def body() -> int:
        attributes, lock = ctypes.create_string_buffer(64), ctypes.create_string_buffer(64)
        libc = ctypes.CDLL(None)
        libc.pthread_mutexattr_init(attributes)
        libc.pthread_mutexattr_setprotocol(attributes, 1)  # PTHREAD_PRIO_INHERIT
        return int(libc.pthread_mutex_init(lock, attributes))

    assert in_child(body, FILTER) == (0, errno.ENOTSUP)


def finish(argv: list[str], cwd: Path) -> tuple[bytes, bytes, int]:
    """Run a program under the filter to its end: its output, its complaints, its exit."""
    done = subprocess.run(argv, cwd=cwd, preexec_fn=lambda: load(FILTER), capture_output=True, timeout=60, check=False)
    return done.stdout, done.stderr, done.returncode


def test_an_ordinary_python_program_notices_nothing(tmp_path: Path) -> None:
    """Threads, pools by fork and spawn, asyncio, sockets, SQLite, pipelines, copies and a terminal all work."""
    assert finish([sys.executable, ordinary.__file__], tmp_path) == (b"done\n", b"", 0)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no compiler on this machine")
def test_a_compiler_and_its_program_notice_nothing(tmp_path: Path) -> None:
    """gcc, its passes and the linker run, and so does what they make."""
    (tmp_path / "a.c").write_text('#include <stdio.h>\nint main(void){puts("done");}\n')
    assert finish(["sh", "-c", "gcc -O2 -pipe a.c -o a && ./a"], tmp_path) == (b"done\n", b"", 0)
