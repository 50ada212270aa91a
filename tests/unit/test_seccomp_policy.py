"""The policy itself: complete, decided once, open to ordinary programs and shut to the known ways out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ringfence.runtimes.jail.seccomp.model import LOW, Check, Group, Policy, Rule, Verdict, spans
from ringfence.runtimes.jail.seccomp.numbers import architecture
from ringfence.runtimes.jail.seccomp.policy import DEFAULT
from tests.support.seccomp import intent

TABLE = architecture("x86_64")
HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")

# What a mixed workload was seen to call: threads, asyncio, process pools, SQLite, an HTTP server, terminals,
# shell pipelines, gcc, Node and OpenBLAS.
WORKLOAD_NAMES = """
accept4 access arch_prctl bind brk capget capset chdir chmod clock_nanosleep clone clone3 close close_range connect
dup2 epoll_create1 epoll_ctl epoll_pwait epoll_wait eventfd2 execve exit exit_group faccessat2 fadvise64 fcntl
fdatasync flock fstat fstatfs ftruncate futex getcwd getdents64 getegid geteuid getgid getpeername getpid getppid
getrandom getresgid getresuid getrusage getsockname getsockopt gettid getuid ioctl kill link listen listxattr lseek
madvise memfd_create mkdir mknodat mmap mprotect mremap msync munmap newfstatat openat pidfd_open pipe2 pkey_alloc
poll prctl pread64 prlimit64 pwrite64 read readlink recvfrom recvmsg rename rmdir rseq rt_sigaction rt_sigprocmask
rt_sigreturn rt_sigsuspend sched_getaffinity sendfile sendto set_robust_list set_tid_address setgroups setitimer
setpgid setresgid setresuid setsid setsockopt shutdown socket socketpair statfs statx symlink sysinfo timer_create
timer_settime truncate umask uname unlink unlinkat utimensat vfork wait4 write
"""

# What the agent, which is the sandbox's first process and lives under the same filter, cannot do without.
AGENT_NAMES = """
fork vfork clone execve setsid setpgid setresuid setresgid setgroups capset prctl setrlimit prlimit64 pipe2
epoll_create1 epoll_ctl epoll_wait inotify_init1 inotify_add_watch inotify_rm_watch socketpair ioctl statfs waitid
wait4 kill pidfd_open pidfd_send_signal openat getdents64 renameat2 unlinkat mkdirat sendmsg recvmsg
"""


def verdict(name: str, *args: int) -> Verdict:
    """What the policy means for one call."""
    padded = (*args, *(0,) * (6 - len(args)))
    return intent(DEFAULT, TABLE, TABLE.audit, TABLE.numbers[name], padded)


def test_every_call_of_this_architecture_is_decided_with_a_reason() -> None:
    """Nothing is refused by oversight."""
    assert DEFAULT.decisions.keys() == TABLE.numbers.keys()
    assert all(decision.reason for decision in DEFAULT.decisions.values())


def test_the_table_of_numbers_agrees_with_the_kernels_own_header() -> None:
    """Every name the installed kernel header knows has the number the header gives it."""
    if not HEADER.exists():
        pytest.skip("no kernel headers on this machine")
    official = {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)", HEADER.read_text())}
    assert official.items() <= TABLE.numbers.items()
    assert len(set(TABLE.numbers.values())) == len(TABLE.numbers)


def test_what_an_ordinary_workload_calls_is_allowed_save_clone3() -> None:
    """The measured workload needs nothing that is refused outright, but for the call libc falls back from."""
    refused = [
        name for name in WORKLOAD_NAMES.split() if DEFAULT.decisions[name].verdict in {Verdict.EPERM, Verdict.ENOSYS}
    ]
    assert refused == ["clone3"]


def test_what_the_agent_calls_is_allowed() -> None:
    """The sandbox's first process can fork, change user, watch, wait and signal."""
    assert [
        name for name in AGENT_NAMES.split() if DEFAULT.decisions[name].verdict in {Verdict.EPERM, Verdict.ENOSYS}
    ] == []
    terminal = (0x40045431, 0x80045430, 0x5441, 0x540E, 0x5414)  # SPTLCK GPTN GPTPEER SCTTY SWINSZ
    assert {verdict("ioctl", 3, request) for request in terminal} == {Verdict.ALLOW}
    assert {verdict("prctl", option) for option in (1, 4, 15, 36, 38)} == {Verdict.ALLOW}
    assert verdict("prctl", 47, 4) is Verdict.ALLOW  # clearing the ambient set


@pytest.mark.parametrize("flag", [0x80, *(1 << bit for bit in (17, 25, 26, 27, 28, 29, 30))])
def test_no_way_to_a_new_namespace(flag: int) -> None:
    """Neither unshare nor setns nor clone, alone or among a thread's flags; clone3 is not there."""
    threads = 0x3D0F00
    assert verdict("clone", threads) is Verdict.ALLOW
    assert {verdict("clone", flag), verdict("clone", threads | flag)} == {Verdict.EPERM}
    assert {verdict("unshare", flag), verdict("setns", 3, flag)} == {Verdict.EPERM}
    assert verdict("clone3") is Verdict.ENOSYS


def test_only_local_internet_and_route_sockets() -> None:
    """Of all families only UNIX, INET, INET6 and NETLINK_ROUTE open, and no protocol but the plain ones."""
    families = {
        family for family in range(64) for kind in range(16) if verdict("socket", family, kind) is Verdict.ALLOW
    }
    assert families == {1, 2, 10, 16}
    assert verdict("socket", 2, 1 | 0o2004000, 6) is Verdict.ALLOW  # SOCK_CLOEXEC | SOCK_NONBLOCK
    assert {verdict("socket", 2, kind) for kind in (3, 5, 6, 10)} == {Verdict.EPERM}  # RAW SEQPACKET DCCP PACKET
    assert {verdict("socket", 2, 1, protocol) for protocol in (132, 256, 262)} == {Verdict.EPERM}  # SCTP SMC MPTCP
    assert {verdict("socket", 16, 3, protocol) for protocol in range(1, 23)} == {Verdict.EPERM}
    assert [family for family in range(64) if verdict("socketpair", family) is Verdict.ALLOW] == [1]


def test_no_socket_option_loads_a_program_or_a_protocol() -> None:
    """TCP_ULP, the BPF attachments, UDP encapsulation and the packet filter's tables are shut."""
    shut = [(6, 31), (1, 26), (1, 50), (1, 51), (1, 52), (17, 100), (0, 64), (0, 66), (41, 64), (41, 66), (282, 1)]
    assert {verdict("setsockopt", 3, *option) for option in shut} == {Verdict.EPERM}
    usual = [(6, 1), (6, 18), (6, 30), (1, 2), (1, 15), (1, 20), (0, 1), (0, 35), (41, 26), (41, 67)]
    assert {verdict("setsockopt", 3, *option) for option in usual} == {Verdict.ALLOW}


@pytest.mark.parametrize("request_number", [0x5412, 0x541C, 0x5423])
def test_nobody_types_into_a_terminal(request_number: int) -> None:
    """TIOCSTI, TIOCLINUX and TIOCSETD are refused whatever the high half says."""
    for high in (0, 1 << 32, 0xFFFFFFFF << 32):
        assert verdict("ioctl", 0, high | request_number) is Verdict.EPERM


def test_only_plain_futexes() -> None:
    """The priority-inheriting operations look absent, with and without the private and clock flags."""
    for flags in (0, 128, 256, 384):
        assert [op for op in range(64) if verdict("futex", 0, op | flags) is Verdict.ALLOW] == [0, 1, 3, 4, 5, 9, 10]
        assert verdict("futex", 0, 6 | flags) is Verdict.ENOSYS


def test_no_second_filter_and_no_undoing_of_the_first() -> None:
    """Neither door to seccomp is open, nor securebits, address layout, page merging or core scheduling."""
    assert {verdict("seccomp", 1), verdict("prctl", 22)} == {Verdict.EPERM}
    assert {verdict("prctl", option) for option in (28, 35, 53, 59, 62, 67)} == {Verdict.EPERM}
    assert verdict("prctl", 47, 2) is Verdict.EPERM
    assert {verdict("personality", 0x40000), verdict("madvise", 0, 0, 12)} == {Verdict.EPERM}
    assert {verdict("personality", 0), verdict("personality", LOW), verdict("madvise", 0, 0, 4)} == {Verdict.ALLOW}


def test_only_named_pipes_are_made_as_special_files() -> None:
    """mknod makes no device, socket or plain file."""
    kinds = [kind << 12 for kind in range(16)]
    assert [kind for kind in kinds if verdict("mknod", 0, kind | 0o600) is Verdict.ALLOW] == [0x1000]
    assert [kind for kind in kinds if verdict("mknodat", 0, 0, kind | 0o600) is Verdict.ALLOW] == [0x1000]


def test_a_name_is_decided_only_once() -> None:
    """An unconditional allow cannot swallow a rule about the same call."""
    rule = Rule("socket", ((Check(0, spans(1)),),), "local only")
    with pytest.raises(ValueError, match="socket twice"):
        Policy(allow=(Group("read socket", "all of it"),), rules=(rule,))


@pytest.mark.parametrize(("arg", "value", "mask"), [(6, 0, LOW), (-1, 0, LOW), (0, 2, 1), (0, 0, 0)])
def test_a_check_that_cannot_mean_anything_is_refused(arg: int, value: int, mask: int) -> None:
    """Arguments past the sixth, and values outside the mask."""
    with pytest.raises(ValueError, match=r"argument|mask"):
        Check(arg, spans(value), mask)


@pytest.mark.parametrize("ranges", [((1, 4), 4), ((4, 1),), (-1,), (1 << 32,)])
def test_ranges_that_overlap_run_backwards_or_overflow_are_refused(ranges: tuple[int | tuple[int, int], ...]) -> None:
    """A slip in the numbers is an error, not a hole."""
    with pytest.raises(ValueError, match="range"):
        spans(*ranges)
