"""Values in the place of placeholders: only at a secret's own hosts, and only where its owner said it belongs.

Pure: a request's head or body in, the same with values out, or a refusal. A placeholder anywhere else is refused, so
that a mistake, or a program that tries, is heard of instead of being sent.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, quote_plus

from ringfence.domain.secrets import LEAST_VALUE, PREFIX, Held, Part, Place, in_json
from ringfence.edge.parse import Request, tokens

_PLACEHOLDER: Final = re.compile(re.escape(PREFIX.encode()) + rb"[0-9a-f]{32}")
_BASIC: Final = re.compile(rb"([Bb]asic) +([A-Za-z0-9+/]+={0,2})")
# About this connection alone; and what we decide for both sides: how bodies are framed, and that they are readable.
_OURS: Final = frozenset({
    b"host", b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"te", b"trailer", b"upgrade",
    b"expect", b"content-length", b"transfer-encoding", b"accept-encoding",
})  # fmt: skip
Fields = list[tuple[bytes, bytes]]


class Refused(Exception):
    """Not sent; its text is the reason, `misdirected` the secret whose placeholder it was."""

    def __init__(self, reason: str, misdirected: str = "", status: int = 403) -> None:
        super().__init__(reason)
        self.misdirected = misdirected
        self.status = status


@dataclass(frozen=True, slots=True)
class Injected:
    """A request's head as its host gets it, but for how its body is framed; and what stands in it."""

    target: bytes
    fields: Fields
    used: tuple[str, ...]
    shown: tuple[bytes, ...]  # further forms in which a value was sent


def forms_of(values: Iterable[str]) -> set[bytes]:
    """How a value may come back in an answer: as it is, or as the common ways to write it."""
    found = set[bytes]()
    for value in values:
        raw = value.encode()
        found |= {raw, quote(value, safe="").encode(), quote_plus(value).encode(), in_json(value).encode()}
        found.add(base64.b64encode(raw))
    return {form for form in found if len(form) >= LEAST_VALUE}


class Injector:
    """One request's: counts what it used."""

    def __init__(self, held: Iterable[Held], host: str) -> None:
        self._held = {each.placeholder.encode(): each for each in held}
        self._host = host
        self._used: dict[str, None] = {}
        self._shown: list[bytes] = []

    @property
    def used(self) -> tuple[str, ...]:
        """The secrets whose values were put in so far."""
        return tuple(self._used)

    def head(self, request: Request) -> Injected:
        """The head with values in it. Raises Refused."""
        target = self._target(request.target)
        fields: Fields = [(b"host", self._host.encode())]
        hop = _OURS | tokens(request.fields, b"connection")
        for name, raw, value in request.fields:
            if name in hop:
                self._nothing(value, Place(Part.HEADER, name.decode()))
                continue
            place = Place(Part.HEADER, name.decode("latin-1"))
            self._nothing(raw, place)
            fields.append((raw, self._header(value, place)))
        fields.append((b"accept-encoding", b"identity"))  # or a value that comes back could not be seen
        return Injected(target, fields, self.used, tuple(self._shown))

    def body(self, data: bytes, kind: bytes) -> bytes:
        """A whole body with values in it, written as its content type writes text. Raises Refused."""
        kind = kind.partition(b";")[0].strip().lower()
        write: Callable[[str], str] = str
        if kind == b"application/json" or kind.endswith(b"+json"):
            write = in_json
        elif kind == b"application/x-www-form-urlencoded":
            write = quote_plus
        return _PLACEHOLDER.sub(lambda found: self._one(found[0], Place(Part.BODY), write, strangers=True), data)

    # -- the parts ------------------------------------------------------------------------------------------

    def _target(self, target: bytes) -> bytes:
        path, mark, query = target.partition(b"?")
        self._nothing(path, Place(Part.QUERY, "(the path)"))
        return path + mark + b"&".join(self._field(field) for field in query.split(b"&"))

    def _field(self, field: bytes) -> bytes:
        name, equals, value = field.partition(b"=")
        place = Place(Part.QUERY, name.decode("latin-1")[:64])
        self._nothing(name, place)
        return name + equals + self._put(value, place, lambda text: quote(text, safe=""))

    def _header(self, value: bytes, place: Place) -> bytes:
        basic = _BASIC.fullmatch(value) if place.name in {"authorization", "proxy-authorization"} else None
        if basic is None:
            return self._put(value, place, str)
        try:
            plain = base64.b64decode(basic[2], validate=True)
        except (binascii.Error, ValueError):
            return self._put(value, place, str)
        filled = self._put(plain, place, str)
        if filled == plain:
            return value
        self._shown.append(base64.b64encode(filled))
        return basic[1] + b" " + self._shown[-1]

    def _put(self, text: bytes, place: Place, write: Callable[[str], str]) -> bytes:
        return _PLACEHOLDER.sub(lambda found: self._one(found[0], place, write), text)

    def _one(self, placeholder: bytes, place: Place, write: Callable[[str], str], *, strangers: bool = False) -> bytes:
        held = self._held.get(placeholder)
        if held is None:
            if strangers:  # in a document that somebody uploads it may be any text
                return placeholder
            raise Refused("a placeholder that is none of this sandbox's secrets'")
        if not held.bound_to(self._host):
            raise Refused(f"secret {held.name} is not bound to {self._host}", held.name)
        if place not in held.places:
            raise Refused(f"secret {held.name} does not belong into {place.text:.80}", held.name)
        self._used[held.name] = None
        return write(held.value).encode()

    def _nothing(self, text: bytes, place: Place) -> None:
        """Refuse a placeholder where none can be."""
        found = _PLACEHOLDER.search(text)
        if found is not None:
            held = self._held.get(found[0])
            name = held.name if held is not None else ""
            raise Refused(f"a secret's placeholder does not belong into {place.text:.80}", name)


def in_bodies(held: Iterable[Held], host: str) -> bool:
    """Whether a body sent to this host may have to be written anew."""
    return any(each.bound_to(host) and Place(Part.BODY) in each.places for each in held)
