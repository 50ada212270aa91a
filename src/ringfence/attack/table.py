"""The one table of attacks: what is tried, what a success would mean, how it is judged, which layers hold it.

Rows are numbers of the catalogue of hostile behaviours that the tests are written against (tests/attacks/rows.py).
Adding an attack is one program under probes/ and one entry here; `ringfence attack` and the tests read this table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ringfence.attack import judges as j
from ringfence.attack import measures as m
from ringfence.attack import posture, programs
from ringfence.attack.observation import Class, Judge

MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Probe:
    """One attack."""

    name: str
    rows: tuple[int, ...]
    klass: Class
    tries: str
    source: str  # the program's file under probes/
    judge: Judge
    layers: tuple[str, ...] = ()  # fences whose absence this probe notices
    limits: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)  # what the program is told besides the host's canaries
    template: str = "base"
    user: str = "user"
    timeout: float = 60.0
    copies: int = 1  # siblings of the same program
    together: int = 1  # how many of them at a time
    collect: tuple[str, ...] = ()
    argv: bool = False  # started as a fresh `python3` rather than in the warm interpreter
    egress: Callable[[Mapping[str, Any]], object] | None = None  # the policy it runs under, by what it is told

    @property
    def program(self) -> str:
        """The source text that is sent."""
        return programs.text(self.source)


_SMALL: Final = {"memory_bytes": 64 * MIB, "scratch_bytes": 32 * MIB}
# What the kernel counts as files may take the scratch's share as well, and as much again while it is written
# (runtimes/jail/cgroups/governor.py says why).
_WITH_FILES: Final = (64 + 32 + 32) * MIB
_FEW: Final = {"processes": 32}
_SCRATCH: Final = {"scratch_bytes": 16 * MIB, "scratch_files": 1000, "memory_bytes": 256 * MIB}
# Families the policy admits; raw types of them and every other family are refused.
_OPEN_FAMILIES: Final = frozenset(
    {f"socket 1 {kind}" for kind in ("STREAM", "DGRAM", "SEQPACKET", "RAW")}
    | {f"socket {family} {kind}" for family in (2, 10) for kind in ("STREAM", "DGRAM")}
    | {"socket 16 RAW", "socket 16 DGRAM", "netlink 0", "socketpair 1"}
)
_NO_FAMILY: Final = ("EAFNOSUPPORT", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT", "EINVAL")


def _every_address(facts: Mapping[str, Any]) -> object:
    """All that a policy can allow: what is refused under this one is refused under any."""
    return [{"cidr": "0.0.0.0/0", "ports": sorted({1, 22, 80, 123, 443, 8642, *facts.get("tcp_ports", [])})}]


def _one_name(_: Mapping[str, Any]) -> object:
    """A name that cannot exist; nothing that the program asks for is on this list."""
    return ["allowed.example", {"domain": "allowed.example", "protocol": "http"}]


def _nothing(_: Mapping[str, Any]) -> object:
    """A wire, and nothing to reach by it."""
    return []


def _memory(way: str, tries: str, most: int = 64 * MIB) -> Probe:
    return Probe(
        name=f"memory-{way}", rows=(71, 72), klass=Class.HOST_DOS, tries=tries, source="memory",
        judge=j.memory_bounded(most), layers=("memory_limit",), limits=_SMALL, facts={"way": way, "most": 384 * MIB},
    )  # fmt: skip


FIRST: Final = (
    Probe(
        "privileges", (83, 37), Class.ESCAPE,
        "Look for a user id, group, capability or missing filter left to us at start.",
        "first_instruction", posture.privileges,
        ("uid_range", "capabilities", "no_new_privileges", "seccomp"),
    ),
    Probe(
        "privileges-exec", (83, 37), Class.ESCAPE,
        "The same in a program started afresh, not forked from the warm interpreter.",
        "first_instruction", posture.privileges, ("uid_range", "capabilities", "no_new_privileges", "seccomp"),
        argv=True,
    ),
    Probe(
        "namespaces", (83, 88, 104), Class.LATERAL,
        "Look for a namespace shared with the host or with the sandbox next door.",
        "first_instruction", posture.namespaces,
        ("user_namespace", "pid_namespace", "mount_namespace", "network_namespace", "ipc_namespace", "uts_namespace",
        "cgroup_namespace"),
    ),
    Probe(
        "limits", (83, 26), Class.HOST_DOS, "Look for a resource without a ceiling at the first instruction.",
        "first_instruction", posture.limits, ("rlimits", "oom_order"),
    ),
    Probe(
        "descriptors", (14,), Class.ESCAPE,
        "Walk every descriptor that was open at start, and every environment variable.",
        "first_instruction", posture.descriptors, ("closed_descriptors",),
    ),
    Probe(
        "descriptors-exec", (14,), Class.ESCAPE, "The same in a program started afresh.",
        "first_instruction", posture.descriptors, ("closed_descriptors",), argv=True,
    ),
    Probe(
        "landlock", (83,), Class.ESCAPE, "Count the Landlock domains that hold us.",
        "first_instruction", posture.landlock, ("landlock",),
    ),
    Probe(
        "mounts", (24, 17), Class.ESCAPE,
        "Look for a mount that may be written, honours setuid or device nodes, or shows the kernel.",
        "first_instruction", posture.mounts, ("read_only_root", "mount_namespace"),
    ),
)  # fmt: skip

KERNEL: Final = (
    Probe(
        "new-namespaces", (45, 12, 13), Class.ESCAPE, "Make or join namespaces, mount, chroot and walk out.",
        "kernel_namespaces",
        j.refused_calls({"setns": ("ENOENT", "EACCES"), "write uid_map": ("ENOENT", "EACCES")}, least=50),
        ("seccomp",),
    ),
    Probe(
        "new-namespaces-root", (45, 12, 13), Class.ESCAPE, "The same as the sandbox's own root.",
        "kernel_namespaces",
        j.refused_calls({"setns": ("ENOENT", "EACCES"), "write uid_map": ("ENOENT", "EACCES")}, least=50),
        ("seccomp",), user="root",
    ),
    Probe(
        "kernel-calls", (34, 46, 49, 51, 52, 53), Class.ESCAPE,
        "Knock on every kernel door a program has no business with.",
        "kernel_calls", j.refused_calls(least=100), ("seccomp",),
    ),
    Probe(
        "kernel-calls-root", (34, 46, 49, 51, 52, 53), Class.ESCAPE, "The same as the sandbox's own root.",
        "kernel_calls", j.refused_calls(least=100), ("seccomp",), user="root",
    ),
    Probe(
        "sockets", (47, 48), Class.ESCAPE,
        "Open sockets of every family and type; load filters and protocols into them.",
        "kernel_sockets",
        j.refused_calls({"socket": _NO_FAMILY, "netlink": _NO_FAMILY, "raw inet": _NO_FAMILY}, _OPEN_FAMILIES,
        least=300),
        ("seccomp",),
    ),
    Probe(
        "foreign-abi", (55,), Class.ESCAPE, "Reach the kernel by its 32-bit gate and its x32 numbers.",
        "kernel_abi", m.foreign_abi, ("seccomp",),
    ),
    Probe(
        "terminals", (42, 43), Class.ESCAPE, "Type into terminals that are not ours.",
        "terminal", j.all_of(j.refused_calls({"": ("ENOTTY",)}, least=10), m.no_other_terminal), ("seccomp",
        "terminals"),
    ),
    Probe(
        "devices", (17, 60), Class.ESCAPE, "Find or make device nodes that lead to hardware or the kernel.",
        "devices", j.empty("found", least=20), (),
    ),
    Probe(
        "devices-root", (17, 60), Class.ESCAPE, "The same as the sandbox's own root.",
        "devices", j.empty("found", least=20), (), user="root",
    ),
    Probe(
        "shared-inodes", (16, 17), Class.ESCAPE, "Change the owner, mode or place of the devices shared with the host.",
        "shared_inodes", j.empty("found", "swapped", least=40), ("read_only_root",),
    ),
    Probe(
        "shared-inodes-root", (16, 17), Class.ESCAPE, "The same as the sandbox's own root.",
        "shared_inodes", j.empty("found", "swapped", least=40), ("read_only_root",), user="root",
    ),
    Probe(
        "control-groups", (81,), Class.ESCAPE, "Write, mount or leave the control groups that hold us.",
        "cgroup_escape", j.empty("found", least=50), ("cgroup_namespace",),
    ),
    Probe(
        "control-groups-root", (81,), Class.ESCAPE, "The same as the sandbox's own root.",
        "cgroup_escape", j.empty("found", least=50), ("cgroup_namespace",), user="root",
    ),
    Probe(
        "random-calls", (59,), Class.HOST_DOS, "Make thousands of system calls at random.",
        "random_calls", j.empty("found", least=300), (), limits=_FEW, timeout=20,
    ),
    Probe(
        "more-privileges", (35, 36, 37), Class.INTERNAL_ESC,
        "Ask for another user, capabilities, priority, pinned memory.",
        "privileges", j.empty("found", least=15), ("rlimits",),
    ),
    Probe(
        "more-privileges-root", (35, 36, 37), Class.INTERNAL_ESC, "The same as the sandbox's own root.",
        "privileges", m.no_more_as_root, ("rlimits",), user="root",
    ),
)  # fmt: skip

FILES: Final = (
    Probe(
        "way-out", (1, 13, 14, 96), Class.ESCAPE,
        "Walk above our root by dots, links, magic links, open and lost directories.",
        "way_out", j.empty("found", least=200), ("mount_namespace",),
    ),
    Probe(
        "way-out-root", (1, 13, 14, 96), Class.ESCAPE, "The same as the sandbox's own root.",
        "way_out", j.empty("found", least=200), ("mount_namespace",), user="root",
    ),
    Probe(
        "runtime-binary", (15,), Class.ESCAPE, "Overwrite the program that made us, by every name the kernel gives it.",
        "runtime_binary", j.empty("found", least=60), (),
    ),
    Probe(
        "runtime-binary-root", (15,), Class.ESCAPE, "The same as the sandbox's own root.",
        "runtime_binary", j.empty("found", least=60), (), user="root",
    ),
    Probe(
        "runtime-traces", (1, 24, 96, 104), Class.HOST_LEAK,
        "Find the bundle, records and sockets of whatever made us, and our own agent's files.",
        "runtime_traces", j.empty("found", "inner", least=30), (),
    ),
    Probe(
        "runtime-traces-root", (1, 24, 96, 104), Class.HOST_LEAK, "The same as the sandbox's own root.",
        "runtime_traces", j.empty("found", "inner", least=30), (), user="root",
    ),
    Probe(
        "host-secrets", (1, 103), Class.HOST_LEAK,
        "Search files, environments, arguments and memory for the host's canaries.",
        "host_secrets", j.all_of(j.empty("found", least=100), j.equals(sighted=True)), ("ipc_namespace",), timeout=90,
    ),
    Probe(
        "host-secrets-root", (1, 103), Class.HOST_LEAK, "The same as the sandbox's own root.",
        "host_secrets", j.all_of(j.empty("found", least=100), j.equals(sighted=True)), ("ipc_namespace",),
        user="root", timeout=90,
    ),
    Probe(
        "read-only-root", (2, 7, 25), Class.ESCAPE,
        "Write where only the image may be, copy a setuid shell, link what is not ours.",
        "read_only_root", j.all_of(j.empty("found", least=20), j.equals(root_read_only=True)), ("read_only_root",),
    ),
    Probe(
        "read-only-root-root", (2, 7, 25), Class.ESCAPE, "The same as the sandbox's own root.",
        "read_only_root", j.all_of(j.empty("found", least=20), j.equals(root_read_only=True)), ("read_only_root",),
        user="root",
    ),
    Probe(
        "proc-and-sys", (104, 106), Class.HOST_LEAK,
        "Read the kernel's tables: whose processes, sockets and machine do they show?",
        "proc_and_sys", j.empty("found", "masked", "cgroup", least=30), ("masked_proc", "uts_namespace"),
    ),
    Probe(
        "host-paths", (24,), Class.HOST_LEAK, "Read from the mount table where on the host our files come from.",
        "proc_and_sys", j.empty("paths", least=30), (),
    ),
    Probe(
        "output-traps", (3, 8, 9), Class.HOST_LEAK,
        "Leave links out, a pipe, a socket and a huge sparse file where results are collected.",
        "output_traps", m.traps_defused, limits={"scratch_bytes": 128 * MIB}, facts={"big": 120 * MIB},
        collect=tuple(f"out/{name}" for name in ("r", "d", "p", "up", "loop", "fifo", "sparse", "big", "null",
        "socket", "many")),
    ),
    Probe(
        "residue", (23, 58, 107, 155), Class.LATERAL,
        "Look for what an earlier sandbox left; leave the same for the next.",
        "residue", j.empty("found"), ("ipc_namespace",), copies=8, together=2,
    ),
    Probe(
        "core-dumps", (26,), Class.HOST_DOS, "Crash with a large heap, again and again.",
        "core_dump", m.no_core, ("rlimits",),
    ),
)  # fmt: skip

NETWORK: Final = (
    Probe(
        "network", (86, 87, 88, 89, 94, 96, 97), Class.EXFIL,
        "Reach the host, metadata services, resolvers, other addresses and sockets.",
        "network", j.empty("found", least=60), ("network_namespace",), timeout=90,
    ),
    Probe(
        "network-root", (86, 87, 88, 89, 94, 96, 97), Class.EXFIL, "The same as the sandbox's own root.",
        "network", j.empty("found", least=60), ("network_namespace",), user="root", timeout=90,
    ),
    Probe(
        "egress-floor", (86, 87, 88), Class.EXFIL,
        "With a policy for every address: reach metadata services, the host, private ranges and neighbours.",
        "egress", j.empty("found", least=70), facts={"way": "floor"}, egress=_every_address, timeout=120,
    ),
    Probe(
        "egress-names", (89, 90), Class.EXFIL,
        "With a policy for one name: smuggle data in names, and pass other names off as that one.",
        "egress", j.empty("found", least=100), facts={"way": "names"}, egress=_one_name, timeout=120,
    ),
    Probe(
        "egress-wire", (88, 94, 97), Class.LATERAL,
        "With a wire: forge packets, change interface, routes or resolver, speak IPv6, find neighbours.",
        "wire", j.empty("found", least=100), egress=_nothing, timeout=120,
    ),
    Probe(
        "egress-wire-root", (88, 94, 97), Class.LATERAL, "The same as the sandbox's own root.",
        "wire", j.empty("found", least=100), egress=_nothing, user="root", timeout=120,
    ),
)  # fmt: skip

RESOURCES: Final = (
    Probe(
        "fork-bomb", (28,), Class.PEER_DOS, "Fork and start threads until refused.",
        "processes", m.processes_bounded(32), ("pids_limit",), limits=_FEW,
    ),
    Probe(
        "fork-bomb-left", (28, 29), Class.PEER_DOS, "Fork until refused and end with every child alive.",
        "processes", j.ended("exited", within=90), (), limits=_FEW, facts={"leave": True},
    ),
    Probe(
        "daemon", (29,), Class.HOST_DOS, "Leave a daemon behind that ignores every signal and holds the output open.",
        "daemon", j.all_of(j.ended("exited", within=60), j.equals(ended=True)),
    ),
    Probe(
        "kill-everything", (30,), Class.PEER_DOS, "Send SIGKILL to every process there is.",
        "kill_everything", m.killed_only_itself, (),
    ),
    Probe(
        "ignored-signals", (31,), Class.SELF_DOS, "Ignore every signal and outlive the deadline.",
        "ignore_signals", j.ended("timed_out", within=60), timeout=2,
    ),
    Probe(
        "spinning", (31, 70), Class.SELF_DOS, "Ignore every signal and spin past the deadline.",
        "ignore_signals", j.ended("timed_out", within=60), timeout=2, facts={"spin": True},
    ),
    Probe(
        "stopped", (32,), Class.HOST_DOS, "Stop ourselves before the deadline.",
        "ignore_signals", j.ended("timed_out", within=60), timeout=2, facts={"stop": True},
    ),
    Probe(
        "deadline-dodged", (31, 39), Class.SELF_DOS,
        "Report our own end on a leftover descriptor and run on past the deadline.",
        "outlive", j.ended("timed_out", "exited", within=60), timeout=2,
    ),
    Probe(
        "closed-streams", (41,), Class.HOST_DOS, "Close every standard stream and keep running.",
        "streams", j.ended("timed_out", within=60), timeout=2,
    ),
    Probe(
        "forged-frames", (39,), Class.INTEGRITY, "Write forged results and absurd lengths to every descriptor.",
        "frames", m.own_fate(7),
    ),
    Probe(
        "output-lines", (76,), Class.HOST_DOS, "Print forever.",
        "output", j.all_of(j.ended("output_capped", within=90), j.capped(1 * MIB)), limits={"output_bytes": 1 * MIB},
        facts={"way": "lines"},
    ),
    Probe(
        "output-one-line", (76,), Class.HOST_DOS, "Print one line of a gigabyte.",
        "output", j.all_of(j.ended("output_capped", within=90), j.capped(1 * MIB)), limits={"output_bytes": 1 * MIB},
        facts={"way": "line"},
    ),
    Probe(
        "output-bytes", (76,), Class.HOST_DOS, "Print single bytes, here and there in turn.",
        "output", j.all_of(j.ended("output_capped", within=90), j.capped(MIB // 32)),
        limits={"output_bytes": MIB // 32}, facts={"way": "bytes"},
    ),
    Probe(
        "processor", (70,), Class.PEER_DOS, "Spin on many processes and threads at once.",
        "processor", j.at_most("cores", 0.25 * 1.1 + 0.05), ("cpu_limit",), limits={"cpus": 0.25},
    ),
    _memory("anonymous", "Allocate memory until refused."),
    _memory("shared", "Allocate pages shared with children.", _WITH_FILES),
    _memory("memfd", "Fill files without names.", _WITH_FILES),
    _memory("shm", "Fill shared memory.", _WITH_FILES),
    _memory("scratch", "Fill the home directory, which is memory.", _WITH_FILES),
    _memory("sysv", "Fill System V segments.", _WITH_FILES),
    _memory("sockets", "Fill socket buffers nobody reads."),
    _memory("pipes", "Fill pipes nobody reads."),
    _memory("children", "Touch a copy of everything in one child after another."),
    Probe(
        "kernel-memory", (72, 78), Class.HOST_DOS,
        "Flood the kernel with descriptors, watches, timers, signals and names.",
        "kernel_memory", m.kernel_memory_bounded, limits={**_SMALL, "memory_bytes": 128 * MIB, "open_files": 256},
    ),
    Probe(
        "scratch", (74, 75, 20), Class.HOST_DOS,
        "Fill the disk with bytes, files, attributes and a deleted open file.",
        "scratch", m.scratch_bounded(16 * MIB, 1000), ("scratch",), limits=_SCRATCH,
    ),
)  # fmt: skip

SIBLINGS: Final = (
    Probe(
        "uniqueness", (110,), Class.LATERAL, "Draw from every source of randomness in twenty siblings.",
        "uniqueness", j.distinct("values", 9), ("reseed",), copies=20, together=2,
    ),
    Probe(
        "uniqueness-numpy", (110,), Class.LATERAL, "The same with NumPy warm in the zygote.",
        "uniqueness", j.distinct("values", 11), ("reseed",), copies=20, together=2, template="python",
    ),
)  # fmt: skip

PROBES: Final = (*FIRST, *KERNEL, *FILES, *NETWORK, *RESOURCES, *SIBLINGS)


def named(name: str) -> Probe:
    """The probe of this name. Raises KeyError."""
    return {probe.name: probe for probe in PROBES}[name]
