"""Cells and what comes of them, in Python."""

from __future__ import annotations

import base64
import struct
import threading
import time

import pytest

from tests.e2b_interpreter.harness import Sandbox

PLOT = """
import matplotlib.pyplot as plt
plt.plot([1, 2, 3], [4, 5, 6], label="line")
plt.title("Title"); plt.xlabel("time (s)"); plt.ylabel("y")
plt.show()
"""


def test_health_and_a_sum(sandbox: Sandbox) -> None:
    """The interpreter is there, and a cell's last value is its main result."""
    assert sandbox.http.get("/health").json() == "OK"
    done = sandbox.run("x = 20\nx + 22")
    assert done.text == "42"
    assert done.lines[0] == {"type": "number_of_executions", "execution_count": done.lines[0]["execution_count"]}


def test_variables_and_counts_stay(sandbox: Sandbox) -> None:
    """A context is one namespace, and counts its cells."""
    first = sandbox.run("kept = 'here'")
    second = sandbox.run("kept")
    assert second.text == "here"
    assert second.lines[0]["execution_count"] == first.lines[0]["execution_count"] + 1


def test_outputs_in_the_order_they_were_written(sandbox: Sandbox) -> None:
    """print, a child's output, both streams, display and error arrive as they were made."""
    done = sandbox.run(
        "import sys, subprocess\nprint('one')\nsubprocess.run(['echo', 'two'])\nprint('three', file=sys.stderr)\n"
        "!echo four\nsys.stdout.buffer.write(b'five\\n')\ndisplay('six')\nprint('seven')\n1 / 0"
    )
    seen: list[list[str]] = []
    for line in done.lines[1:-1]:
        if seen and line["type"] == seen[-1][0]:
            seen[-1][1] += line["text"]
        else:
            seen.append([line["type"], line.get("text") or line["name"]])
    assert seen == [
        ["stdout", "one\ntwo\n"], ["stderr", "three\n"], ["stdout", "four\nfive\n"], ["result", "six"],
        ["stdout", "seven\n"], ["error", "ZeroDivisionError"],
    ]  # fmt: skip


def test_errors_have_tracebacks_without_colours(sandbox: Sandbox) -> None:
    """Name, value and the lines that led there; a cell that cannot be read has them, too."""
    error = sandbox.run("def broken():\n    raise ValueError('why')\nbroken()").error
    assert (error["name"], error["value"]) == ("ValueError", "why")
    assert "raise ValueError('why')" in error["traceback"]
    assert "\x1b" not in error["traceback"]
    assert sandbox.run("if:").error["name"] == "SyntaxError"
    assert sandbox.run("import sys; sys.exit(3)").error["name"] == "SystemExit"
    assert sandbox.run("'ok'").text == "ok"


def test_a_plot_is_a_picture_and_a_chart(sandbox: Sandbox) -> None:
    """A figure comes as PNG, and as the data that e2b_charts reads out of it."""
    result = sandbox.run(PLOT).of("result")[0]
    data = base64.b64decode(result["png"])
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24])[0] > 100
    chart = result["chart"]
    assert (chart["type"], chart["title"], chart["x_unit"]) == ("line", "Title", "s")
    assert chart["elements"][0]["points"] == [[1, 4], [2, 5], [3, 6]]


def test_a_figure_left_open_is_shown_at_the_end(sandbox: Sandbox) -> None:
    """Nobody has to call show(); two axes are a superchart."""
    done = sandbox.run("fig, axes = plt.subplots(2); _ = axes[0].bar(['a', 'b'], [1, 2]); _ = axes[1].pie([1, 2])")
    result = next(line for line in done.of("result") if "png" in line)
    assert result["chart"]["type"] == "superchart"
    assert [part["type"] for part in result["chart"]["elements"]] == ["bar", "pie"]


def test_a_table_is_html_and_data(sandbox: Sandbox) -> None:
    """A DataFrame comes as text, as HTML, and as columns: times in ISO 8601, what is no number as null."""
    result = sandbox.run(
        "import pandas as pd\nday = pd.to_datetime(['2024-01-02'] * 2)\n"
        "pd.DataFrame({'n': [1, 2], 'f': [0.5, float('nan')], 't': day})"
    ).main
    assert "<table" in result["html"]
    assert result["data"] == {"n": [1, 2], "f": [0.5, None], "t": ["2024-01-02T00:00:00"] * 2}


@pytest.mark.parametrize(
    ("code", "field", "value"),
    [
        ("{'a': [1, None]}", "json", {"a": [1, None]}),
        ("from IPython.display import HTML; HTML('<b>x</b>')", "html", "<b>x</b>"),
        ("from IPython.display import Markdown; Markdown('# x')", "markdown", "# x"),
        ("from IPython.display import SVG; SVG('<svg></svg>')", "svg", "<svg/>"),
        ("from IPython.display import Latex; Latex('$x$')", "latex", "$x$"),
        ("from IPython.display import Javascript; Javascript('1')", "javascript", "1"),
        ("from IPython.display import display; display({'x/y': 'z'}, raw=True)", "extra", {"x/y": "z"}),
        ("class A:\n    def _repr_e2b_data_(self): return {'own': 1}\nA()", "data", {"own": 1}),
        ("class A:\n    def _repr_jpeg_(self): return b'abc'\nA()", "jpeg", "YWJj"),
        ("'é \\U0001F600'", "text", "é \U0001f600"),
        ("'\\ud800'", "text", "\\ud800"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isidentifier() else "",
)
def test_representations_have_their_fields(sandbox: Sandbox, code: str, field: str, value: object) -> None:
    """Each media type arrives under the name that clients know, others under `extra`."""
    assert sandbox.run(code).of("result")[0][field] == value


def test_variables_of_a_call_are_gone_after_it(sandbox: Sandbox) -> None:
    """`env_vars` are there for one cell, and what was there before is there again."""
    sandbox.run("import os; os.environ['BOTH'] = 'before'")
    code = "import os; (os.environ.get('ONLY'), os.environ['BOTH'])"
    assert sandbox.run(code, env_vars={"ONLY": "1", "BOTH": "2"}).text == "('1', '2')"
    assert sandbox.run(code).text == "(None, 'before')"


def test_magics_and_await(sandbox: Sandbox) -> None:
    """IPython's own: magics, shell lines into variables, await at the top; and asyncio.run()."""
    assert sandbox.run("%%bash\necho from bash").printed() == "from bash\n"
    assert sandbox.run("lines = !printf 'a\\nb'\nlines").text == "['a', 'b']"
    assert sandbox.run("import asyncio\nawait asyncio.sleep(0, 'awaited')").text == "awaited"
    assert sandbox.run("asyncio.run(asyncio.sleep(0, 'run'))").text == "run"
    assert sandbox.run("1 + 1;").lines[-2]["type"] == "number_of_executions"


WHEEL = """
import zipfile
with zipfile.ZipFile("/tmp/hello_cell-1.0-py3-none-any.whl", "w") as wheel:
    info = "hello_cell-1.0.dist-info"
    wheel.writestr("hello_cell.py", "GREETING = 'hello'")
    wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: hello-cell\\nVersion: 1.0\\n")
    wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    wheel.writestr(f"{info}/RECORD", "")
!pip install --quiet --no-index /tmp/hello_cell-1.0-py3-none-any.whl
import hello_cell
hello_cell.GREETING
"""


def test_pip_installs_for_the_same_cell(sandbox: Sandbox) -> None:
    """What `!pip` brings can be imported in the next line, and by commands."""
    done = sandbox.run(WHEEL)
    assert done.text == "hello", done.lines
    assert sandbox.run("!python3 -c 'import hello_cell; print(hello_cell.GREETING)'").printed() == "hello\n"


def test_forks_print_too(sandbox: Sandbox) -> None:
    """A child of the kernel, and a pool of them, print into the cell."""
    done = sandbox.run(
        "import multiprocessing, os\ndef twice(n):\n    print('at', n)\n    return 2 * n\n"
        "with multiprocessing.get_context('fork').Pool(2) as pool: print(pool.map(twice, [1, 2]))"
    )
    assert sorted(done.printed().splitlines()) == ["[2, 4]", "at 1", "at 2"]
    assert not done.printed("stderr")


def test_a_fork_is_no_second_kernel(sandbox: Sandbox) -> None:
    """A child that comes to the end of its cell ends there, and takes no other cell from its parent."""
    done = sandbox.run("import os\npid = os.fork()\nchild = not pid\nif pid: os.waitpid(pid, 0)\nprint('child', child)")
    assert done.printed() == "child True\nchild False\n"
    assert [sandbox.run("child").text for _ in range(4)] == ["False"] * 4


def test_nobody_answers_input(sandbox: Sandbox) -> None:
    """input() fails at once instead of waiting for ever."""
    assert "nobody to ask" in sandbox.run("input('name? ')").error["value"]


def test_cells_of_a_context_take_turns(sandbox: Sandbox) -> None:
    """Two requests at once run one after the other, in the order they came."""
    sandbox.run("order = []")
    slow = threading.Thread(
        target=sandbox.run, args=("import time; order.append(1); time.sleep(0.5); order.append(2)",)
    )
    slow.start()
    while slow.is_alive() and sandbox.server.door.interpreter.waiting(sandbox.id) == 0:
        time.sleep(0.001)
    assert sandbox.run("order").text == "[1, 2]"
    slow.join()


def test_a_quiet_cell_is_kept_alive(sandbox: Sandbox) -> None:
    """Every five seconds without a word there is one of ours."""
    assert sandbox.run("import time; time.sleep(6.5)").of("keepalive")


def test_what_cells_print_and_show_is_not_kept(sandbox: Sandbox) -> None:
    """A notebook may go on for ever: a kernel does not grow with what it said, whether text, pictures or errors."""
    held = "lines = dict(line.split(':') for line in open('/proc/self/status'))\n"
    held += "int(lines.get('RssAnon', lines['VmRSS']).split()[0])"  # gVisor tells the whole alone
    loud = "from IPython.display import display, HTML\nfor _ in range(100): print('x' * 99_999)\n"
    loud += "for _ in range(10): display(HTML('y' * 999_999))\nraise ValueError('z' * 60_000)"
    sandbox.run(loud)
    before = int(sandbox.run(held).text)
    for _ in range(3):
        assert sandbox.run(loud).error["name"] == "ValueError"
    assert int(sandbox.run(held).text) - before < 20_000  # KiB, of 60 MB that were said


def test_one_hundred_megabytes_pass(sandbox: Sandbox, isolation: str) -> None:
    """Output is passed on piece by piece, whichever way it was written."""
    code = "for _ in range(100): print('x' * 999_999)" if isolation == "jail" else "!yes | head -c 100000000"
    done = sandbox.run(code)
    assert len(done.printed()) == 100_000_000
    assert not done.error
