"""What one sandbox is told before its first step: plain values, decided by the node, checked again here."""

from __future__ import annotations

import json

from ringfence.guest.annotations import Any, Final

STAGE: Final = "/run/ringfence/stage"  # the pristine root, as the zygote sees it
NEW_ROOT: Final = "/run/ringfence/new"  # where a sandbox assembles its own
SCRATCH: Final = "/run/ringfence/scratch"  # where its one tmpfs is mounted before it is bound into place
HIDDEN: Final = "/.ringfence"  # where our code, and the interpreter we carry, are mounted until nobody needs them
BROKEN: Final = b"B"  # the first byte of what is said instead of a zygote's readiness: why there is none
HOME: Final = "/home/user"
CHANNEL_FD: Final = 3  # the one descriptor a sandbox keeps, beside the null device on 0 to 2
OUTPUT_FDS: Final = (4, 5)  # and a lone run's outputs, until they are in place
FATE_FD: Final = 6  # and the page where its interpreter leaves the exit code
USER_ID: Final = 1000
SLOT_SIZE: Final = 2048  # uids per sandbox: 0..2046, and nobody (65534) on the last one
NOBODY: Final = 65534


FIELDS: Final = (
    "root",  # set up by a privileged node: a uid range of its own, `root` and `user` inside
    "scratch_bytes",
    "scratch_files",
    "processes",
    "open_files",
    "cpu_seconds",
    "data_bytes",  # a bound on each process's own memory where no group bounds them together; 0: none
    "warm_runner",
    "lone",  # for one piece of source code and nothing else: no agent, process 1 only reaps (init.py)
    "exec_runner",  # zygote = "none": user code never shares the zygote's address layout
    "time_namespace",
    "writable",  # its root is a copy of the template's that it may change, and `root` may act like one: for builds
    "resolver",  # the text of /etc/resolv.conf where there is a network; empty: there is none
    "without",
    "fault",
)


class Plan:
    """What sandboxes of one shape share. `without` and `fault` exist for tests alone: no setting reaches them."""

    __slots__ = FIELDS

    def __init__(
        self,
        *,
        root: bool,
        scratch_bytes: int,
        scratch_files: int,
        processes: int,
        open_files: int,
        cpu_seconds: float,
        data_bytes: int,
        warm_runner: bool,
        exec_runner: bool,
        time_namespace: bool,
        lone: bool = False,
        resolver: str = "",
        writable: bool = False,
        without: frozenset[str] = frozenset(),
        fault: str = "",
    ) -> None:
        self.root = root
        self.scratch_bytes = scratch_bytes
        self.scratch_files = scratch_files
        self.processes = processes
        self.open_files = open_files
        self.cpu_seconds = cpu_seconds
        self.data_bytes = data_bytes
        self.warm_runner = warm_runner
        self.lone = lone
        self.resolver = resolver
        self.writable = writable
        self.exec_runner = exec_runner
        self.time_namespace = time_namespace
        self.without = without
        self.fault = fault


def plan_to(plan: Plan) -> bytes:
    """The bytes plan_from() reads."""
    fields = {name: getattr(plan, name) for name in FIELDS}
    return json.dumps({**fields, "without": sorted(plan.without)}).encode()


def plan_from(data: bytes) -> Plan:
    """The plan in a request; a missing or unknown field raises TypeError."""
    fields: dict[str, Any] = json.loads(data)
    return Plan(**{**fields, "without": frozenset(fields["without"])})
