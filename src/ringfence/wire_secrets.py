"""The shapes of secrets: a value goes in, and is in nothing that comes out."""

from __future__ import annotations

from ringfence.wire import Answer, Request


class SecretRequest(Request, frozen=True):
    """Keep a secret: sandboxes that ask for it hold a placeholder in the variable `env`, never the value.

    In requests by TLS to one of `hosts` (names, or `*.` and a name) the value takes the placeholder's place in the
    `headers` and the fields of the query that are named, and in the body where `body` says so; nowhere else.
    """

    value: str
    hosts: list[str]
    headers: list[str] = []
    queries: list[str] = []
    body: bool = False
    env: str | None = None

    def __repr__(self) -> str:
        return f"SecretRequest(hosts={self.hosts!r})"  # a value in a traceback would be a value in a log


class Secret(Answer, frozen=True):
    """A secret as its owner sees it: all but its value, which is never shown."""

    name: str
    hosts: list[str]
    headers: list[str] = []
    queries: list[str] = []
    body: bool = False
    env: str = ""
    created_at: float = 0.0
    changed_at: float = 0.0


class SecretList(Answer, frozen=True):
    """Every secret of a tenant, by name."""

    secrets: list[Secret]
