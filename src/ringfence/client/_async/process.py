"""A process in the background of a sandbox, held by its pid."""

from __future__ import annotations

from ringfence import wire
from ringfence.client import calls
from ringfence.client._async.client import AsyncClient
from ringfence.client._async.stream import AsyncStream, OnText, process_ended
from ringfence.client._async.terminal import AsyncTerminal
from ringfence.client.results import ProcessResult
from ringfence.domain.errors import NotFound


class AsyncProcess:
    """A running process: read its output, feed it, signal it, wait for it. Losing this object ends nothing."""

    def __init__(self, client: AsyncClient, sandbox: str, pid: int) -> None:
        self.client = client
        self.sandbox = sandbox
        self.pid = pid

    def output(self, *, deadline: float | None = None, quiet: float | None = None) -> AsyncStream[ProcessResult]:
        """What it wrote lately (the last 64 KiB of each stream) and then what it writes, until it ends.

        The iteration raises DeadlineExceeded after `deadline` seconds, or after `quiet` seconds without a byte.
        """
        call = calls.output(self.sandbox, self.pid)
        return AsyncStream(self.client.transport, call, deadline, process_ended, quiet=quiet)

    async def wait(
        self, *, on_stdout: OnText | None = None, on_stderr: OnText | None = None, deadline: float | None = None
    ) -> ProcessResult:
        """Wait until it ends. Raises DeadlineExceeded when that takes longer; the process then goes on."""
        return await self.output(deadline=deadline).wait(on_stdout, on_stderr)

    async def signal(self, name: str | int, *, deadline: float | None = None) -> None:
        """Send it a signal, by name ("TERM") or number. Raises what the server answers when it has ended."""
        await self._do(calls.signal(self.sandbox, self.pid, name), deadline)

    async def kill(self, *, deadline: float | None = None) -> None:
        """End it at once (SIGKILL)."""
        await self.signal("KILL", deadline=deadline)

    async def send_input(self, data: str | bytes, *, close: bool = False, deadline: float | None = None) -> None:
        """Write to its stdin, which must have been left open; `close` ends the stdin afterwards."""
        raw = data.encode() if isinstance(data, str) else data
        await self._do(calls.send_input(self.sandbox, self.pid, raw, close=close), deadline)

    async def close_input(self, *, deadline: float | None = None) -> None:
        """End its stdin."""
        await self.send_input(b"", close=True, deadline=deadline)

    async def resize(self, cols: int, rows: int, *, deadline: float | None = None) -> None:
        """Tell it that its terminal has a new size."""
        await self._do(calls.resize(self.sandbox, self.pid, cols, rows), deadline)

    async def attach(self, *, deadline: float | None = None) -> AsyncTerminal:
        """Its terminal, both ways."""
        path = calls.process_path(self.sandbox, self.pid, "/attach")
        return AsyncTerminal(await self.client.transport.link(path, (), deadline))

    async def info(self, *, deadline: float | None = None) -> wire.Process:
        """How it is now. Raises NotFound when the sandbox does not know it."""
        listed = await self.client.fetch(wire.ProcessList, calls.list_processes(self.sandbox), deadline)
        for process in listed.processes:
            if process.pid == self.pid:
                return process
        raise NotFound(f"no process {self.pid} in this sandbox", remediation="list them with processes()")

    async def _do(self, call: calls.Call, deadline: float | None) -> None:
        await self.client.transport.call(call, self.client.transport.deadline(deadline))
