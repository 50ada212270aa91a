"""A kernel's first program: takes the kernel's own modules from its input, where its requests follow, and starts it.

Sent as source code to a warm interpreter, so a kernel is always as new as the server that speaks to it.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import json
import os
import sys
from collections.abc import Sequence

TYPE_CHECKING = False  # this module is sent as text, before any other of ours is there
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

    from ringfence.guest.annotations import Any, Final

PIECE: Final = 65536


class Sent(importlib.abc.SourceLoader):
    """Modules whose source was sent; a name that others begin with is a package."""

    def __init__(self, sources: dict[str, str]) -> None:
        self._sources = sources
        self._packages = {name.rpartition(".")[0] for name in sources}
        self._packages |= {name.rpartition(".")[0] for name in self._packages}

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        """See importlib.abc.MetaPathFinder, which asks for nothing else."""
        if name not in self._sources and name not in self._packages:
            return None
        return importlib.util.spec_from_loader(name, self, is_package=name in self._packages)

    def get_filename(self, name: str) -> str:
        """See importlib.abc.ExecutionLoader."""
        return name

    def get_data(self, path: Any) -> bytes:
        """See importlib.abc.ResourceLoader."""
        return self._sources.get(path, "").encode()


def first_line(fd: int) -> tuple[dict[str, Any], bytes]:
    """The order, and what of the requests behind it was read along. Raises EOFError when there is none."""
    data = b""
    while b"\n" not in data:
        piece = os.read(fd, PIECE)
        if not piece:
            raise EOFError
        data += piece
    line, _, rest = data.partition(b"\n")
    order: dict[str, Any] = json.loads(line)
    return order, rest


def start(fd: int) -> None:
    """Become the kernel that the order names. Returns when its input ends."""
    order, rest = first_line(fd)
    finder = Sent(order["modules"])
    sys.meta_path.insert(0, finder)
    try:
        kernel = importlib.import_module(order["main"])
    finally:
        sys.meta_path.remove(finder)
    kernel.main(order, rest)


if __name__ == "__main__":
    start(0)
