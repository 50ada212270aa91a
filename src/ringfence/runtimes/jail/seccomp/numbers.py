"""System call numbers per architecture: facts from the kernel's own tables, up to Linux 6.19.

A row is the first number of a run and the names that follow it one by one.
A number missing here is unknown to us and answered with ENOSYS, so a new kernel's new calls stay shut.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from ringfence.domain.errors import SandboxRefused

_X86_64: Final = (
    (0, "read write open close stat fstat lstat poll lseek mmap"),
    (10, "mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn ioctl pread64 pwrite64 readv"),
    (20, "writev access pipe select sched_yield mremap msync mincore madvise shmget"),
    (30, "shmat shmctl dup dup2 pause nanosleep getitimer alarm setitimer getpid"),
    (40, "sendfile socket connect accept sendto recvfrom sendmsg recvmsg shutdown bind"),
    (50, "listen getsockname getpeername socketpair setsockopt getsockopt clone fork vfork execve"),
    (60, "exit wait4 kill uname semget semop semctl shmdt msgget msgsnd"),
    (70, "msgrcv msgctl fcntl flock fsync fdatasync truncate ftruncate getdents getcwd"),
    (80, "chdir fchdir rename mkdir rmdir creat link unlink symlink readlink"),
    (90, "chmod fchmod chown fchown lchown umask gettimeofday getrlimit getrusage sysinfo"),
    (100, "times ptrace getuid syslog getgid setuid setgid geteuid getegid setpgid"),
    (110, "getppid getpgrp setsid setreuid setregid getgroups setgroups setresuid getresuid setresgid"),
    (120, "getresgid getpgid setfsuid setfsgid getsid capget capset rt_sigpending rt_sigtimedwait"),
    (129, "rt_sigqueueinfo"),
    (130, "rt_sigsuspend sigaltstack utime mknod uselib personality ustat statfs fstatfs sysfs"),
    (140, "getpriority setpriority sched_setparam sched_getparam sched_setscheduler sched_getscheduler"),
    (146, "sched_get_priority_max sched_get_priority_min sched_rr_get_interval mlock"),
    (150, "munlock mlockall munlockall vhangup modify_ldt pivot_root _sysctl prctl arch_prctl adjtimex"),
    (160, "setrlimit chroot sync acct settimeofday mount umount2 swapon swapoff reboot"),
    (170, "sethostname setdomainname iopl ioperm create_module init_module delete_module get_kernel_syms"),
    (178, "query_module quotactl"),
    (180, "nfsservctl getpmsg putpmsg afs_syscall tuxcall security gettid readahead setxattr lsetxattr"),
    (190, "fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr removexattr lremovexattr"),
    (199, "fremovexattr"),
    (200, "tkill time futex sched_setaffinity sched_getaffinity set_thread_area io_setup io_destroy"),
    (208, "io_getevents io_submit"),
    (210, "io_cancel get_thread_area lookup_dcookie epoll_create epoll_ctl_old epoll_wait_old remap_file_pages"),
    (217, "getdents64 set_tid_address restart_syscall"),
    (220, "semtimedop fadvise64 timer_create timer_settime timer_gettime timer_getoverrun timer_delete"),
    (227, "clock_settime clock_gettime clock_getres"),
    (230, "clock_nanosleep exit_group epoll_wait epoll_ctl tgkill utimes vserver mbind set_mempolicy"),
    (239, "get_mempolicy"),
    (240, "mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr kexec_load waitid add_key"),
    (249, "request_key"),
    (250, "keyctl ioprio_set ioprio_get inotify_init inotify_add_watch inotify_rm_watch migrate_pages openat"),
    (258, "mkdirat mknodat"),
    (260, "fchownat futimesat newfstatat unlinkat renameat linkat symlinkat readlinkat fchmodat faccessat"),
    (270, "pselect6 ppoll unshare set_robust_list get_robust_list splice tee sync_file_range vmsplice"),
    (279, "move_pages"),
    (280, "utimensat epoll_pwait signalfd timerfd_create eventfd fallocate timerfd_settime timerfd_gettime"),
    (288, "accept4 signalfd4"),
    (290, "eventfd2 epoll_create1 dup3 pipe2 inotify_init1 preadv pwritev rt_tgsigqueueinfo perf_event_open"),
    (299, "recvmmsg"),
    (300, "fanotify_init fanotify_mark prlimit64 name_to_handle_at open_by_handle_at clock_adjtime syncfs"),
    (307, "sendmmsg setns getcpu"),
    (310, "process_vm_readv process_vm_writev kcmp finit_module sched_setattr sched_getattr renameat2 seccomp"),
    (318, "getrandom memfd_create"),
    (320, "kexec_file_load bpf execveat userfaultfd membarrier mlock2 copy_file_range preadv2 pwritev2"),
    (329, "pkey_mprotect"),
    (330, "pkey_alloc pkey_free statx io_pgetevents rseq uretprobe uprobe"),
    (424, "pidfd_send_signal io_uring_setup io_uring_enter io_uring_register open_tree move_mount"),
    (430, "fsopen fsconfig fsmount fspick pidfd_open clone3 close_range openat2 pidfd_getfd faccessat2"),
    (440, "process_madvise epoll_pwait2 mount_setattr quotactl_fd landlock_create_ruleset landlock_add_rule"),
    (446, "landlock_restrict_self memfd_secret process_mrelease futex_waitv"),
    (450, "set_mempolicy_home_node cachestat fchmodat2 map_shadow_stack futex_wake futex_wait futex_requeue"),
    (457, "statmount listmount lsm_get_self_attr"),
    (460, "lsm_set_self_attr lsm_list_modules mseal setxattrat getxattrat listxattrat removexattrat"),
    (467, "open_tree_attr file_getattr file_setattr"),
    (470, "listns"),
)


@dataclass(frozen=True, slots=True)
class Architecture:
    """What the compiler must know of one architecture; only little-endian ones are written so far."""

    name: str
    audit: int  # AUDIT_ARCH_*: how the kernel labels a call made with this calling convention
    foreign_from: int  # numbers from here on belong to another ABI under the same label (x32)
    numbers: MappingProxyType[str, int]


def _numbers(rows: tuple[tuple[int, str], ...]) -> MappingProxyType[str, int]:
    """Spell the rows out as name -> number."""
    return MappingProxyType({name: first + step for first, run in rows for step, name in enumerate(run.split())})


ARCHITECTURES: Final = MappingProxyType(
    {
        "x86_64": Architecture("x86_64", audit=0xC000003E, foreign_from=0x40000000, numbers=_numbers(_X86_64)),
    }
)


def architecture(name: str) -> Architecture:
    """Return the table for `name` as `os.uname().machine` spells it; refuse a machine we have no table for."""
    known = ARCHITECTURES.get(name)
    if known is None:
        raise SandboxRefused(
            f"no system call table for machine {name!r}",
            code="seccomp_unsupported_arch",
            remediation=f"The jail runs on: {', '.join(sorted(ARCHITECTURES))}.",
        )
    return known


def known_names() -> frozenset[str]:
    """Every name some architecture has: a policy that uses another one has a spelling mistake."""
    return frozenset(name for table in ARCHITECTURES.values() for name in table.numbers)
