"""The picture of a report, drawn where drawing belongs: in a sandbox that has the libraries."""

from __future__ import annotations

import importlib.resources
from typing import Any, Final

import msgspec

from ringfence import wire
from ringfence.bench.exchange import Connection
from ringfence.domain.errors import PlatformFault

SCRIPT: Final = "chart.py"
DATA: Final = "bench.json"
PICTURE: Final = "bench.png"
LIMITS: Final = {"cpus": 2.0, "wall_seconds": 60.0, "memory_bytes": 2**30}


def drawn(connection: Connection, report: Any) -> bytes:
    """The report as PNG. Raises PlatformFault with the sandbox's own words when it could not be drawn."""
    script = (importlib.resources.files(__package__ or "") / SCRIPT).read_text("utf-8")
    body = {
        "template": "python",
        "code": script,
        "files": {DATA: msgspec.json.encode(report).decode()},
        "collect": [PICTURE],
        "limits": LIMITS,
    }
    run = msgspec.convert(connection.ask("POST", "/v1/runs", body), wire.Run)
    found = run.files.get(PICTURE)
    if found is None or not found.base64:
        raise PlatformFault(f"the plot was not drawn: {(run.stderr or '')[-500:]}", code="no_plot")
    return found.base64
