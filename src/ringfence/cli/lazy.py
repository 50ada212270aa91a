"""Modules that are loaded only when they are used, by name: a server is not imported to run a script elsewhere."""

from __future__ import annotations

import importlib
from typing import Any

from ringfence.domain.errors import NotFound


def loaded(module: str, name: str) -> Any:
    """Return one name of one module. Raises NotFound when this installation does not have the module."""
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        hint = "install ringfence with its server: pip install ringfence"
        raise NotFound(f"{module} cannot be loaded: {error}", code="not_installed", remediation=hint) from error
