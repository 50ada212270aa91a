"""The JavaScript kernel: Node.js runs the cells (node.js, beside this), and this tells what it says and prints."""

from __future__ import annotations

import json
import shutil
import subprocess

from ringfence.guest.annotations import Any, Final
from ringfence.guest.kernel.capture import Capture
from ringfence.guest.kernel.child import Cell, Child, serve
from ringfence.guest.kernel.speech import Interrupts, Speech

MARK: Final = b"\n"


class Node:
    """A Node.js that takes cells from one pipe and answers on another."""

    def __init__(self, source: str) -> None:
        program = shutil.which("node")
        if program is None:
            raise FileNotFoundError("this template has no Node.js")

        def argv(cells: int, answers: int) -> list[str]:
            options = ["--disable-warning=ExperimentalWarning", "-e", source]
            return [program, *options, "--", str(cells), str(answers)]

        self.child = Child(argv, subprocess.DEVNULL)

    def run(self, request: dict[str, Any], speech: Speech, capture: Capture) -> bool:
        """One cell. False when Node.js ended with it."""
        self.child.tell(json.dumps(request).encode() + MARK)
        while (said := self.child.answer(MARK)) is not None:
            capture.settle()
            try:
                message = json.loads(said)
                kind = message["kind"]
                if kind == "done":
                    return True
                if kind == "shown":
                    speech.show(dict(message["data"]), main=bool(message["main"]))
                elif kind == "error":
                    speech.error(*(str(message[part]) for part in ("name", "value", "traceback")))
            except (ValueError, KeyError, TypeError):  # a cell has written to our pipe
                continue
        return False


def main(order: dict[str, Any], rest: bytes) -> None:
    """Serve cells until there are no more requests."""

    def start(_: Interrupts) -> tuple[Cell, Child]:
        node = Node(order["texts"]["node.js"])
        return node.run, node.child

    serve(order, rest, start)
