# Generated from client/_async/client.py by tools/unasync.py: edit that file, not this one.
# ruff: noqa: UP028 - these advise shapes that the asynchronous source cannot have
"""The client: one-shot runs, records, and what the server offers. Sandboxes are in sandbox.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from ringfence import wire, wire_egress, wire_secrets
from ringfence.client import calls
from ringfence.client._sync.link import pause
from ringfence.client._sync.stream import OnText, Stream, run_ended
from ringfence.client._sync.transport import Transport
from ringfence.client.calls import Call, RunOptions, decoded
from ringfence.client.deadline import Deadline
from ringfence.client.errors import DeadlineExceeded, Unreachable
from ringfence.client.lines import ServerEvents
from ringfence.client.results import RunResult, event_of, run_result
from ringfence.client.settings import target

Argv = Sequence[str]


class Client:
    """A connection to one server with one key.

        with Client() as client:
            print((client.run("print(6 * 7)")).stdout)

    `url` and `key` default to RINGFENCE_URL and RINGFENCE_KEY, then to ~/.config/ringfence/client.toml.
    `timeout` is the deadline, in seconds, of every call that is not given its own `deadline`; a run that may take
    longer by its own limits gets as long as they allow.
    """

    def __init__(self, url: str | None = None, key: str | None = None, timeout: float | None = None) -> None:
        self.target = target(url, key, timeout)
        self.transport = Transport(self.target)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection; sandboxes live on."""
        self.transport.close()

    # --- runs ---

    def run(
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
            return Stream(self.transport, call, seconds, run_ended).wait(on_stdout, on_stderr)
        return run_result(self.fetch(wire.Run, call, seconds))

    def stream_run(
        self,
        code: str | None = None,
        *,
        argv: Argv | None = None,
        shell: str | None = None,
        deadline: float | None = None,
        idempotency_key: str | None = None,
        **options: Unpack[RunOptions],
    ) -> Stream[RunResult]:
        """As `run`, but yielding each chunk of output as it is written; `result` is there at the end.

        stream = client.stream_run("print('hello')")
        for chunk in stream:
            print(chunk.text, end="")
        stream.result.check()
        """
        program = {"code": code, "argv": argv, "shell": shell}
        call = calls.run(program, options, stream=True, key=idempotency_key)
        return Stream(self.transport, call, self._wall(options, deadline), run_ended)

    def get_run(self, run_id: str, *, deadline: float | None = None) -> wire.Run:
        """The record of a run; records carry no output."""
        return self.fetch(wire.Run, calls.get_run(run_id), deadline)

    def runs(
        self, labels: Mapping[str, str] | None = None, *, page: int | None = None, deadline: float | None = None
    ) -> Iterator[wire.Run]:
        """Records of runs, newest first, fetched page by page as they are asked for."""
        cursor: str | None = None
        while True:
            got = self.fetch(wire.RunPage, calls.list_runs(labels, page, cursor), deadline)
            for run in got.runs:
                yield run
            cursor = got.next_cursor
            if cursor is None:
                return

    # --- secrets ---

    def set_secret(
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
        return self.fetch(wire_secrets.Secret, calls.set_secret(name, request), deadline)

    def secret(self, name: str, *, deadline: float | None = None) -> wire_secrets.Secret:
        """All of a secret but its value."""
        return self.fetch(wire_secrets.Secret, calls.get_secret(name), deadline)

    def secrets(self, *, deadline: float | None = None) -> list[wire_secrets.Secret]:
        """Every secret by name, without values."""
        return (self.fetch(wire_secrets.SecretList, calls.list_secrets(), deadline)).secrets

    def remove_secret(self, name: str, *, deadline: float | None = None) -> None:
        """Forget a secret, also in living sandboxes."""
        self.transport.call(calls.remove_secret(name), self.transport.deadline(deadline))

    # --- the machine ---

    def templates(self, *, deadline: float | None = None) -> list[wire.Template]:
        """Every template the server has."""
        return (self.fetch(wire.TemplateList, calls.templates(), deadline)).templates

    def runtimes(self, *, deadline: float | None = None) -> list[wire.Runtime]:
        """Every way to isolate that the server knows, and which layers are in force there."""
        return (self.fetch(wire.RuntimeList, calls.runtimes(), deadline)).runtimes

    def check_egress(self, egress: wire.Egress, *, deadline: float | None = None) -> wire_egress.EgressChecked:
        """What an egress policy means there; of one that is refused, which rules and why."""
        return self.fetch(wire_egress.EgressChecked, calls.check_egress(egress), deadline)

    def learned_egress(
        self, *ids: str, generalise: bool = False, deadline: float | None = None
    ) -> wire_egress.EgressLearned:
        """The least egress policy for what these runs and sandboxes did, with its evidence."""
        call = calls.learned_egress(ids, generalise=generalise)
        return self.fetch(wire_egress.EgressLearned, call, deadline)

    def egress_report(
        self, seconds: float = 86_400.0, step: float = 3600.0, *, deadline: float | None = None
    ) -> wire_egress.EgressReport:
        """What this key's tenant sent where, by destination and step of time."""
        return self.fetch(wire_egress.EgressReport, calls.egress_report(seconds, step), deadline)

    def egress_bundles(self, *, deadline: float | None = None) -> list[wire_egress.EgressBundle]:
        """Destinations that go by one name in a policy."""
        return (self.fetch(wire_egress.EgressBundleList, calls.egress_bundles(), deadline)).bundles

    def egress_gateways(self, *, deadline: float | None = None) -> list[wire_egress.EgressGateway]:
        """The gateways by which sandboxes of this key's tenant may leave."""
        return (self.fetch(wire_egress.EgressGatewayList, calls.egress_gateways(), deadline)).gateways

    def status(self, *, deadline: float | None = None) -> wire.Status:
        """How the server is, as this key may know it."""
        return self.fetch(wire.Status, calls.status(), deadline)

    def why(self, what: str, *, deadline: float | None = None) -> wire.Why:
        """Why a run or a sandbox, named by its id, ended as it did and where its time went."""
        return self.fetch(wire.Why, calls.why(what), deadline)

    def health(self, *, deadline: float | None = None) -> None:
        """Return when a server answers; needs no key. Raises Unreachable when nobody does."""
        self.transport.call(calls.health(), self.transport.deadline(deadline))

    def events(self, after: str | None = None, *, quiet: float | None = None) -> Iterator[wire.Event]:
        """What happens to this tenant's sandboxes and runs, as it happens; `after` is the id of the last one known.

        A connection that breaks is made again from where it was; after about a second without success the error is
        raised. The iteration ends only when `quiet` is given and nothing happened for that many seconds.
        """
        pauses = Deadline(None).pauses()
        while True:
            try:
                for event in self._events_once(after, quiet):
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
            pause(wait)

    def _events_once(self, after: str | None, quiet: float | None) -> Iterator[wire.Event]:
        parser = ServerEvents()
        with self.transport.open(calls.events(after), Deadline(None, quiet)) as body:
            for piece in body.pieces():
                for event in parser.feed(piece):
                    yield event_of(wire.Event, event)

    # --- shared with sandboxes ---

    def fetch(self, kind: type[calls.T], call: Call, deadline: float | None) -> calls.T:
        """One call's answer as a wire type."""
        return decoded(kind, self.transport.call(call, self.transport.deadline(deadline)))

    def _wall(self, options: Mapping[str, Any], deadline: float | None) -> float:
        return max(self.target.timeout, calls.wall(options) + calls.SLACK_SECONDS) if deadline is None else deadline
