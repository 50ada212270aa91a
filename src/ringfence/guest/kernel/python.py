"""The Python kernel: IPython's shell inside this very process, its results and errors as messages."""

from __future__ import annotations

import builtins
import contextlib
import importlib
import os
import site
import sys
import warnings
from collections.abc import Iterator

from ringfence.guest.annotations import Any, Final
from ringfence.guest.kernel import formats
from ringfence.guest.kernel.capture import Capture
from ringfence.guest.kernel.speech import Interrupts, Speech, requests

NOT_SO_HERE: Final = ("You executed the system command !pip", "To exit: use")  # there is one Python, and no prompt
PLACE: Final = "/tmp/.ipython"  # noqa: S108 - IPython's own files, in the sandbox, out of its user's way


class Cells:
    """Runs cells, one after the other, in one namespace."""

    def __init__(self, speech: Speech, capture: Capture, interrupts: Interrupts) -> None:
        self._speech = speech
        self._capture = capture
        self._interrupts = interrupts
        self._leaving = False
        self._failed = False
        self._process = os.getpid()
        self.shell: Any = None

    def prepare(self) -> None:
        """Make IPython's shell, and have it speak through us. Raises ImportError where there is none."""
        module: Any = importlib.import_module("IPython.core.interactiveshell")
        config: Any = importlib.import_module("traitlets.config").Config()
        config.HistoryManager.enabled = False  # no database, and no thread that writes one
        self.shell = module.InteractiveShell.instance(ipython_dir=PLACE, config=config)
        self._speak_through_us()
        builtins.input = no_input
        for words in NOT_SO_HERE:
            warnings.filterwarnings("ignore", message=words)
        formats.install(self.shell)

    def _speak_through_us(self) -> None:
        shell, silent = self.shell, lambda *_, **__: None
        with contextlib.suppress(Exception):  # the name of no colours has changed its spelling
            shell.colors = "nocolor"
        shell.displayhook.start_displayhook = shell.displayhook.write_output_prompt = silent
        shell.displayhook.finish_displayhook = shell.display_pub.clear_output = silent
        shell.enable_gui = silent
        shell._tee = lambda *_, **__: contextlib.nullcontext()  # IPython 9 would keep all that cells ever print
        shell.displayhook.write_format_data = self._result
        shell.display_pub.publish = self._displayed
        shell._showtraceback = self._traceback
        shell.system = self._system
        shell.ask_exit = self._leave

    def _result(self, data: dict[str, Any], _: Any = None) -> None:
        self._capture.settle()
        self._speech.show(data, main=True)

    def _displayed(self, data: dict[str, Any], *_: Any, update: bool = False, **__: Any) -> None:
        if not update:
            self._capture.settle()
            self._speech.show(data, main=False)

    def _traceback(self, kind: type[BaseException], error: BaseException, lines: list[str]) -> None:
        self._capture.settle()
        self._failed = True
        try:
            value = str(error)
        except Exception:  # noqa: BLE001 - a cell's own class decides what happens here
            value = "(an error that cannot be shown)"
        self._speech.error(kind.__name__, value, "\n".join(lines))

    def _system(self, line: str) -> None:
        """`!line` and what is built on it; a package may have come."""
        self.shell.system_raw(line)
        importlib.invalidate_caches()

    def _leave(self) -> None:
        self._leaving = True

    def run(self, request: dict[str, Any]) -> None:
        """One cell, from its number to its end."""
        self._capture.place()
        self._interrupts.listen()
        importlib.invalidate_caches()
        self._failed = False
        self._speech.say({"kind": "started", "count": self.shell.execution_count})
        with environment(request["env"]):
            try:
                self._cell(request["code"])
            except KeyboardInterrupt:  # it came when nothing of the cell's was running
                self._interrupted()
        self._capture.settle()
        self._forget()
        self._speech.say({"kind": "done", "id": request["id"], "last": self._leaving})
        if self._leaving:
            os._exit(0)

    def _forget(self) -> None:
        """Let go of what IPython 9 keeps of results and errors for notebooks that are saved."""
        for name in ("outputs", "exceptions"):
            kept = getattr(self.shell.history_manager, name, None)
            if isinstance(kept, dict):
                kept.clear()

    def _cell(self, code: str) -> None:
        self._interrupts.running = True
        try:
            self.shell.run_cell(code, store_history=True)
        finally:
            self._interrupts.running = False
            if os.getpid() != self._process:  # a child that the cell forked and left to its end is no second kernel
                sys.stdout.flush()
                os._exit(0)

    def _interrupted(self) -> None:
        if not self._failed:
            self._speech.error("KeyboardInterrupt", "", "KeyboardInterrupt")


@contextlib.contextmanager
def environment(wanted: dict[str, str]) -> Iterator[None]:
    """Variables that are there for one cell."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def no_input(*_: Any) -> str:
    """There is nobody to ask."""
    raise RuntimeError("input() has nobody to ask here: a cell gets no input")


def enter(folder: str) -> None:
    """Start in this folder, made if it is not there yet."""
    os.makedirs(folder, exist_ok=True)
    os.chdir(folder)
    sys.path[:] = ["", *sys.path[1:]]
    own = site.getusersitepackages()
    if own not in sys.path:  # pip will put packages there
        sys.path.insert(1, own)


def main(order: dict[str, Any], rest: bytes) -> None:
    """Serve cells until there are no more requests."""
    interrupts = Interrupts()
    speech = Speech(1, interrupts)
    asked = requests(0, rest, speech)
    enter(order["cwd"])
    cells = Cells(speech, Capture(speech, interrupts), interrupts)
    interrupts.listen()
    begun(cells)
    speech.say({"kind": "ready"})
    for request in asked:
        cells.run(request)
    os._exit(0)


def begun(cells: Cells) -> None:
    """Make ready. What fails now is told on descriptor 2, which is still the one we were started with."""
    cells.prepare()
    cells._capture.begin()
