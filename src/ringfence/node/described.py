"""Templates, runtimes and usage as plain rows, for the api to show."""

from __future__ import annotations

from typing import Any

from ringfence.domain.errors import NotFound
from ringfence.domain.limits import Limits
from ringfence.domain.template import Template
from ringfence.runtimes.base import GroupUsage, Runtime
from ringfence.templates.catalog import Built


def template_row(built: Built, pools: list[dict[str, Any]]) -> dict[str, Any]:
    """A built template, with what its pools hold."""
    template = built.template
    return {
        "name": template.name,
        "description": template.description,
        "digest": built.digest,
        "size_bytes": built.size_bytes,
        "runtime": template.runtime,
        "zygote": str(template.zygote),
        "preload": list(template.preload),
        "limits": {name: getattr(template.limits, name) for name in Limits.__slots__},
        "image": _image(template) if not built.owner else None,
        "owner": built.owner,
        "pool": {
            "idle": sum(p["idle"] for p in pools),
            "starting": sum(p["starting"] for p in pools),
            "least": template.pool.least,
            "most": template.pool.most,
        },
    }


def _image(template: Template) -> dict[str, Any] | None:
    names = "reference", "digest", "entrypoint", "cmd", "workdir", "user"
    return {name: getattr(template.image, name) for name in names} if template.image is not None else None


def runtime_row(runtime: Runtime) -> dict[str, Any]:
    """A way to isolate: its layers, and what it can honour."""
    can = runtime.capabilities()
    return {
        "name": runtime.name,
        "available": True,
        "layers": [{"name": x.name, "in_force": x.in_force, "reason": x.reason} for x in runtime.layers()],
        "limits_by": can.limits_by,
        "capabilities": {
            "isolation": can.isolation,
            "fork_warm": can.fork_warm,
            "pty": can.pty,
            "users": sorted(can.users),
            "offline": can.offline,
            "enforces": sorted(can.enforces),
        },
    }


def usage_row(used: GroupUsage, source: str) -> dict[str, Any]:
    """What a sandbox used so far, and who counted."""
    return {
        "cpu_seconds": used.cpu_seconds,
        "memory_bytes": used.memory_now_bytes,
        "peak_memory_bytes": used.memory_peak_bytes,
        "processes": used.processes,
        "source": source,
    }


def unknown_template(name: str) -> NotFound:
    """The answer for a template that is not there, or is another tenant's."""
    return NotFound(
        f"no template called {name!r:.80}",
        code="unknown_template",
        remediation="list them with `ringfence templates list`; build one with `ringfence templates build`",
    )
