"""Limits of a sandbox: their defaults, their bounds, and the one place that checks them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Final

from ringfence.domain.errors import BadRequest

MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What a sandbox may consume. The defaults are those of requirement C33."""

    memory_bytes: int = 512 * MIB
    cpus: float = 0.5
    processes: int = 64
    scratch_bytes: int = 1024 * MIB
    scratch_files: int = 65_536
    output_bytes: int = 10 * MIB
    open_files: int = 1024
    wall_seconds: float = 300.0
    cpu_seconds: float = 300.0
    idle_soft_seconds: float = 0.0
    idle_hard_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Bound:
    """Smallest and largest value of one limit; both inclusive."""

    least: float
    most: float
    unit: str


BOUNDS: Final[dict[str, Bound]] = {
    "memory_bytes": Bound(16 * MIB, 64 * 1024 * MIB, "bytes"),
    "cpus": Bound(0.01, 64, "cores"),
    "processes": Bound(2, 4096, "processes"),
    "scratch_bytes": Bound(1 * MIB, 64 * 1024 * MIB, "bytes"),
    "scratch_files": Bound(64, 1_000_000, "files"),
    "output_bytes": Bound(1, 1024 * MIB, "bytes"),
    "open_files": Bound(32, 4096, "files"),
    "wall_seconds": Bound(0.01, 86_400, "seconds"),
    "cpu_seconds": Bound(0.01, 86_400, "seconds"),
    "idle_soft_seconds": Bound(0, 86_400, "seconds (0: never)"),
    "idle_hard_seconds": Bound(0, 86_400, "seconds (0: never)"),
}

WHOLE: Final = frozenset(f.name for f in dataclasses.fields(Limits) if isinstance(f.default, int))


def _checked(name: str, value: object) -> float | int:
    if name not in BOUNDS:
        raise BadRequest(f"unknown limit {name!r}", code="unknown_limit", remediation=f"use one of {', '.join(BOUNDS)}")
    bound = BOUNDS[name]
    hint = f"give a number from {bound.least:g} to {bound.most:g} {bound.unit}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequest(f"limit {name} is not a number", code="bad_limit", remediation=hint)
    # A huge int overflows float(), so it is compared as it is; NaN fails isfinite.
    if (isinstance(value, float) and not math.isfinite(value)) or not bound.least <= value <= bound.most:
        raise BadRequest(f"limit {name} is out of bounds", code="bad_limit", remediation=hint)
    if name in WHOLE and value != int(value):
        raise BadRequest(f"limit {name} is not a whole number", code="bad_limit", remediation=hint)
    return int(value) if name in WHOLE else float(value)


def limits_from(wanted: dict[str, Any], base: Limits, most: Limits | None = None) -> Limits:
    """Overlay `wanted` on `base`, checked against the absolute bounds and a tenant's maximum.

    Raises BadRequest naming the limit, its bound and its unit. Nothing is clamped in silence.
    """
    values: dict[str, Any] = {name: _checked(name, value) for name, value in wanted.items()}
    merged = dataclasses.replace(base, **values)
    if most is not None:
        for name in values:
            if getattr(merged, name) > getattr(most, name):
                raise BadRequest(
                    f"limit {name} is above this tenant's maximum of {getattr(most, name):g}",
                    code="limit_above_tenant_maximum",
                    remediation="ask for less, or have the operator raise the tenant's maximum",
                )
    return merged
