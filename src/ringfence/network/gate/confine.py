"""The gate, and each opener, give up everything but their sockets before they hear a word from a sandbox."""

from __future__ import annotations

import os
import resource
import signal
from typing import Final

from ringfence.guest import syscalls as sc
from ringfence.runtimes.jail.seccomp.compile import compile_filter

UID: Final = 0x1FFF_FFFE  # nobody's: below the sandboxes' ranges, above what a distribution hands out
_STAGE: Final = "/tmp"  # noqa: S108 - only a place to mount on, in a mount namespace of our own
_NAMESPACES: Final = sc.CLONE_NEWNS | sc.CLONE_NEWIPC | sc.CLONE_NEWUTS | sc.CLONE_NEWCGROUP
_BARE: Final = sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC
DESCRIPTORS: Final = 65_536


def die_with_parent() -> None:
    """A gate without a node would go by policies that nobody can change."""
    sc.execute(sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL))


def _limits(most_file: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_file, most_file))


def confine(uid: int = UID, *, offline: bool = False, scratch: int = 0) -> None:
    """An empty root, a uid of its own, no capability, no new privilege, the sandboxes' own seccomp filter.

    The network namespace stays the host's, for to connect out is what the gate is for, unless it is to be `offline`.
    The root is read-only, or has room for `scratch` bytes in it. Raises OSError; then it must not serve.
    """
    sc.execute(sc.call("unshare", _NAMESPACES | (sc.CLONE_NEWNET if offline else 0)))
    sc.do(sc.mount("none", "/", flags=sc.MS_REC | sc.MS_PRIVATE))
    if scratch:
        own = f"size={scratch},nr_inodes=16,mode=0700,uid={uid},gid={uid}"
        sc.do(sc.mount("none", _STAGE, "tmpfs", _BARE, own))
    else:
        sc.do(sc.mount("none", _STAGE, "tmpfs", _BARE | sc.MS_RDONLY, "size=4k,nr_inodes=2,mode=0555"))
    sc.do(sc.pivot_into(_STAGE))
    _limits(scratch)
    os.setgroups([])
    sc.do(sc.drop_bounding_set())
    sc.execute(sc.prctl(sc.PR_SET_SECUREBITS, sc.SECUREBITS_LOCKED))
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    sc.execute(sc.prctl(sc.PR_CAP_AMBIENT, sc.PR_CAP_AMBIENT_CLEAR_ALL))
    sc.execute(sc.set_capabilities(0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))  # it starts nothing and no one
    sc.execute(sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1))
    die_with_parent()  # a change of uid clears it
    sc.execute(sc.prctl(sc.PR_SET_DUMPABLE, 0))
    sc.execute(sc.load_seccomp(compile_filter()))
