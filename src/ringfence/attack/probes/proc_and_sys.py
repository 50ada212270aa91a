"""Read the kernel's own tables: whose processes, whose sockets, whose machine."""

import hashlib
import os
import socket

from ringfence.attack.probes.prelude import facts, say, text_of

MASKED = [
    "/proc/keys", "/proc/key-users", "/proc/kallsyms", "/proc/kcore", "/proc/kmsg", "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/slabinfo", "/proc/interrupts", "/proc/softirqs", "/proc/config.gz", "/proc/modules", "/proc/vmallocinfo",
    "/proc/pagetypeinfo", "/proc/diskstats", "/proc/partitions", "/proc/swaps", "/proc/cmdline", "/proc/mtrr",
    "/proc/latency_stats", "/proc/iomem", "/proc/ioports", "/proc/locks", "/proc/consoles", "/proc/zoneinfo",
    "/proc/buddyinfo", "/proc/pressure/cpu", "/proc/sys/kernel/random/boot_id", "/proc/bus/pci/devices",
    "/proc/driver",
    "/proc/acpi", "/proc/asound", "/proc/scsi/scsi", "/proc/fs", "/proc/irq", "/proc/sysvipc/shm", "/proc/crypto",
]  # fmt: skip
SYS = ["/sys/class/net", "/sys/class/dmi/id", "/sys/kernel", "/sys/firmware", "/sys/module", "/sys/block", "/sys/power"]
EMPTY_IS_FINE = {"/proc/locks", "/proc/sysvipc/shm"}


def tells(path: str) -> bool:
    """True when the file or folder can be read and is not blank."""
    if os.path.isdir(path):
        try:
            return bool(os.listdir(path))
        except OSError:
            return False
    text = text_of(path, 65536).strip()
    if path in EMPTY_IS_FINE:
        return len(text.splitlines()) > 1
    return bool(text.strip("\0"))


def digest(text: str) -> str:
    """Names of the host are compared as digests, so that this source does not carry them."""
    return hashlib.sha256(text.strip().encode()).hexdigest()


def same_machine() -> list[str]:
    """Names and ids that are the host's."""
    ours = {
        "hostname": socket.gethostname(),
        "boot id": text_of("/proc/sys/kernel/random/boot_id"),
        "machine id": text_of("/etc/machine-id"),
        "kernel command line": text_of("/proc/cmdline"),
    }
    host = facts.get("host", {})
    return [
        f"the {name} is the host's" for name, text in ours.items() if text.strip() and digest(text) == host.get(name)
    ]


def strangers() -> list[str]:
    """Processes that are neither ours nor the agent's; more than a handful means another namespace's view."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [f"{len(pids)} processes are visible"] if len(pids) > 12 else []


def sockets() -> list[str]:
    """Sockets and interfaces in the network tables that we did not make."""
    found = []
    for name in ("tcp", "tcp6", "udp", "udp6", "unix", "raw", "packet", "netlink"):
        rows = len(text_of(f"/proc/net/{name}").splitlines()) - 1
        if rows > (8 if name in {"unix", "netlink"} else 0):
            found.append(f"/proc/net/{name} has {rows} rows")
    devices = [line.split(":")[0].strip() for line in text_of("/proc/net/dev").splitlines()[2:]]
    return found + [f"interface {name}" for name in devices if name != "lo"]


def outside_paths() -> list[str]:
    """Mounts whose source or root tells where on the host they come from."""
    found = []
    for line in text_of("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        root, source = left.split()[3], right.split()[1]
        named = [word for word in facts.get("host_paths", []) if word in root or word in source or word in right]
        if named or source.startswith("/dev/"):
            found.append(f"{left.split()[4]} comes from {source} {root}")
    return found


masked = [f"{path} can be read" for path in MASKED if tells(path)]
under_sys = [f"{path} can be read" for path in SYS if tells(path)]
cgroup = [line for line in text_of("/proc/self/cgroup").splitlines() if not line.endswith(":/")]
say(
    found=same_machine() + strangers() + sockets(),
    masked=masked + under_sys,
    paths=outside_paths(),
    cgroup=cgroup,
    tried=len(MASKED) + len(SYS) + 5,
    processes=[text_of(f"/proc/{name}/cmdline")[:200] for name in os.listdir("/proc") if name.isdigit()],
    hostname=socket.gethostname(),
)
