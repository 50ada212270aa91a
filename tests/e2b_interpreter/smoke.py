"""What E2B's Python code interpreter must be able to do, whichever release: run with one of them in PYTHONPATH.

It is no test file: `test_sdks.py` runs it once for each pair of releases and reads the lines it prints.
"""

from __future__ import annotations

import base64
import os
import socket
import sys

REAL = socket.getaddrinfo
DOMAIN = os.environ.get("E2B_DOMAIN", "").partition(":")[0]


def looked_up(host, *rest, **more):
    """Names of the domain are on this machine: what a real installation's DNS says."""
    name = host.decode() if isinstance(host, bytes) else host
    return REAL("127.0.0.1" if DOMAIN and name and name.endswith(DOMAIN) else host, *rest, **more)


socket.getaddrinfo = looked_up

from claims import claim, tell_all  # noqa: E402 - the resolver comes first
from e2b_code_interpreter import Sandbox  # noqa: E402

PLOT = "import matplotlib.pyplot as plt\nplt.bar(['a', 'b'], [1, 2]); plt.title('Bars'); plt.show()"


@claim
def it_runs_code(box):
    """A value, and what was printed."""
    done = box.run_code("print('hello'); 6 * 7")
    assert done.text == "42", done
    assert "".join(done.logs.stdout) == "hello\n"
    assert done.error is None


@claim
def it_keeps_state(box):
    """One namespace."""
    box.run_code("x = 1")
    assert box.run_code("x += 1; x").text == "2"


@claim
def it_tells_errors(box):
    """Name, value, traceback; and in callbacks."""
    seen = []
    error = box.run_code("1 / 0", on_error=seen.append).error
    assert (error.name, error.value) == ("ZeroDivisionError", "division by zero")
    assert "1 / 0" in error.traceback
    assert [each.name for each in seen] == ["ZeroDivisionError"]


@claim
def it_streams(box):
    """Callbacks are called as output comes: the cell goes on when one of them has said so."""
    seen, results = [], []
    box.run_code(
        "import os, sys, time\nprint('early')\nwhile not os.path.exists('/tmp/heard'): time.sleep(0.02)\n"
        "print('late', file=sys.stderr)\ndisplay('shown')",
        on_stdout=lambda message: (seen.append(message.line), box.files.write("/tmp/heard", "")),
        on_stderr=lambda message: seen.append(message.line),
        on_result=lambda result: results.append(result.text),
        timeout=60,
    )
    assert seen == ["early\n", "late\n"]
    assert results == ["shown"]


@claim
def it_shows_plots(box):
    """A picture and a chart."""
    result = box.run_code(PLOT).results[0]
    assert base64.b64decode(result.png)[:4] == b"\x89PNG"
    if hasattr(result, "chart"):
        assert result.chart.type.value == "bar"
        assert result.chart.title == "Bars"
        assert [(each.label, each.value) for each in result.chart.elements] == [("a", 1), ("b", 2)]


@claim
def it_shows_tables(box):
    """HTML and data."""
    result = box.run_code("import pandas as pd; pd.DataFrame({'a': [1, 2]})").results[0]
    assert "<table" in result.html
    assert result.data == {"a": [1, 2]}
    assert result.is_main_result


@claim
def it_takes_variables(box):
    """Of the call, over those of the sandbox."""
    code = "import os; (os.environ.get('OF_SANDBOX'), os.environ.get('OF_CALL'))"
    assert box.run_code(code, envs={"OF_CALL": "2"}).text == "('1', '2')"
    assert box.run_code(code).text == "('1', None)"


@claim
def it_speaks_other_languages(box):
    """Bash and JavaScript."""
    assert "".join(box.run_code("echo $((1 + 1))", language="bash").logs.stdout) == "2\n"
    assert box.run_code("console.log('x'); 1 + 1", language="js").text == "2"


@claim
def it_has_contexts(box):
    """Of one's own; and all that later releases can do with them."""
    context = box.create_code_context(cwd="/home/user/own", language="python")
    box.run_code("mine = 1", context=context)
    assert box.run_code("import os; (mine, os.getcwd())", context=context).text == "(1, '/home/user/own')"
    assert box.run_code("mine").error.name == "NameError"
    if hasattr(box, "list_code_contexts"):
        listed = box.list_code_contexts()
        assert {"python", "javascript"} <= {each.language for each in listed}
        assert listed[-1].id == context.id
        box.restart_code_context(context)
        assert box.run_code("mine", context=context).error.name == "NameError"
        box.remove_code_context(context)
        assert len(box.list_code_contexts()) == len(listed) - 1


@claim
def it_interrupts_what_takes_too_long(box):
    """A timeout of the call, then the next is answered."""
    box.run_code("kept = 3")
    raised = None
    try:
        box.run_code("import time\nwhile True: time.sleep(0.1)", timeout=1)
    except Exception as error:  # noqa: BLE001 - its class has moved from release to release
        raised = type(error).__name__
    assert raised is not None
    assert "imeout" in raised
    assert box.run_code("kept").text == "3"


@claim
def it_survives_its_kernel(box):
    """An error, then a fresh kernel."""
    assert box.run_code("import os; os._exit(1)").error is not None
    assert box.run_code("1 + 1").text == "2"


@claim
def it_shares_files_with_commands(box):
    """What a cell writes a command reads, and the other way."""
    box.run_code("open('shared.txt', 'w').write('from a cell')")
    assert box.commands.run("cat shared.txt").stdout == "from a cell"
    box.files.write("/home/user/back.txt", "from outside")
    assert box.run_code("open('back.txt').read()").text == "from outside"


def main() -> int:
    """Every claim on one sandbox."""
    make = Sandbox.create if hasattr(Sandbox, "create") else Sandbox
    box = make(timeout=600, request_timeout=120, envs={"OF_SANDBOX": "1"})
    try:
        return tell_all(box)
    finally:
        box.kill()


if __name__ == "__main__":
    sys.exit(main())
