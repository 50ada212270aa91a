"""Threads with every tool of the library: locks, conditions, events, barriers, semaphores, queues, locals, timers."""

import queue, threading, time

total, lock = 0, threading.Lock()


def count():
    global total
    for _ in range(10_000):
        with lock:
            total += 1


threads = [threading.Thread(target=count) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(total)

jobs, results = queue.Queue(5), queue.PriorityQueue()


def worker():
    while (job := jobs.get()) is not None:
        results.put((job, job**2))
        jobs.task_done()


workers = [threading.Thread(target=worker) for _ in range(3)]
for thread in workers:
    thread.start()
for n in range(20):
    jobs.put(n)
jobs.join()
for _ in workers:
    jobs.put(None)
print([results.get()[1] for _ in range(20)])

barrier, arrived = threading.Barrier(4), []
own = threading.local()


def meet(n):
    own.n = n
    barrier.wait(10)
    arrived.append(own.n)


threads = [threading.Thread(target=meet, args=(n,)) for n in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(sorted(arrived), hasattr(own, "n"))
event = threading.Event()
threading.Timer(0.05, event.set).start()
print(event.wait(5), event.is_set())
room = threading.BoundedSemaphore(2)
print(room.acquire(), room.acquire(), room.acquire(blocking=False))
condition, ready = threading.Condition(), []


def notify():
    with condition:
        ready.append(1)
        condition.notify_all()


threading.Timer(0.05, notify).start()
with condition:
    print(condition.wait_for(lambda: ready, 5))


def broken():
    raise RuntimeError("in a thread")


threading.excepthook = lambda args: print("hook", args.exc_type.__name__, args.exc_value)
thread = threading.Thread(target=broken)
thread.start()
thread.join()
print(threading.active_count(), threading.main_thread() is threading.current_thread(), time.monotonic() > 0)
