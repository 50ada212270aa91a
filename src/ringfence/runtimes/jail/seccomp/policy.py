"""The jail's system call policy, as data with a reason on each line.

Everything not allowed here is refused. Three kinds of refusal, chosen by what programs do next:
EPERM where a program must learn that it may not; ENOSYS where it has an older way to fall back on;
a rule's own answer where only some arguments are refused.

Rules compare the low 32 bits wherever the kernel reads an `int`, so that setting a high bit changes nothing.
Numbers below are the kernel's own constants, named beside each line.
"""

from __future__ import annotations

from typing import Final

from ringfence.runtimes.jail.seccomp.model import LOW, Check, Group, Policy, Rule, Verdict, spans

_ALLOW: Final = (
    # Descriptors and data
    Group("read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek", "plain input and output"),
    Group("open openat openat2 creat close close_range", "files by name, within the mounts it can see"),
    Group("dup dup2 dup3 fcntl flock", "descriptor bookkeeping and locks"),
    Group("pipe pipe2 eventfd eventfd2 signalfd signalfd4", "pipes and wake-ups"),
    Group("timerfd_create timerfd_settime timerfd_gettime", "timers as descriptors, for event loops"),
    Group("memfd_create", "anonymous files; counted as the sandbox's memory"),
    Group("sendfile copy_file_range", "whole-file copies: shutil, cp, Go"),
    Group("fsync fdatasync sync_file_range", "durability of one file: SQLite, git, dpkg"),
    Group("fallocate ftruncate truncate fadvise64 readahead", "sizing files and hinting at their use"),
    # Waiting
    Group("select pselect6 poll ppoll", "waiting on descriptors"),
    Group("epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2", "event loops"),
    Group("inotify_init inotify_init1 inotify_add_watch inotify_rm_watch", "watching files: editors, tail, the agent"),
    # The tree of files
    Group("stat fstat lstat newfstatat statx access faccessat faccessat2", "looking at files"),
    Group("statfs fstatfs", "free space, as the file system reports it"),
    Group("getdents getdents64 getcwd chdir fchdir", "directories"),
    Group("mkdir mkdirat rmdir unlink unlinkat", "making and removing names"),
    Group("rename renameat renameat2 link linkat symlink symlinkat readlink readlinkat", "moving and linking names"),
    Group("chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat umask", "modes and owners, by the usual rules"),
    Group("utime utimes futimesat utimensat", "file times: make, tar, pip"),
    Group("getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr", "attributes: shutil.copy2 and ls look"),
    Group(
        "setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr", "attributes: cp -a and tar restore them"
    ),
    # Memory
    Group("mmap munmap mremap mprotect brk msync mincore", "memory of its own"),
    Group("mlock mlock2 mlockall munlock munlockall", "pinning memory, up to RLIMIT_MEMLOCK"),
    Group("pkey_alloc pkey_free pkey_mprotect", "protection keys: V8 guards its code with them"),
    Group("mseal map_shadow_stack", "ways for libc to harden its own process"),
    Group("membarrier get_mempolicy", "runtimes ask: barriers (.NET, Java), memory nodes (OpenBLAS)"),
    # Processes and threads
    Group("fork vfork execve execveat exit exit_group", "programs that start programs"),
    Group("wait4 waitid", "and wait for them"),
    Group("set_tid_address set_robust_list get_robust_list rseq arch_prctl", "what libc does for each thread"),
    Group(
        "getpid getppid gettid getpgid getpgrp getsid setpgid setsid", "process groups and sessions, for job control"
    ),
    Group("kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo", "signals, within its own process namespace"),
    Group("pidfd_open pidfd_send_signal", "processes as descriptors: asyncio, the agent"),
    Group("rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend sigaltstack", "signal handling"),
    Group("rt_sigtimedwait pause restart_syscall", "waiting for signals, and resuming after one"),
    Group("getpriority setpriority ioprio_get ioprio_set", "being nicer; better needs a capability it lacks"),
    Group("sched_yield sched_getaffinity sched_setaffinity getcpu", "thread pools; bounded by the cpuset"),
    Group("sched_getscheduler sched_getparam sched_getattr", "looking at scheduling"),
    Group("sched_get_priority_max sched_get_priority_min sched_rr_get_interval", "constants of scheduling"),
    Group("getrlimit setrlimit prlimit64 getrusage times", "limits, which can only be lowered, and usage"),
    Group("landlock_create_ruleset landlock_add_rule landlock_restrict_self", "a program may fence itself in further"),
    # Who it is
    Group("getuid geteuid getgid getegid getresuid getresgid getgroups", "identity"),
    Group("setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups", "ids its namespace maps"),
    Group("capget capset", "capabilities: none to gain, but tools look and drop"),
    # Time and the machine
    Group("time gettimeofday clock_gettime clock_getres", "reading clocks"),
    Group("nanosleep clock_nanosleep alarm getitimer setitimer", "sleeping and alarms"),
    Group("timer_create timer_settime timer_gettime timer_getoverrun timer_delete", "POSIX timers"),
    Group("getrandom", "randomness"),
    Group("uname sysinfo", "what machine this is"),
    # Talking to others
    Group("bind listen accept accept4 connect shutdown", "sockets, of the families the socket rule admits"),
    Group("getsockname getpeername getsockopt", "asking a socket about itself"),
    Group("shmget shmat shmctl shmdt semget semop semtimedop semctl", "System V IPC, in a namespace of its own"),
    Group("msgget msgsnd msgrcv msgctl", "System V messages, in a namespace of its own"),
    Group("mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr", "POSIX queues, likewise"),
)

_ENOSYS: Final = (
    Group("clone3", "its flags lie behind a pointer where no filter sees them; libc falls back to clone"),
    Group("io_uring_setup io_uring_enter io_uring_register", "calls made through its rings pass no filter at all"),
    Group("splice tee vmsplice", "moving pages rather than bytes has let programs write to read-only files"),
    Group("statmount listmount listns", "would list mounts and namespaces; nothing ordinary asks"),
    Group("futex_waitv futex_wake futex_wait futex_requeue", "the new futex calls; every libc uses the old one"),
    Group("sync syncfs", "would flush the whole host's disks; one file's fsync remains"),
    Group("cachestat", "would tell which shared file pages others have read"),
    Group("setxattrat getxattrat listxattrat removexattrat file_getattr file_setattr", "new spellings of older calls"),
    Group("lsm_get_self_attr lsm_set_self_attr lsm_list_modules", "the host's security modules are not its business"),
    Group(
        "create_module get_kernel_syms query_module getpmsg putpmsg afs_syscall tuxcall",
        "gone from Linux, or never there",
    ),
    Group(
        "security vserver epoll_ctl_old epoll_wait_old set_thread_area get_thread_area", "never built on this machine"
    ),
)

_EPERM: Final = (
    Group("unshare setns", "no new namespaces: inside one, root reaches far more of the kernel"),
    Group("mount umount2 pivot_root chroot", "the mounts are the wall"),
    Group("fsopen fsconfig fsmount fspick open_tree open_tree_attr move_mount mount_setattr", "mounting, new style"),
    Group("bpf perf_event_open uretprobe uprobe", "programs and probes inside the kernel"),
    Group("userfaultfd", "holds the kernel still in the middle of a copy, which makes races certain"),
    Group("fanotify_init fanotify_mark", "watches whole file systems"),
    Group("keyctl add_key request_key", "kernel keyrings outlive a sandbox and belong to no namespace of its own"),
    Group("ptrace process_vm_readv process_vm_writev kcmp pidfd_getfd", "reaching into another process"),
    Group("process_madvise process_mrelease", "managing another process's memory"),
    Group("open_by_handle_at name_to_handle_at", "opens files by number, past every directory"),
    Group("init_module finit_module delete_module kexec_load kexec_file_load reboot", "changing the kernel itself"),
    Group("swapon swapoff acct quotactl quotactl_fd", "the host's disks and accounting"),
    Group("iopl ioperm modify_ldt", "hardware ports and segment tables"),
    Group("settimeofday clock_settime clock_adjtime adjtimex", "the host's clock"),
    Group("syslog", "the kernel's log tells addresses and neighbours"),
    Group("sethostname setdomainname", "its name is given, not taken"),
    Group("memfd_secret remap_file_pages", "rare memory calls with a long list of faults"),
    Group("move_pages migrate_pages mbind set_mempolicy set_mempolicy_home_node", "placing memory on the host's nodes"),
    Group("io_setup io_submit io_cancel io_destroy io_getevents io_pgetevents", "the old asynchronous I/O, as faulty"),
    Group("sched_setscheduler sched_setattr sched_setparam", "real-time classes starve neighbours"),
    Group("lookup_dcookie vhangup nfsservctl uselib ustat sysfs _sysctl", "relics"),
    Group("seccomp", "loads programs into the kernel; nested sandboxes are not a feature"),
)

_NAMESPACE_FLAGS: Final = 0x7E020080  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWTIME

_UNIX: Final = (Check(0, spans(1)),)
_INET: Final = (
    Check(0, spans(2, 10)),
    Check(1, spans(1, 2), mask=0xF),  # SOCK_STREAM, SOCK_DGRAM, beneath SOCK_CLOEXEC and SOCK_NONBLOCK
    Check(2, spans(0, 1, 6, 17, 58)),  # default, ICMP, TCP, UDP, ICMPv6: never SCTP, L2TP, SMC, MPTCP
)
_NETLINK_ROUTE: Final = (Check(0, spans(16)), Check(2, spans(0)))  # getaddrinfo and getifaddrs ask it

_SOCKET_OPTIONS: Final = (
    # SOL_SOCKET: up to BINDTODEVICE, then DETACH_FILTER, TIMESTAMP, ACCEPTCONN, TIMESTAMPNS, TIMESTAMPING,
    # MAX_PACING_RATE, RCVTIMEO_NEW, SNDTIMEO_NEW; never the ones that attach a program (26, 50, 51, 52)
    (Check(1, spans(1)), Check(2, spans((0, 25), 27, 29, 30, 35, 37, 47, 66, 67))),
    # TCP: the tuning knobs; never TCP_ULP (31), which loads a protocol on top, nor repair, MD5 or AO keys
    (Check(1, spans(6)), Check(2, spans((0, 13), (16, 18), (23, 28), 30, 33, 34, 36, 37))),
    (Check(1, spans(0)), Check(2, spans((0, 63)))),  # IP: below the packet filter's tables (64 up)
    (Check(1, spans(41)), Check(2, spans((0, 63), (67, 79)))),  # IPv6: around the packet filter's tables
    (Check(1, spans(17)), Check(2, spans(1))),  # UDP_CORK; never UDP_ENCAP, the way to ESP
)

_IOCTLS: Final = spans(
    (0x5401, 0x540B),  # TCGETS to TCFLSH: terminal modes, drain, flow control
    0x540E,  # TIOCSCTTY: login shells and the agent take a terminal
    (0x540F, 0x5410),  # TIOCGPGRP, TIOCSPGRP: job control
    0x5411,  # TIOCOUTQ: bytes not yet sent
    (0x5413, 0x5414),  # TIOCGWINSZ, TIOCSWINSZ: window size
    0x541B,  # FIONREAD: bytes waiting
    (0x5421, 0x5422),  # FIONBIO, TIOCNOTTY: non-blocking, letting go of a terminal
    0x5429,  # TIOCGSID: which session a terminal serves
    0x5441,  # TIOCGPTPEER: the other end of a pseudo-terminal
    (0x5450, 0x5452),  # FIONCLEX, FIOCLEX, FIOASYNC: descriptor flags
    0x80045430,  # TIOCGPTN: a pseudo-terminal's number
    0x40045431,  # TIOCSPTLCK: unlocking a pseudo-terminal
    0x802C542A,  # TCGETS2: terminal modes with free speeds
    (0x402C542B, 0x402C542D),  # TCSETS2, TCSETSW2, TCSETSF2
    0x8910,  # SIOCGIFNAME, and below: looking at its own interfaces
    (0x8912, 0x8913),  # SIOCGIFCONF, SIOCGIFFLAGS
    0x8915,  # SIOCGIFADDR
    0x8919,  # SIOCGIFBRDADDR: Java lists interfaces with it
    0x891B,  # SIOCGIFNETMASK
    0x8921,  # SIOCGIFMTU
    0x8927,  # SIOCGIFHWADDR
    0x8933,  # SIOCGIFINDEX
    0x40049409,  # FICLONE: cp tries it first
    0x80086601,  # FS_IOC_GETFLAGS: lsattr, tar
)

_PRCTLS: Final = spans(
    (1, 4),  # PDEATHSIG and DUMPABLE, set and get
    7,  # PR_GET_KEEPCAPS
    (15, 16),  # the thread's name
    21,  # PR_GET_SECCOMP; never PR_SET_SECCOMP (22)
    (23, 24),  # PR_CAPBSET_READ and DROP: nothing to gain
    27,  # PR_GET_SECUREBITS; never SET (28)
    (29, 30),  # TIMERSLACK
    (36, 37),  # CHILD_SUBREAPER
    (38, 39),  # NO_NEW_PRIVS: can only be set
    (41, 42),  # THP_DISABLE: Java, jemalloc
    52,  # PR_GET_SPECULATION_CTRL; never SET, which can switch protection off
    0x41555856,  # PR_GET_AUXV: Go reads its start-up facts
    0x53564D41,  # PR_SET_VMA: glibc, Go and jemalloc name their memory
)

_IN_BAND: Final = spans(0)  # MSG_OOB clear
_OOB_REASON: Final = "no MSG_OOB: urgent data is rare and its bookkeeping has been broken"

_RULES: Final = (
    Rule(
        "clone",
        # clone3's flags above 32 bits must not come in by the old door of some kernel: the high half stays zero.
        any_of=((Check(0, spans(0), mask=_NAMESPACE_FLAGS, whole=True),),),
        reason="processes and threads, never with a new namespace",
    ),
    Rule("socket", any_of=(_UNIX, _INET, _NETLINK_ROUTE), reason="local, internet and route sockets; no other family"),
    Rule("socketpair", any_of=(_UNIX,), reason="local pairs"),
    Rule("setsockopt", any_of=_SOCKET_OPTIONS, reason="ordinary options; none that loads a program or a protocol"),
    Rule(
        "ioctl", any_of=((Check(1, _IOCTLS),),), reason="terminals and interfaces; no typing into a terminal (TIOCSTI)"
    ),
    Rule(
        "futex",
        # WAIT, WAKE, REQUEUE, CMP_REQUEUE, WAKE_OP, WAIT_BITSET, WAKE_BITSET, beneath PRIVATE and CLOCK_REALTIME.
        any_of=((Check(1, spans(0, 1, (3, 5), 9, 10), mask=LOW & ~0x180),),),
        reason="locks; not the priority-inheriting ones, whose requeueing has been exploited",
        # glibc reads EPERM from its probe as "supported" and would then believe in a lock it never got.
        otherwise=Verdict.ENOSYS,
    ),
    Rule("sendto", any_of=((Check(3, _IN_BAND, mask=1),),), reason=_OOB_REASON),
    Rule("recvfrom", any_of=((Check(3, _IN_BAND, mask=1),),), reason=_OOB_REASON),
    Rule("sendmsg", any_of=((Check(2, _IN_BAND, mask=1),),), reason=_OOB_REASON),
    Rule("recvmsg", any_of=((Check(2, _IN_BAND, mask=1),),), reason=_OOB_REASON),
    Rule("sendmmsg", any_of=((Check(3, _IN_BAND, mask=1),),), reason=_OOB_REASON),
    Rule("recvmmsg", any_of=((Check(3, _IN_BAND, mask=1),),), reason=_OOB_REASON),
    Rule("mknod", any_of=((Check(1, spans(0x1000), mask=0xF000),),), reason="named pipes, never devices"),
    Rule("mknodat", any_of=((Check(2, spans(0x1000), mask=0xF000),),), reason="named pipes, never devices"),
    Rule(
        "personality", any_of=((Check(0, spans(0, LOW)),),), reason="asking, and plain Linux; no weaker address layout"
    ),
    Rule(
        "prctl",
        # PR_CAP_AMBIENT (47): IS_SET, LOWER and CLEAR_ALL, never RAISE.
        any_of=((Check(0, _PRCTLS),), (Check(0, spans(47)), Check(1, spans(1, 3, 4), whole=True))),
        reason="names, dumpability, reaping, self-restraint",
    ),
    Rule(
        "madvise",
        # Not 12 (MERGEABLE), 100, 101 (HWPOISON, SOFT_OFFLINE).
        any_of=((Check(2, spans((0, 11), (13, 99), (102, LOW))),),),
        reason="memory hints; no merging with neighbours' pages, whose timing tells what they hold",
    ),
)

DEFAULT: Final = Policy(allow=_ALLOW, enosys=_ENOSYS, eperm=_EPERM, rules=_RULES)
