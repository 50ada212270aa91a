"""What is measured, as a program of a user's: the same steps by E2B's client or by ours, a round for a line of input.

Run by its path, as `program.py CLIENT WANTED`, with that client's packages first: this file imports nothing of ours.
Each answer is one line of JSON: milliseconds by step, or what went wrong.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Final

MEGABYTE: Final = 1_000_000
PLACE: Final = "/home/user/measured.bin"
WORD: Final = "here"
LINE: Final = f"echo {WORD}"
CELL: Final = f"print('{WORD}')"
Round = dict[str, float]


class Watch:
    """Milliseconds, step by step."""

    def __init__(self) -> None:
        self.spent: Round = {}

    def take(self, step: str, act: Callable[[], Any]) -> Any:
        """Do it, and note how long it took."""
        began = time.perf_counter()
        found = act()
        self.spent[step] = round((time.perf_counter() - began) * 1e3, 4)
        return found


def _right(found: Any, wanted: Any) -> None:
    if found != wanted:
        raise ValueError(f"a wrong answer: {found!r:.200}")


def e2b(_: dict[str, Any]) -> Callable[[bytes], Round]:
    """A round by E2B's client."""
    sandbox: Any = importlib.import_module("e2b_code_interpreter").Sandbox

    def turn(data: bytes) -> Round:
        watch = Watch()
        box = watch.take("create", lambda: sandbox.create(timeout=60))
        try:
            _right(watch.take("first_command", lambda: box.commands.run(LINE)).stdout, f"{WORD}\n")
            for step in ("first_code", "next_code"):
                _right("".join(watch.take(step, lambda: box.run_code(CELL)).logs.stdout), f"{WORD}\n")
            watch.take("up", lambda: box.files.write(PLACE, data))
            _right(bytes(watch.take("down", lambda: box.files.read(PLACE, format="bytes"))), data)
        finally:
            watch.take("kill", box.kill)
        return watch.spent

    return turn


def ringfence(wanted: dict[str, Any]) -> Callable[[bytes], Round]:
    """The same by ours, which is told what to create."""
    ours: Any = importlib.import_module("ringfence")
    client = ours.Client()

    def turn(data: bytes) -> Round:
        watch = Watch()
        box = watch.take("create", lambda: ours.Sandbox.create(**wanted, ttl=60, client=client))
        try:
            words = ["/bin/bash", "-l", "-c", LINE]
            _right(watch.take("first_command", lambda: box.exec(words)).stdout, f"{WORD}\n")
            for step in ("first_code", "next_code"):
                _right(watch.take(step, lambda: box.run(CELL)).stdout, f"{WORD}\n")
            watch.take("up", lambda: box.files.write(PLACE, data))
            _right(watch.take("down", lambda: box.files.read(PLACE)), data)
        finally:
            watch.take("kill", box.stop)
        return watch.spent

    return turn


def main(name: str, wanted: str) -> None:
    """Rounds until there is no more input."""
    turn = {"e2b": e2b, "ringfence": ringfence}[name](json.loads(wanted))
    print(json.dumps({}), flush=True)  # imported, and ready
    for _ in sys.stdin:
        try:
            answer: dict[str, Any] = {"spent": turn(os.urandom(MEGABYTE))}
        except Exception as error:  # noqa: BLE001 - told; the next round may be right
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
