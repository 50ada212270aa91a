"""Where a request leads: by the name it was sent to, by a path, or by two headers. Only what is exact is answered.

A Host is one of ours or it is refused: a page elsewhere may have rebound its own name to this address. Routing headers
count only where the Host names no sandbox itself, so that a page can never say for another where its request goes.
"""

from __future__ import annotations

import ipaddress
import re
from typing import ClassVar, Final, NamedTuple

from ringfence.domain.errors import BadRequest, Refused
from ringfence.edge.parse import Fields, Request, all_of

API_LABEL: Final = b"api"
API_PORTS: Final = frozenset({49983, 49999})  # E2B's daemon and its code interpreter: both are served by the api
ROUTING: Final = ((b"e2b-sandbox-id", b"e2b-sandbox-port"), (b"x-ringfence-sandbox", b"x-ringfence-port"))
LONGEST: Final = 255
_NAME: Final = re.compile(rb"[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.?")
_BRACKETED: Final = re.compile(rb"\[[0-9A-Fa-f:.]{2,45}\]")
_PORT: Final = re.compile(rb"[1-9][0-9]{0,4}")
# What stands behind the id is read over: E2B's clients of version 1 write the name of a client there.
_ID: Final = rb"(s[a-z2-7]{26})(-[a-z0-9-]{1,28})?"
_ROUTED: Final = re.compile(rb"([1-9][0-9]{0,4})-" + _ID)
_IDENTIFIED: Final = re.compile(_ID)
_PATH: Final = re.compile(rb"/p/(s[a-z2-7]{26})/([1-9][0-9]{0,4})(?=[/?]|$)")


class WrongHost(Refused):
    """A name this edge does not answer to, here or on this connection."""

    status: ClassVar[int] = 421
    default_code: ClassVar[str] = "wrong_host"


class BadHost(BadRequest):
    """Not a host name."""

    default_code: ClassVar[str] = "bad_host"


class BadRouting(BadRequest):
    """Headers that should say which sandbox and which port, and do not."""

    default_code: ClassVar[str] = "bad_routing"


class Place(NamedTuple):
    """What a request asks for. `shared`: its origin is not this port's alone. `api`: the api itself answers it."""

    label: str  # of a port published for itself; empty where only a sandbox-wide publication can be meant
    target: bytes
    sandbox: str = ""
    port: int = 0
    prefix: str = ""
    shared: bool = False
    api: bool = False


class Names:
    """The names of this edge: `<port>-<id>.<domain>`, the api's where it is served here, and those that are shared."""

    def __init__(self, domain: str, ports: frozenset[int], shared: frozenset[str], *, serve_api: bool = False) -> None:
        self._domain = domain.encode()
        self._ports = frozenset(str(port).encode() for port in ports)
        self._shared = frozenset(name.encode() for name in shared)
        self._serve_api = serve_api

    def place(self, request: Request) -> Place | None:
        """What is asked for; None where nothing can be. Raises BadHost, WrongHost or BadRouting."""
        name, target = self.name(request.host), request.target
        label, _, rest = name.partition(b".")
        if rest == self._domain:
            return self._by_label(label, target)
        if name not in self._shared and not is_address(name):
            raise _not_ours()
        routed = _routed(request.fields)
        if routed is not None:
            return self._placed(*routed, target)._replace(shared=True)
        if name not in self._shared:
            raise _not_ours()
        return self._by_path(target)

    def _by_label(self, label: bytes, target: bytes) -> Place | None:
        if label == API_LABEL and self._serve_api:
            return Place("", target, api=True)
        found = _ROUTED.fullmatch(label)
        if found is None or int(found[1]) > 65_535:
            return None
        return self._placed(found[2], int(found[1]), found[3], target)

    def _placed(self, sandbox: bytes, port: int, suffix: bytes | None, target: bytes) -> Place:
        name = sandbox.decode()
        api = self._serve_api and port in API_PORTS
        return Place("" if suffix else f"{port}-{name}", target, name, port, api=api)

    def _by_path(self, target: bytes) -> Place | None:
        found = _PATH.match(target)
        if found is None or int(found[2]) > 65_535:
            return None
        place = self._placed(found[1], int(found[2]), None, target)
        if place.api:
            return None  # what is behind those ports is told apart by Host or header, not by path
        rest = target[found.end() :]
        return place._replace(
            target=rest if rest.startswith(b"/") else b"/" + rest, prefix=target[: found.end()].decode(), shared=True
        )

    def name(self, host: bytes) -> bytes:
        """A Host without its port, which must be one of ours. Raises BadHost or WrongHost."""
        bracketed = _BRACKETED.match(host)
        name = bracketed.group() if bracketed else host.partition(b":")[0]
        rest = host[len(name) :]
        if len(host) > LONGEST or not (bracketed or _NAME.fullmatch(name)) or (rest and not _PORT.fullmatch(rest[1:])):
            raise BadHost("the Host header is not a host name")
        if rest and (rest[:1] != b":" or rest[1:] not in self._ports):
            raise WrongHost("this server does not answer to that port", remediation="use the URL as it was given")
        return name


def _not_ours() -> WrongHost:
    return WrongHost("this server does not answer to that Host", remediation="use the URL as it was given")


def is_address(name: bytes) -> bool:
    """Whether a host is an IP address, written in the one usual way. Nobody can rebind one."""
    try:
        ipaddress.ip_address(name.decode("latin-1").removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _routed(fields: Fields) -> tuple[bytes, int, bytes | None] | None:
    """The sandbox and port that headers name, and what stands behind the id; None without any. Raises BadRouting."""
    given = [(all_of(fields, of_id), all_of(fields, of_port)) for of_id, of_port in ROUTING]
    given = [pair for pair in given if pair[0] or pair[1]]
    if not given:
        return None
    ids, ports = given[0]
    if len(given) != 1 or len(ids) != 1 or len(ports) != 1:
        raise BadRouting(
            "one header naming the sandbox and one naming the port are needed, and no others",
            remediation="send E2b-Sandbox-Id with E2b-Sandbox-Port, or X-Ringfence-Sandbox with X-Ringfence-Port",
        )
    found = _IDENTIFIED.fullmatch(ids[0])
    if found is None or not _PORT.fullmatch(ports[0]) or int(ports[0]) > 65_535:
        raise BadRouting("the headers that route do not name a sandbox and a port from 1 to 65535")
    return found[1], int(ports[0]), found[2]
