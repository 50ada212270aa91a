"""The parts of a request to start a program, checked once more inside: a crash here costs a sandbox."""

from __future__ import annotations

import os

from ringfence.guest.annotations import Any
from ringfence.guest.plan import HOME


class BadAsk(Exception):
    """A request that cannot be honoured: a code and a cause for the asker."""

    def __init__(self, code: str, cause: str) -> None:
        super().__init__(cause)
        self.code = code


def env_of(request: dict[str, Any]) -> dict[str, str]:
    """The variables a request adds. Raises BadAsk."""
    wanted = request.get("env") or {}
    if not all(isinstance(k, str) and isinstance(v, str) and k and "=" not in k for k, v in wanted.items()):
        raise BadAsk("bad_request", "env must map names to text")
    return dict(wanted)


def cwd_of(request: dict[str, Any], base: str = HOME) -> str:
    """The directory a program starts in; what is relative starts at `base`. Raises BadAsk."""
    cwd = os.path.join(base, request.get("cwd") or "")
    if "\0" in cwd or cwd.startswith(("/proc", "/dev", "/sys")):
        raise BadAsk("bad_request", "cwd must be an ordinary directory")  # CVE-2024-21626
    if not os.path.isdir(cwd):
        raise BadAsk("not_found", "cwd does not exist")
    return cwd


def order_of(request: dict[str, Any], free_name: str, base: str = HOME) -> dict[str, Any]:
    """What the interpreter needs to know to run source code. Raises BadAsk."""
    code, filename = request["code"], request.get("filename") or free_name
    if not isinstance(code, str) or not isinstance(filename, str):
        raise BadAsk("bad_request", "code and filename must be text")
    return {
        "code": code,
        "filename": os.path.join(HOME, filename),
        "argv": [str(a) for a in request.get("argv") or []],
        "env": env_of(request),
        "cwd": cwd_of(request, base),
    }
