"""The variables every sandbox starts from, before its template's and its request's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ringfence.guest.plan import HOME

BASE: Final[Mapping[str, str]] = {
    "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
    "HOME": HOME,
    "USER": "user",
    "LOGNAME": "user",
    "SHELL": "/bin/bash",
    "LANG": "C.UTF-8",
    "TMPDIR": "/tmp",  # noqa: S108 - the sandbox's own
    "OPENBLAS_NUM_THREADS": "1",  # a thread made at import would be lost by the fork
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
    "PIP_RETRIES": "0",  # what a policy denies stays denied: asked six times with pauses, pip would take ten seconds
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}
