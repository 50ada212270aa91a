"""The demo judges honestly: what was not contained is shown as such, and our own faults are never called that."""

from __future__ import annotations

import ast

import pytest

from ringfence.cli.demo.hostile import Deed, deeds, tour
from ringfence.cli.demo.job import PROGRAM
from tests.unit.test_client_transport import SANDBOX, Act, answer, playing

ALL = deeds("/tmp/canary", "192.0.2.1", 8642)
EXIT = b'"exit":{"how":"exited","code":0}'
NEIGHBOUR = answer(200, b'{"pid":3,' + EXIT + b',"stdout":"42\\n"}')
HARMED = answer(502, b'{"error":{"code":"sandbox_lost","cause":"gone"}}')
LOST = answer(502, b'{"error":{"code":"sandbox_lost","cause":"gone"}}')


def run(stdout: str) -> Act:
    """A run that ended with code 0 after saying this."""
    body = b'{"id":"r1","state":"finished","template":"base","created_at":1,%s,"stdout":"%s"}' % (EXIT, stdout.encode())
    return answer(200, body)


def verdicts(attack: Act, neighbour: Act) -> dict[str, bool]:
    """What the tour says when every attack meets this answer and the neighbour that one."""
    acts = [answer(201, SANDBOX), *[act for _ in ALL for act in (attack, neighbour)], answer(200, SANDBOX)]
    with playing(*acts) as (_, client):
        return {verdict.title: verdict.contained for verdict in tour(client, "192.0.2.1", 8642)}


@pytest.mark.parametrize("deed", ALL, ids=lambda deed: deed.title)
def test_every_attack_is_a_program(deed: Deed) -> None:
    """What is run is Python that compiles."""
    ast.parse(deed.code)


def test_the_data_job_is_a_program() -> None:
    """What pandas runs is Python that compiles."""
    ast.parse(PROGRAM)


def test_a_secret_that_was_found_is_not_contained() -> None:
    """An attack that succeeded is shown as one, whatever its exit code."""
    found = verdicts(run("found /etc/shadow"), NEIGHBOUR)
    assert not any(held for title, held in found.items() if title != "kill every process")


def test_a_harmed_neighbour_is_not_containment() -> None:
    """An attack that ended well for the attacker's own sandbox but hurt another one did not stay inside."""
    assert not any(verdicts(run("refused all; refused at; found no file; reached nothing"), HARMED).values())


def test_our_own_fault_is_not_containment() -> None:
    """A server that broke under an attack did not contain it."""
    assert not any(verdicts(LOST, NEIGHBOUR).values())
