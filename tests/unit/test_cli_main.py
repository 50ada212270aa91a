"""The command line itself: help, suggestions, errors, exit codes; no server is needed for any of it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from ringfence.cli.main import COMMANDS, cli, main

NOWHERE = "http://127.0.0.1:9"


def ringfence(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "ringfence", *words],
        env={**os.environ, "RINGFENCE_URL": NOWHERE, **env},
        capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def every_command() -> list[tuple[str, ...]]:
    """Each command and subcommand whose module this installation has."""
    found: list[tuple[str, ...]] = []
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        found.append((name,))
        if isinstance(command, click.Group):
            found += [(name, inner) for inner in command.commands]
    return found


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_every_command_explains_itself(words: tuple[str, ...]) -> None:
    """`--help` works everywhere, begins with usage and says what the command does."""
    result = CliRunner().invoke(cli, [*words, "--help"])
    assert result.exit_code == 0
    assert result.output.startswith("Usage:")
    assert len(result.output.splitlines()) > 4


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_every_command_can_write_json(words: tuple[str, ...]) -> None:
    """Whatever prints data can print it for programs."""
    result = CliRunner().invoke(cli, [*words, "--help"])
    groups = {("sandbox",), ("keys",), ("secrets",), ("templates",), ("policy",)}
    interactive = {("sandbox", "shell"), ("completion",), *groups}
    assert "--json" in result.output or words in interactive


def test_the_table_of_commands_names_real_ones() -> None:
    """Each entry leads to a command, and what the overview says is the beginning of what the command says."""
    for name, entry in COMMANDS.items():
        module, _, attribute = entry.home.partition(":")
        assert isinstance(getattr(importlib.import_module(f"ringfence.cli.{module}"), attribute), click.Command), name


def test_help_shows_the_commands_by_section_and_the_exit_codes() -> None:
    """One page is enough to start."""
    result = CliRunner().invoke(cli, ["--help"])
    assert all(word in result.output for word in ("Run:", "Sandboxes:", "124", "RINGFENCE_URL", "ringfence demo"))


@pytest.mark.parametrize(
    ("words", "suggestion"),
    [
        (["snadbox"], "'sandbox'"),
        (["tempaltes"], "'templates'"),
        (["sandbox", "lst"], "'list'"),
        (["keys", "revok"], "'revoke'"),
    ],
)
def test_a_misspelt_command_is_answered_with_the_right_one(words: list[str], suggestion: str) -> None:
    """A usage error exits 2 and helps."""
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 2
    assert f"Did you mean {suggestion}" in result.output


def test_a_misspelt_option_of_run_is_refused() -> None:
    """A limit that was misspelt is not handed to the program in silence."""
    result = CliRunner().invoke(cli, ["run", "-c", "1", "--timout", "5s"])
    assert result.exit_code == 2
    assert "--timeout" in result.output


def test_an_error_is_its_code_its_cause_and_a_hint() -> None:
    """Errors go to stderr in one form; our fault exits 125; stdout stays empty."""
    done = ringfence("status")
    assert done.returncode == 125
    assert done.stdout == ""
    assert done.stderr.startswith("error[unreachable]: cannot reach")
    assert "hint: start one with `ringfence serve`" in done.stderr


def test_a_refusal_exits_126() -> None:
    """A bad setting is the caller's."""
    done = ringfence("status", RINGFENCE_URL="ftp://h")
    assert done.returncode == 126
    assert done.stderr.startswith("error[bad_settings]:")


def test_nothing_is_coloured_into_a_pipe() -> None:
    """Output that is not a terminal holds no escape sequence, not even when colours are forced off by nobody."""
    done = ringfence("status", TERM="xterm-256color")
    assert "\x1b" not in done.stderr + done.stdout


def test_a_reader_that_leaves_is_no_error() -> None:
    """`ringfence ... | head` ends quietly."""
    script = f"{sys.executable} -m ringfence completion bash | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert int(done.stdout) in {0, 141}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_command(shell: str) -> None:
    """Each supported shell gets a script that completes `ringfence`."""
    assert "_RINGFENCE_COMPLETE" in ringfence("completion", shell).stdout


def test_completion_knows_the_commands() -> None:
    """Completing in bash offers what begins like the word typed."""
    done = ringfence(_RINGFENCE_COMPLETE="bash_complete", COMP_WORDS="ringfence temp", COMP_CWORD="1")
    assert "templates" in done.stdout


def test_version_is_data() -> None:
    """The version is one line, or one JSON object."""
    assert ringfence("version").stdout.startswith("ringfence ")
    assert "version" in json.loads(ringfence("version", "--json").stdout)


def test_main_returns_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    """The entry point is a function that returns a number."""
    assert main(["run"]) == 2
    assert "give a FILE" in capsys.readouterr().err


def test_importing_the_package_loads_no_http_client() -> None:
    """The node and the guest import this package too; they must not pay for, nor contain, the SDK."""
    code = "import sys, ringfence; print(sorted({'httpx', 'websockets', 'click', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
