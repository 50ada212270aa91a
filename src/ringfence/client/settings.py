"""Which server to speak to and which key to show it, checked once when a client is made."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from ringfence import config
from ringfence.domain.errors import BadRequest
from ringfence.wire import DEFAULT_PORT

DEFAULT_URL: Final = f"http://127.0.0.1:{DEFAULT_PORT}"


@dataclass(frozen=True, slots=True)
class Target:
    """One server, one key, and the deadline of calls that are given none."""

    url: str
    key: str = field(default="", repr=False)
    timeout: float = 330.0

    @property
    def loopback(self) -> bool:
        """Whether the server is on this machine, so that no proxy is asked and no key leaves it."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    @property
    def websocket_url(self) -> str:
        """The same server, as terminals and tunnels address it."""
        return "ws" + self.url.removeprefix("http")


def target(url: str | None = None, key: str | None = None, timeout: float | None = None) -> Target:
    """What is given here, else RINGFENCE_URL and RINGFENCE_KEY, else ~/.config/ringfence/client.toml, else loopback.

    A key kept in the file is shown only to the file's own server: with the URL from elsewhere it is left out.
    Raises BadRequest for a value that cannot be used.
    """
    found = config.read_client(url=url, key=key, timeout_seconds=timeout)
    kept = config.read_client(environ={})
    elsewhere = (found.url or DEFAULT_URL) != (kept.url or DEFAULT_URL)
    secret = "" if key is None and elsewhere and found.key == kept.key else found.key
    return Target(_checked_url(found.url or DEFAULT_URL), _checked_key(secret), found.timeout_seconds)


def configured(url: str | None = None) -> bool:
    """Whether anybody said where the server is, or gave a key that only a server already running can know."""
    found = config.read_client(url=url)
    return bool(found.url or found.key)


def _checked_url(url: str) -> str:
    hint = "set RINGFENCE_URL to http://host:port or https://host"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0 and not parts.query
    except ValueError:
        usable = False
    if not usable:
        raise BadRequest(f"{url!r:.200} is not a server's URL", code="bad_settings", remediation=hint)
    return url.rstrip("/")


def _checked_key(key: str) -> str:
    if not key.isascii() or not (key + "x").isprintable():
        raise BadRequest("the key is not plain text", code="bad_settings", remediation="set RINGFENCE_KEY to rf_...")
    return key
