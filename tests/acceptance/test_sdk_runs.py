"""One-shot runs through the synchronous SDK, against a real server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ringfence import Client, ProgramFailed
from ringfence.domain.errors import BadRequest, Refused, Unauthenticated
from ringfence.domain.limits import MIB
from ringfence.domain.process import How
from tests.support.served import served


@pytest.fixture
def client() -> Iterator[Client]:
    """A client of the session's server."""
    with served().client() as made:
        yield made


def test_code_runs_and_says_what_it_printed(client: Client) -> None:
    """The shortest use there is."""
    result = client.run("import sys; print(6 * 7); print('oops', file=sys.stderr)")
    assert (result.stdout, result.stderr, result.exit.how, result.exit.code) == ("42\n", "oops\n", How.EXITED, 0)
    assert result.check() is result


def test_a_shell_command_and_an_argument_list_run_too(client: Client) -> None:
    """Any program of the template can be run, with or without a shell."""
    assert client.run(shell="echo $((6 * 7)) | tr -d '\\n'").stdout == "42"
    assert client.run(argv=["echo", "a b", "$HOME"]).stdout == "a b $HOME\n"


def test_files_go_in_and_come_out(client: Client) -> None:
    """Bytes survive both ways; what cannot be collected is named with its reason."""
    data = bytes(range(256))
    result = client.run(
        "import os; os.mkdir('out'); open('out/copy', 'wb').write(open('in.bin', 'rb').read())",
        files={"in.bin": data}, collect=["out/copy", "nowhere"],
    )  # fmt: skip
    assert result.files == {"out/copy": data}
    assert list(result.file_errors) == ["nowhere"]


def test_input_arguments_and_variables_reach_the_program(client: Client) -> None:
    """What a program can be given by a shell it can be given here."""
    code = "import os, sys; print(sys.argv[1:], os.environ['WHO'], sys.stdin.read())"
    assert client.run(code, args=["a", "b"], env={"WHO": "ada"}, stdin="hello").stdout == "['a', 'b'] ada hello\n"


@pytest.mark.parametrize(
    ("code", "how", "limits"),
    [
        ("raise SystemExit(3)", How.EXITED, {}),
        ("import os; os.abort()", How.SIGNALLED, {}),
        ("while True: pass", How.TIMED_OUT, {"wall_seconds": 1}),
        ("x = [bytearray(b'x' * (8 << 20)) for _ in range(1000)]", How.OUT_OF_MEMORY, {"memory_bytes": 64 * MIB}),
        ("while True: print('x' * 1000)", How.OUTPUT_CAPPED, {"output_bytes": 100_000}),
    ],
)
def test_a_bad_end_is_a_value(client: Client, code: str, how: How, limits: dict[str, float]) -> None:
    """No fate of a program raises, until `.check()` is called."""
    result = client.run(code, limits=limits)
    assert result.exit.how is how
    with pytest.raises(ProgramFailed):
        result.check()


def test_output_is_streamed_as_it_is_written(client: Client) -> None:
    """The first piece is there while the program still waits for its own last one."""
    waits = "import time\nprint('first', flush=True)\ntime.sleep(600)"
    with client.stream_run(waits, limits={"wall_seconds": 300}) as stream:
        pieces = iter(stream)
        assert next(pieces).text == "first\n"
        assert client.get_run(stream.started.id).state == "running"
    code = "import sys, time\nfor n in range(3): print(n, flush=True); time.sleep(0.2)\nprint('e', file=sys.stderr)"
    with client.stream_run(code) as stream:
        seen = [(chunk.stream, chunk.text) for chunk in stream]
    assert "".join(text for name, text in seen if name == "stdout") == "0\n1\n2\n"
    assert stream.result.exit.ok
    assert stream.started.id == stream.result.id


def test_leaving_a_stream_stops_the_run(client: Client) -> None:
    """A client that goes away does not leave an endless program behind."""
    with client.stream_run("import itertools\nfor n in itertools.count(): print(n, flush=True)") as stream:
        next(iter(stream))
    assert stream.started.id is not None
    for _ in range(100):
        record = client.get_run(stream.started.id)
        if record.state != "running":
            break
    assert record.exit is None or record.exit.how is How.STOPPED


def test_the_same_idempotency_key_is_the_same_run(client: Client) -> None:
    """A repeat gets the first answer; the same key for something else is refused."""
    first = client.run("import os; print(os.urandom(8).hex())", idempotency_key="acceptance-one")
    again = client.run("import os; print(os.urandom(8).hex())", idempotency_key="acceptance-one")
    assert (first.id, first.stdout) == (again.id, again.stdout)
    with pytest.raises(Exception, match="key") as raised:
        client.run("print('another')", idempotency_key="acceptance-one")
    assert getattr(raised.value, "code", "") == "idempotency_mismatch"


def test_a_run_is_remembered_found_by_label_and_explained(client: Client) -> None:
    """Records carry no output; `why` says in words what happened."""
    made = client.run("raise SystemExit(9)", labels={"case": "remembered"})
    assert client.get_run(made.id).exit == made.exit
    assert [run.id for run in client.runs({"case": "remembered"}, page=1)] == [made.id]
    why = client.why(made.id)
    assert why.kind == "run"
    assert "9" in why.summary


def test_refusals_are_raised_as_their_classes(client: Client) -> None:
    """What the server will not do is an error with a code, a cause and a remedy."""
    with pytest.raises(Refused, match="no-such-template"):
        client.run("1", template="no-such-template")
    with pytest.raises(BadRequest) as raised:
        client.run("1", limits={"memory_bytes": 1})
    assert raised.value.remediation
    with Client(client.target.url, "rf_" + "x" * 43) as stranger, pytest.raises(Unauthenticated):
        stranger.run("1")


def test_the_server_tells_what_it_offers(client: Client) -> None:
    """Templates, runtimes and status are typed answers."""
    assert "base" in {template.name for template in client.templates()}
    assert any(runtime.available for runtime in client.runtimes())
    assert client.status().tenant == "acceptance"


def test_events_tell_of_a_run(client: Client) -> None:
    """What happened can be read from any point on."""
    made = client.run("print(1)")
    told = [event for event in client.events("0", quiet=1.0) if event.run == made.id or event.sandbox == made.sandbox]
    assert told
