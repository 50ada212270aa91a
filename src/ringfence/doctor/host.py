"""Settings of the host that make a kernel fault harder to reach: one table, read and never changed by us.

None of them is a wall of the jail: what it needs it puts in force itself and refuses to run without. They shrink
what is left when one of its walls has a hole, so a bad one is a warning, with the command that mends it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

Wants = Callable[[str], bool]
_MODULES: Final = frozenset({
    "af_alg", "algif_aead", "algif_hash", "algif_rng", "algif_skcipher", "rxrpc", "esp4", "esp6", "tls", "vsock",
    "n_gsm",
    "n_hdlc", "can", "tipc", "sctp", "dccp",
})  # fmt: skip
# The first release of each long-lived series with the memory-management faults of July 2026 mended.
_MENDED: Final = {(6, 1): 177, (6, 6): 144, (6, 12): 95, (6, 18): 38, (7, 1): 3}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: where it is read, what is wanted, why, and how to get it."""

    name: str
    file: str
    wants: Wants
    wanted: str
    why: str
    fix: str
    absent_is_fine: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """One setting as it is. `seen` is "absent" when this kernel does not have it."""

    name: str
    ok: bool
    seen: str
    wanted: str
    why: str
    fix: str


def _is(*values: str) -> Wants:
    return lambda seen: seen in values


def _at_least(least: int) -> Wants:
    return lambda seen: seen.lstrip("-").isdigit() and int(seen) >= least


def _sysctl(name: str, wants: Wants, wanted: str, why: str, *, absent_is_fine: bool = False) -> Setting:
    fix = f"sysctl -w {name}={wanted.split(maxsplit=1)[0]}; keep it in /etc/sysctl.d/ringfence.conf"
    return Setting(name, "/proc/sys/" + name.replace(".", "/"), wants, wanted, why, fix, absent_is_fine)


def _no_pipe(seen: str) -> bool:
    return not seen.startswith("|")


def _none_loaded(seen: str) -> bool:
    return not loaded(seen)


def loaded(modules: str) -> set[str]:
    """Which of the modules that have been doors are in this text of /proc/modules."""
    return {line.split()[0] for line in modules.splitlines() if line.split()} & _MODULES


def mended(release: str) -> bool:
    """Whether a kernel release is of a series we know and new enough; a newer series than any known is."""
    numbers = release.split("-", maxsplit=1)[0].split(".")
    if len(numbers) < 3 or not all(part.isdigit() for part in numbers[:3]):
        return False
    series, point = (int(numbers[0]), int(numbers[1])), int(numbers[2])
    return series > max(_MENDED) or point >= _MENDED.get(series, 1 << 30)


SETTINGS: Final = (
    _sysctl("kernel.io_uring_disabled", _is("2"), "2", "a second system call interface that no filter sees"),
    _sysctl("vm.unprivileged_userfaultfd", _is("0"), "0", "it turns a race in the kernel into a certainty"),
    _sysctl("kernel.unprivileged_bpf_disabled", _is("1", "2"), "2", "programs loaded into the kernel"),
    _sysctl("kernel.perf_event_paranoid", _at_least(3), "3", "counters that tell of neighbours, and many past faults"),
    _sysctl("dev.tty.legacy_tiocsti", _is("0"), "0", "typing into another's terminal"),
    _sysctl("kernel.dmesg_restrict", _is("1"), "1", "the kernel's log tells addresses and neighbours"),
    _sysctl("kernel.kptr_restrict", _at_least(1), "2", "kernel addresses help an exploit to aim"),
    _sysctl("kernel.yama.ptrace_scope", _at_least(1), "1",
    "a process of one user should not read another of its user"),
    _sysctl("fs.protected_symlinks", _is("1"), "1", "links laid as traps in /tmp"),
    _sysctl("fs.protected_hardlinks", _is("1"), "1", "links to files of others"),
    _sysctl("fs.protected_fifos", _at_least(1), "2", "pipes laid as traps in /tmp"),
    _sysctl("fs.protected_regular", _at_least(1), "2", "files laid as traps in /tmp"),
    Setting(
        "kernel.core_pattern", "/proc/sys/kernel/core_pattern", _no_pipe, "not a pipe",
        "a helper run by root for whatever crashes", "sysctl -w kernel.core_pattern=core",
    ),
    _sysctl("kernel.randomize_va_space", _is("2"), "2", "addresses that can be guessed help an exploit to aim"),
    _sysctl("vm.memfd_noexec", _at_least(1), "1", "programs without a file, where nothing needs them",
    absent_is_fine=True),
    Setting(
        "swap", "/proc/swaps", lambda seen: len(seen.splitlines()) < 2, "none",
        "what was in a sandbox's memory could stay on a disk", "swapoff -a, or encrypt it",
    ),
    Setting(
        "same-page merging", "/sys/kernel/mm/ksm/run", _is("0"), "0",
        "the time a write takes tells what a neighbour's page holds", "echo 0 > /sys/kernel/mm/ksm/run",
        absent_is_fine=True,
    ),
    Setting(
        "simultaneous multithreading", "/sys/devices/system/cpu/smt/active", _is("0"), "0",
        "two tenants on one core can time each other", "echo off > /sys/devices/system/cpu/smt/control",
        absent_is_fine=True,
    ),
    Setting(
        "nested virtualisation (Intel)", "/sys/module/kvm_intel/parameters/nested", _is("N", "0"), "0",
        "the largest part of the virtual machine monitor, with a record of escapes",
        "options kvm_intel nested=0 in /etc/modprobe.d", absent_is_fine=True,
    ),
    Setting(
        "nested virtualisation (AMD)", "/sys/module/kvm_amd/parameters/nested", _is("N", "0"), "0",
        "the largest part of the virtual machine monitor, with a record of escapes",
        "options kvm_amd nested=0 in /etc/modprobe.d", absent_is_fine=True,
    ),
    _sysctl("net.ipv4.conf.all.route_localnet", _is("0"), "0", "routed packets must not reach 127.0.0.1"),
    _sysctl("net.ipv4.conf.all.rp_filter", _at_least(1), "1", "packets with a forged sender"),
    _sysctl("net.ipv6.conf.all.accept_ra", _is("0"), "0", "a neighbour could announce itself as the router",
    absent_is_fine=True),
    Setting(
        "kernel modules", "/proc/modules", _none_loaded, "none of the often attacked ones loaded",
        "their sockets and line disciplines have been doors into the kernel", "blacklist them in /etc/modprobe.d",
        absent_is_fine=True,
    ),
    Setting(
        "kernel release", "/proc/sys/kernel/osrelease", mended, "6.1.177, 6.6.144, 6.12.95, 6.18.38, 7.1.3 or newer",
        "older ones have published faults that a sandbox can reach", "install the distribution's current kernel",
    ),
)  # fmt: skip


def read(file: str) -> str | None:
    """A small file's text without its last newline; None when it is not there or not ours to read."""
    try:
        return Path(file).read_text(errors="replace").strip()
    except OSError:
        return None


def look(setting: Setting, text: str | None) -> Finding:
    """Judge one setting by the text that was read."""
    ok = setting.absent_is_fine if text is None else setting.wants(text)
    seen = "absent" if text is None else text
    if setting.name == "kernel modules" and text is not None:
        seen = ", ".join(sorted(loaded(text))) or "none"
    elif setting.name == "swap" and text is not None:
        seen = f"{len(text.splitlines()) - 1} areas" if not ok else "none"
    return Finding(setting.name, ok, seen[:200], setting.wanted, setting.why, setting.fix)


def vulnerabilities() -> list[Finding]:
    """What the kernel itself says of this processor's known faults."""
    folder = Path("/sys/devices/system/cpu/vulnerabilities")
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    found = []
    for name in names:
        text = read(str(folder / name)) or "absent"
        ok = not text.startswith("Vulnerable")
        why, fix = "a fault of the processor that leaks between tenants", "update the microcode; check mitigations="
        found.append(Finding(f"processor: {name}", ok, text[:200], "not affected, or mitigated", why, fix))
    return found


def examine() -> list[Finding]:
    """Every setting of the table, then the processor."""
    return [look(setting, read(setting.file)) for setting in SETTINGS] + vulnerabilities()
