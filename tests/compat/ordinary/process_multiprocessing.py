"""Pools, queues, pipes, shared memory, locks and managers, by fork, spawn and forkserver."""

import multiprocessing as mp
from multiprocessing import shared_memory


def square(x):
    return x * x


def add(counter, lock, n):
    for _ in range(n):
        with lock:
            counter.value += 1


def answer(connection, queue):
    connection.send(connection.recv().upper())
    queue.put(mp.current_process().name)


def fill(name):
    block = shared_memory.SharedMemory(name)
    block.buf[:5] = b"hello"
    block.close()


def fail():
    raise SystemExit(7)


if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        context = mp.get_context(method)
        with context.Pool(3) as pool:
            print(method, pool.map(square, range(10)), pool.apply_async(square, (12,)).get(30))
        counter, lock = context.Value("i", 0, lock=False), context.Lock()
        workers = [context.Process(target=add, args=(counter, lock, 100)) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        ours, theirs = context.Pipe()
        queue = context.Queue()
        worker = context.Process(target=answer, args=(theirs, queue), name="answerer")
        worker.start()
        ours.send("question")
        print(counter.value, ours.recv(), queue.get(timeout=30), worker.join(), worker.exitcode)
        failing = context.Process(target=fail)
        failing.start()
        failing.join()
        print(failing.exitcode)
    block = shared_memory.SharedMemory(create=True, size=100)
    worker = mp.get_context("fork").Process(target=fill, args=(block.name,))
    worker.start()
    worker.join()
    print(bytes(block.buf[:5]))
    block.close()
    block.unlink()
    with mp.Manager() as manager:
        shared = manager.dict(a=1)
        shared["b"] = manager.list([1, 2])
        print(sorted(shared), list(shared["b"]))
