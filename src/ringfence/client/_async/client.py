"""The client: one-shot runs, records, and what the server offers. Sandboxes are in sandbox.py."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from ringfence import wire, wire_egress, wire_secrets
from ringfence.client import calls
from ringfence.client._async.link import pause
from ringfence.client._async.stream import AsyncStream, OnText, run_ended
from ringfence.client._async.transport import AsyncTransport
from ringfence.client.calls import Call, RunOptions, decoded
from ringfence.client.deadline import Deadline
from ringfence.client.errors import DeadlineExceeded, Unreachable
from ringfence.client.lines import ServerEvents
from ringfence.client.results import RunResult, event_of, run_result
from ringfence.client.settings import target

Argv = Sequence[str]


class AsyncClient:
    """A connection to one server with one key.

        async with AsyncClient() as client:
            print((await client.run("print(6 * 7)")).stdout)

    `url` and `key` default to RINGFENCE_URL and RINGFENCE_KEY, then to ~/.config/ringfence/client.toml.
    `timeout` is the deadline, in seconds, of every call that is not given its own `deadline`; a run that may take
    longer by its own limits gets as long as they allow.
    """

    def __init__(self, url: str | None = None, key: str | None = None, timeout: float | None = None) -> None:
        self.target = target(url, key, timeout)
        self.transport = AsyncTransport(self.target)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection; sandboxes live on."""
        await self.transport.aclose()

    # --- runs ---

    async def run(
        self,
        code: str | None = None,
        *,
        argv: Argv | None = None,
        shell: str | None = None,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        deadline: float | None = None,
        idempotency_key: str | None = None,
        **options: Unpack[RunOptions],
    ) -> RunResult:
        """Run one program in a fresh sandbox and return how it ended; give one of code, argv, shell.

        None of them, with a template made from an image, runs what the image says, with `args` behind it.
        The program's fate is a value, `result.exit.how`. Raises what the server refuses, its own faults, Unreachable
        and DeadlineExceeded. A callback gets each piece of text as it is written.
        """
        program = {"code": code, "argv": argv, "shell": shell}
        streamed = on_stdout is not None or on_stderr is not None
        call = calls.run(program, options, stream=streamed, key=idempotency_key)
        seconds = self._wall(options, deadline)
        if streamed:
            return await AsyncStream(self.transport, call, seconds, run_ended).wait(on_stdout, on_stderr)
        return run_result(await self.fetch(wire.Run, call, seconds))

    def stream_run(
        self,
        code: str | None = None,
        *,
        argv: Argv | None = None,
        shell: str | None = None,
        deadline: float | None = None,
        idempotency_key: str | None = None,
        **options: Unpack[RunOptions],
    ) -> AsyncStream[RunResult]:
        """As `run`, but yielding each chunk of output as it is written; `result` is there at the end.

        stream = client.stream_run("print('hello')")
        async for chunk in stream:
            print(chunk.text, end="")
        stream.result.check()
        """
        program = {"code": code, "argv": argv, "shell": shell}
        call = calls.run(program, options, stream=True, key=idempotency_key)
        return AsyncStream(self.transport, call, self._wall(options, deadline), run_ended)

    async def get_run(self, run_id: str, *, deadline: float | None = None) -> wire.Run:
        """The record of a run; records carry no output."""
        return await self.fetch(wire.Run, calls.get_run(run_id), deadline)

    async def runs(
        self, labels: Mapping[str, str] | None = None, *, page: int | None = None, deadline: float | None = None
    ) -> AsyncIterator[wire.Run]:
        """Records of runs, newest first, fetched page by page as they are asked for."""
        cursor: str | None = None
        while True:
            got = await self.fetch(wire.RunPage, calls.list_runs(labels, page, cursor), deadline)
            for run in got.runs:
                yield run
            cursor = got.next_cursor
            if cursor is None:
                return

    # --- secrets ---

    async def set_secret(
        self,
        name: str,
        value: str,
        hosts: Sequence[str],
        *,
        headers: Sequence[str] = (),
        queries: Sequence[str] = (),
        body: bool = False,
        env: str | None = None,
        deadline: float | None = None,
    ) -> wire_secrets.Secret:
        """Keep a secret that sandboxes can use, and never hold.

            client.set_secret("openai", key, ["api.openai.com"], headers=["authorization"], env="OPENAI_API_KEY")
            client.run(code, secrets=["openai"])

        Inside, the variable `env` holds a placeholder; in requests to `hosts`, in the `headers`, the fields of the
        query and the body that are named here, the value takes its place. It is never shown again.
        """
        request = wire_secrets.SecretRequest(
            value=value, hosts=list(hosts), headers=list(headers), queries=list(queries), body=body, env=env
        )
        return await self.fetch(wire_secrets.Secret, calls.set_secret(name, request), deadline)

    async def secret(self, name: str, *, deadline: float | None = None) -> wire_secrets.Secret:
        """All of a secret but its value."""
        return await self.fetch(wire_secrets.Secret, calls.get_secret(name), deadline)

    async def secrets(self, *, deadline: float | None = None) -> list[wire_secrets.Secret]:
        """Every secret by name, without values."""
        return (await self.fetch(wire_secrets.SecretList, calls.list_secrets(), deadline)).secrets

    async def remove_secret(self, name: str, *, deadline: float | None = None) -> None:
        """Forget a secret, also in living sandboxes."""
        await self.transport.call(calls.remove_secret(name), self.transport.deadline(deadline))

    # --- the machine ---

    async def templates(self, *, deadline: float | None = None) -> list[wire.Template]:
        """Every template the server has."""
        return (await self.fetch(wire.TemplateList, calls.templates(), deadline)).templates

    async def runtimes(self, *, deadline: float | None = None) -> list[wire.Runtime]:
        """Every way to isolate that the server knows, and which layers are in force there."""
        return (await self.fetch(wire.RuntimeList, calls.runtimes(), deadline)).runtimes

    async def check_egress(self, egress: wire.Egress, *, deadline: float | None = None) -> wire_egress.EgressChecked:
        """What an egress policy means there; of one that is refused, which rules and why."""
        return await self.fetch(wire_egress.EgressChecked, calls.check_egress(egress), deadline)

    async def learned_egress(
        self, *ids: str, generalise: bool = False, deadline: float | None = None
    ) -> wire_egress.EgressLearned:
        """The least egress policy for what these runs and sandboxes did, with its evidence."""
        call = calls.learned_egress(ids, generalise=generalise)
        return await self.fetch(wire_egress.EgressLearned, call, deadline)

    async def egress_report(
        self, seconds: float = 86_400.0, step: float = 3600.0, *, deadline: float | None = None
    ) -> wire_egress.EgressReport:
        """What this key's tenant sent where, by destination and step of time."""
        return await self.fetch(wire_egress.EgressReport, calls.egress_report(seconds, step), deadline)

    async def egress_bundles(self, *, deadline: float | None = None) -> list[wire_egress.EgressBundle]:
        """Destinations that go by one name in a policy."""
        return (await self.fetch(wire_egress.EgressBundleList, calls.egress_bundles(), deadline)).bundles

    async def egress_gateways(self, *, deadline: float | None = None) -> list[wire_egress.EgressGateway]:
        """The gateways by which sandboxes of this key's tenant may leave."""
        return (await self.fetch(wire_egress.EgressGatewayList, calls.egress_gateways(), deadline)).gateways

    async def status(self, *, deadline: float | None = None) -> wire.Status:
        """How the server is, as this key may know it."""
        return await self.fetch(wire.Status, calls.status(), deadline)

    async def why(self, what: str, *, deadline: float | None = None) -> wire.Why:
        """Why a run or a sandbox, named by its id, ended as it did and where its time went."""
        return await self.fetch(wire.Why, calls.why(what), deadline)

    async def health(self, *, deadline: float | None = None) -> None:
        """Return when a server answers; needs no key. Raises Unreachable when nobody does."""
        await self.transport.call(calls.health(), self.transport.deadline(deadline))

    async def events(self, after: str | None = None, *, quiet: float | None = None) -> AsyncIterator[wire.Event]:
        """What happens to this tenant's sandboxes and runs, as it happens; `after` is the id of the last one known.

        A connection that breaks is made again from where it was; after about a second without success the error is
        raised. The iteration ends only when `quiet` is given and nothing happened for that many seconds.
        """
        pauses = Deadline(None).pauses()
        while True:
            try:
                async for event in self._events_once(after, quiet):
                    after, pauses = str(event.id), Deadline(None).pauses()
                    yield event
                failure = Unreachable("the server closed the stream of events")
            except DeadlineExceeded:
                return
            except Unreachable as error:
                failure = error
            wait = next(pauses, None)
            if wait is None:
                raise failure
            await pause(wait)

    async def _events_once(self, after: str | None, quiet: float | None) -> AsyncIterator[wire.Event]:
        parser = ServerEvents()
        async with await self.transport.open(calls.events(after), Deadline(None, quiet)) as body:
            async for piece in body.pieces():
                for event in parser.feed(piece):
                    yield event_of(wire.Event, event)

    # --- shared with sandboxes ---

    async def fetch(self, kind: type[calls.T], call: Call, deadline: float | None) -> calls.T:
        """One call's answer as a wire type."""
        return decoded(kind, await self.transport.call(call, self.transport.deadline(deadline)))

    def _wall(self, options: Mapping[str, Any], deadline: float | None) -> float:
        return max(self.target.timeout, calls.wall(options) + calls.SLACK_SECONDS) if deadline is None else deadline
