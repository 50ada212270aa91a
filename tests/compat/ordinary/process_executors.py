"""Futures of threads and of processes: results in order and as completed, errors, timeouts, cancelling."""

import concurrent.futures as cf
import time


def work(n):
    time.sleep(0.01 * (5 - n))
    if n == 3:
        raise ValueError("three")
    return n * 10


if __name__ == "__main__":
    for kind in (cf.ThreadPoolExecutor, cf.ProcessPoolExecutor):
        with kind(3) as pool:
            futures = [pool.submit(work, n) for n in range(5)]
            done, _ = cf.wait(futures, 30)
            print(kind.__name__, len(done), [f.result() if not f.exception() else repr(f.exception()) for f in futures])
            print(sum(pool.map(abs, range(-50, 0), chunksize=10)))
    with cf.ThreadPoolExecutor(1) as pool:
        slow, waiting = pool.submit(time.sleep, 0.2), pool.submit(print, "never")
        print(waiting.cancel(), slow.cancel())
        try:
            slow.result(0.01)
        except TimeoutError:
            print("not yet")
