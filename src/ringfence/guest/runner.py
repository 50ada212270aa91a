"""The warm interpreter: waits in a fork, then runs one program as `python3 FILE` would."""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import itertools
import json
import mmap
import os
import signal
import sys
import threading
import types

TYPE_CHECKING = False  # this module also runs alone, in an interpreter started afresh
if TYPE_CHECKING:
    from ringfence.guest.annotations import Any, Final

LENGTH: Final = 4
ASKED: Final = bytes(LENGTH)  # an order of no length: are you still there?
DONE: Final = 1  # first byte of the shared page once the program has ended; the second is its exit code
HERE: Final = b"H"  # the answer to ASKED
READY: Final = b"R"  # said to the agent once random state is renewed and only an order is wanting
PYTHON: Final = "/usr/bin/python3"


def _read_exactly(fd: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = os.read(fd, count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def read_order(fd: int) -> dict[str, Any]:
    """One length-prefixed JSON order from the agent. Raises EOFError when the agent hangs up."""
    size = int.from_bytes(_read_exactly(fd, LENGTH), "big")
    order: dict[str, Any] = json.loads(_read_exactly(fd, size))
    return order


def await_order(fd: int) -> dict[str, Any]:
    """As read_order(), and until it comes whoever asks is told that this interpreter is still there."""
    while True:
        size = int.from_bytes(_read_exactly(fd, LENGTH), "big")
        if size:
            order: dict[str, Any] = json.loads(_read_exactly(fd, size))
            return order
        os.write(fd, HERE)


def encode_order(order: dict[str, Any]) -> bytes:
    """The bytes read_order() reads."""
    data = json.dumps(order).encode()
    return len(data).to_bytes(LENGTH, "big") + data


def _text(fd: int, mode: str, **options: Any) -> Any:
    raw: Any = io.FileIO(fd, mode, closefd=False)
    raw.name = _NAMES[fd]
    buffer: Any = io.BufferedReader(raw) if mode == "r" else io.BufferedWriter(raw)
    stream: Any = io.TextIOWrapper(buffer, encoding="utf-8", **options)
    stream.mode = mode
    return stream


SEARCH: Final = [place for place in sys.path if place and not place.startswith("/run/ringfence")]
_NAMES: Final = ("<stdin>", "<stdout>", "<stderr>")
_OURS: Final = read_order.__code__.co_filename


def _fresh_streams() -> None:
    tty = os.isatty(1)
    # As the interpreter does it for C.UTF-8: a file name that is no text can be printed.
    sys.stdin = sys.__stdin__ = _text(0, "r", errors="surrogateescape")  # type: ignore[misc]
    output = _text(1, "w", errors="surrogateescape", line_buffering=tty)
    sys.stdout = sys.__stdout__ = output  # type: ignore[misc]
    errors = _text(2, "w", errors="backslashreplace", line_buffering=True)
    sys.stderr = sys.__stderr__ = errors  # type: ignore[misc]


def _fresh_main(order: dict[str, Any]) -> types.ModuleType:
    """A new __main__, as the interpreter makes it for a script."""
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=order["filename"], __builtins__=__builtins__, __cached__=None)
    sys.modules["__main__"] = main
    sys.argv = [order["filename"], *order.get("argv", [])]
    sys.path[:] = [os.getcwd(), *SEARCH]
    return main


def _report_uncaught() -> None:
    """The traceback a script's user would see: ours is not in it."""
    kind, error, trace = sys.exc_info()
    while trace is not None and trace.tb_frame.f_code.co_filename == _OURS:
        trace = trace.tb_next
    if kind is not None and error is not None:
        sys.excepthook(kind, error.with_traceback(trace), trace)


def _exit_code(error: SystemExit) -> int:
    code = error.code
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


def _keep_source(filename: str, code: str) -> None:
    """Tracebacks, inspect and multiprocessing's spawn read a program's source from its file."""
    try:
        fd = os.open(filename, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, code.encode("utf-8", "surrogatepass"))
        finally:
            os.close(fd)
    except OSError:
        return  # a full scratch: the program runs all the same, with barer tracebacks


def execute(order: dict[str, Any]) -> int:
    """Run the order's program in a fresh __main__ and return the exit code the interpreter would give."""
    filename, code = order["filename"], order["code"]
    _keep_source(filename, code)
    main = _fresh_main(order)
    try:
        exec(compile(code, filename, "exec", dont_inherit=True), main.__dict__)  # noqa: S102 - the whole point
        return 0
    except SystemExit as error:
        return _exit_code(error)
    except KeyboardInterrupt:
        _report_uncaught()
        return 128 + signal.SIGINT
    except BaseException:  # noqa: BLE001 - a program may raise anything; it gets its traceback
        _report_uncaught()
        return 1


def finish(last: str) -> None:
    """What the interpreter does at its end: join threads, run exit handlers, let go of what was made, flush.

    `last` names the youngest of the modules that were there before the program was.
    """
    for ending in (threading._shutdown, atexit._run_exitfuncs):  # type: ignore[attr-defined]
        try:
            ending()
        except BaseException:  # noqa: BLE001 - an exit handler may raise anything; the rest still run
            sys.excepthook(*sys.exc_info())
    _let_go(last)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue


def perform(order: dict[str, Any]) -> int:
    """Everything from an order to the exit code; what the program printed is out. Raises OSError for a bad cwd."""
    os.chdir(order["cwd"])
    os.environ.update(order.get("env", {}))
    last = next(reversed(sys.modules))
    gc.enable()
    code = execute(order)
    finish(last)
    return code


def _younger(last: str) -> list[str]:
    """The modules that were imported after `last`. Not asked of each module: to read a name is to fetch its page."""
    if last not in sys.modules:
        return []  # the program threw it out, and nobody can tell any more
    return list(itertools.takewhile(lambda name: name != last, reversed(sys.modules)))[::-1]


def _let_go(last: str) -> None:
    """Take the program's own modules apart: a file that it never closed is written to the end only then."""
    for name in ["__main__", *_younger(last)]:
        sys.modules.pop(name, None)
    # A module whose functions know it is a circle. While nothing has grown old, the young are all there is.
    gc.collect(0 if gc.get_count()[1:] == (0, 0) else 2)


def main(order_fd: int, report: mmap.mmap | None = None) -> None:
    """Wait for one order, run it, leave its code on the shared page, exit. Never returns.

    The agent reads the page once our outputs are closed, and answers before the kernel has torn our memory down.
    A page, because a descriptor would be one more thing in a program's hands.
    """
    code, myself = 1, os.getpid()
    try:
        hide()
        prepare()
        rehearse()
        with contextlib.suppress(BrokenPipeError):  # whoever sent an order at once does not wait for this word
            os.write(order_fd, READY)
        order = await_order(order_fd)
        os.close(order_fd)
        code = perform(order)
        if os.getpid() == myself and report is not None:  # a child that the program forked speaks for nobody
            report[:2] = bytes((DONE, code & 0xFF))
            os.close(1)
            os.close(2)
    except EOFError:
        code = 0
    except OSError as error:
        os.write(2, f"ringfence: cannot start: {error}\n".encode())
        code = 126
    finally:
        os._exit(code & 0xFF)


def hide() -> None:
    """Our own modules are none of a program's."""
    for name in [n for n in sys.modules if n == "ringfence" or n.startswith("ringfence.")]:
        del sys.modules[name]


def prepare(*, streams: bool = True) -> None:
    """All that must be done before the order is known; the `streams` may have been made before the fork."""
    threading.main_thread()._set_native_id()  # type: ignore[attr-defined]  # as Python's own fork would have done
    if streams:
        _fresh_streams()
    gc.freeze()  # what is here by now is nothing that a program's collections need to look at


def make_streams() -> None:
    """Make the standard streams of forks to come whose outputs are pipes: how a stream behaves is seen when it is made.

    The outputs themselves stay what they are.
    """
    kept = os.dup(1), os.dup(2)
    pipe = os.pipe()
    try:
        for fd in (1, 2):
            os.dup2(pipe[1], fd)
        _fresh_streams()
    finally:
        for fd, old in zip((1, 2), kept, strict=True):
            os.dup2(old, fd)
        for fd in (*kept, *pipe):
            os.close(fd)


def rehearse() -> None:
    """Run a throwaway program: the pages that a run dirties are copied while nobody waits."""
    order = json.loads(encode_order({"filename": os.devnull, "code": "x = [str(i) for i in range(9)]\n"})[LENGTH:])
    execute(order)
    sys.stdout.flush()


def fresh_argv(preload: list[str], order_fd: int, python: str | None = None) -> list[str]:
    """The command that is this module in an interpreter of its own (zygote = "none"), or an image's; none without one.

    Read while our source can still be seen: a sandbox's root does not hold it.
    """
    if python == "":
        return []
    with open(__file__) as file:
        source = file.read()
    tail = f"\nimport importlib\nfor name in {preload!r}:\n    importlib.import_module(name)\nmain({order_fd})\n"
    return [python or PYTHON, "-I", "-c", source + tail]
