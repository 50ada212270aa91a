"""Output piece by piece as it is written, and a run that is stopped by leaving it."""

from ringfence import Client

COUNTDOWN = """
import sys, time
for n in (3, 2, 1):
    print(n, flush=True)
    time.sleep(0.1)
print("lift-off", file=sys.stderr)
"""
FOREVER = """
import itertools
for n in itertools.count():
    print("line", n, flush=True)
"""

with Client() as client:
    stream = client.stream_run(COUNTDOWN)
    for chunk in stream:
        print(f"{chunk.stream}: {chunk.text.strip()}")
    print("ended:", stream.result.check().exit.how)

    # Leaving the `with` disconnects, and a one-shot run whose client is gone is stopped.
    with client.stream_run(FOREVER) as stream:
        for chunk in stream:
            if "line 100" in chunk.text:
                print("seen enough of run", stream.started.id)
                break
