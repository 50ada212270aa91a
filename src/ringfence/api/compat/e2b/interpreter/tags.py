"""Which context a kernel is of, as a tag that it carries: by it a server knows kernels that another began.

Tags are read back from inside a sandbox, and believed for nothing but that sandbox's own contexts.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import Final, Self

from ringfence.api.compat.e2b.interpreter.sources import KERNELS
from ringfence.domain.errors import RingfenceError
from ringfence.engine import checks

#: How a kernel and its server speak to each other: to be counted on when that changes.
SPEAKS: Final = "kernel-1"
OURS: Final = "kernel-"
USUAL: Final = ("own", "usual")
_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Tag:
    """A context: one of its client's own, or the usual one of its language."""

    id: str
    language: str
    usual: bool
    cwd: str

    @property
    def text(self) -> str:
        """As a kernel carries it."""
        return " ".join((SPEAKS, self.id, self.language, USUAL[self.usual], self.cwd))

    @staticmethod
    def outdated(text: str | None) -> bool:
        """Whether it is a kernel's that a server of another time began, and which this one cannot speak to."""
        return text is not None and text.startswith(OURS) and not text.startswith(f"{SPEAKS} ")

    @classmethod
    def read(cls, text: str | None) -> Self | None:
        """What a kernel carries; nothing where it is none of ours."""
        parts = (text or "").split(" ", 4)
        if len(parts) == 5 and parts[0] == SPEAKS and _ID.fullmatch(parts[1]) and parts[2] in KERNELS:
            with contextlib.suppress(RingfenceError):
                return cls(parts[1], parts[2], parts[3] == USUAL[True], checks.path(parts[4], "cwd"))
        return None
