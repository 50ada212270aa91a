"""What was measured on, and with which versions: a figure without them says nothing."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from typing import Any

from ringfence.bench.processes import meminfo, text


def _after(source: str, key: str, separator: str) -> str:
    for line in source.splitlines():
        name, _, value = line.partition(separator)
        if name.strip() == key:
            return value.strip().strip('"')
    return ""


def facts() -> dict[str, Any]:
    """The machine: processor, memory, kernel, and what is known to move these figures."""
    cpu = text("/proc/cpuinfo")
    huge = text("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "cpu": _after(cpu, "model name", ":") or platform.processor(),
        "cores": os.cpu_count(),
        "virtual_machine": " hypervisor" in _after(cpu, "flags", ":"),
        "memory_mib": meminfo().get("MemTotal", 0) // 2**20,
        "kernel": platform.release(),
        "system": _after(text("/etc/os-release"), "PRETTY_NAME", "="),
        "huge_pages": huge.partition("[")[2].partition("]")[0],
        "root": os.geteuid() == 0,
    }


def versions() -> dict[str, str]:
    """Ours and our interpreter's."""
    try:
        ours = metadata.version("ringfence")
    except metadata.PackageNotFoundError:
        ours = "unreleased"
    names = ("litestar", "uvicorn", "uvloop", "httptools", "msgspec")
    return {
        "ringfence": ours,
        "server_python": sys.version.split()[0],
        **{name: metadata.version(name) for name in names},
    }


def load_average() -> list[float]:
    """Over 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]
