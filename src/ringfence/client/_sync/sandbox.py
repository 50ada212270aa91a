# Generated from client/_async/sandbox.py by tools/unasync.py: edit that file, not this one.
# ruff: noqa: UP028 - these advise shapes that the asynchronous source cannot have
"""A sandbox that lives between calls: programs, processes, files, terminals and ports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from ringfence import wire
from ringfence.client import calls
from ringfence.client._sync.client import Client
from ringfence.client._sync.files import Files
from ringfence.client._sync.process import Process
from ringfence.client._sync.stream import OnText, Stream, process_ended
from ringfence.client._sync.terminal import Terminal, TunnelLink
from ringfence.client.calls import Call, ProcessOptions
from ringfence.client.results import ProcessResult, process_result
from ringfence.client.tunnel import Tunnel
from ringfence.domain.errors import Conflict, NotFound

Command = str | Sequence[str]


class Sandbox:
    """One isolated place. Made by `create`, found again by `connect`.

        with await Sandbox.create(template="python", ttl=300) as sb:
            sb.files.write("data.txt", "40 2")
            result = sb.run("print(sum(map(int, open('data.txt').read().split())))")

    Leaving the `with` of a created sandbox stops it; of a connected one, it only closes the connection.
    """

    def __init__(self, client: Client, info: wire.Sandbox, *, owns_client: bool, stops: bool) -> None:
        self.client = client
        self.info = info
        self.files = Files(client, info.id)
        self._owns_client = owns_client
        self._stops = stops

    @classmethod
    def create(
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
        client: Client | None = None,
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
        return cls._opened(client, calls.create(request, idempotency_key), deadline, stops=True)

    @classmethod
    def connect(cls, sandbox: str, *, client: Client | None = None, deadline: float | None = None) -> Self:
        """Find a sandbox again by its id. Raises NotFound when there is none of that id for this key."""
        return cls._opened(client, calls.get_sandbox(sandbox), deadline, stops=False)

    @classmethod
    def resume(
        cls,
        sandbox: str,
        *,
        ttl: float | None = None,
        client: Client | None = None,
        deadline: float | None = None,
    ) -> Self:
        """Have a paused sandbox again, with the files it had, for `ttl` seconds or as long as it was last given.

        Raises Conflict when it is not paused, or its template is not what it was.
        """
        return cls._opened(client, calls.resume(sandbox, ttl), deadline, stops=False)

    @classmethod
    def list(
        cls,
        labels: Mapping[str, str] | None = None,
        *,
        state: str | None = None,
        client: Client | None = None,
        page: int | None = None,
        deadline: float | None = None,
    ) -> Iterator[wire.Sandbox]:
        """Sandboxes of this key's tenant, newest first, fetched page by page as they are asked for."""
        owned = client or Client()
        cursor: str | None = None
        try:
            while True:
                call = calls.list_sandboxes(labels, state, page, cursor)
                got = owned.fetch(wire.SandboxPage, call, deadline)
                for sandbox in got.sandboxes:
                    yield sandbox
                cursor = got.next_cursor
                if cursor is None:
                    return
        finally:
            if client is None:
                owned.close()

    @classmethod
    def _opened(cls, client: Client | None, call: Call, deadline: float | None, *, stops: bool) -> Self:
        used = client or Client()
        try:
            info = used.fetch(wire.Sandbox, call, deadline)
        except BaseException:
            if client is None:
                used.close()
            raise
        return cls(used, info, owns_client=client is None, stops=stops)

    @property
    def id(self) -> str:
        """The sandbox's id, by which `connect` finds it."""
        return self.info.id

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._stops:
                self.stop(missing_ok=True)
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection this object made; the sandbox lives on."""
        if self._owns_client:
            self.client.close()

    # --- its life ---

    def refresh(self, *, deadline: float | None = None) -> wire.Sandbox:
        """Ask again how it is; the answer is also kept in `info`."""
        self.info = self.client.fetch(wire.Sandbox, calls.get_sandbox(self.id), deadline)
        return self.info

    def extend(self, ttl: float, *, deadline: float | None = None) -> wire.Sandbox:
        """Let it live until `ttl` seconds from now."""
        self.info = self.client.fetch(wire.Sandbox, calls.extend(self.id, float(ttl)), deadline)
        return self.info

    def allow(self, egress: wire.Egress, *, deadline: float | None = None) -> wire.Sandbox:
        """Replace what it may reach; connections that this does not allow are cut. Needs one made with `egress`."""
        self.info = self.client.fetch(wire.Sandbox, calls.allow(self.id, egress), deadline)
        return self.info

    def reset(self, *, deadline: float | None = None) -> wire.Sandbox:
        """Make it anew: its processes and files are gone, what it starts with runs again, all else about it stays."""
        self.info = self.client.fetch(wire.Sandbox, calls.reset(self.id), deadline)
        return self.info

    def pause(self, *, memory: bool = False, deadline: float | None = None) -> wire.Sandbox:
        """Keep its files (home, /workspace, /tmp, /var/tmp) and end all else of it; `resume` has it again, by its id.

        Leaving the `with` leaves it paused. `memory` is refused: no runtime can keep that yet.
        """
        self.info = self.client.fetch(wire.Sandbox, calls.pause(self.id, memory=memory), deadline)
        self._stops = False
        return self.info

    def stop(self, *, missing_ok: bool = False, deadline: float | None = None) -> wire.Sandbox:
        """End it and everything in it. Raises NotFound when it had ended already, unless `missing_ok`."""
        self._stops = False
        try:
            self.info = self.client.fetch(wire.Sandbox, calls.stop(self.id), deadline)
        except (NotFound, Conflict):
            if not missing_ok:
                raise
        return self.info

    # --- programs ---

    def run(
        self,
        code: str,
        *,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        deadline: float | None = None,
        **options: Unpack[ProcessOptions],
    ) -> ProcessResult:
        """Run Python source in the sandbox's warm interpreter and return how it ended."""
        return self._finish({"code": code}, options, deadline, on_stdout, on_stderr)

    def exec(
        self,
        command: Command,
        *,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        deadline: float | None = None,
        **options: Unpack[ProcessOptions],
    ) -> ProcessResult:
        """Run a command and return how it ended: text goes to the sandbox's shell, a list is run as it is."""
        return self._finish(_program(command), options, deadline, on_stdout, on_stderr)

    def stream(
        self,
        code: str | None = None,
        *,
        command: Command | None = None,
        deadline: float | None = None,
        **options: Unpack[ProcessOptions],
    ) -> Stream[ProcessResult]:
        """As `run` (or `exec`, with `command`), but yielding each chunk of output as it is written.

        with sb.stream("import this") as s:
            for chunk in s:
                print(chunk.text, end="")
        s.result.check()
        """
        program = {"code": code} if command is None else _program(command)
        return self._stream(program, options, deadline)

    def start(
        self,
        command: Command | None = None,
        *,
        code: str | None = None,
        stdin_open: bool = False,
        pty: tuple[int, int] | None = None,
        deadline: float | None = None,
        **options: Unpack[ProcessOptions],
    ) -> Process:
        """Start a command (or Python source) in the background; it goes on when this client is gone."""
        program = {"code": code} if command is None else _program(command)
        size = None if pty is None else wire.PtySize(cols=pty[0], rows=pty[1])
        call = calls.start_process(self.id, program, options, detach=True, stdin_open=stdin_open, pty=size)
        return self.process((self.client.fetch(wire.ProcessStarted, call, deadline)).pid)

    def process(self, pid: int) -> Process:
        """A handle to a process by its pid, for example one started before."""
        return Process(self.client, self.id, pid)

    def processes(self, *, deadline: float | None = None) -> Sequence[wire.Process]:
        """Every process started through the API in this sandbox, alive or ended."""
        return (self.client.fetch(wire.ProcessList, calls.list_processes(self.id), deadline)).processes

    # --- connections ---

    def terminal(
        self, cols: int = 80, rows: int = 24, *, shell: str | None = None, deadline: float | None = None
    ) -> Terminal:
        """Open a shell on a terminal of its own; close it, or use it in a `with`."""
        path = calls.sandbox_path(self.id, "/terminal")
        params = calls.given(("cols", cols), ("rows", rows), ("shell", shell))
        return Terminal(self.client.transport.link(path, params, deadline))

    def dial(self, port: int, *, deadline: float | None = None) -> TunnelLink:
        """One raw connection to a TCP port inside the sandbox."""
        path = calls.sandbox_path(self.id, f"/tunnel/{int(port)}")
        return TunnelLink(self.client.transport.link(path, (), deadline))

    def tunnel(self, port: int, *, local_port: int = 0) -> Tunnel:
        """A port on this machine's loopback that leads to a port inside the sandbox, while the `with` lasts.

            with sb.tunnel(8000) as tunnel:
                urllib.request.urlopen(tunnel.url)

        It is served by threads of its own, also for an synchronous sandbox.
        """
        return Tunnel(self.client.target, self.id, port, local_port)

    def publish(self, port: int, public: bool = False, *, wait: float = 10.0, deadline: float | None = None) -> str:
        """Give a port inside a URL, and return it; requests wait `wait` seconds for a server to listen there.

        Unless `public`, it is for those who send the key as X-Ringfence-Access, and for the holders of a `share` link.
        """
        call = calls.publish(self.id, port, public=public, wait=wait)
        return (self.client.fetch(wire.PublishedPort, call, deadline)).url

    def publish_all(
        self, *, public: bool = False, token: str | None = None, wait: float = 0.0, deadline: float | None = None
    ) -> wire.PublishedAll:
        """Give every port inside a URL: for who sends the token of the answer as E2B-Traffic-Access-Token, or `public`.

        `{port}` in the answer's `url` stands for the number. Repeated without a token, it makes a new one.
        """
        call = calls.publish_all(self.id, public=public, token=token, wait=wait)
        return self.client.fetch(wire.PublishedAll, call, deadline)

    def unpublish_all(self, *, deadline: float | None = None) -> None:
        """Publish every port no longer; those published one by one stay."""
        self._do(calls.unpublish_all(self.id), deadline)

    def unpublish(self, port: int, *, deadline: float | None = None) -> None:
        """Take a port's URL away; connections through it are cut."""
        self._do(calls.unpublish(self.id, port), deadline)

    def published(self, *, deadline: float | None = None) -> Sequence[wire.PublishedPort]:
        """The ports this sandbox publishes, with their links."""
        return (self.client.fetch(wire.PublishedPortList, calls.published(self.id), deadline)).ports

    def share(
        self, port: int, *, ttl: float = 600.0, once: bool = False, deadline: float | None = None
    ) -> wire.PortLink:
        """A link to a private port: `url` for browsers, `token` for the header; for `ttl` seconds, without a key."""
        return self.client.fetch(wire.PortLink, calls.share(self.id, port, ttl=float(ttl), once=once), deadline)

    def unshare(self, port: int, link: str | None = None, *, deadline: float | None = None) -> None:
        """End one link by its id, or every link of a port, with whatever they let in."""
        self._do(calls.unshare(self.id, port, link), deadline)

    def _do(self, call: Call, deadline: float | None) -> None:
        self.client.transport.call(call, self.client.transport.deadline(deadline))

    def _finish(
        self,
        program: Mapping[str, Any],
        options: ProcessOptions,
        deadline: float | None,
        on_stdout: OnText | None,
        on_stderr: OnText | None,
    ) -> ProcessResult:
        if on_stdout is not None or on_stderr is not None:
            return self._stream(program, options, deadline).wait(on_stdout, on_stderr)
        call = calls.start_process(self.id, program, options)
        return process_result(self.client.fetch(wire.ProcessResult, call, self._wall(options, deadline)))

    def _stream(
        self, program: Mapping[str, Any], options: ProcessOptions, deadline: float | None
    ) -> Stream[ProcessResult]:
        call = calls.start_process(self.id, program, options, stream=True)
        return Stream(self.client.transport, call, self._wall(options, deadline), process_ended)

    def _wall(self, options: ProcessOptions, deadline: float | None) -> float:
        if deadline is not None:
            return deadline
        limits = self.info.limits
        longest = limits.wall_seconds if limits is not None else calls.DEFAULT_WALL_SECONDS
        return max(self.client.target.timeout, options.get("timeout", longest) + calls.SLACK_SECONDS)


def _program(command: Command) -> dict[str, Any]:
    return {"shell": command} if isinstance(command, str) else {"argv": list(command)}
