"""Bash, JavaScript and TypeScript."""

from __future__ import annotations

import pytest

from tests.e2b_interpreter.harness import Sandbox


def test_bash_keeps_its_state(sandbox: Sandbox) -> None:
    """Variables, functions and the folder stay from cell to cell; both outputs are told apart."""
    sandbox.run("greet() { echo hello $1; }; cd /tmp; name='the world'", language="bash")
    done = sandbox.run('greet "$name"; pwd; echo oops >&2', language="bash")
    assert done.printed() == "hello the world\n/tmp\n"
    assert done.printed("stderr") == "oops\n"
    assert not done.error


def test_bash_tells_failures(sandbox: Sandbox) -> None:
    """A command that fails, a line that cannot be read, and many lines with one heredoc."""
    assert sandbox.run("ls /nowhere", language="bash").error["name"] == "CommandFailed"
    assert "syntax error" in sandbox.run("if then", language="bash").printed("stderr")
    assert sandbox.run("cat <<E\na\nb\nE\nfor i in 1 2; do echo $i; done", language="bash").printed() == "a\nb\n1\n2\n"


def test_bash_variables_of_a_call(sandbox: Sandbox) -> None:
    """They are exported for one cell; a name bash cannot have is an error."""
    sandbox.run("BOTH=before", language="bash")
    code = "bash -c 'echo $ONLY.$BOTH'; echo $BOTH"
    assert sandbox.run(code, language="bash", env_vars={"ONLY": "a b'c", "BOTH": "2"}).printed() == "a b'c.2\n2\n"
    assert sandbox.run(code, language="bash").printed() == ".\nbefore\n"
    assert sandbox.run(code, language="bash", env_vars={"a b": "c"}).error["name"] == "ValueError"


@pytest.mark.parametrize("language", ["js", "javascript"])
def test_javascript(sandbox: Sandbox, language: str) -> None:
    """console.log, the last value, declarations that stay."""
    done = sandbox.run("const kept = 1; console.log('Hello'); console.error('oops'); kept + 1", language=language)
    assert (done.printed(), done.printed("stderr"), done.text) == ("Hello\n", "oops\n", "2")
    sandbox.http.post(f"/contexts/{default(sandbox, 'javascript')}/restart").raise_for_status()


def default(sandbox: Sandbox, language: str) -> str:
    """The id of the default context."""
    contexts: list[dict[str, str]] = sandbox.http.get("/contexts").json()
    return next(context["id"] for context in contexts if context["language"] == language)


def test_javascript_awaits_and_imports(sandbox: Sandbox) -> None:
    """await at the top, promises as results, ES imports, twice if need be."""
    assert sandbox.run("await (async () => 'Hello, World!')()", language="js").text == "Hello, World!"
    assert sandbox.run("Promise.resolve(7)", language="js").text == "7"
    for _ in range(2):
        code = (
            "import fs, { existsSync as there } from 'fs'\nimport * as os from 'os';\n[there('/'), typeof fs, os.EOL]"
        )
        assert sandbox.run(code, language="js").text == "[ true, 'object', '\\n' ]"


def test_javascript_errors(sandbox: Sandbox) -> None:
    """Thrown at once, in a promise, never caught, or not even readable."""
    for code in ("throw new TypeError('why')", "await Promise.reject(new TypeError('why'))"):
        error = sandbox.run(code, language="js").error
        assert (error["name"], error["value"]) == ("TypeError", "why")
    assert sandbox.run("function (", language="js").error["name"] == "SyntaxError"
    late = sandbox.run(
        "setTimeout(() => { throw new Error('late') }); await new Promise(r => setTimeout(r, 50)); 1", language="js"
    )
    assert late.text == "1"
    assert "late" in late.printed("stderr")


def test_javascript_variables_of_a_call(sandbox: Sandbox) -> None:
    """process.env has them for one cell."""
    assert sandbox.run("process.env.ONLY", language="js", env_vars={"ONLY": "1"}).text == "1"
    assert not sandbox.run("process.env.ONLY", language="js").main


def test_typescript(sandbox: Sandbox) -> None:
    """Types are understood, in the same kernel that JavaScript has."""
    sandbox.run("globalThis.shared = 3", language="js")
    code = "enum E { A = 1 }\nfunction less(x: number, y: number): number { return x - y }\nless(E.A, shared)"
    assert sandbox.run(code, language="ts").text == "-2"


@pytest.mark.parametrize("language", ["r", "java", "cobol"])
def test_other_languages_are_refused(sandbox: Sandbox, language: str) -> None:
    """A language without a kernel is a 500 with a word of why, as E2B's is."""
    status, words = sandbox.refused("POST", "/execute", {"code": "1", "language": language})
    assert status == 500
    assert language in words
