"""The bench's own servers and visitors: who says what, who may not come in, and a server one wire away."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ringfence import wire
from ringfence.bench import tiny, traefik
from ringfence.bench.beyond import HERE, PORT, THERE, Beyond
from ringfence.bench.egress import CONNECTIONS, DIALS, _said
from ringfence.bench.exchange import Answer, Connection, Target
from ringfence.bench.ingress import House, Seat, Way, _in_turn, hidden
from ringfence.bench.latency import Pace
from ringfence.bench.load import Generator
from ringfence.bench.programs import FailedRun
from ringfence.bench.server import Measured
from ringfence.domain.errors import PlatformFault


def test_the_tiny_server_says_its_name_and_keeps_connections() -> None:
    """To many at once, and once only to whoever asks it to close."""
    with tiny.plain("tulip") as target:
        with Connection(target) as one, Connection(target) as other:
            for _ in range(3):
                assert one.exchange(target.request("GET", "/")) == Answer(200, b"tulip")
                assert other.exchange(target.request("GET", "/")) == Answer(200, b"tulip")
        with target.connect() as line:
            line.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = b"".join(iter(lambda: line.recv(4096), b""))
        assert answer.endswith(b"Connection: close\r\n\r\ntulip")
    with pytest.raises(ConnectionRefusedError):
        target.connect()


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bench says so instead of waiting for good."""
    monkeypatch.setattr(tiny, "READY_SECONDS", 0.1)
    target = Target(tiny.LOOPBACK, tiny.free_port(), "")
    with pytest.raises(PlatformFault, match="no server answers"):
        tiny.awaited(target, b"")


def test_every_answer_is_checked_against_its_own_sandbox() -> None:
    """A right word from the wrong sandbox is a wrong answer."""
    with tiny.plain("tulip") as target:
        house = House(Measured(target, Path("/nowhere")), 0)
        house.edge = target
        seats = [Seat("tulip", host="a"), Seat("rose", host="b")]
        assert house.wrong(seat.order for seat in seats) == 1
        load = Generator(target, lambda: seats[1].order).drive(2, 1.0)
        assert (load.runs, load.failures > 0) == (0, True)


def test_strangers_are_the_neighbour_nobody_and_another_tenant() -> None:
    """Each seat is tried by all three, and only the answer for what is not there is right."""
    house = House(Measured(Target("h", 1, "k"), Path("/nowhere")), 2)
    for seat, name in zip(house.seats, "ab", strict=True):
        seat.host, seat.token = name, f"token-{name}"
    orders = list(house.strangers("key-of-another"))
    header = wire.ACCESS_HEADER.encode()
    found = [(request.split(b"Host: ")[1][:1], request.partition(header + b": ")[2].strip()) for request, _ in orders]
    assert found == [
        (b"a", b"token-b"), (b"a", b""), (b"a", b"key-of-another"),
        (b"b", b"token-a"), (b"b", b""), (b"b", b"key-of-another"),
    ]  # fmt: skip
    assert all(right is hidden for _, right in orders)
    assert [hidden(Answer(status, b"")) for status in (404, 200, 303, 403)] == [True, False, False, False]


def test_ways_are_asked_in_turn() -> None:
    """Each round asks each way once; a wrong answer ends the measure."""
    with tiny.plain("tulip") as target:
        good = Way(target, lambda: (target.request("GET", "/"), lambda answer: answer.body == b"tulip"))
        rounds = _in_turn({"direct": good, "ringfence": good}, Pace(4, 5.0), random.Random(1))
        assert [set(each) for each in rounds] == [{"direct", "ringfence"}] * 4
        bad = Way(target, lambda: (target.request("GET", "/"), lambda answer: answer.body == b"rose"))
        with pytest.raises(PlatformFault, match="a wrong answer: 200 b'tulip'"):
            _in_turn({"direct": bad}, Pace(1, 5.0), random.Random(1))


def test_traefik_gets_a_router_for_every_name() -> None:
    """Its table is TOML in which each name leads to the one server."""
    table = tomllib.loads(traefik.routes(["a.example", "b.example"], Target("127.0.0.1", 81, "")))["http"]
    assert [router["rule"] for router in table["routers"].values()] == ["Host(`a.example`)", "Host(`b.example`)"]
    assert {router["service"] for router in table["routers"].values()} == set(table["services"]) == {"one"}


def test_traefik_leads_to_the_server(tmp_path: Path) -> None:
    """By each of its names, and to nothing by another. Where there is none, there is no row."""
    with tiny.plain("tulip") as plain, traefik.before(plain, ["a.example", "b.example"], tmp_path) as router:
        if router is None:
            assert os.environ.get("CI") != "true"
            pytest.skip(traefik.LACKING)
        with Connection(router) as line:
            assert line.exchange(traefik.asking(router, "a.example")).body == b"tulip"
            assert line.exchange(traefik.asking(router, "c.example")).status == 404
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_server_beyond_is_one_wire_away_and_leaves_nothing() -> None:
    """It is not on this host, answers a byte with a byte, and is gone with its namespace."""
    with Beyond():
        done = subprocess.run([sys.executable, "-c", DIALS], capture_output=True, text=True, check=True)
        assert len(_said(done.stdout, done.stderr)) == CONNECTIONS
        with socket.create_connection((str(THERE), PORT), 5) as line:
            assert line.getsockname()[0] == str(HERE)
    assert not any(name.startswith("rfbench") for _, name in socket.if_nameindex())
    with Beyond(), socket.create_connection((str(THERE), PORT), 5):
        pass


def test_what_is_no_measurement_is_a_failed_run() -> None:
    """A program that printed something else was not measured."""
    assert _said("[1.0, 2.5]", "") == [1.0, 2.5]
    with pytest.raises(FailedRun, match="no route"):
        _said("", "no route")


def test_a_missing_traefik_is_found_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Then its row is absent, with the reason."""
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with traefik.before(Target("127.0.0.1", 1, ""), [], tmp_path) as router:
        assert router is None
