"""DNS messages, to the small extent that a resolver for a few allowed names needs. Bounded, strict, pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from ringfence.domain.names import BadName, heard_name

MOST_UDP: Final = 1232
MOST_TCP: Final = 16_384
MOST_RECORDS: Final = 256
MOST_CHAIN: Final = 8
A, CNAME, AAAA, OPT, SVCB, HTTPS = 1, 5, 28, 41, 64, 65
IN: Final = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = 0, 1, 2, 3, 4, 5
BLOCKED: Final = 15  # RFC 8914: the operator does not answer for this name
NETWORK_ERROR: Final = 23
_HEADER: Final = struct.Struct(">HHHHHH")
_RECORD: Final = struct.Struct(">HHIH")
_RESPONSE, _TRUNCATED, _DESIRED, _AVAILABLE = 0x8000, 0x0200, 0x0100, 0x0080
_OPCODE: Final = 0x7800
_EXTENDED: Final = 15  # the EDNS option of an extended error


class BadMessage(ValueError):
    """Not a message we take; its text says why."""


@dataclass(frozen=True, slots=True)
class Query:
    """One question. `question` is its own bytes, to be echoed as they came (their case included)."""

    id: int
    name: str
    kind: int
    question: bytes
    edns: bool
    flags: int
    bad_name: str = ""  # why the name is none


@dataclass(frozen=True, slots=True)
class Answer:
    """What a resolver upstream said of a name."""

    code: int
    addresses: tuple[IPv4Address, ...] = ()
    ttl: int = 0
    truncated: bool = False


def _labels(data: bytes, at: int, *, pointers: bool) -> tuple[list[bytes], int]:
    """(labels, where the reading goes on). A pointer only ever leads back, so that a chain of them ends."""
    labels: list[bytes] = []
    after, total, lowest = -1, 0, at
    while True:
        if at >= len(data):
            raise BadMessage("a name runs out of the message")
        size = data[at]
        if size >= 0xC0:
            if not pointers or at + 1 >= len(data):
                raise BadMessage("a name points where it must not")
            target = int.from_bytes(data[at : at + 2], "big") & 0x3FFF
            after = at + 2 if after < 0 else after
            if target >= lowest or target < _HEADER.size:
                raise BadMessage("a name points forward")
            at = lowest = target
            continue
        if size > 63:
            raise BadMessage("a name has a label of an unknown kind")
        at += 1
        if not size:
            return labels, at if after < 0 else after
        labels.append(data[at : at + size])
        at += size
        total += size + 1
        if total > 254:
            raise BadMessage("a name is too long")


def _folded(labels: list[bytes]) -> tuple[bytes, ...]:
    return tuple(label.lower() for label in labels)


def _named(labels: list[bytes]) -> tuple[str, str]:
    """(name, "") or ("", why it is none). A dot inside a label would make two names look like one."""
    if any(b"." in label for label in labels):
        return "", "has a dot inside a label"
    try:
        return heard_name(b".".join(labels)), ""
    except BadName as error:
        return "", str(error)


def query_from(data: bytes) -> Query:
    """A sandbox's question. Raises BadMessage for what is not one plain question."""
    if len(data) < _HEADER.size:
        raise BadMessage("shorter than a header")
    number, flags, questions, answers, authorities, more = _HEADER.unpack_from(data)
    if flags & (_RESPONSE | _OPCODE | _TRUNCATED) or questions != 1 or answers or authorities or more > 2:
        raise BadMessage("not one plain question")
    labels, at = _labels(data, _HEADER.size, pointers=False)
    if at + 4 > len(data):
        raise BadMessage("a question without a type")
    kind, family = struct.unpack_from(">HH", data, at)
    if family != IN:
        raise BadMessage("not of the internet class")
    name, why = _named(labels)
    return Query(number, name, kind, data[_HEADER.size : at + 4], more > 0, flags, why)


def _option(code: int, text: str) -> bytes:
    value = struct.pack(">H", code) + text.encode("ascii", "replace")[:200]
    option = struct.pack(">HH", _EXTENDED, len(value)) + value
    return b"\0" + struct.pack(">HHIH", OPT, MOST_UDP, 0, len(option)) + option


def answer_to(
    query: Query, code: int, addresses: tuple[IPv4Address, ...] = (), ttl: int = 0, why: tuple[int, str] | None = None
) -> bytes:
    """An answer in our own words: nothing of what came from upstream is copied but addresses and a bounded TTL."""
    flags = _RESPONSE | _AVAILABLE | (query.flags & _DESIRED) | code
    extra = _option(*why) if why and query.edns else b""
    records = b"".join(
        struct.pack(">HHHIH", 0xC000 | _HEADER.size, A, IN, ttl, 4) + address.packed for address in addresses
    )
    header = _HEADER.pack(query.id, flags, 1, len(addresses), 0, 1 if extra else 0)
    return header + query.question + records + extra


def malformed(data: bytes) -> bytes:
    """The answer to what is no question; empty when not even its number can be told, or when it is an answer."""
    if len(data) < _HEADER.size or data[2] & 0x80:
        return b""
    return data[:2] + struct.pack(">HHHHH", _RESPONSE | _AVAILABLE | FORMERR, 0, 0, 0, 0)


def question_of(name: str) -> bytes:
    """The question for a name's IPv4 addresses."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return labels + b"\0" + struct.pack(">HH", A, IN)


def ask(number: int, name: str) -> bytes:
    """A query to send upstream."""
    return _HEADER.pack(number, _DESIRED, 1, 0, 0, 0) + question_of(name)


def _records(data: bytes, at: int, count: int) -> list[tuple[tuple[bytes, ...], int, int, int, int]]:
    """(owner, type, ttl, start and size of the data) of each answer record."""
    found = []
    for _ in range(count):
        owner, at = _labels(data, at, pointers=True)
        if at + _RECORD.size > len(data):
            raise BadMessage("a record runs out of the message")
        kind, family, ttl, size = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        if at + size > len(data):
            raise BadMessage("a record runs out of the message")
        if family == IN:
            found.append((_folded(owner), kind, ttl, at, size))
        at += size
    return found


def answer_from(data: bytes, number: int, name: str) -> Answer:
    """What upstream says. Raises BadMessage for anything that is not an answer to exactly our question.

    Only addresses of the asked name count, or of where its own chain of aliases leads: what else an answer brings is
    not looked at (a resolver that is poisoned by extra records has pinned what nobody asked).
    """
    if len(data) < _HEADER.size:
        raise BadMessage("shorter than a header")
    got, flags, questions, answers, _, _ = _HEADER.unpack_from(data)
    if got != number or not flags & _RESPONSE or flags & _OPCODE or questions != 1:
        raise BadMessage("not an answer to our question")
    question = question_of(name)
    end = _HEADER.size + len(question)
    if data[_HEADER.size : end].lower() != question.lower():
        raise BadMessage("an answer to another question")
    code = flags & 0xF
    if flags & _TRUNCATED:
        return Answer(code, truncated=True)
    if code != NOERROR:
        return Answer(code)
    if answers > MOST_RECORDS:
        raise BadMessage("too many records")
    return _followed(data, _records(data, end, answers), name)


def _followed(data: bytes, records: list[tuple[tuple[bytes, ...], int, int, int, int]], name: str) -> Answer:
    owner, ttls = tuple(label.encode() for label in name.split(".")), []
    for _ in range(MOST_CHAIN):
        own = [r for r in records if r[0] == owner]
        found = [r for r in own if r[1] == A and r[4] == 4]
        if found:
            ttls += [r[2] for r in found]
            addresses = tuple(dict.fromkeys(IPv4Address(data[r[3] : r[3] + 4]) for r in found))
            return Answer(NOERROR, addresses, min(ttls))
        alias = next((r for r in own if r[1] == CNAME), None)
        if alias is None:
            return Answer(NOERROR)
        ttls.append(alias[2])
        owner = _folded(_labels(data, alias[3], pointers=True)[0])
    raise BadMessage("a chain of aliases without an end")


def shown(question: bytes) -> str:
    """A question's name for people, however odd."""
    return question[:200].decode("ascii", "backslashreplace")
