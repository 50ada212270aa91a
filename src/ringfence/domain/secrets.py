"""Secrets that never enter a sandbox: where one may be sent, and in which part of a request.

Inside a sandbox a secret is a placeholder, random and worth nothing. Its value takes the placeholder's place outside,
in requests to the hosts it is bound to, over TLS, and only where its owner said that it belongs.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ringfence.domain import names
from ringfence.domain.egress import DEFAULT_FLOOR, MOST_RULES, Floor, Mode, Policy, Protocol, Rule
from ringfence.domain.errors import BadRequest

PORT: Final = 443  # where a secret's hosts are reached, and where alone their connections are opened
PREFIX: Final = "rf-placeholder-"  # then 32 random letters and digits: safe in a header, a query, JSON and a shell
LEAST_VALUE: Final = 8  # characters; what is shorter can be guessed, and would be found in every answer
MOST_VALUE: Final = 8192
MOST_HOSTS: Final = 32
MOST_PLACES: Final = 16
MOST_SECRETS: Final = 32  # of one sandbox
NAME: Final = re.compile(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?")
ENV: Final = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_QUERY: Final = re.compile(r"[A-Za-z0-9._~-]{1,64}")
_IN_A_HEADER: Final = re.compile(r"[\x21-\x7e]+( [\x21-\x7e]+)*")
_ANYWHERE: Final = re.compile(r"[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]+")
# About the connection rather than the request, or read by us: a secret there would change where the request goes.
_NOT_THESE: Final = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "te", "trailer", "upgrade", "expect", "keep-alive"}
)
# What a sandbox's variables may not be turned into by a secret's name for itself.
_NOT_ENV: Final = frozenset({"PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "LD_PRELOAD", "LD_LIBRARY_PATH"})


class Part(enum.StrEnum):
    """Of a request."""

    HEADER = "header"
    QUERY = "query"
    BODY = "body"


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a request a value may stand. A header's name is in lower case; a body has none."""

    part: Part
    name: str = ""

    @property
    def text(self) -> str:
        """In one word, as people are told."""
        return f"{self.part} {self.name}" if self.name else str(self.part)


@dataclass(frozen=True, slots=True)
class Secret:
    """All of a secret that may be shown."""

    name: str
    hosts: tuple[str, ...]
    places: tuple[Place, ...]
    env: str  # the variable that holds its placeholder inside


@dataclass(frozen=True, slots=True)
class Held:
    """A secret as one sandbox has it. Its value is in no text made of it."""

    name: str
    hosts: tuple[str, ...]
    places: tuple[Place, ...]
    placeholder: str
    value: str = field(repr=False)

    def bound_to(self, host: str) -> bool:
        """Whether requests to this host may carry it."""
        return covers(self.hosts, host)


@dataclass(frozen=True, slots=True)
class Authority:
    """A tenant's own certificate authority, as PEM. The key is in no text made of it."""

    certificate: str
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Trust:
    """What one sandbox is trusted with: its secrets, and the authority that vouches for their hosts inside."""

    held: tuple[Held, ...]
    authority: Authority


def covers(patterns: Iterable[str], host: str) -> bool:
    """Whether one of some names and wildcards is for a host."""
    return any(host.endswith(each[1:]) if each.startswith("*.") else host == each for each in patterns)


# -- reading what a tenant said -------------------------------------------------------------------------------------


def _bad(cause: str, remediation: str = "") -> BadRequest:
    return BadRequest(f"secret: {cause}", code="bad_secret", remediation=remediation)


def secret_name(text: str) -> str:
    """A secret's name. Raises BadRequest."""
    if not NAME.fullmatch(text):
        raise _bad(
            f"{text!r:.80} is no name for one", "use 1 to 63 lower case letters, digits, '-' and '_', as openai or db-1"
        )
    return text


def _hosts(values: list[str], floor: Floor) -> tuple[str, ...]:
    if not 1 <= len(values) <= MOST_HOSTS:
        raise _bad(f"needs 1 to {MOST_HOSTS} hosts", "name every host that may be sent it")
    for index, value in enumerate(values):
        try:
            wanted = names.pattern(value)
        except names.BadName as error:
            raise _bad(f"host {index} {value!r:.80} {error}") from None
        if not floor.permits_name(wanted.removeprefix("*.")):
            raise _bad(f"host {index} {wanted:.80} is below the operator's floor")
    return tuple(dict.fromkeys(values))


def _places(headers: list[str], queries: list[str], *, body: bool) -> tuple[Place, ...]:
    found = []
    for name in headers:
        if not _TOKEN.fullmatch(name) or name.lower() in _NOT_THESE:
            raise _bad(f"{name!r:.80} is no header that can carry one", "for example: authorization, or x-api-key")
        found.append(Place(Part.HEADER, name.lower()))
    for name in queries:
        if not _QUERY.fullmatch(name):
            raise _bad(f"{name!r:.80} is no plain name of a query's field")
        found.append(Place(Part.QUERY, name))
    found += [Place(Part.BODY)] if body else []
    if not 1 <= len(found) <= MOST_PLACES:
        raise _bad(
            f"needs 1 to {MOST_PLACES} places in a request",
            'say headers, queries or body, as headers: ["authorization"]',
        )
    return tuple(dict.fromkeys(found))


def _env(text: str | None, name: str) -> str:
    wanted = re.sub(r"[^A-Z0-9_]", "_", name.upper()) if text is None else text
    wanted = f"_{wanted}" if text is None and wanted[0].isdigit() else wanted
    if not ENV.fullmatch(wanted) or wanted in _NOT_ENV or wanted.startswith("RINGFENCE_"):
        raise _bad(f"{wanted!r:.80} is no variable to put its placeholder into", "for example: OPENAI_API_KEY")
    return wanted


def secret_from(
    name: str,
    hosts: list[str],
    *,
    headers: list[str],
    queries: list[str],
    body: bool,
    env: str | None,
    floor: Floor = DEFAULT_FLOOR,
) -> Secret:
    """Check what a tenant said of a secret, but for its value. Raises BadRequest."""
    secret_name(name)
    return Secret(name, _hosts(hosts, floor), _places(headers, queries, body=body), _env(env, name))


def checked_value(value: str, places: tuple[Place, ...]) -> str:
    """A value that can stand where it is to stand. Raises BadRequest, in words that do not hold it."""
    if not LEAST_VALUE <= len(value) <= MOST_VALUE:
        raise _bad(f"its value needs {LEAST_VALUE} to {MOST_VALUE} characters")
    if PREFIX in value:
        raise _bad("its value is itself a placeholder")
    # A line end in a header would be the beginning of another header, or of another request.
    header = any(place.part is Part.HEADER for place in places)
    if not (_IN_A_HEADER if header else _ANYWHERE).fullmatch(value):
        raise _bad(
            "its value has characters that cannot stand there",
            "in a header: one line of plain ASCII, without white space at its ends",
        )
    return value


# -- as plain words, between our own processes ------------------------------------------------------------------------


def held_to(held: Held, *, value: bool = True) -> dict[str, Any]:
    """The plain table that held_from() reads; without its value for whoever need not know it."""
    words: dict[str, Any] = {
        "name": held.name,
        "hosts": list(held.hosts),
        "places": [[str(place.part), place.name] for place in held.places],
        "placeholder": held.placeholder,
    }
    return {**words, "value": held.value} if value else words


def held_from(words: dict[str, Any]) -> Held:
    """A sandbox's secret from a table. Raises KeyError, TypeError or ValueError, without the value in their words."""
    places = tuple(Place(Part(part), str(name)) for part, name in words["places"])
    texts = str(words["name"]), tuple(names.pattern(host) for host in words["hosts"])
    placeholder = str(words["placeholder"])
    if not placeholder.startswith(PREFIX) or len(placeholder) != len(PREFIX) + 32 or not placeholder.isascii():
        raise ValueError("a placeholder that is none")
    return Held(*texts, places, placeholder, str(words.get("value", "")))


def trust_from(ask: dict[str, Any]) -> Trust | None:
    """What a request entrusts its sandbox with; None for most. Raises KeyError, TypeError or ValueError."""
    if not ask.get("secrets"):
        return None
    authority = Authority(str(ask["authority"]["certificate"]), str(ask["authority"]["key"]))
    held = tuple(held_from(words) for words in ask["secrets"])
    if len({each.name for each in held}) != len(held) or len(held) > MOST_SECRETS:
        raise ValueError("secrets that are not distinct, or too many")
    return Trust(held, authority)


def changed(trust: Trust, name: str, now: Held | None) -> Trust:
    """What a sandbox is trusted with once one secret is another, or is no more; placeholders stay as they are."""
    held = (replace(now, placeholder=each.placeholder) if each.name == name and now else each for each in trust.held)
    return replace(trust, held=tuple(each for each in held if now is not None or each.name != name))


def authority_to(authority: Authority) -> dict[str, str]:
    """For another process of ours."""
    return {"certificate": authority.certificate, "key": authority.key}


def with_hosts(policy: Policy, trust: Trust | None) -> Policy:
    """A policy that also lets through to the hosts of a sandbox's secrets: by TLS, at one port, and nothing more.

    Raises BadRequest when there are too many.
    """
    if trust is None:
        return policy
    implied = [
        Rule(domain=host, ports=(PORT,), protocol=Protocol.TLS, reason=f"secret {held.name}")
        for held in trust.held
        for host in held.hosts
    ]
    known = {(rule.domain, port) for rule in policy.rules if rule.protocol is Protocol.TLS for port in rule.ports}
    added = [rule for rule in implied if (rule.domain, PORT) not in known]
    rules = tuple(dict.fromkeys((*policy.rules, *added)))
    if len(rules) > MOST_RULES:
        raise _bad(f"with the hosts of its secrets its policy has more than {MOST_RULES} rules")
    return replace(policy, mode=Mode.ALLOW if policy.mode is Mode.NONE else policy.mode, rules=rules)


def in_json(value: str) -> str:
    """A value as it stands between the quotes of a JSON string."""
    return json.dumps(value)[1:-1]
