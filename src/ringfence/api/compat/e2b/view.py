"""A sandbox as E2B's clients read it."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any, Final

from ringfence import wire
from ringfence.api.compat.e2b.records import Face
from ringfence.domain.limits import MIB, Limits
from ringfence.domain.sandbox import State

CLIENT_ID: Final = "rf"  # the oldest clients put it behind the id, into host names
# The features clients may use: up to octet-stream and gzip uploads; metadata of files (0.6.2) is not among them.
ENVD_VERSION: Final = "0.5.7"


def state_of(sandbox: wire.Sandbox) -> str:
    """Their two words for a living sandbox."""
    return "paused" if sandbox.state is State.PAUSED else "running"


def moment(seconds: float | None) -> str:
    """ISO 8601, with its zone."""
    return datetime.fromtimestamp(seconds or 0.0, UTC).isoformat().replace("+00:00", "Z")


def made(face: Face, domain: str | None) -> dict[str, Any]:
    """What create and connect answer."""
    record = face.record
    return {
        "templateID": record.template,
        "sandboxID": face.id,
        "clientID": CLIENT_ID,
        "alias": record.template,
        "envdVersion": ENVD_VERSION,
        "envdAccessToken": record.token,
        "trafficAccessToken": record.traffic,
        "domain": domain,
    }


def listed(face: Face, sandbox: wire.Sandbox) -> dict[str, Any]:
    """A row of a list."""
    limits = sandbox.limits or Limits()
    return {
        "templateID": face.record.template,
        "alias": face.record.template,
        "sandboxID": face.id,
        "clientID": CLIENT_ID,
        "startedAt": moment(sandbox.created_at),
        "endAt": moment(sandbox.expires_at or sandbox.created_at),
        "envdVersion": ENVD_VERSION,
        "cpuCount": max(1, math.ceil(limits.cpus)),
        "memoryMB": limits.memory_bytes // MIB,
        "diskSizeMB": limits.scratch_bytes // MIB,
        "state": state_of(sandbox),
        "metadata": face.record.metadata,
    }


def detail(face: Face, sandbox: wire.Sandbox, domain: str | None) -> dict[str, Any]:
    """All there is to know."""
    record = face.record
    return {
        **listed(face, sandbox),
        "domain": domain,
        "envdAccessToken": record.token,
        "allowInternetAccess": record.internet,
        "network": record.network,
        "lifecycle": {"onTimeout": "pause" if record.auto_pause else "kill", "autoResume": record.auto_resume},
    }


def metric(sandbox: wire.Sandbox, at: float, busy: float, disk_used: int) -> dict[str, Any]:
    """What it uses at a moment; `busy` is cores in use."""
    limits = sandbox.limits or Limits()
    used = sandbox.usage.memory_bytes if sandbox.usage is not None else 0
    return {
        "timestamp": moment(at),
        "timestampUnix": int(at),
        "cpuCount": max(1, math.ceil(limits.cpus)),
        "cpuUsedPct": round(100.0 * busy, 2),
        "memUsed": used,
        "memTotal": limits.memory_bytes,
        "memCache": 0,
        "diskUsed": disk_used,
        "diskTotal": limits.scratch_bytes,
    }
