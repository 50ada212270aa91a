"""LangChain's deep agents with `langchain-e2b`: their own loop, and a model that says what it was told to say."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import e2b
from claims import claim, raised, tell_all
from deepagents import create_deep_agent
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_e2b import AsyncE2BSandbox, E2BSandbox

HOME = "/home/user"
PROGRAMS = "for each in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$each; echo; done 2>/dev/null"


class Scripted(GenericFakeChatModel):
    """A chat model whose answers are written down; that it may call tools goes without saying."""

    def bind_tools(self, tools: Any, **_: Any) -> Scripted:
        """See BaseChatModel."""
        return self


def script(*turns: dict[str, Any] | str) -> Scripted:
    """A model that calls one tool a turn, or says something and is done."""
    messages = []
    for number, turn in enumerate(turns):
        if isinstance(turn, str):
            messages.append(AIMessage(turn))
        else:
            (name, args), *_ = turn.items()
            messages.append(AIMessage("", tool_calls=[{"name": name, "args": args, "id": f"call-{number}"}]))
    return Scripted(messages=iter(messages))


def heard(result: dict[str, Any]) -> list[str]:
    """What came of each tool call, as the model was told it."""
    return [str(message.content) for message in result["messages"] if isinstance(message, ToolMessage)]


def done(backend: Any, *turns: dict[str, Any]) -> list[str]:
    """Let an agent do these things; what it heard."""
    agent = create_deep_agent(model=script(*turns, "done"), backend=backend)
    result = agent.invoke({"messages": [("user", "go")]})
    assert result["messages"][-1].content == "done"
    return heard(result)


SANDBOX = e2b.Sandbox.create(timeout=300)
BACKEND = E2BSandbox(sandbox=SANDBOX)


@claim
def an_agent_writes_a_program_runs_it_and_reads_what_came_of_it() -> None:
    """The whole loop: files and commands are the sandbox's."""
    wrote, ran, read = done(
        BACKEND,
        {"write_file": {"file_path": f"{HOME}/sum.py", "content": "print(sum(range(101)), file=open('out', 'w'))\n"}},
        {"execute": {"command": "python3 sum.py && echo ran in $(pwd) as $(whoami)"}},
        {"read_file": {"file_path": f"{HOME}/out"}},
    )
    assert f"{HOME}/sum.py" in wrote, wrote
    assert "ran in /home/user as user" in ran, ran
    assert "exit code 0" in ran, ran
    assert "5050" in read, read


@claim
def every_file_tool_of_the_agent_works() -> None:
    """ls, edit_file, glob, grep; a file of many lines in pages."""
    lines = "".join(f"line {number}\n" for number in range(3000))
    done(BACKEND, {"write_file": {"file_path": f"{HOME}/data/many.txt", "content": lines}})
    edited, listed, globbed, grepped, page, absent = done(
        BACKEND,
        {"edit_file": {"file_path": f"{HOME}/sum.py", "old_string": "101", "new_string": "11"}},
        {"ls": {"path": HOME}},
        {"glob": {"pattern": "**/*.txt", "path": HOME}},
        {"grep": {"pattern": "line 1234", "path": f"{HOME}/data", "output_mode": "content"}},
        {"read_file": {"file_path": f"{HOME}/data/many.txt", "offset": 2998, "limit": 5}},
        {"read_file": {"file_path": f"{HOME}/data/none.txt"}},
    )
    assert "sum.py" in edited, edited
    assert f"{HOME}/sum.py" in listed, listed
    assert "data" in listed, listed
    assert "many.txt" in globbed, globbed
    assert "line 1234" in grepped, grepped
    assert "line 2999" in page, page
    assert "line 2997" not in page, page
    assert "not_found" in absent or "not found" in absent, absent
    assert BACKEND.execute("python3 sum.py; cat out").output.strip() == "55"


@claim
def a_failing_command_tells_the_agent_its_code_and_its_words() -> None:
    """Not an exception: something to act on."""
    (failed,) = done(BACKEND, {"execute": {"command": "echo so; echo why >&2; exit 7"}})
    assert "so" in failed, failed
    assert "why" in failed, failed
    assert "7" in failed, failed


@claim
def a_command_that_takes_too_long_is_ended() -> None:
    """124, and nothing of it runs on."""
    slow = BACKEND.execute("sleep 41", timeout=1)
    assert slow.exit_code == 124, slow
    left = ["sleep"]
    deadline = time.monotonic() + 20
    while left and time.monotonic() < deadline:
        left = [line for line in BACKEND.execute(PROGRAMS).output.splitlines() if "sleep 41" in line]
    assert not left, left
    assert BACKEND.execute("echo $((6 * 7))", timeout=0).output.strip() == "42"


@claim
def a_large_result_does_not_end_the_agent() -> None:
    """It would be put aside at / , where user may make nothing, here as at E2B: then it is told in full."""
    long, after = done(
        BACKEND,
        {"execute": {"command": "seq 1 60000"}},
        {"execute": {"command": "echo after"}},
    )
    assert "60000" in long
    assert "after" in after


@claim
def a_place_that_cannot_be_written_is_told_to_the_agent() -> None:
    """What lies outside the writable places is an answer to the model, not the end of its run."""
    refused, went_on = done(
        BACKEND,
        {"write_file": {"file_path": "/etc/mine.txt", "content": "x"}},
        {"write_file": {"file_path": f"{HOME}/mine.txt", "content": "x"}},
    )
    assert "rror" in refused or "ailed" in refused, refused
    assert "mine.txt" in went_on, went_on


@claim
def the_usual_workspace_is_its_users() -> None:
    """Where frameworks work unless told otherwise: a directory like any other, by commands and by files."""
    BACKEND.upload_files([("/workspace/up/file", b"sent")])
    seen = BACKEND.execute("mkdir -p /workspace && cd /workspace && cat up/file && stat -c ' %U' . && touch own && ls")
    assert seen.output.split() == ["sent", "user", "own", "up"], seen


@claim
def files_go_up_and_down_as_bytes() -> None:
    """Each with its own answer; those that fail say how."""
    data = bytes(range(256)) * 5000
    good, relative = BACKEND.upload_files([(f"{HOME}/deep/er/data.bin", data), ("relative", b"")])
    assert (good.error, relative.error) == (None, "invalid_path")
    down, absent, folder = BACKEND.download_files([f"{HOME}/deep/er/data.bin", f"{HOME}/none", f"{HOME}/deep"])
    assert down.content == data
    assert (absent.error, folder.error) == ("file_not_found", "is_directory")
    empty, named = f"{HOME}/empty", f"{HOME}/grün und 'blau'.txt"
    assert [each.error for each in BACKEND.upload_files([(empty, b""), (named, b"x")])] == [None, None]
    assert [each.content for each in BACKEND.download_files([empty, named])] == [b"", b"x"]


@claim
def an_edit_too_large_for_a_command_line_goes_by_files() -> None:
    """The integration sends what is to be replaced up and has it replaced inside."""
    old, new = "a" * 120_000, "b" * 120_000
    BACKEND.upload_files([(f"{HOME}/large.txt", f"<{old}>".encode())])
    assert BACKEND.edit(f"{HOME}/large.txt", old, new).error is None
    assert BACKEND.download_files([f"{HOME}/large.txt"])[0].content == f"<{new}>".encode()


@claim
def an_agent_of_the_asynchronous_kind_does_the_same() -> None:
    """AsyncE2BSandbox, with several calls at once."""

    async def all_of_it() -> None:
        sandbox = await e2b.AsyncSandbox.create(timeout=120)
        try:
            backend = AsyncE2BSandbox(sandbox=sandbox)
            agent = create_deep_agent(
                model=script(
                    {"write_file": {"file_path": f"{HOME}/a.txt", "content": "one"}},
                    {"execute": {"command": "cat a.txt; echo; echo two"}},
                    "done",
                ),
                backend=backend,
            )
            result = await agent.ainvoke({"messages": [("user", "go")]})
            assert "one\ntwo" in heard(result)[1]
            both = await asyncio.gather(*(backend.aexecute(f"echo {number}; sleep 1") for number in range(8)))
            assert [each.output.strip() for each in both] == [str(number) for number in range(8)]
            assert (await backend.aexecute("sleep 41", timeout=1)).exit_code == 124
            assert (await backend.als(HOME)).entries
            assert (await backend.agrep("one", HOME)).matches
            assert (await backend.aglob("*.txt", HOME)).matches
            assert (await backend.aedit(f"{HOME}/a.txt", "one", "two")).occurrences == 1
            assert "two" in (await backend.aread(f"{HOME}/a.txt")).file_data["content"]
        finally:
            assert await sandbox.kill()

    asyncio.run(all_of_it())


@claim
def it_is_found_again_by_its_id_and_gone_when_killed() -> None:
    """What Deep Agents Code does between two sessions."""
    again = E2BSandbox(sandbox=e2b.Sandbox.connect(BACKEND.id, timeout=300))
    assert again.execute("cat mine.txt").output == "x"
    assert e2b.Sandbox.kill(BACKEND.id) is True
    assert e2b.Sandbox.kill(BACKEND.id) is False
    gone = again.execute("true")
    assert gone.exit_code != 0, gone
    raised(e2b.SandboxNotFoundException, lambda: e2b.Sandbox.connect(BACKEND.id))


if __name__ == "__main__":
    sys.exit(tell_all())
