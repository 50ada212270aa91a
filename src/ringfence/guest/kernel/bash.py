"""The bash kernel: one interactive bash without a terminal, so that an interrupt ends a cell and not the shell."""

from __future__ import annotations

import re
import shlex
import subprocess

from ringfence.guest.annotations import Any, Final
from ringfence.guest.kernel.capture import Capture
from ringfence.guest.kernel.child import Cell, Child, serve
from ringfence.guest.kernel.speech import Interrupts, Speech

BASH: Final = ("/bin/bash", "--noprofile", "--norc", "--noediting", "-i")
QUIET: Final = "PS1= PS2= PROMPT_COMMAND=; set +o history +H; unset HISTFILE\n"
NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OLD: Final = "__ringfence_old_"
AGAIN: Final = 0.3  # seconds; an interrupt may have hit the very line that was to tell a cell's status
MARK: Final = b"\0"


class Shell:
    """Bash reads lines of ours from its input; cells come through a pipe of their own, and their status goes out."""

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        self.cells = self.statuses = 0
        self.number = 0
        self.child = Child(self._argv, subprocess.PIPE)
        self._line(QUIET)
        self.status()

    def _argv(self, cells: int, statuses: int) -> list[str]:
        self.cells, self.statuses = cells, statuses
        return list(BASH)

    def _line(self, text: str) -> None:
        into: Any = self.child.program.stdin
        try:
            into.write(text.encode())
            into.flush()
        except OSError:
            return  # it has ended: its status will not come

    def status(self) -> int | None:
        """How the last line went; None when bash has ended."""
        self.number += 1
        line = f"printf '%s %s\\0' {self.number} \"$?\" >&{self.statuses}\n"
        self._line(line)
        while (said := self.child.answer(MARK, AGAIN)) is not None:
            if not said:
                if self._interrupts.seen:
                    self._interrupts.seen = False
                    self._line(line)
                continue
            number, _, status = said[:-1].decode("ascii", "replace").partition(" ")
            if number == str(self.number) and status.isdigit():
                return int(status)
        return None

    def run(self, request: dict[str, Any], speech: Speech, capture: Capture) -> bool:
        """One cell. False when bash ended with it."""
        names = [name for name in request["env"] if NAME.fullmatch(name)]
        if len(names) < len(request["env"]):
            speech.error("ValueError", "a variable has a name that bash cannot have", "")
            return True
        for name in names:
            value = shlex.quote(request["env"][name])
            self._line(f"{OLD}{name}=$(declare -p {name} 2>/dev/null); export {name}={value}\n")
        self._line(f"IFS= read -r -d '' -u {self.cells} __ringfence_cell; eval \"$__ringfence_cell\" </dev/null\n")
        self.child.tell(request["code"].replace("\0", "").encode("utf-8", "replace") + MARK)
        status = self.status()
        for name in names:
            self._line(f'unset {name}; eval "${OLD}{name}"; unset {OLD}{name}\n')
        capture.settle()
        if status == 130:
            speech.error("KeyboardInterrupt", "", "the cell was interrupted")
        elif status:
            speech.error("CommandFailed", f"exit code {status}", "")
        return status is not None


def start(interrupts: Interrupts) -> tuple[Cell, Child]:
    """A fresh bash."""
    shell = Shell(interrupts)
    return shell.run, shell.child


def main(order: dict[str, Any], rest: bytes) -> None:
    """Serve cells until there are no more requests."""
    serve(order, rest, start)
