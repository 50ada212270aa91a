"""A hundred runs at once with asyncio, and what a crowd of fates looks like."""

import asyncio
import collections
import time

from ringfence import AsyncClient

PROGRAMS = [
    "print(sum(range(1000)))",
    "raise SystemExit(3)",
    "import os; os.kill(os.getpid(), 9)",
    "print('x' * 10)",
]


async def main() -> None:
    """Run them all, twenty at a time."""
    turn = asyncio.Semaphore(20)
    async with AsyncClient() as client:

        async def one(number: int) -> str:
            async with turn:
                result = await client.run(PROGRAMS[number % len(PROGRAMS)], labels={"crowd": "many_runs"})
            return f"{result.exit.how} {result.exit.code}"

        began = time.monotonic()
        fates = collections.Counter(await asyncio.gather(*(one(n) for n in range(100))))
        print(f"100 runs in {time.monotonic() - began:.2f} s")
    for fate, count in fates.most_common():
        print(f"{count:4} {fate}")


asyncio.run(main())
