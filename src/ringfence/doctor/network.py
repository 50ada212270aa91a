"""Whether sandboxes here can have a network: not read from a list of features, but tried."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from ringfence.domain.errors import RingfenceError
from ringfence.network.network import Network, lacking

TRY_SECONDS: Final = 30.0
FIX: Final = "run as root, on a kernel with network namespaces, veth and nf_tables, with Debian's nftables installed"


@dataclass(frozen=True, slots=True)
class Found:
    """Whether egress policies can be enforced here; if not, why, and what would add it."""

    ok: bool
    reason: str = ""
    fix: str = ""


def examine() -> Found:
    """Open the router and the gate as a node would, and close them again."""
    why = lacking()
    if why:
        return Found(False, why, FIX)
    try:
        asyncio.run(_try())
    except RingfenceError as error:
        return Found(False, error.cause, error.remediation or FIX)
    except (OSError, TimeoutError) as error:
        return Found(False, str(error) or "it did not open in time", FIX)
    return Found(True)


async def _try() -> None:
    network = Network()
    async with asyncio.timeout(TRY_SECONDS):
        try:
            await network.open()
        finally:
            await network.close()
