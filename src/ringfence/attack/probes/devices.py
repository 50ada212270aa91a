"""Look for device nodes that lead to hardware or to the kernel, and try to make some."""

import os
import stat

from ringfence.attack.probes.prelude import attempt, say

NAMED = [
    "kvm", "fuse", "cuse", "net/tun", "mem", "kmem", "port", "kmsg", "loop0", "loop-control", "mapper",
    "mapper/control", "sda",
    "vda", "nvme0n1", "dri", "nvidia0", "userfaultfd", "vhost-net", "vsock", "uinput", "input", "snapshot", "hwrng",
    "console",
    "tty0", "ttyS0", "vcs", "btrfs-control", "autofs", "ppp", "rfkill", "vfio", "sgx_enclave", "watchdog", "mqueue",
]  # fmt: skip
KNOWN = {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "fd", "stdin", "stdout", "stderr"}


def make(kind: int, major: int, minor: int) -> str:
    """Try to make a device node where we may write."""
    path = os.path.expanduser("~/node")
    outcome = attempt(os.mknod, path, kind | 0o666, os.makedev(major, minor))
    if outcome == "ok":
        outcome = "made" if attempt(lambda: os.close(os.open(path, os.O_RDONLY))) != "ok" else "ok"
        os.unlink(path)
    return outcome


present = [f"/dev/{name}" for name in NAMED if os.path.lexists(f"/dev/{name}") and not os.path.isdir(f"/dev/{name}")]
unknown = [f"/dev/{name}" for name in os.listdir("/dev") if name not in KNOWN]
made = {
    "mem": make(stat.S_IFCHR, 1, 1),
    "kmsg": make(stat.S_IFCHR, 1, 11),
    "kvm": make(stat.S_IFCHR, 10, 232),
    "disk": make(stat.S_IFBLK, 254, 0),
    "overlay whiteout": make(stat.S_IFCHR, 0, 0),
}
say(
    found=sorted(set(present) | set(unknown))
    + [f"made and opened {name}" for name, how in made.items() if how == "ok"],
    tried=len(NAMED) + len(made),
    made=made,
    tree=sorted(os.listdir("/dev")),
)
