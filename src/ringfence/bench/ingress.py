"""Published ports under load: a thousand small servers behind the edge, each asked by its own name.

Beside them the same server hit directly, and Traefik alone in front of it with a router for every name. Every answer
is checked: each sandbox says its own word, and a stranger is told what everybody is told of a port that is not there.
"""

from __future__ import annotations

import contextlib
import random
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from ringfence import wire
from ringfence.bench import tiny, traefik
from ringfence.bench.density import MIB, TTL_SECONDS, Weight, spread, steady
from ringfence.bench.exchange import Answer, Connection, Target
from ringfence.bench.latency import Pace
from ringfence.bench.load import Generator, Order, Right
from ringfence.bench.server import Measured, another_key
from ringfence.bench.stats import Round, apart, column, summary
from ringfence.bench.throughput import told
from ringfence.domain.errors import PlatformFault

TEMPLATE: Final = "base"
PORT: Final = 8000
LINK_SECONDS: Final = 7200
ROWS: Final = ("direct", "traefik", "ringfence")
HIDDEN: Final = 404  # what a port that is not there, or not for you, is answered
WORD_BYTES: Final = 8


@dataclass(slots=True)
class Seat:
    """One published sandbox: its name, the word only it says, and the token of its own link."""

    word: str
    id: str = ""
    host: str = ""
    token: str = ""

    def request(self, token: str | None) -> bytes:
        """A GET to its name by whoever has this token."""
        lines = ["GET / HTTP/1.1", f"Host: {self.host}"]
        if token is not None:
            lines.append(f"{wire.ACCESS_HEADER}: {token}")
        return "\r\n".join([*lines, "", ""]).encode()

    def right(self, answer: Answer) -> bool:
        """Its own word and nothing else."""
        return answer.status == 200 and answer.body == self.word.encode()

    @property
    def order(self) -> Order:
        """What its own visitor asks."""
        return self.request(self.token), self.right


def hidden(answer: Answer) -> bool:
    """What a stranger must be told."""
    return answer.status == HIDDEN


class House:
    """Published sandboxes: made, opened to a link each, asked, weighed, and gone again."""

    def __init__(self, server: Measured, count: int) -> None:
        self._server = server
        self.seats = [Seat(secrets.token_hex(WORD_BYTES)) for _ in range(count)]
        self.edge = Target("", 0, "")

    def _post(self, rest: str, bodies: list[Any], seen: Callable[[Seat, Any], None]) -> None:
        """The same call for every seat; an answer is handed on with whose it is."""
        target = self._server.target
        calls = [
            target.request("POST", f"/v1/sandboxes{rest.format(seat.id)}", body)
            for seat, body in zip(self.seats, bodies, strict=True)
        ]
        failed = spread(target, calls, lambda at, answer: seen(self.seats[at], answer))
        if failed:
            raise PlatformFault(f"{failed} of {len(calls)} sandboxes could not be published", code="not_published")

    def open(self) -> None:
        """Create, publish, make a link."""
        count = len(self.seats)

        def made(seat: Seat, answer: Any) -> None:
            seat.id = answer["id"]

        def published(seat: Seat, answer: Any) -> None:
            parts = urlsplit(answer["url"])
            seat.host = parts.netloc
            self.edge = Target(tiny.LOOPBACK, parts.port or 80, "")

        def linked(seat: Seat, answer: Any) -> None:
            seat.token = answer["token"]

        bodies = [
            {"template": TEMPLATE, "ttl_seconds": TTL_SECONDS, "start": {"code": tiny.source(seat.word, PORT)}}
            for seat in self.seats
        ]
        self._post("", bodies, made)
        self._post("/{}/ports", [{"port": PORT}] * count, published)
        self._post(f"/{{}}/ports/{PORT}/links", [{"ttl_seconds": LINK_SECONDS}] * count, linked)

    def close(self) -> None:
        """Stop every one that was made."""
        calls = [self._server.target.request("DELETE", f"/v1/sandboxes/{seat.id}") for seat in self.seats if seat.id]
        spread(self._server.target, calls, lambda _at, _answer: None)

    def wrong(self, orders: Iterator[Order]) -> int:
        """Make each of these requests once; how many answers were not the right one."""
        wrong = 0
        with Connection(self.edge) as connection:
            for request, right in orders:
                wrong += not right(connection.exchange(request))
        return wrong

    def strangers(self, key: str) -> Iterator[Order]:
        """Everybody who should not get in: the neighbour's link, no link at all, another tenant's key."""
        for at, seat in enumerate(self.seats):
            for token in (self.seats[at - 1].token if len(self.seats) > 1 else None, None, key):
                yield seat.request(token), hidden


@dataclass(frozen=True, slots=True)
class Way:
    """One way to a server: where it is, and what to ask there next."""

    target: Target
    orders: Callable[[], Order]


def measure(
    server: Measured, count: int, pace: Pace, load_seconds: Mapping[int, float], work: Path, chance: random.Random
) -> dict[str, Any]:
    """Everything, with all of it gone again at the end. Raises PlatformFault when not all could be published."""
    steady(server)
    before, house = Weight.now(server), House(server, count)
    try:
        found: dict[str, Any] = {"template": TEMPLATE, "asked_for": count, "open_seconds": _timed(house.open)}
        found["wrong_answers"] = house.wrong(seat.order for seat in house.seats)
        steady(server)
        found |= _weight(before, Weight.now(server), count)
        with another_key(server) as key:
            found["strangers_let_in"] = house.wrong(house.strangers(key))
            found["strangers_tried"] = 3 * count
        with _ways(house, work, chance) as ways:
            found["absent"] = {} if "traefik" in ways else {"traefik": traefik.LACKING}
            rounds = _in_turn(ways, pace, chance)
            found["latency_ms"] = {name: summary(column(rounds, name)) for name in ROWS}
            found["added_ms"] = {name: apart(rounds, name, "direct") for name in ROWS[1:]}
            found["loads"] = _loads(server, ways, load_seconds, chance)
    finally:
        closing = _timed(house.close)
    found["close_seconds"] = closing
    return found


def _timed(act: Callable[[], None]) -> float:
    began = time.monotonic()
    act()
    return round(time.monotonic() - began, 2)


def _weight(before: Weight, after: Weight, count: int) -> dict[str, Any]:
    """Per published sandbox, its server in it running, in MiB."""
    found: dict[str, Any] = {"node_and_api_mib": round((after.server - before.server) / count / MIB, 3)}
    if before.charged is not None and after.charged is not None:
        found["charged_mib"] = round((after.charged - before.charged) / count / MIB, 3)
    found["available_mib"] = round((before.available - after.available) / count / MIB, 3)
    return found


@contextlib.contextmanager
def _ways(house: House, work: Path, chance: random.Random) -> Iterator[dict[str, Way]]:
    """Ours to any sandbox, the plain server, and Traefik to the plain server by any of the same names."""
    word = secrets.token_hex(WORD_BYTES)
    hosts = [seat.host.partition(":")[0] for seat in house.seats]

    def right(answer: Answer) -> bool:
        return answer.status == 200 and answer.body == word.encode()

    with tiny.plain(word) as plain, traefik.before(plain, hosts, work) as router:
        direct: Order = plain.request("GET", "/"), right
        ways = {
            "direct": Way(plain, lambda: direct),
            "ringfence": Way(house.edge, lambda: chance.choice(house.seats).order),
        }
        if router is not None:
            there = router
            ways["traefik"] = Way(there, lambda: (traefik.asking(there, chance.choice(hosts)), right))
        yield ways


def _in_turn(ways: dict[str, Way], pace: Pace, chance: random.Random) -> list[Round]:
    """One request after the other, each way once a round in an order shuffled anew, on connections that are kept."""
    until, rounds = time.monotonic() + pace.seconds, list[Round]()
    with contextlib.ExitStack() as stack:
        lines = {name: stack.enter_context(Connection(way.target)) for name, way in ways.items()}
        for name, way in ways.items():
            _ask(lines[name], *way.orders())
        while len(rounds) < pace.rounds and time.monotonic() < until:
            order = chance.sample(list(ways), len(ways))
            rounds.append({name: _ask(lines[name], *ways[name].orders()) for name in order})
    return rounds


def _ask(line: Connection, request: bytes, right: Right) -> float:
    answer, taken, _ = line.timed(request)
    if not right(answer):
        raise PlatformFault(f"a wrong answer: {answer.status} {answer.body[:200]!r}", code="wrong_answer")
    return taken


def _loads(
    server: Measured, ways: dict[str, Way], load_seconds: Mapping[int, float], chance: random.Random
) -> dict[str, dict[str, Any]]:
    """Every way at each number of connections; for ours, processor time a request as well."""
    found: dict[str, dict[str, Any]] = {name: {} for name in ROWS if name in ways}
    for connections, seconds in load_seconds.items():
        for name in chance.sample(list(found), len(found)):
            spent = server.cpu_seconds()
            load = Generator(ways[name].target, ways[name].orders).drive(connections, seconds)
            found[name][str(connections)] = told(load)
            if name == "ringfence" and load.runs:
                after, answers = server.cpu_seconds(), load.runs + load.late
                cpu = {part: round((value - spent[part]) * 1e3 / answers, 3) for part, value in after.items()}
                found[name][str(connections)]["cpu_ms_per_request"] = cpu
    return found
