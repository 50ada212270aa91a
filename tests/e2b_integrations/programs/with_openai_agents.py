"""The OpenAI Agents SDK with its E2B sandbox: the runner's own loop, with a model that says what it was told to say."""

from __future__ import annotations

import asyncio
import io
import os
import re
import ssl
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import wraps
from pathlib import Path
from typing import Any

import e2b
import httpx
from agents import RunConfig, Runner, set_tracing_disabled
from agents.extensions.sandbox.e2b import E2BSandboxClient, E2BSandboxClientOptions, E2BSandboxType
from agents.sandbox import Manifest, SandboxAgent, SandboxRunConfig
from agents.sandbox.entries import Dir, File
from agents.sandbox.errors import (
    ExecTimeoutError,
    InvalidManifestPathError,
    WorkspaceArchiveReadError,
    WorkspaceReadNotFoundError,
)
from agents.sandbox.snapshot import LocalSnapshotSpec
from agents.testing import ModelStep, ScriptedModel, assistant_message, function_call
from claims import claim, tell_all
from openai.types.responses import ResponseCustomToolCall

CLIENT = E2BSandboxClient()
CONTEXT = ssl.create_default_context()  # which reads SSL_CERT_FILE
FILES = Manifest(
    entries={
        "README.md": File(content=b"# Grapes\n"),
        "src": Dir(children={"sum.py": File(content=b"print(sum(range(101)))\n")}),
    },
)


def options(**more: Any) -> E2BSandboxClientOptions:
    """The options that cannot be left out, and what more is asked for; all else is the framework's default."""
    return E2BSandboxClientOptions(**{"sandbox_type": E2BSandboxType.E2B, **more})


def held(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """An asynchronous claim."""

    @wraps(test)
    def run() -> None:
        asyncio.run(test())

    return claim(run)


def call(number: int, name: str, **args: Any) -> list[Any]:
    """The model calls one tool."""
    return [function_call(name, args, call_id=f"call-{number}")]


async def run(*turns: list[Any], **sandbox: Any) -> list[str]:
    """Let an agent do these things; what its model was told of each."""
    model = ScriptedModel([*turns, [assistant_message("done")]])
    agent = SandboxAgent(name="worker", model=model, instructions="Work.", default_manifest=FILES)
    config = RunConfig(sandbox=SandboxRunConfig(**{"client": CLIENT, "options": options(), **sandbox}))
    result = await Runner.run(agent, "go", run_config=config, max_turns=20)
    assert result.final_output == "done", result.final_output
    model.assert_complete()
    return [str(item.output) for item in result.new_items if item.type == "tool_call_output_item"]


async def text(session: Any, *command: str, **more: Any) -> str:
    """What a command prints."""
    done = await session.exec(*command, **more)
    assert done.exit_code == 0, done
    return done.stdout.decode()


async def fails(kind: type[BaseException], work: Awaitable[Any]) -> Any:
    """The error of this kind that it must end with."""
    try:
        await work
    except kind as error:
        return error
    raise AssertionError(f"nothing was raised, least of all {kind.__name__}")


async def state(sandbox_id: str) -> str:
    """Running, paused or gone."""
    try:
        return (await e2b.AsyncSandbox.get_info(sandbox_id)).state.value
    except e2b.SandboxException:
        return "gone"


PATCH = """*** Begin Patch
*** Update File: src/sum.py
@@
-print(sum(range(101)))
+print(sum(range(11)))
*** Add File: notes/new.md
+mended
*** End Patch"""


def heard(asked: Any) -> str:
    """What the model was told last."""
    return str(asked.input[-1]["output"])


@held
async def an_agent_runs_commands_and_patches_files_in_its_workspace() -> None:
    """With every default of the framework; what its manifest names is there. Afterwards the sandbox is gone."""
    first, patched, second, failed = await run(
        call(1, "exec_command", cmd="pwd; cat README.md; python3 src/sum.py"),
        [ResponseCustomToolCall(type="custom_tool_call", call_id="call-2", name="apply_patch", input=PATCH)],
        call(3, "exec_command", cmd="python3 sum.py && cat ../notes/new.md", workdir="src"),
        call(4, "exec_command", cmd="echo why >&2; exit 3"),
    )
    assert "workspace" in first, first
    assert "# Grapes" in first, first
    assert "5050" in first, first
    assert "src/sum.py" in patched, patched
    assert "55\nmended" in second, second
    assert "why" in failed, failed
    assert "exited with code 3" in failed, failed


@held
async def an_agent_feeds_a_program_that_waits_at_a_terminal() -> None:
    """Begun in one turn, answered in the next, ended in a third."""

    def answer(number: int, chars: str) -> ModelStep:
        def respond(asked: Any) -> list[Any]:
            known = re.search(r"session ID (\d+)", str(asked.input))
            return call(number, "write_stdin", session_id=int(known[1]), chars=chars, yield_time_ms=2000)

        return ModelStep.respond(respond)

    ask = "printf 'number? '; read answer; echo six times $answer"
    begun, answered, left = await run(
        call(1, "exec_command", cmd=ask, tty=True, yield_time_ms=3000), answer(2, "seven\n"), answer(3, "exit 5\n")
    )
    assert "number?" in begun, begun
    assert "six times seven" in answered, answered
    assert "exited with code 5" in left, left


@held
async def a_session_does_what_its_interface_says() -> None:
    """Commands with time limits and users, files of every kind, programs left running."""
    session = await CLIENT.create(manifest=FILES, options=options(envs={"A": "1"}, metadata={"of": "openai"}))
    async with session:
        assert (await e2b.AsyncSandbox.get_info(session.state.sandbox_id)).metadata == {"of": "openai"}
        assert await text(session, "echo $A $HOME; whoami") == "1 /home/user\nuser\n"
        assert await text(session, "whoami", user="root") == "root\n"
        data = bytes(range(256)) * 20_000
        await session.mkdir("made/deep", parents=True)
        await session.write(Path("made/deep/data"), io.BytesIO(data))
        assert (await session.read(Path("made/deep/data"))).read() == data
        assert len(await session.read_bounded(Path("made/deep/data"), max_bytes=10_000_000)) == len(data)
        assert [each.path.rpartition("/")[2] for each in await session.ls("made")] == ["deep"]
        await session.rm("made", recursive=True)
        await fails(WorkspaceReadNotFoundError, session.read(Path("made/deep/data")))
        await fails(InvalidManifestPathError, session.read(Path("../escape")))
        await fails(ExecTimeoutError, session.exec("sleep 41", timeout=1))
        begun = await session.pty_exec_start("sleep 42", shell=True, yield_time_s=0.3)
        assert begun.process_id is not None
        await session.pty_terminate_all()
        await until(lambda: quiet(session))
        assert await session.running()
        sandbox_id = session.state.sandbox_id
    assert await state(sandbox_id) == "gone"


@held
async def many_terminals_are_no_matter() -> None:
    """Each with a shell and a program in it, all begun at once."""
    count = int(os.environ["TERMINALS"])
    session = await CLIENT.create(manifest=FILES, options=options(timeouts={"fast_op_s": 120}))
    async with session:
        starts = (session.pty_exec_start("cat", tty=True, yield_time_s=0.3) for _ in range(count))
        assert all(update.process_id is not None for update in await asyncio.gather(*starts))
        box = await e2b.AsyncSandbox.connect(session.state.sandbox_id)
        assert len(await box.commands.list()) == count


async def quiet(session: Any) -> bool:
    """Whether nothing sleeps in there any more."""
    return "sleep" not in await text(session, "for each in /proc/[0-9]*/comm; do cat $each; done 2>/dev/null")


async def until(there: Callable[[], Awaitable[bool]], seconds: float = 30.0) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + seconds
    while not await there():
        assert time.monotonic() < deadline, "it did not come to be"
        await asyncio.sleep(0.2)


@held
async def a_workspace_is_kept_as_an_archive_and_unpacked_into_the_next_sandbox() -> None:
    """The framework's own snapshot, its default: another sandbox, the same files."""
    with tempfile.TemporaryDirectory() as place:
        session = await CLIENT.create(
            manifest=FILES, snapshot=LocalSnapshotSpec(base_path=Path(place)), options=options()
        )
        async with session:
            await text(session, "echo kept > kept.txt; ln -s kept.txt link; chmod 700 kept.txt")
        kept = CLIENT.deserialize_session_state(CLIENT.serialize_session_state(session.state))
        again = await CLIENT.resume(kept)
        async with again:
            assert await text(again, "cat link; stat -c %a kept.txt; cat README.md") == "kept\n700\n# Grapes\n"
            assert again.state.sandbox_id != session.state.sandbox_id


@held
async def a_sandbox_whose_time_is_over_sleeps_and_goes_on_where_it_was() -> None:
    """The framework's default: paused on timeout, woken by the next call. Its files are kept."""
    session = await CLIENT.create(manifest=FILES, options=options(timeout=300))
    async with session:
        await text(session, "echo kept > kept.txt")
        sandbox_id = session.state.sandbox_id
        await e2b.AsyncSandbox.set_timeout(sandbox_id, 0)

        async def asleep() -> bool:
            return await state(sandbox_id) == "paused"

        await until(asleep)
        assert await text(session, "cat kept.txt src/sum.py") == "kept\nprint(sum(range(101)))\n"
        assert await state(sandbox_id) == "running", await state(sandbox_id)
        await e2b.AsyncSandbox.set_timeout(sandbox_id, 0)
        await until(asleep)
        again = await CLIENT.resume(session.state)
        assert again.state.sandbox_id == sandbox_id
        assert await text(again, "cat kept.txt") == "kept\n"


@held
async def a_pause_on_leaving_is_done_or_refused_as_the_operator_says() -> None:
    """Files alone can be kept: where that will do, the session is resumed; where not, it ends, and the user is told."""
    session = await CLIENT.create(manifest=FILES, options=options(pause_on_exit=True))
    async with session:
        await text(session, "echo kept > kept.txt")
    sandbox_id = session.state.sandbox_id
    if os.environ["FILES_ONLY_PAUSE"] == "true":
        assert await state(sandbox_id) == "paused"
        async with await CLIENT.resume(session.state) as again:
            assert again.state.sandbox_id == sandbox_id
            assert await text(again, "cat kept.txt") == "kept\n"
        await e2b.AsyncSandbox.kill(sandbox_id)
    assert await state(sandbox_id) == "gone"


@held
async def a_port_is_reached_from_outside() -> None:
    """At the name that the framework hands to its user."""
    session = await CLIENT.create(manifest=FILES, options=options(exposed_ports=(8000,)))
    async with session:
        await session.pty_exec_start("python3 -m http.server 8000", yield_time_s=0.3)
        place = await session.resolve_exposed_port(8000)

        def fetched() -> str:
            answer = httpx.get(f"https://{place.host}:{place.port}/README.md", timeout=20, verify=CONTEXT)
            return answer.text if answer.status_code == 200 else ""

        async def served() -> bool:
            return await asyncio.to_thread(fetched) == "# Grapes\n"

        await until(served)


@held
async def the_code_interpreter_is_a_sandbox_like_the_other() -> None:
    """By its own client, which is pinned to an old release."""
    session = await CLIENT.create(manifest=FILES, options=options(sandbox_type=E2BSandboxType.CODE_INTERPRETER))
    async with session:
        assert "5050" in await text(session, "python3 src/sum.py && python3 -c 'import pandas'")


@held
async def what_cannot_be_had_is_refused_by_name() -> None:
    """At create, or where it is asked for; nothing is left over."""
    refused = {
        "mcp": options(mcp={"github": {"token": "x"}}),
        "none-such": options(template="none-such"),
    }
    for words, asked in refused.items():
        refused_with = await fails(e2b.SandboxException, CLIENT.create(manifest=FILES, options=asked))
        assert words in str(refused_with), refused_with
    session = await CLIENT.create(manifest=FILES, options=options(workspace_persistence="snapshot"))
    async with session:
        error = await fails(WorkspaceArchiveReadError, session.persist_workspace())
        assert "does not have" in str(error.cause), error.cause


if __name__ == "__main__":
    set_tracing_disabled(True)
    sys.exit(tell_all())
