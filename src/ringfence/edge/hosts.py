"""Which name a request was sent to. Only exactly registered ones are answered; everything else is told why not."""

from __future__ import annotations

import re
from typing import ClassVar, Final, NamedTuple

from ringfence.domain.errors import BadRequest, Refused

_NAME: Final = re.compile(rb"[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.?")
_BRACKETED: Final = re.compile(rb"\[[0-9A-Fa-f:.]{2,45}\]")
_PORT: Final = re.compile(rb"[1-9][0-9]{0,4}")
_ROUTED: Final = re.compile(rb"([1-9][0-9]{0,4})-(s[a-z2-7]{26})")
_PATH: Final = re.compile(rb"/p/(s[a-z2-7]{26})/([1-9][0-9]{0,4})(?=[/?]|$)")
LONGEST: Final = 255


class WrongHost(Refused):
    """A name this edge does not answer to: a page elsewhere may have rebound its own name to this address."""

    status: ClassVar[int] = 421
    default_code: ClassVar[str] = "wrong_host"


class BadHost(BadRequest):
    """Not a host name."""

    default_code: ClassVar[str] = "bad_host"


class Place(NamedTuple):
    """What a request asks for: a published port by its label, the target it gets, and whether the origin is shared."""

    label: str
    target: bytes
    prefix: str = ""


class Names:
    """The names of this edge: `<port>-<id>.<domain>`, and those under which /p/<id>/<port>/ may be asked for."""

    def __init__(self, domain: str, ports: frozenset[int], shared: frozenset[str]) -> None:
        self._domain = domain.encode()
        self._ports = frozenset(str(port).encode() for port in ports)
        self._shared = frozenset(name.encode() for name in shared)

    def place(self, host: bytes, target: bytes) -> Place | None:
        """What is asked for; None where nothing can be. Raises BadHost or WrongHost."""
        name = self._name(host)
        label, _, rest = name.partition(b".")
        if rest == self._domain:
            return Place(label.decode(), target) if _ROUTED.fullmatch(label) else None
        if name not in self._shared:
            raise WrongHost("this server does not answer to that Host", remediation="use the URL as it was given")
        found = _PATH.match(target)
        if found is None:
            return None
        rest = target[found.end() :]
        prefix = target[: found.end()].decode()
        return Place(f"{found[2].decode()}-{found[1].decode()}", rest if rest.startswith(b"/") else b"/" + rest, prefix)

    def _name(self, host: bytes) -> bytes:
        """A Host without its port, which must be one of ours."""
        bracketed = _BRACKETED.match(host)
        name = bracketed.group() if bracketed else host.partition(b":")[0]
        rest = host[len(name) :]
        if len(host) > LONGEST or not (bracketed or _NAME.fullmatch(name)) or (rest and not _PORT.fullmatch(rest[1:])):
            raise BadHost("the Host header is not a host name")
        if rest and (rest[:1] != b":" or rest[1:] not in self._ports):
            raise WrongHost("this server does not answer to that port", remediation="use the URL as it was given")
        return name
