"""ringfence: run code from strangers. These are the SDK's names.

They are fetched when first asked for. The node, its launchers and the guest agent import this package too, and must not
be made to load an HTTP client, least of all inside a sandbox, nor what a sandbox's start would wait for.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # typing's own would cost each launcher a third of its imports

if TYPE_CHECKING:
    from typing import Any

    from ringfence.client import AsyncClient, AsyncSandbox, Client, ProgramFailed, Sandbox

__all__ = ["AsyncClient", "AsyncSandbox", "Client", "ProgramFailed", "Sandbox"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("ringfence.client"), name)
