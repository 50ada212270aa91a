"""Tasks, timeouts, cancelling, groups, queues, locks, threads and generators in one event loop."""

import asyncio, contextvars, time

ASKED = contextvars.ContextVar("asked", default="nobody")


async def step(name, seconds):
    await asyncio.sleep(seconds)
    return name


async def numbers(n):
    for i in range(n):
        yield i
        await asyncio.sleep(0)


async def fail():
    raise LookupError("lost")


async def context(name):
    ASKED.set(name)
    await asyncio.sleep(0.01)
    return ASKED.get()


async def main():
    print(await asyncio.gather(step("a", 0.03), step("b", 0.01), step("c", 0.02)))
    print([await done for done in asyncio.as_completed([step("slow", 0.2), step("fast", 0.01)])])
    try:
        async with asyncio.timeout(0.02):
            await asyncio.sleep(10)
    except TimeoutError:
        print("timeout")
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(step("x", 10))
            group.create_task(fail())
    except* LookupError as errors:
        print(errors.exceptions)
    task = asyncio.create_task(asyncio.sleep(10))
    await asyncio.sleep(0)
    print(task.cancel(), (await asyncio.gather(task, return_exceptions=True))[0].__class__.__name__)
    print([n async for n in numbers(5)], await asyncio.to_thread(time.sleep, 0.01))
    queue = asyncio.Queue(2)

    async def produce():
        for n in range(6):
            await queue.put(n)
        await queue.put(None)

    producing, got = asyncio.create_task(produce()), []
    while (n := await queue.get()) is not None:
        got.append(n)
    await producing
    print(got, await asyncio.gather(context("p"), context("q")), ASKED.get())


asyncio.run(main())
