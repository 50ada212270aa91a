"""E2B's wire, spoken by hand: what a client would never send, and what an answer is made of."""

from __future__ import annotations

import base64
import json
import socket
import struct
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.e2b.server import Served

START = "/process.Process/Start"


def envelope(message: Any, flags: int = 0) -> bytes:
    """One message, framed."""
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    return struct.pack(">BI", flags, len(data)) + data


def envelopes(data: bytes) -> list[tuple[int, Any]]:
    """Every (flags, message) of a body; what is cut raises."""
    found, at = [], 0
    while at < len(data):
        flags, size = struct.unpack_from(">BI", data, at)
        assert at + 5 + size <= len(data), "the answer ends inside an envelope"
        found.append((flags, json.loads(data[at + 5 : at + 5 + size])))
        at += 5 + size
    return found


@dataclass
class Box:
    """A sandbox, by its id and tokens, and a client of its services."""

    server: Served
    made: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.made["sandboxID"]

    def routed(self, token: str | None = "", **more: str) -> dict[str, str]:
        """The headers that name it."""
        token = self.made["envdAccessToken"] if token == "" else token
        named = {"E2b-Sandbox-Id": self.id, "E2b-Sandbox-Port": "49983"}
        return {**named, **({"X-Access-Token": token} if token else {}), **more}

    def client(self, token: str | None = "", **more: str) -> httpx.Client:
        """A client of its services."""
        return httpx.Client(base_url=self.server.url, headers=self.routed(token, **more), timeout=60, trust_env=False)

    def call(self, path: str, message: Any, **headers: str) -> httpx.Response:
        """A unary call."""
        with self.client(**headers) as client:
            return client.post(path, json=message)

    def stream(self, path: str, body: bytes, **headers: str) -> list[tuple[int, Any]]:
        """A stream's whole answer."""
        with self.client(**{"Content-Type": "application/connect+json", **headers}) as client:
            answer = client.post(path, content=body)
            assert answer.status_code == 200, answer.text
            return envelopes(answer.content)

    def run(self, line: str) -> str:
        """A command's output."""
        sent = {"process": {"cmd": "/bin/bash", "args": ["-c", line]}, "stdin": False}
        events = [message["event"] for flags, message in self.stream(START, envelope(sent)) if not flags]
        return "".join(
            base64.b64decode(event["data"]["stdout"]).decode() for event in events if "stdout" in event.get("data", {})
        )

    def raw(
        self, path: str, body: bytes, *, length: int | None = None, kind: str = "application/connect+json"
    ) -> bytes:
        """Send so much of a request and close our side; everything that came back."""
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.server.port}\r\n"
        head += f"Content-Type: {kind}\r\nConnection: close\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in self.routed().items())
        head += f"Content-Length: {len(body) if length is None else length}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=60) as connection:
            connection.sendall(head.encode() + body)
            connection.shutdown(socket.SHUT_WR)
            found = b""
            while data := connection.recv(65536):
                found += data
            return found

    def kill(self) -> None:
        """End it."""
        with self.server.client() as client:
            client.delete(f"/sandboxes/{self.id}")


def make(server: Served, key: str | None = None, **body: Any) -> Box:
    """A new sandbox."""
    with server.client(key) as client:
        answer = client.post("/v2/sandboxes", json={"templateID": "base", "timeout": 900, **body})
    assert answer.status_code == 201, answer.text
    return Box(server, answer.json())
