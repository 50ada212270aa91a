"""ringfence: run code from strangers. These are the SDK's names.

They are fetched when first asked for. The node and the guest agent import this package too, and must not be made to
load an HTTP client, least of all inside a sandbox.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ringfence.client import AsyncClient, AsyncSandbox, Client, ProgramFailed, Sandbox

__all__ = ["AsyncClient", "AsyncSandbox", "Client", "ProgramFailed", "Sandbox"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("ringfence.client"), name)
