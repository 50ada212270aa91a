"""A part of `make compat` that is quick enough for every day: ordinary programs end as on the host, in every sandbox.

The whole comparison needs the standard library's tests and half an hour; docs/compatibility.md is what it found.
"""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from ringfence.client import Client
from ringfence.config import read_server
from ringfence.serve import embedded
from ringfence.templates.catalog import Catalog
from tests.compat.compare import Difference, differences, read_reasons, reason_for
from tests.compat.places import ISOLATIONS, Ending, InSandbox, OnHost
from tests.compat.programs import Program, ordinary, rows
from tests.support import ledger
from tests.support.node import TEMPLATES

SECONDS = 60.0
TEMPLATE = "base"
CHOSEN = (
    "program: algorithms_puzzles",
    "program: asyncio_network",
    "program: asyncio_tasks",
    "program: data_compression",
    "program: data_json",
    "program: data_sqlite",
    "program: errors_traceback",
    "program: errors_uncaught",
    "program: files_space",
    "program: files_temporary",
    "program: load_output",
    "program: network_http",
    "program: network_sockets",
    "program: process_environment",
    "program: process_executors",
    "program: process_fork",
    "program: process_signals",
    "program: process_subprocess",
    "program: system_modules",
    "program: system_proc",
    "program: system_terminal",
    "program: threads_basic",
    "row: a failing exit handler",
    "row: binary output",
    "row: its own death",
)
PROGRAMS = {program.name: program for program in (*rows(TEMPLATE), *ordinary(TEMPLATE))}


def _unavailable(why: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


class Bench:
    """The host and a server; what the host gave is kept for the next isolation."""

    def __init__(self, client: Client) -> None:
        self.absent = {r.name: r.reason for r in client.runtimes() if not r.available}
        self._client = client
        self._host = OnHost(Catalog(TEMPLATES).load())
        self.on_host = cache(self._on_host)

    def _on_host(self, program: Program) -> Ending:
        return self._host.run(program, SECONDS)

    def once_more_on_host(self, program: Program) -> Ending:
        """Not from memory."""
        return self._on_host(program)

    def inside(self, program: Program, isolation: str) -> Ending:
        """In a fresh sandbox."""
        return InSandbox(isolation, self._client).run(program, SECONDS)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A server of our own, which leaves nothing behind."""
    if os.geteuid() != 0:
        _unavailable("the host's side needs root, to enter the template's root")
    if not (TEMPLATES / "index" / f"{TEMPLATE}.json").exists():
        _unavailable(f"no template `{TEMPLATE}` is built in {TEMPLATES}")
    state: Path = tmp_path_factory.mktemp("state")
    before = ledger.snapshot(state)
    settings = read_server(None, state=str(state), templates=str(TEMPLATES))
    with embedded(settings) as server, Client(server.url, server.key) as client:
        yield Bench(client)
    assert ledger.settle(state, before) == []


def found(bench: Bench, program: Program, isolation: str) -> list[Difference]:
    """What differs without a reason, in two attempts."""
    hosts, theirs = [bench.on_host(program)], [bench.inside(program, isolation)]
    if differences(program, isolation, hosts, theirs):
        hosts.append(bench.once_more_on_host(program))
        theirs.append(bench.inside(program, isolation))
    new = differences(program, isolation, hosts, theirs)
    return [difference for difference in new if reason_for(difference, read_reasons()) is None]


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize("name", CHOSEN)
def test_a_program_ends_as_on_the_host(bench: Bench, name: str, isolation: str) -> None:
    """Its stdout and its exit are those of `python3 main.py` without any isolation, or a reason is committed."""
    if isolation in bench.absent:
        _unavailable(f"{isolation}: {bench.absent[isolation]}")
    assert found(bench, PROGRAMS[name], isolation) == []


def test_the_host_is_no_sandbox(bench: Bench) -> None:
    """What we compare with is really outside: the host's processes and kernel interfaces are in sight."""
    code = "import os\nprint(os.path.exists('/sys/kernel'), len(os.listdir('/proc/1')) > 0, os.uname().nodename)"
    ending = bench.on_host(Program("look around", code, template=TEMPLATE))
    assert ending.stdout.decode() == f"True True {os.uname().nodename}\n"


@pytest.mark.usefixtures("bench")
def test_the_host_ends_a_program_in_time() -> None:
    """An endless one, with a child that holds its output open, is ended and its child too."""
    code = "import subprocess, sys\nsubprocess.Popen(['sleep', '7654321'])\nprint('on', flush=True)\nwhile True: pass"
    ending = OnHost(Catalog(TEMPLATES).load()).run(Program("endless", code, template=TEMPLATE), 1.0)
    assert (ending.how, ending.stdout) == ("timed_out", b"on\n")
    commands = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended since
            commands.append(Path(path).read_bytes())
    assert b"sleep\x007654321\0" not in commands


def test_a_different_program_is_noticed(bench: Bench) -> None:
    """The comparison can fail: a program that prints where it is differs, in its first line."""
    program = Program("host name", "import os\nprint('a')\nprint(os.uname().nodename)", template=TEMPLATE)
    new = differences(program, "jail", [bench.on_host(program)], [bench.inside(program, "jail")])
    assert new == [Difference("host name", "jail", "output", os.uname().nodename, "sandbox")]
