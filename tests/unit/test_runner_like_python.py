"""The runner against the interpreter itself: the same program, once as `python3 FILE` and once as an order.

Everything a user can see must be the same: output, traceback, exit code. The programs are those of the conformance
suite and some more that are nearer to an interpreter's corners.
"""

# ruff: noqa: E501 - one row a program

from __future__ import annotations

import os
import re
import select
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ringfence.guest import runner
from tests.conformance.test_runtime_python import ROWS

CORNERS = {
    "a file nobody closes": "import os\nf = open('left-open', 'w')\nf.write('hello')\nif not os.fork():\n    os._exit(0)\nos.wait()",
    "an object alive at the end": "class C:\n    def __del__(self):\n        print('gone')\nkept = C()\nprint('end')",
    "a circle alive at the end": "class C:\n    def __del__(self):\n        print('gone')\nkept = C()\nkept.itself = kept\nprint('end')",
    "the names of its streams": "import sys\nprint(sys.stdin.name, sys.stdout.name, sys.stderr.buffer.name)",
    "its own thread's number": "import threading\nprint(threading.main_thread().native_id == threading.get_native_id())",
    "a global used at the end": "word = 'still here'\nclass C:\n    def __del__(self):\n        print(word)\nkept = C()",
    "an error at the very end": "class C:\n    def __del__(self):\n        1 / 0\nkept = C()",
    "a module's own end": "import sys, types\nm = types.ModuleType('m')\nexec(\"class C:\\n    def __del__(self): print('m gone')\\nkept = C()\", m.__dict__)\nsys.modules['m'] = m\ndel m",
    "exit with a list": "import sys\nsys.exit([1, 'two'])",
    "exit by name": "exit(3)",
    "quit by name": "quit()",
    "an exception group": "raise ExceptionGroup('several', [ValueError(1), KeyError('k')])",
    "notes": "e = ValueError('v')\ne.add_note('a note')\nraise e",
    "recursion": "import sys\nsys.setrecursionlimit(60)\ndef f(n):\n    return f(n + 1)\nf(0)",
    "an error in a nested call": "class C:\n    def m(self):\n        return {}['x']\nC().m()",
    "an error while handling": "try:\n    {}['a']\nexcept KeyError:\n    [][1]",
    "an error inside an import": "import json\njson.loads('{')",
    "a syntax error with a caret": "x = 1\nif x\n    pass\n",
    "an indentation error": "if True:\npass\n",
    "a null byte": "x = 1\0",
    "a syntax warning": "print(1 is 1)",
    "a deprecation warning": "import warnings\nwarnings.warn('old', DeprecationWarning)\nprint('on')",
    "a docstring": "'''words'''\nprint(__doc__)",
    "its names": "print(__name__, __package__, __spec__, __cached__, __builtins__)",
    "main is importable": "import __main__\nprint(__main__.__file__, __main__.__name__)",
    "its path": "import sys, os\nprint(sys.path[0] == os.getcwd(), sys.argv[0] == __file__)",
    "the streams": "import sys\nfor s in (sys.stdin, sys.stdout, sys.stderr):\n    print(s.encoding, s.errors, s.mode, s.line_buffering)",
    "a file name that is no text": "import os\nos.close(os.open(b'odd-\\xff', os.O_CREAT | os.O_WRONLY))\nprint(sorted(n for n in os.listdir() if n.startswith('odd')))\nprint(*[n for n in os.listdir() if n.startswith('odd')])",
    "reading all input": "import sys\nprint(len(sys.stdin.read()))",
    "reading past the end": "input()",
    "bytes of input": "import sys\nprint(sys.stdin.buffer.read())",
    "a prompt": "x = input('prompt: ')\nprint(x)",
    "unflushed output": "import sys\nsys.stdout.write('no newline')",
    "both streams in order": "import sys\nprint('a', flush=True)\nprint('b', file=sys.stderr)\nprint('c')",
    "output to a closed stream": "import sys\nsys.stdout.close()\nprint('x')",
    "replacing a stream": "import io, sys\nsys.stdout = io.StringIO()\nprint('unseen')\nsys.stdout = sys.__stdout__\nprint('seen')",
    "threads by name": "import threading\nprint(threading.current_thread().name, threading.main_thread() is threading.current_thread(), threading.active_count())",
    "a thread that fails": "import threading\nt = threading.Thread(target=lambda: 1/0, name='worker')\nt.start()\nt.join()\nprint('on')",
    "an unraisable error": "class C:\n    def __del__(self):\n        1/0\nC()\nprint('on')",
    "nested exit handlers": "import atexit\natexit.register(lambda: atexit.register(print, 'inner'))\nprint('main')",
    "exit in an exit handler": "import atexit, sys\natexit.register(sys.exit, 4)\nprint('main')",
    "exit from a thread": "import threading, sys\nthreading.Thread(target=sys.exit, args=(9,)).start()",
    "a local function's closure": "def outer():\n    x = 1\n    def inner():\n        return x\n    return inner\nprint(outer()())",
    "global names": "x = 1\ndef f():\n    global y\n    y = x + 1\nf()\nprint(y, 'x' in globals(), locals() is globals())",
    "eval and exec": "exec('z = 5')\nprint(eval('z + 1'))",
    "dataclass pickles": "import dataclasses, pickle\n@dataclasses.dataclass\nclass P:\n    x: int = 3\nprint(pickle.loads(pickle.dumps(P())))",
    "typing reads annotations": "from __future__ import annotations\nimport typing\nclass C:\n    x: int\nprint(typing.get_type_hints(C))",
    "future imports are its own": "print(type(f.__annotations__) if 'f' in dir() else 'none')\ndef g(x: int): ...\nprint(g.__annotations__)",
    "sources by inspect": "import inspect\nclass K:\n    '''doc'''\nprint(inspect.getsource(K))",
    "a logging setup": "import logging\nlogging.basicConfig(level='INFO')\nlogging.info('told')",
    "argparse": "import argparse\np = argparse.ArgumentParser()\np.add_argument('--n', type=int, required=True)\np.parse_args([])",
    "unittest": "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        self.assertEqual(1, 1)\nimport sys\nunittest.main(argv=['x'], verbosity=0, exit=True) if 0 else print('ok')",
    "garbage at the end": "class D:\n    def __init__(self): self.me = self\nd = D()\nprint('end')",
}
PROGRAMS = {name: row.code for name, row in ROWS.items()} | CORNERS
# Known to differ, and why.
EXCUSED = {
    "an interrupt": "a script dies by SIGINT, which a shell shows as the 130 we give",
    "an encoding cookie changes nothing": "an order is text already: there is nothing left to decode",
    "a null byte": "the same refusal, but an interpreter words it by where the source came from",
    "recursion": "two frames of the runner's count toward the limit",
    "an error at the very end": "the interpreter can no longer read the source to show the line; we still can",
    "exit in an exit handler": "an unraisable error without frames is shown with the innermost one, ours",
}
_ADDRESS = re.compile(r"0x[0-9a-f]+")


def told(done: subprocess.Popen[bytes], stdin: bytes) -> tuple[int, str, str]:
    """Code, output, errors."""
    out, err = done.communicate(stdin, timeout=60)
    text, errors = (data.decode("utf-8", "surrogateescape") for data in (out, err))
    return done.returncode, _ADDRESS.sub("0x", text), _ADDRESS.sub("0x", errors)


def as_file(place: Path, env: dict[str, str], stdin: bytes) -> tuple[int, str, str]:
    """As an interpreter runs it."""
    pipe = subprocess.PIPE
    words = [sys.executable, "-B", str(place / "main.py")]
    return told(subprocess.Popen(words, cwd=place, env=env, stdin=pipe, stdout=pipe, stderr=pipe), stdin)


def as_order(place: Path, env: dict[str, str], stdin: bytes) -> tuple[int, str, str]:
    """As the runner runs it, in an interpreter of its own (what zygote = "none" means)."""
    ours, theirs = socket.socketpair()
    pipe = subprocess.PIPE
    words = [sys.executable, "-B", *runner.fresh_argv([], theirs.fileno())[1:]]
    done = subprocess.Popen(words, cwd=place, env=env, stdin=pipe, stdout=pipe, stderr=pipe, pass_fds=[theirs.fileno()])
    theirs.close()
    select.select([ours], [], [], 30)
    code = (place / "main.py").read_text(errors="surrogateescape")
    ours.sendall(
        runner.encode_order(
            {"code": code, "filename": str(place / "main.py"), "argv": [], "env": {}, "cwd": str(place)}
        )
    )
    answer = told(done, stdin)
    ours.close()
    return answer


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in EXCUSED])
def test_it_ends_as_the_interpreter_ends_it(tmp_path: Path, name: str) -> None:
    """Code, output and traceback are the same to the letter."""
    env = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": str(tmp_path), "A": "b"}
    (tmp_path / "helper.py").write_text("X = 42\n")
    (tmp_path / "main.py").write_text(PROGRAMS[name])
    stdin = b"" if name == "reading past the end" else b"first line\nsecond \xff\n"
    assert as_order(tmp_path, env, stdin) == as_file(tmp_path, env, stdin)


def test_an_agent_that_hangs_up_ends_the_runner(tmp_path: Path) -> None:
    """A runner whose agent is gone before an order came ends quietly."""
    ours, theirs = socket.socketpair()
    words = [sys.executable, *runner.fresh_argv([], theirs.fileno())[1:]]
    pipe = subprocess.PIPE
    done = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, pass_fds=[theirs.fileno()])
    theirs.close()
    ours.close()
    assert told(done, b"") == (0, "", "")


def test_a_program_has_no_descriptor_of_ours(tmp_path: Path) -> None:
    """What is left open is input, output and errors (and what lists them)."""
    (tmp_path / "main.py").write_text("import os\nprint(sorted(map(int, os.listdir('/proc/self/fd')))[:-1])")
    env = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    assert as_order(tmp_path, env, b"") == (0, "[0, 1, 2]\n", "")


def test_orders_survive_the_way() -> None:
    """An order is read as it was written, in however many pieces it comes."""
    order = {"code": "print('\u00fc\\ud800')", "argv": ["a b", ""], "env": {"A": "\n"}, "cwd": "/", "filename": "m"}
    ours, theirs = socket.socketpair()
    for byte in runner.encode_order(order):
        ours.send(bytes([byte]))
    assert runner.read_order(theirs.fileno()) == order
    ours.send(b"\0\0")
    ours.close()
    with pytest.raises(EOFError):
        runner.read_order(theirs.fileno())
    theirs.close()
