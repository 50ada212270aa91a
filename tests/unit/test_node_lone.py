"""Lone runs over the real jail: one piece of source code, no agent, and a fate that is always the program's own."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from ringfence.attack.observation import Ran
from ringfence.domain.errors import BadRequest
from ringfence.domain.limits import MIB, Limits
from tests.support.node import Collector, Node
from tests.support.subjects import SUBJECTS

JAIL = next(subject for subject in SUBJECTS if subject.name == "jail")
pytestmark = pytest.mark.skipif(bool(JAIL.missing()), reason=JAIL.missing() or "-")
LIMITS = Limits(memory_bytes=128 * MIB, scratch_bytes=16 * MIB, output_bytes=8 * MIB)
PAGE = """
import ctypes, os
(line,) = [line for line in open("/proc/self/maps") if "memfd:fate" in line]
address = int(line.split("-")[0], 16)
def scribble(data): ctypes.memmove(address, data, len(data))
"""


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """A node of the module's own."""
    with Node(f"test-{uuid.uuid4().hex[:12]}") as made:
        yield made


def run(node: Node, code: str, wall: float = 20, **more: Any) -> Ran:
    """One lone run."""
    live = node.claim(limits=LIMITS, lone=True)
    try:
        return node.perform(live, {"op": "run", "code": code, "argv": [], **more}, wall)
    finally:
        node.release(live)


def test_output_errors_arguments_and_variables(node: Node) -> None:
    """Everything a program is given and gives arrives."""
    code = "import os, sys; print(sys.argv[1], os.environ['A'], os.getcwd()); sys.stderr.write('e'); sys.exit(3)"
    ran = run(node, code, argv=["x"], env={"A": "b"}, cwd="/tmp")
    assert (ran.how, ran.code, ran.stderr) == ("exited", 3, "e")
    assert ran.said["text"] == "x b /tmp\n"


@pytest.mark.parametrize(
    ("code", "fate"),
    [
        ("import os; os.kill(os.getpid(), 9)", ("signalled", None, 9)),
        ("import os; os.abort()", ("signalled", None, 6)),
        ("import os; os._exit(4)", ("exited", 4, None)),
        ("import os; os.execv('/bin/sh', ['sh', '-c', 'exit 5'])", ("exited", 5, None)),
        ("import os; os.closerange(3, 5000); raise SystemExit(6)", ("exited", 6, None)),
        ("import os; [os.close(i) for i in (0, 1, 2)]; raise SystemExit(7)", ("exited", 7, None)),
        ("import os\nif os.fork(): raise SystemExit(8)\nraise SystemExit(9)", ("exited", 8, None)),
        (
            "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3)); raise SystemExit(2)",
            ("exited", 2, None),
        ),
    ],
)
def test_every_way_to_end_is_told(node: Node, code: str, fate: tuple[str, int | None, int | None]) -> None:
    """However a program leaves, process 1 or the interpreter itself says how."""
    ran = run(node, code)
    assert (ran.how, ran.code, ran.signal) == fate


def test_the_limits_have_their_own_words(node: Node) -> None:
    """Too much memory, output, disk or time is told as that."""
    assert run(node, "x = []\nwhile True: x.append(bytearray(2**20))").how == "out_of_memory"
    assert run(node, "while True: print('y' * 1000)").how == "output_capped"
    assert run(node, "open('f', 'wb').write(bytes(64 << 20))").how == "disk_full"
    assert (
        run(node, "import os\ntry: open('f', 'wb').write(bytes(64 << 20))\nexcept OSError: os._exit(1)").how
        == "disk_full"
    )
    assert run(node, "while True: pass", wall=0.5).how == "timed_out"


def test_much_output_arrives_whole(node: Node) -> None:
    """More than the pipes hold and than credit allows at once, on both outputs."""
    code = "import sys\nfor i in range(40): sys.stdout.write('o' * 65537); sys.stderr.write('e' * 30011)"
    ran = run(node, code)
    assert (ran.how, ran.stdout_bytes) == ("exited", 40 * (65537 + 30011))


def test_nobody_waits_for_a_child_that_holds_the_output(node: Node) -> None:
    """What was written by the program's end is its output; a child that goes on does not delay the answer."""
    code = "import os, time\nprint('mine', flush=True)\nif os.fork() == 0: time.sleep(600); os._exit(0)"
    ran = run(node, code)
    assert (ran.how, ran.said["text"]) == ("exited", "mine\n")
    assert ran.wall_seconds < 300


@pytest.mark.parametrize("seconds", [0.0, 0.4])
def test_who_asks_at_once_and_who_asks_late_get_the_same(node: Node, seconds: float) -> None:
    """A sandbox that nobody has asked yet rehearses after a while; a program finds nothing of that, nor misses it."""
    code = "import gc, os, sys; print(dir(), sys.argv, sorted(os.listdir()), gc.isenabled(), sys.modules['__main__'].x)"
    live = node.claim(limits=LIMITS, lone=True)
    time.sleep(seconds)  # eight times as long as it waits before it rehearses; if it does so later, nothing is wrong
    try:
        ran = node.perform(live, {"op": "run", "code": f"x = 1\n{code}", "argv": ["a"]}, 20)
    finally:
        node.release(live)
    names = ["__builtins__", "__cached__", "__doc__", "__file__", "__loader__", "__name__"]
    names += ["__package__", "__spec__", "gc", "os", "sys", "x"]
    assert ran.said["text"] == f"{names} ['/home/user/main.py', 'a'] ['main.py'] True 1\n"


def test_the_collector_sees_the_program_and_nothing_of_ours(node: Node) -> None:
    """What was there before is no business of a program's collections: to look at it would copy the page it is on."""
    code = "import gc; gc.collect(); print(len(gc.get_objects()) < 100)"
    assert run(node, code).said["text"] == "True\n"


def test_a_program_holds_no_descriptor_of_ours(node: Node) -> None:
    """Standard streams, and nothing else: the channel was closed before it began."""
    code = "import os; print(sorted(int(fd) for fd in os.listdir('/proc/self/fd')))"
    assert run(node, code).said["text"] == "[0, 1, 2, 3]\n"  # the last is the listing itself


@pytest.mark.parametrize(
    ("lie", "fate"),
    [
        ("scribble(b'\\1\\7\\0'); os.close(1); os.close(2); import time; time.sleep(60)", ("exited", 7)),
        ("scribble(b'\\xff' * 4096); os._exit(3)", ("exited", 3)),
        ("scribble(b'\\0\\0\\0'); os.close(1); os.close(2); os._exit(4)", ("exited", 4)),
        ("ctypes.CDLL(None).munmap(ctypes.c_void_p(address), 4096)", ("signalled", None)),
    ],
    ids=["an early end", "garbage", "an end taken back", "no page"],
)
def test_a_program_that_lies_about_its_end_harms_itself_alone(node: Node, lie: str, fate: tuple[str, int]) -> None:
    """Its own fate is garbled, in bounded time; the next run is as ever."""
    ran = run(node, PAGE + lie)
    assert (ran.how, ran.code) == fate
    assert run(node, "print('next')").said["text"] == "next\n"


def test_a_lone_sandbox_takes_one_order(node: Node) -> None:
    """There is nobody in it who could answer a second request: it is refused, not left waiting."""
    live = node.claim(lone=True)
    try:
        assert node.perform(live, {"op": "run", "code": "print(1)", "argv": []}).how == "exited"

        async def again() -> None:
            node.supervisor.open(live, b'{"op": "ping"}', Collector(), program=False)

        with pytest.raises(BadRequest, match="takes nothing else"):
            node.do(again())
    finally:
        node.release(live)


@pytest.mark.parametrize(
    "more", [{"cwd": "/nowhere"}, {"cwd": "/proc/self"}, {"env": {"A": 1}}, {"code": 7}, {"argv": 7}], ids=str
)
def test_a_bad_order_is_refused_inside(node: Node, more: dict[str, Any]) -> None:
    """What the api would not have let through is still refused by the interpreter, with a code."""
    ran = run(node, **{"code": "print(1)", **more})
    assert ran.how == "refused"
    assert ran.refused.split(":")[0] in {"bad_request", "not_found"}


IMMORTAL = """
import gc, json, sys, weakref
class Mine: pass
print(sys.getrefcount(json) == sys.getrefcount(None), sys.getrefcount(Mine()) < 10)
mine = Mine(); gone = []
weakref.finalize(mine, gone.append, 1)
del mine
cycle = Mine(); cycle.self = cycle; seen = weakref.ref(cycle); del cycle
gc.collect()
print(gone, seen() is None)
print(json.loads(json.dumps({"a": [1, 2.5, None, "x" * 5]})))
sys.modules.pop("json"); del json
import json
gc.unfreeze(); gc.collect()
print(json.dumps([1]))
"""


def test_what_the_zygote_holds_is_immortal_and_nothing_else_is(node: Node) -> None:
    """Finalizers, weak references, cycles and imports work as ever on what a program makes itself."""
    expected = "True True\n[1] True\n{'a': [1, 2.5, None, 'xxxxx']}\n[1]\n"
    assert run(node, IMMORTAL).said["text"] == expected


def test_the_interpreter_has_the_flags_of_an_ordinary_one(node: Node) -> None:
    """A program that starts interpreters of its own, as multiprocessing does, starts ordinary ones."""
    asked = "import sys; print(sys.flags, sys.orig_argv[0])"
    code = f"import subprocess, sys\n{asked}\nsys.stdout.flush()\nsubprocess.run(['python3', '-c', {asked!r}])"
    mine, plain = run(node, code).said["text"].splitlines()
    assert mine == plain


def test_nothing_of_ours_is_in_the_modules_a_program_sees(node: Node) -> None:
    """What the zygote put in place while it imported a template's packages is taken away again."""
    assert run(node, "import os; print(os.register_at_fork)").said["text"] == "<built-in function register_at_fork>\n"


def test_nothing_of_lone_runs_is_left(node: Node) -> None:
    """Descriptors and sandboxes are as many as before, fifty runs later."""
    run(node, "print(1)")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        run(node, "print(1)")
    assert len(os.listdir("/proc/self/fd")) <= before + 12  # warm ones come and go
