"""A name server for one domain: every name in it is this machine, and about all else it says to ask somebody else.

Answers are hardly longer than their questions, so it is no use to who would have it shout at others.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import Final, NamedTuple

TTL: Final = 5  # seconds: a domain of this kind comes and goes with its server
REFUSED, WRONG, UNKNOWN = 5, 1, 4
_HEADER: Final = struct.Struct(">HHHHHH")
_TAIL: Final = struct.Struct(">HH")
_RECORD: Final = struct.Struct(">HHHIH")  # a pointer to the question's name, type, class, TTL, length
_A, _AAAA, _IN, _ANY = 1, 28, 1, 255
_LARGEST: Final = 512
_ANSWER, _OTHER, _AUTHORITATIVE, _RECURSE = 0x8000, 0x7800, 0x0400, 0x0100  # _OTHER: anything but a query


class Question(NamedTuple):
    """A name in lower case, a type, and where it ends in the packet."""

    name: bytes
    type: int
    end: int


class Zone:
    """What is answered."""

    def __init__(self, domain: str, address: str) -> None:
        self._name = domain.lower().encode()
        self._below = b"." + self._name
        found = ipaddress.ip_address(address)
        self._address = found.packed
        self._type = _A if found.version == 4 else _AAAA

    def answer(self, packet: bytes) -> bytes | None:
        """The answer to one packet; None for what is no question, which nobody waits for."""
        if len(packet) < _HEADER.size or len(packet) > _LARGEST or packet[2] & 0x80:
            return None
        number, flags, questions, *_ = _HEADER.unpack_from(packet)
        said = _ANSWER | flags & _RECURSE
        question = _question(packet) if questions == 1 and not flags & _OTHER else None
        if question is None:
            return _HEADER.pack(number, said | (UNKNOWN if flags & _OTHER else WRONG), 0, 0, 0, 0)
        asked = packet[_HEADER.size : question.end]
        if question.name != self._name and not question.name.endswith(self._below):
            return _HEADER.pack(number, said | REFUSED, 1, 0, 0, 0) + asked
        there = question.type in {self._type, _ANY}  # another type of an existing name: no record, and no error
        return _HEADER.pack(number, said | _AUTHORITATIVE, 1, there, 0, 0) + asked + (self._record() if there else b"")

    def _record(self) -> bytes:
        at_question = 0xC000 | _HEADER.size
        return _RECORD.pack(at_question, self._type, _IN, TTL, len(self._address)) + self._address


def _question(packet: bytes) -> Question | None:
    """The one question; None when it is cut short, compressed, too long, or of another class."""
    labels, at = [], _HEADER.size
    while at < len(packet) and (length := packet[at]):
        if length > 63 or at + 1 + length > len(packet):
            return None
        labels.append(packet[at + 1 : at + 1 + length].lower())
        at += 1 + length
    if at + 1 + _TAIL.size > len(packet) or sum(map(len, labels)) + len(labels) > 254:
        return None
    kind, group = _TAIL.unpack_from(packet, at + 1)
    if group not in {_IN, _ANY}:
        return None
    return Question(b".".join(labels), kind, at + 1 + _TAIL.size)


def serve(listener: socket.socket, zone: Zone) -> None:
    """Answer until the socket is closed."""
    while True:
        try:
            packet, asker = listener.recvfrom(_LARGEST + 1)
        except ConnectionError:  # a client that did not wait for its last answer
            continue
        answer = zone.answer(packet)
        if answer is not None:
            try:
                listener.sendto(answer, asker)
            except OSError:
                continue
