"""A sandbox that lives between calls: programs, processes, files, terminals and ports."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from ringfence import wire
from ringfence.client import calls
from ringfence.client._async.client import AsyncClient
from ringfence.client._async.files import AsyncFiles
from ringfence.client._async.process import AsyncProcess
from ringfence.client._async.stream import AsyncStream, OnText, process_ended
from ringfence.client._async.terminal import AsyncTerminal, AsyncTunnelLink
from ringfence.client.calls import Call, ProcessOptions
from ringfence.client.results import ProcessResult, process_result
from ringfence.client.tunnel import Tunnel
from ringfence.domain.errors import Conflict, NotFound

Command = str | Sequence[str]


class AsyncSandbox:
    """One isolated place. Made by `create`, found again by `connect`.

        async with await AsyncSandbox.create(template="python", ttl=300) as sb:
            await sb.files.write("data.txt", "40 2")
            result = await sb.run("print(sum(map(int, open('data.txt').read().split())))")

    Leaving the `with` of a created sandbox stops it; of a connected one, it only closes the connection.
    """

    def __init__(self, client: AsyncClient, info: wire.Sandbox, *, owns_client: bool, stops: bool) -> None:
        self.client = client
        self.info = info
        self.files = AsyncFiles(client, info.id)
        self._owns_client = owns_client
        self._stops = stops

    @classmethod
    async def create(
        cls,
        template: str = wire.DEFAULT_TEMPLATE,
        *,
        ttl: float = 300.0,
        labels: Mapping[str, str] | None = None,
        limits: Mapping[str, float] | None = None,
        isolation: str = "auto",
        egress: wire.Egress = None,
        start: Command | Mapping[str, Any] | None = None,
        egress_gateway: str = "",
        secrets: Sequence[str] = (),
        on_timeout: wire.OnTimeout | None = None,
        wake: bool | None = None,
        client: AsyncClient | None = None,
        deadline: float | None = None,
        idempotency_key: str | None = None,
    ) -> Self:
        """Start a sandbox that lives `ttl` seconds unless extended. Raises what the server refuses.

        `egress` is what it may reach: a list of names and rules, or {"bundles": ["pypi"]}; nothing by default.
        `start` is a command that runs from the beginning and again after each reset; or {"code": ..., "user": "root"}.
        `egress_gateway` names the operator's gateway by which its connections leave.
        `secrets` are names of kept secrets: inside they are placeholders in variables.
        `on_timeout` "pause" keeps its files when its time is over; `wake` resumes it when it is used while paused.
        """
        request = wire.SandboxRequest(
            template=template,
            isolation=isolation,
            limits=dict(limits or {}),
            labels=dict(labels or {}),
            ttl_seconds=float(ttl),
            egress=egress,
            start=calls.starting(start),
            egress_gateway=egress_gateway,
            secrets=list(secrets),
            on_timeout=on_timeout,
            wake=wake,
        )
        return await cls._opened(client, calls.create(request, idempotency_key), deadline, stops=True)

    @classmethod
    async def connect(cls, sandbox: str, *, client: AsyncClient | None = None, deadline: float | None = None) -> Self:
        """Find a sandbox again by its id. Raises NotFound when there is none of that id for this key."""
        return await cls._opened(client, calls.get_sandbox(sandbox), deadline, stops=False)

    @classmethod
    async def resume(
        cls,
        sandbox: str,
        *,
        ttl: float | None = None,
        client: AsyncClient | None = None,
        deadline: float | None = None,
    ) -> Self:
        """Have a paused sandbox again, with the files it had, for `ttl` seconds or as long as it was last given.

        Raises Conflict when it is not paused, or its template is not what it was.
        """
        return await cls._opened(client, calls.resume(sandbox, ttl), deadline, stops=False)

    @classmethod
    async def list(
        cls,
        labels: Mapping[str, str] | None = None,
        *,
        state: str | None = None,
        client: AsyncClient | None = None,
        page: int | None = None,
        deadline: float | None = None,
    ) -> AsyncIterator[wire.Sandbox]:
        """Sandboxes of this key's tenant, newest first, fetched page by page as they are asked for."""
        owned = client or AsyncClient()
        cursor: str | None = None
        try:
            while True:
                call = calls.list_sandboxes(labels, state, page, cursor)
                got = await owned.fetch(wire.SandboxPage, call, deadline)
                for sandbox in got.sandboxes:
                    yield sandbox
                cursor = got.next_cursor
                if cursor is None:
                    return
        finally:
            if client is None:
                await owned.aclose()

    @classmethod
    async def _opened(cls, client: AsyncClient | None, call: Call, deadline: float | None, *, stops: bool) -> Self:
        used = client or AsyncClient()
        try:
            info = await used.fetch(wire.Sandbox, call, deadline)
        except BaseException:
            if client is None:
                await used.aclose()
            raise
        return cls(used, info, owns_client=client is None, stops=stops)

    @property
    def id(self) -> str:
        """The sandbox's id, by which `connect` finds it."""
        return self.info.id

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._stops:
                await self.stop(missing_ok=True)
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Close the connection this object made; the sandbox lives on."""
        if self._owns_client:
            await self.client.aclose()

    # --- its life ---

    async def refresh(self, *, deadline: float | None = None) -> wire.Sandbox:
        """Ask again how it is; the answer is also kept in `info`."""
        self.info = await self.client.fetch(wire.Sandbox, calls.get_sandbox(self.id), deadline)
        return self.info

    async def extend(self, ttl: float, *, deadline: float | None = None) -> wire.Sandbox:
        """Let it live until `ttl` seconds from now."""
        self.info = await self.client.fetch(wire.Sandbox, calls.extend(self.id, float(ttl)), deadline)
        return self.info

    async def allow(self, egress: wire.Egress, *, deadline: float | None = None) -> wire.Sandbox:
        """Replace what it may reach; connections that this does not allow are cut. Needs one made with `egress`."""
        self.info = await self.client.fetch(wire.Sandbox, calls.allow(self.id, egress), deadline)
        return self.info

    async def reset(self, *, deadline: float | None = None) -> wire.Sandbox:
        """Make it anew: its processes and files are gone, what it starts with runs again, all else about it stays."""
        self.info = await self.client.fetch(wire.Sandbox, calls.reset(self.id), deadline)
        return self.info

    async def pause(self, *, memory: bool = False, deadline: float | None = None) -> wire.Sandbox:
        """Keep its files (home, /workspace, /tmp, /var/tmp) and end all else of it; `resume` has it again, by its id.

        Leaving the `with` leaves it paused. `memory` is refused: no runtime can keep that yet.
        """
        self.info = await self.client.fetch(wire.Sandbox, calls.pause(self.id, memory=memory), deadline)
        self._stops = False
        return self.info

    async def stop(self, *, missing_ok: bool = False, deadline: float | None = None) -> wire.Sandbox:
        """End it and everything in it. Raises NotFound when it had ended already, unless `missing_ok`."""
        self._stops = False
        try:
            self.info = await self.client.fetch(wire.Sandbox, calls.stop(self.id), deadline)
        except (NotFound, Conflict):
            if not missing_ok:
                raise
        return self.info

    # --- programs ---

    async def run(
        self,
        code: str,
        *,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        deadline: float | None = None,
        **options: Unpack[ProcessOptions],
    ) -> ProcessResult:
        """Run Python source in the sandbox's warm interpreter and return how it ended."""
        return await self._finish({"code": code}, options, deadline, on_stdout, on_stderr)

    async def exec(
        self,
        command: Command,
        *,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        deadline: float | None = None,
        **options: Unpack[ProcessOptions],
    ) -> ProcessResult:
        """Run a command and return how it ended: text goes to the sandbox's shell, a list is run as it is."""
        return await self._finish(_program(command), options, deadline, on_stdout, on_stderr)

    def stream(
        self,
        code: str | None = None,
        *,
        command: Command | None = None,
        deadline: float | None = None,
        **options: Unpack[ProcessOptions],
    ) -> AsyncStream[ProcessResult]:
        """As `run` (or `exec`, with `command`), but yielding each chunk of output as it is written.

        async with sb.stream("import this") as s:
            async for chunk in s:
                print(chunk.text, end="")
        s.result.check()
        """
        program = {"code": code} if command is None else _program(command)
        return self._stream(program, options, deadline)

    async def start(
        self,
        command: Command | None = None,
        *,
        code: str | None = None,
        stdin_open: bool = False,
        pty: tuple[int, int] | None = None,
        deadline: float | None = None,
        **options: Unpack[ProcessOptions],
    ) -> AsyncProcess:
        """Start a command (or Python source) in the background; it goes on when this client is gone."""
        program = {"code": code} if command is None else _program(command)
        size = None if pty is None else wire.PtySize(cols=pty[0], rows=pty[1])
        call = calls.start_process(self.id, program, options, detach=True, stdin_open=stdin_open, pty=size)
        return self.process((await self.client.fetch(wire.ProcessStarted, call, deadline)).pid)

    def process(self, pid: int) -> AsyncProcess:
        """A handle to a process by its pid, for example one started before."""
        return AsyncProcess(self.client, self.id, pid)

    async def processes(self, *, deadline: float | None = None) -> Sequence[wire.Process]:
        """Every process started through the API in this sandbox, alive or ended."""
        return (await self.client.fetch(wire.ProcessList, calls.list_processes(self.id), deadline)).processes

    # --- connections ---

    async def terminal(
        self, cols: int = 80, rows: int = 24, *, shell: str | None = None, deadline: float | None = None
    ) -> AsyncTerminal:
        """Open a shell on a terminal of its own; close it, or use it in a `with`."""
        path = calls.sandbox_path(self.id, "/terminal")
        params = calls.given(("cols", cols), ("rows", rows), ("shell", shell))
        return AsyncTerminal(await self.client.transport.link(path, params, deadline))

    async def dial(self, port: int, *, deadline: float | None = None) -> AsyncTunnelLink:
        """One raw connection to a TCP port inside the sandbox."""
        path = calls.sandbox_path(self.id, f"/tunnel/{int(port)}")
        return AsyncTunnelLink(await self.client.transport.link(path, (), deadline))

    def tunnel(self, port: int, *, local_port: int = 0) -> Tunnel:
        """A port on this machine's loopback that leads to a port inside the sandbox, while the `with` lasts.

            with sb.tunnel(8000) as tunnel:
                urllib.request.urlopen(tunnel.url)

        It is served by threads of its own, also for an asynchronous sandbox.
        """
        return Tunnel(self.client.target, self.id, port, local_port)

    async def publish(
        self, port: int, public: bool = False, *, wait: float = 10.0, deadline: float | None = None
    ) -> str:
        """Give a port inside a URL, and return it; requests wait `wait` seconds for a server to listen there.

        Unless `public`, it is for those who send the key as X-Ringfence-Access, and for the holders of a `share` link.
        """
        call = calls.publish(self.id, port, public=public, wait=wait)
        return (await self.client.fetch(wire.PublishedPort, call, deadline)).url

    async def publish_all(
        self, *, public: bool = False, token: str | None = None, wait: float = 0.0, deadline: float | None = None
    ) -> wire.PublishedAll:
        """Give every port inside a URL: for who sends the token of the answer as E2B-Traffic-Access-Token, or `public`.

        `{port}` in the answer's `url` stands for the number. Repeated without a token, it makes a new one.
        """
        call = calls.publish_all(self.id, public=public, token=token, wait=wait)
        return await self.client.fetch(wire.PublishedAll, call, deadline)

    async def unpublish_all(self, *, deadline: float | None = None) -> None:
        """Publish every port no longer; those published one by one stay."""
        await self._do(calls.unpublish_all(self.id), deadline)

    async def unpublish(self, port: int, *, deadline: float | None = None) -> None:
        """Take a port's URL away; connections through it are cut."""
        await self._do(calls.unpublish(self.id, port), deadline)

    async def published(self, *, deadline: float | None = None) -> Sequence[wire.PublishedPort]:
        """The ports this sandbox publishes, with their links."""
        return (await self.client.fetch(wire.PublishedPortList, calls.published(self.id), deadline)).ports

    async def share(
        self, port: int, *, ttl: float = 600.0, once: bool = False, deadline: float | None = None
    ) -> wire.PortLink:
        """A link to a private port: `url` for browsers, `token` for the header; for `ttl` seconds, without a key."""
        return await self.client.fetch(wire.PortLink, calls.share(self.id, port, ttl=float(ttl), once=once), deadline)

    async def unshare(self, port: int, link: str | None = None, *, deadline: float | None = None) -> None:
        """End one link by its id, or every link of a port, with whatever they let in."""
        await self._do(calls.unshare(self.id, port, link), deadline)

    async def _do(self, call: Call, deadline: float | None) -> None:
        await self.client.transport.call(call, self.client.transport.deadline(deadline))

    async def _finish(
        self,
        program: Mapping[str, Any],
        options: ProcessOptions,
        deadline: float | None,
        on_stdout: OnText | None,
        on_stderr: OnText | None,
    ) -> ProcessResult:
        if on_stdout is not None or on_stderr is not None:
            return await self._stream(program, options, deadline).wait(on_stdout, on_stderr)
        call = calls.start_process(self.id, program, options)
        return process_result(await self.client.fetch(wire.ProcessResult, call, self._wall(options, deadline)))

    def _stream(
        self, program: Mapping[str, Any], options: ProcessOptions, deadline: float | None
    ) -> AsyncStream[ProcessResult]:
        call = calls.start_process(self.id, program, options, stream=True)
        return AsyncStream(self.client.transport, call, self._wall(options, deadline), process_ended)

    def _wall(self, options: ProcessOptions, deadline: float | None) -> float:
        if deadline is not None:
            return deadline
        limits = self.info.limits
        longest = limits.wall_seconds if limits is not None else calls.DEFAULT_WALL_SECONDS
        return max(self.client.target.timeout, options.get("timeout", longest) + calls.SLACK_SECONDS)


def _program(command: Command) -> dict[str, Any]:
    return {"shell": command} if isinstance(command, str) else {"argv": list(command)}
