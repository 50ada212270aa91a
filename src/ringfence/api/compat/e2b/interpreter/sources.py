"""Which languages there are, and the kernels' programs as they are sent into a sandbox."""

from __future__ import annotations

import functools
import importlib.resources
import json
from typing import Final

from ringfence.domain.errors import PlatformFault

GUEST: Final = importlib.resources.files("ringfence.guest")
COMMON: Final = ("annotations", "kernel.speech", "kernel.capture")
MODULES: Final = {
    "python": (*COMMON, "kernel.formats", "kernel.python"),
    "bash": (*COMMON, "kernel.child", "kernel.bash"),
    "javascript": (*COMMON, "kernel.child", "kernel.javascript"),
}
TEXTS: Final = {"javascript": ("node.js",)}
#: What a client may call a language, and what it is called in answers.
NAMES: Final = {
    "python": "python",
    "python3": "python",
    "js": "javascript",
    "javascript": "javascript",
    "ts": "typescript",
    "typescript": "typescript",
    "bash": "bash",
}
#: Which kernel runs it.
KERNELS: Final = {"python": "python", "javascript": "javascript", "typescript": "javascript", "bash": "bash"}


class NoKernel(PlatformFault):
    """There is no kernel for this language, or it could not be started. A 500 to E2B's clients."""

    default_code = "no_kernel"


def language_named(word: str | None) -> str:
    """The language a client means; Python when it says nothing. Raises NoKernel."""
    found = NAMES.get((word or "python").lower())
    if found is None:
        raise NoKernel(f"there is no kernel for {word!r:.80}")
    return found


def _source(name: str) -> str:
    return (GUEST / f"{name.replace('.', '/')}.py").read_text("utf-8")


# Read when the server starts: afterwards it may not see its own files.
BOOT: Final = _source("kernel.boot")
_MODULES: Final = {
    kernel: {f"ringfence.guest.{name}": _source(name) for name in names} for kernel, names in MODULES.items()
}
_TEXTS: Final = {
    kernel: {name: (GUEST / "kernel" / name).read_text("utf-8") for name in names} for kernel, names in TEXTS.items()
}


@functools.lru_cache(maxsize=16)
def order(kernel: str, cwd: str) -> bytes:
    """The line by which a kernel gets the rest of its program, and learns where it starts."""
    words = {"modules": _MODULES[kernel], "main": f"ringfence.guest.kernel.{kernel}", "texts": _TEXTS.get(kernel, {})}
    return json.dumps({**words, "cwd": cwd}).encode() + b"\n"
