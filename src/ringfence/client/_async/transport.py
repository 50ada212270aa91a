"""One request to its answer: deadlines, safe repeats, and errors as the domain's classes."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from types import TracebackType
from typing import Final, Self

import httpx

from ringfence.client._async.link import AsyncLink, pause
from ringfence.client.calls import Call, Pairs
from ringfence.client.deadline import Deadline
from ringfence.client.errors import error_from_body, lost, may_repeat
from ringfence.client.links import LinkSpec
from ringfence.client.settings import Target

# Shorter than a server keeps an idle connection, so that we never write into one that is just being closed.
POOL: Final = httpx.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=3.0)
FOREIGN: Final = (httpx.TransportError, httpx.InvalidURL)


class AsyncBody:
    """An answer whose body is read piece by piece. Leaving it early closes the connection."""

    def __init__(self, response: httpx.Response, deadline: Deadline, url: str) -> None:
        self._response = response
        self._deadline = deadline
        self._url = url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop reading; closing twice does nothing."""
        await self._response.aclose()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises Unreachable when it breaks, DeadlineExceeded when it takes too long."""
        try:
            async for piece in self._response.aiter_bytes():
                yield piece
                self._deadline.left()
        except FOREIGN as error:
            raise lost(error, self._url) from error


class AsyncTransport:
    """An httpx client that speaks to one server and raises our errors."""

    def __init__(self, target: Target) -> None:
        self.target = target
        headers = {"Accept-Encoding": "identity"}
        if target.key:
            headers["Authorization"] = f"Bearer {target.key}"
        self._http = httpx.AsyncClient(base_url=target.url, headers=headers, limits=POOL, trust_env=not target.loopback)

    def deadline(self, seconds: float | None) -> Deadline:
        """The call's own deadline, else the client's."""
        return Deadline(self.target.timeout if seconds is None else seconds)

    async def call(self, call: Call, deadline: Deadline) -> bytes:
        """The whole body of the answer. Raises what the server refused, Unreachable or DeadlineExceeded."""
        return (await self._answer(call, deadline, whole=True)).content

    async def open(self, call: Call, deadline: Deadline) -> AsyncBody:
        """The answer once its head arrived, its body yet to be read."""
        return AsyncBody(await self._answer(call, deadline, whole=False), deadline, self.target.url)

    async def send(self, call: Call, body: AsyncIterable[bytes], deadline: Deadline) -> bytes:
        """As `call`, with a body that can be read only once and is therefore never repeated."""
        try:
            return (await self._once(call, body, deadline, whole=True)).content
        except FOREIGN as error:
            raise lost(error, self.target.url) from error

    async def link(self, path: str, params: Pairs, seconds: float | None) -> AsyncLink:
        """A WebSocket to a path; `seconds` bounds only the opening."""
        return await AsyncLink.open(LinkSpec.at(self.target, path, params), self.deadline(seconds).left())

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def _answer(self, call: Call, deadline: Deadline, *, whole: bool) -> httpx.Response:
        pauses = deadline.pauses()
        while True:
            try:
                return await self._once(call, call.body, deadline, whole=whole)
            except FOREIGN as error:
                wait = next(pauses, None)
                if wait is None or not may_repeat(error, repeatable=call.repeatable):
                    raise lost(error, self.target.url) from error
            await pause(wait)

    async def _once(
        self, call: Call, body: bytes | AsyncIterable[bytes] | None, deadline: Deadline, *, whole: bool
    ) -> httpx.Response:
        request = self._http.build_request(
            call.method, call.path, params=call.params, headers=call.headers, content=body, timeout=deadline.httpx()
        )
        response = await self._http.send(request, stream=True)
        deadline.listen(response)
        if whole or response.is_error:
            await response.aread()  # closes it, also when it fails
        if response.is_error:
            raise error_from_body(response.status_code, response.content)
        return response
