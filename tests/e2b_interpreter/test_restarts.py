"""Contexts whose server died: their kernels live on, and the next server knows them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.e2b.server import Served, api_of
from tests.e2b.wire import Box, make
from tests.e2b_interpreter.harness import TEMPLATE
from tests.e2b_interpreter.restarting import NOTE, asked, back, cell, durable, kept, kernels, killed, restartable
from tests.support import scale

MISSED = "[ringfence] the server was started again while a cell ran: what it said is lost"
# Of each language: what is done first, a cell that says `on` and goes on for ever, and a look at what was done.
CELLS = {
    "python": ("mine = 1", "import time; print('on'); time.sleep(600)", "print(mine)"),
    "bash": ("mine=1", "echo on; sleep 600", "echo $mine"),
    "js": ("let mine = 1", "console.log('on'); await new Promise((on) => setTimeout(on, 6e5))", "console.log(mine)"),
}


@pytest.fixture(scope="module", params=scale.RUNTIMES)
def server(request: pytest.FixtureRequest) -> Iterator[Served]:
    """A server of its own: it is killed."""
    with restartable(request.param) as made:
        yield made


@pytest.fixture
def box(server: Served) -> Iterator[Box]:
    """A sandbox for cells."""
    made = make(server, templateID=TEMPLATE, timeout=300)
    yield made
    made.kill()


def test_state_outlives_a_killed_api(box: Box) -> None:
    """Contexts, their ids and all that is in them, in every language; and nothing is said, for nothing was lost."""
    own = kept(box)
    shell: str = asked(box, "POST", "/contexts", {"language": "bash", "cwd": "/tmp"}).json()["id"]
    assert cell(box, "mine=3", context_id=shell) == ("", "", "")
    assert cell(box, "let mine = 4", language="js") == ("", "", "")
    listed, before = asked(box, "GET", "/contexts").json(), kernels(box)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):  # as it dies, and as it is asked to end
        killed(box, number)
        assert cell(box, "print(mine)") == ("1\n", "", "")
        assert cell(box, "print(mine)", context_id=own) == ("2\n", "", "")
        assert cell(box, "echo $mine $PWD", context_id=shell) == ("3 /tmp\n", "", "")
        assert cell(box, "console.log(mine)", language="js") == ("4\n", "", "")
        assert sorted(asked(box, "GET", "/contexts").json(), key=str) == sorted(listed, key=str)
    assert kernels(box) == before
    asked(box, "DELETE", f"/contexts/{own}").raise_for_status()
    asked(box, "POST", f"/contexts/{shell}/restart").raise_for_status()
    assert cell(box, "echo [$mine]", context_id=shell) == ("[]\n", "", "")
    deadline = time.monotonic() + 60
    while len(kernels(box)) != len(before) - 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def begun(box: Box, code: str, language: str) -> None:
    """Have a cell say `on`, then kill the api: its answer breaks off. Returns when there is another api."""
    durable(box)
    dead, heard, struck = api_of(box.server), "", False
    routed = box.routed(**{"E2b-Sandbox-Port": "49999"})
    with (
        contextlib.suppress(httpx.TransportError),
        httpx.Client(base_url=box.server.url, headers=routed, timeout=60, trust_env=False) as client,
        client.stream("POST", "/execute", json={"code": code, "language": language}) as answer,
    ):
        for piece in answer.iter_text():
            heard += piece
            if '"on' in heard and not struck:
                os.kill(dead, signal.SIGKILL)
                struck = True
    assert '"on' in heard
    assert "end_of_execution" not in heard
    back(box, dead)


@pytest.mark.parametrize("language", CELLS)
def test_a_cell_that_ran_when_the_api_died_is_told_as_lost_and_the_state_stays(box: Box, language: str) -> None:
    """Its client hears that the answer broke off; the next cell interrupts it, says so, and finds the variables."""
    before, long, after = CELLS[language]
    assert cell(box, before, language=language) == ("", "", "")
    begun(box, long, language)
    assert cell(box, after, language=language) == ("1\n", f"{MISSED}, and it was interrupted\n", "")
    assert cell(box, after, language=language) == ("1\n", "", "")


def test_what_a_cell_says_while_nobody_listens_is_nobodys(box: Box) -> None:
    """The next server comes between its lines and within them, and no cell is told another's words."""
    assert cell(box, "mine = 1") == ("", "", "")
    begun(box, "print('on')\nwhile True: print('x' * 70_000)", "python")
    printed, complained, error = cell(box, "print(mine)")
    assert complained == f"{MISSED}, and it was interrupted\n"
    assert (printed, error) == ("1\n", "")
    assert cell(box, "print(mine)") == ("1\n", "", "")


@pytest.mark.skipif(
    not scale.EVERYTHING, reason="declared: under CI=true; elsewhere test_hostile.py waits for a kernel"
)
def test_a_cell_that_hears_no_interrupt_costs_its_state_and_that_is_told(box: Box) -> None:
    """As it would without any restart: after ten seconds the context has a fresh kernel."""
    assert cell(box, "mine = 1") == ("", "", "")
    begun(
        box,
        "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('on')\nwhile True: time.sleep(1)",
        "python",
    )
    printed, complained, error = cell(box, "mine")
    assert (printed, error) == ("", "NameError")
    assert complained == f"{NOTE} (it did not stop when it was interrupted)\n"


def test_a_first_cell_after_a_killed_api_is_a_first_cell(box: Box) -> None:
    """Where no cell had run nothing is said."""
    killed(box)
    assert cell(box, "print(1)") == ("1\n", "", "")


def test_a_kernel_that_ended_while_there_was_no_api_is_told(box: Box) -> None:
    """A context of one's own is not found; the default one works, and its first cell says what was lost, once."""
    own = kept(box)
    killed(box)
    box.run(f"kill -9 {' '.join(str(pid) for pid in kernels(box))}")
    deadline = time.monotonic() + 60
    while kernels(box):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert asked(box, "POST", "/execute", {"code": "mine", "context_id": own}).status_code == 404
    assert asked(box, "POST", f"/contexts/{own}/restart").status_code == 404
    assert own not in {context["id"] for context in asked(box, "GET", "/contexts").json()}
    printed, complained, error = cell(box, "mine")
    assert (printed, error) == ("", "NameError")
    assert complained == f"{NOTE} (the server was started again)\n"
    assert cell(box, "print(2)") == ("2\n", "", "")
    assert cell(box, "echo 3", language="bash") == ("3\n", "", "")  # no cell of bash was run before: nothing was lost
