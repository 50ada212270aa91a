"""What every runtime promises about `run`: source code ends as `python3 FILE` would end it.

One row a program. `real` rows need an interpreter; a runtime without one (the fake) declares that in its Subject.
"""

# ruff: noqa: E501 - one row a program

from __future__ import annotations

import sys
import textwrap
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.conformance.conftest import Bench
from tests.support.guestharness import Host, Reply

UNHANDLED = "Traceback (most recent call last):\n"


@dataclass(frozen=True)
class Row:
    """A program, and what is expected of it."""

    code: str
    out: str = ""
    err: tuple[str, ...] = ()  # pieces, in order; none: nothing is written
    exit: int | None = 0
    signal: int | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    real: bool = True


ROWS = {
    "words": Row("print('hello', 'world')", "hello world\n", real=False),
    "nothing": Row("", real=False),
    "its own name": Row("print(__name__)", "__main__\n", real=False),
    "arguments": Row("import sys\nprint(sys.argv[1:] if 0 else sys.argv)", "['/home/user/main.py', 'a b', '']\n", fields={"argv": ["a b", ""]}),
    "arguments as they are": Row("import sys\nprint(sys.argv)", "['/home/user/main.py', 'x']\n", fields={"argv": ["x"]}, real=False),
    "environment": Row("import os\nprint(os.environ['A'])", "b\n", fields={"env": {"A": "b"}}, real=False),
    "both streams": Row("import sys\nprint('o')\nprint('e', file=sys.stderr)", "o\n", ("e\n",), real=False),
    "a code": Row("import sys\nsys.exit(5)", exit=5, real=False),
    "SystemExit": Row("raise SystemExit(9)", exit=9, real=False),
    "SystemExit bare": Row("raise SystemExit", exit=0, real=False),
    "SystemExit with words": Row("raise SystemExit('too bad')", err=("too bad\n",), exit=1, real=False),
    "SystemExit 256": Row("raise SystemExit(256)", exit=0, real=False),
    "SystemExit -1": Row("raise SystemExit(-1)", exit=255, real=False),
    "an error": Row("print('before')\nraise NameError('no such thing')", "before\n", (UNHANDLED, "line 2", "NameError: no such thing\n"), 1, real=False),
    "a division": Row("1/0", "", (UNHANDLED, 'File "/home/user/main.py", line 1, in <module>', "1/0", "ZeroDivisionError: division by zero\n"), 1, real=False),
    "a syntax error": Row("print('never')\nthis is no python", "", ("SyntaxError",), 1, real=False),
    "its own death": Row("import os\nos.kill(os.getpid(), 9)", exit=None, signal=9, real=False),
    "a name of its own": Row("1/0", "", ('File "/home/user/mine.py", line 1',), 1, fields={"filename": "mine.py"}, real=False),
    "a deep traceback": Row(
        "def f():\n    g()\ndef g():\n    raise KeyError('k')\nf()",
        "",
        (UNHANDLED, "line 5, in <module>", "f()", "line 2, in f", "line 4, in g", "KeyError: 'k'"),
        1,
    ),
    "chained errors": Row("try:\n    1/0\nexcept ZeroDivisionError as e:\n    raise ValueError('v') from e", "", ("ZeroDivisionError", "direct cause", "ValueError: v"), 1),
    "an exception hook": Row("import sys\nsys.excepthook = lambda *a: print('hooked', a[0].__name__)\n1/0", "hooked ZeroDivisionError\n", (), 1),
    "an interrupt": Row("raise KeyboardInterrupt", "", (UNHANDLED, "KeyboardInterrupt"), 130),
    "exit handlers": Row("import atexit\natexit.register(print, 'last')\nprint('first')", "first\nlast\n"),
    "exit handlers after an error": Row("import atexit\natexit.register(print, 'last')\n1/0", "last\n", ("ZeroDivisionError",), 1),
    "a failing exit handler": Row("import atexit\natexit.register(lambda: 1/0)\natexit.register(print, 'still')", "still\n", ("ZeroDivisionError",), 0),
    "threads are waited for": Row(
        "import threading, time\ndef late():\n    time.sleep(0.2)\n    print('late')\nthreading.Thread(target=late).start()\nprint('main')",
        "main\nlate\n",
    ),
    "daemon threads are not": Row("import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\nprint('over')", "over\n"),
    "os._exit": Row("import os\nprint('lost in a buffer')\nos._exit(7)", "", exit=7),
    "a child that falls off the end": Row(
        "import os, sys, time\npid = os.fork()\nif pid:\n    os.waitpid(pid, 0)\n    time.sleep(0.2)\n    print('parent')\n    sys.exit(4)\nprint('child')",
        "child\nparent\n",
        exit=4,
    ),
    "a pool of processes": Row(
        "import multiprocessing\ndef f(x):\n    return x * x\nif __name__ == '__main__':\n    with multiprocessing.Pool(2) as p:\n        print(sum(p.map(f, range(10))))",
        "285\n",
    ),
    "a pool of fresh interpreters": Row(
        "import multiprocessing\ndef f(x):\n    return x * x\nif __name__ == '__main__':\n    with multiprocessing.get_context('spawn').Pool(1) as p:\n        print(p.map(f, [3]))",
        "[9]\n",
    ),
    "a subprocess": Row("import subprocess\nprint(subprocess.run(['echo', 'hi'], capture_output=True, text=True).stdout)", "hi\n\n"),
    "asyncio": Row("import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    print('done')\nasyncio.run(f())", "done\n"),
    "binary output": Row("import sys\nsys.stdout.buffer.write(bytes([0, 255, 10]))", "\0\udcff\n"),
    "a lone surrogate": Row("print('\\ud800')", "", ("UnicodeEncodeError",), 1),
    "unicode": Row("print('\u00fc\u4e2d\U0001f600')", "\u00fc\u4e2d\U0001f600\n"),
    "an encoding cookie changes nothing": Row("# -*- coding: latin-1 -*-\nprint('\u00fc')", "\u00fc\n"),
    "pickling what it defines": Row("import pickle\nclass C: pass\nprint(type(pickle.loads(pickle.dumps(C()))).__name__)", "C\n"),
    "inspecting its own source": Row("import inspect\ndef f():\n    return 1\nprint(inspect.getsource(f).splitlines()[0])", "def f():\n"),
    "dataclasses and annotations": Row("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\nprint(P(1), __annotations__ if '__annotations__' in globals() else {})", "P(x=1) {}\n"),
    "globals are its own": Row("print(sorted(n for n in globals() if not n.startswith('__')))", "[]\n"),
    "its own module": Row("import sys\nprint(sys.modules['__main__'].__dict__ is globals(), __file__)", "True /home/user/main.py\n"),
    "no module of ours": Row("import sys\nprint([m for m in sys.modules if 'ringfence' in m])", "[]\n"),
    "imports from beside it": Row("import helper\nprint(helper.X)", "42\n"),
    "a quiet end with output closed": Row("import sys\nprint('x')\nsys.stdout.flush()\nsys.stdout.close()", "x\n"),
    "the garbage collector works": Row("import gc\nprint(gc.isenabled())", "True\n"),
    "signals as a fresh program has them": Row("import signal\nprint(signal.getsignal(signal.SIGINT) is signal.default_int_handler, signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL)", "True True True\n"),
    "a pipe that breaks": Row("import sys, os\nr, w = os.pipe()\nos.close(r)\ntry:\n    os.write(w, b'x')\nexcept BrokenPipeError:\n    print('broken')", "broken\n"),
}  # fmt: skip


def check(reply: Reply, row: Row) -> None:
    """Compare with what was expected."""
    end = reply.answer()["exit"]
    err = reply.err.decode("utf-8", "surrogateescape")
    assert reply.out.decode("utf-8", "surrogateescape") == row.out, err
    assert (end["code"], end["signal"]) == (row.exit, row.signal), err
    assert "ringfence" not in err
    assert "runner.py" not in err
    at = 0
    for piece in row.err:
        assert piece in err[at:], err
        at = err.index(piece, at) + len(piece)
    assert row.err or not err


@pytest.mark.parametrize("name", ROWS)
def test_a_program_ends_as_python_would_end_it(bench: Bench, host: Host, name: str) -> None:
    """Output, traceback and code are those of `python3 FILE`, for the first run and for every later one."""
    row = ROWS[name]
    if row.real and not bench.subject.real:
        pytest.skip("declared: no interpreter")
    host.put("helper.py", b"X = 42\n")
    fields = {"filename": "main.py", **row.fields}
    check(host.open("run", code=row.code, **fields), row)
    check(host.open("run", code=row.code, **fields), row)


def test_it_reads_its_input(host: Host) -> None:
    """A program that was given input reads it line by line."""
    reply = host.open("run", code="print('got', input())\nprint('got', input())", stdin=True)
    reply.send(b"one\ntwo\n")
    reply.close_input()
    assert reply.answer()["exit"]["code"] == 0
    assert bytes(reply.out) == b"got one\ngot two\n"


def test_an_endless_program_is_ended_in_time(host: Host) -> None:
    """A loop that never looks up ends at its timeout all the same."""
    assert host.open("run", code="while True: pass", timeout=0.5).answer()["exit"]["how"] == "timed_out"


def test_runs_beside_each_other(host: Host) -> None:
    """Several programs run at once and do not share a state."""
    replies = [host.open("run", code=f"import time\ntime.sleep(0.2)\nprint({n})") for n in range(6)]
    for n, reply in enumerate(replies):
        assert reply.answer()["exit"]["code"] == 0
        assert bytes(reply.out) == f"{n}\n".encode()


def test_killing_the_interpreter_that_waits(bench: Bench, own: Host) -> None:
    """A program may kill everything it can reach: the next one runs all the same, however often that happens."""
    if not bench.subject.real:
        pytest.skip("declared: no interpreter")
    for turn in range(12):
        own.open("exec", shell="kill -9 -1").answer()
        reply = own.open("run", code=f"print({turn})")
        assert reply.answer()["exit"]["code"] == 0
        assert bytes(reply.out) == f"{turn}\n".encode()


def test_a_file_that_nobody_closed_is_written_to_the_end(bench: Bench, host: Host) -> None:
    """What a program leaves open at its end is in the file afterwards, as with any interpreter."""
    if not bench.subject.real:
        pytest.skip("declared: no interpreter")
    host.open("run", code="f = open('left-open', 'w')\nf.write('hello')").answer()
    reply = host.open("exec", argv=["cat", "left-open"])
    reply.answer()
    assert bytes(reply.out) == b"hello"


def test_the_c_library_knows_its_own_thread(bench: Bench, host: Host) -> None:
    """A signal to the main thread by its handle arrives: a bare fork has renewed what the C library keeps of it."""
    if not bench.subject.real:
        pytest.skip("declared: no interpreter")
    code = (
        "import signal, threading, time\n"
        "arrived = []\n"
        "signal.signal(signal.SIGUSR1, lambda *_: arrived.append(print('arrived')))\n"
        "main = threading.main_thread().ident\n"
        "threading.Timer(0.1, lambda: signal.pthread_kill(main, signal.SIGUSR1)).start()\n"
        "while not arrived: time.sleep(0.01)\n"
    )
    reply = host.open("run", code=code)
    assert reply.answer()["exit"]["code"] == 0
    assert bytes(reply.out) == b"arrived\n"


def test_a_large_program(host: Host) -> None:
    """Megabytes of source are no trouble."""
    reply = host.open("run", code="#" * 3_000_000 + "\nprint('reached')\n")
    assert reply.answer()["exit"]["code"] == 0
    assert bytes(reply.out) == b"reached\n"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tracebacks differ")
def test_a_script_with_indentation_kept(host: Host) -> None:
    """Source arrives exactly as sent."""
    code = textwrap.dedent("""\
        print('''a
          b
        c''')""")
    reply = host.open("run", code=code)
    reply.answer()
    assert bytes(reply.out) == b"a\n  b\nc\n"


def test_a_sandbox_has_its_own_random_numbers(bench: Bench) -> None:
    """Forks of one interpreter draw different numbers, in the first run and in later ones (attack 110)."""
    if not bench.subject.real:
        pytest.skip("declared: no interpreter")
    drawn = []
    for _ in range(3):
        box = bench.start()
        for _ in range(2):
            code = "import random, uuid, tempfile, os\nprint(random.random(), uuid.uuid4(), os.urandom(4).hex(), next(tempfile._get_candidate_names()))"
            reply = box.host.open("run", code=code)
            reply.answer()
            drawn += reply.out.decode().split()
        bench.stop(box.id)
    assert len(drawn) == 24
    assert len(set(drawn)) == 24
