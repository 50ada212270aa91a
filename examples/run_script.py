"""One program in a fresh sandbox: a file in, a file out, limits, and its fate as a value."""

from ringfence import Client

SCRIPT = """
words = open("words.txt").read().split()
with open("longest.txt", "w") as out:
    out.write(max(words, key=len))
print(len(words), "words")
"""

with Client() as client:
    result = client.run(
        SCRIPT, files={"words.txt": "to be or not to be, that is the question"}, collect=["longest.txt"]
    )
    print("printed:", result.stdout.strip())
    print("collected:", result.files["longest.txt"].decode())
    print(f"took {result.timings.start:.1f} ms to start and {result.timings.run:.1f} ms to run")

    # A bad end is a value, not an exception: look at `.exit.how`, or call `.check()` to be raised at.
    endless = client.run("while True: pass", timeout=1)
    print("endless:", endless.exit.how, "-", endless.exit.reason)

    greedy = client.run("x = bytearray(10**9)", limits={"memory_bytes": 64 * 1024 * 1024})
    print("greedy:", greedy.exit.how, "ok" if greedy.ok else "not ok")
