# Generated from client/_async/transport.py by tools/unasync.py: edit that file, not this one.

"""One request to its answer: deadlines, safe repeats, and errors as the domain's classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Final, Self

import httpx

from ringfence.client._sync.link import Link, pause
from ringfence.client.calls import Call, Pairs
from ringfence.client.deadline import Deadline
from ringfence.client.errors import error_from_body, lost, may_repeat
from ringfence.client.links import LinkSpec
from ringfence.client.settings import Target

# Shorter than a server keeps an idle connection, so that we never write into one that is just being closed.
POOL: Final = httpx.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=3.0)
FOREIGN: Final = (httpx.TransportError, httpx.InvalidURL)


class Body:
    """An answer whose body is read piece by piece. Leaving it early closes the connection."""

    def __init__(self, response: httpx.Response, deadline: Deadline, url: str) -> None:
        self._response = response
        self._deadline = deadline
        self._url = url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading; closing twice does nothing."""
        self._response.close()

    def pieces(self) -> Iterator[bytes]:
        """The body as it arrives. Raises Unreachable when it breaks, DeadlineExceeded when it takes too long."""
        try:
            for piece in self._response.iter_bytes():
                yield piece
                self._deadline.left()
        except FOREIGN as error:
            raise lost(error, self._url) from error


class Transport:
    """An httpx client that speaks to one server and raises our errors."""

    def __init__(self, target: Target) -> None:
        self.target = target
        headers = {"Accept-Encoding": "identity"}
        if target.key:
            headers["Authorization"] = f"Bearer {target.key}"
        self._http = httpx.Client(base_url=target.url, headers=headers, limits=POOL, trust_env=not target.loopback)

    def deadline(self, seconds: float | None) -> Deadline:
        """The call's own deadline, else the client's."""
        return Deadline(self.target.timeout if seconds is None else seconds)

    def call(self, call: Call, deadline: Deadline) -> bytes:
        """The whole body of the answer. Raises what the server refused, Unreachable or DeadlineExceeded."""
        return (self._answer(call, deadline, whole=True)).content

    def open(self, call: Call, deadline: Deadline) -> Body:
        """The answer once its head arrived, its body yet to be read."""
        return Body(self._answer(call, deadline, whole=False), deadline, self.target.url)

    def send(self, call: Call, body: Iterable[bytes], deadline: Deadline) -> bytes:
        """As `call`, with a body that can be read only once and is therefore never repeated."""
        try:
            return (self._once(call, body, deadline, whole=True)).content
        except FOREIGN as error:
            raise lost(error, self.target.url) from error

    def link(self, path: str, params: Pairs, seconds: float | None) -> Link:
        """A WebSocket to a path; `seconds` bounds only the opening."""
        return Link.open(LinkSpec.at(self.target, path, params), self.deadline(seconds).left())

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    def _answer(self, call: Call, deadline: Deadline, *, whole: bool) -> httpx.Response:
        pauses = deadline.pauses()
        while True:
            try:
                return self._once(call, call.body, deadline, whole=whole)
            except FOREIGN as error:
                wait = next(pauses, None)
                if wait is None or not may_repeat(error, repeatable=call.repeatable):
                    raise lost(error, self.target.url) from error
            pause(wait)

    def _once(
        self, call: Call, body: bytes | Iterable[bytes] | None, deadline: Deadline, *, whole: bool
    ) -> httpx.Response:
        request = self._http.build_request(
            call.method, call.path, params=call.params, headers=call.headers, content=body, timeout=deadline.httpx()
        )
        response = self._http.send(request, stream=True)
        deadline.listen(response)
        if whole or response.is_error:
            response.read()  # closes it, also when it fails
        if response.is_error:
            raise error_from_body(response.status_code, response.content)
        return response
