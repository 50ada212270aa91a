"""smolagents' CodeAgent with `executor_type="e2b"`: its own loop, and a model that says what it was told to say."""

from __future__ import annotations

import sys
import time
import warnings
from datetime import date
from typing import Any

import e2b
import PIL.Image
from claims import claim, raised, tell_all
from e2b_code_interpreter import Sandbox
from smolagents import CodeAgent, LogLevel, Model, Tool
from smolagents.models import ChatMessage, MessageRole


class Scripted(Model):
    """A model whose answers are written down, and which keeps what it was told."""

    def __init__(self, *codes: str) -> None:
        super().__init__(model_id="scripted")
        self.codes = list(codes)
        self.told: list[str] = []

    def generate(self, messages: list[Any], **_: Any) -> ChatMessage:
        """The next piece of code, as the agent wants it written."""
        self.told.append(str(messages[-1].content))
        return ChatMessage(
            role=MessageRole.ASSISTANT, content=f"Thought: as planned.\n<code>\n{self.codes.pop(0)}\n</code>"
        )


def agent(*codes: str, **options: Any) -> CodeAgent:
    """An agent with a sandbox of its own."""
    options = {"tools": [], "verbosity_level": LogLevel.OFF, "max_steps": len(codes), **options}
    return CodeAgent(model=Scripted(*codes), executor_type="e2b", **options)


def living() -> set[str]:
    """Every sandbox there is."""
    pages, found = Sandbox.list(), set()
    while pages.has_next:
        found |= {each.sandbox_id for each in pages.next_items()}
    return found


class Weather(Tool):
    """A tool whose code the agent sends into the sandbox."""

    name = "weather"
    description = "The weather of a place."
    inputs = {"place": {"type": "string", "description": "where"}}
    output_type = "string"

    def forward(self, place: str) -> str:
        """See Tool."""
        import platform  # noqa: PLC0415 - its source is what is sent

        return f"{place}: 21 degrees, says {platform.node()}"


@claim
def an_agent_computes_in_steps_and_answers() -> None:
    """Variables live from step to step; printed lines go back to the model; the sandbox is gone afterwards."""
    before = living()
    with agent("squares = [n * n for n in range(5)]\nprint('so far', squares)", "final_answer(sum(squares))") as one:
        assert len(living() - before) == 1
        assert one.run("go") == 30
        assert "so far [0, 1, 4, 9, 16]" in one.model.told[-1], one.model.told
    assert living() == before


@claim
def an_error_goes_back_to_the_model_which_mends_it() -> None:
    """With its name and where it was; what was printed before it is not lost."""
    with agent("print('first')\n1 / 0", "import nowhere", "final_answer('mended')") as one:
        assert one.run("go") == "mended"
        division, missing = one.model.told[1], one.model.told[2]
        assert "ZeroDivisionError" in division, division
        assert "first" in division, division
        assert "ModuleNotFoundError" in missing, missing


@claim
def tools_and_variables_are_sent_in_and_answers_of_every_kind_come_out() -> None:
    """A tool's code runs inside; values are of their own types on both sides."""
    codes = (
        "print(weather('Oslo'), rows[1]['day'].year, len(blob), picture.size)",
        "final_answer({'when': rows[0]['day'], 'pair': (1, 2), 'set': {3}, 'blob': blob[::-1]})",
    )
    given = {
        "rows": [{"day": date(2026, 1, 2)}, {"day": date(2027, 3, 4)}],
        "blob": bytes(range(256)),
        "picture": PIL.Image.new("RGB", (30, 20), "red"),
    }
    with agent(*codes, tools=[Weather()]) as one:
        found = one.run("go", additional_args=given)
        assert "Oslo: 21 degrees, says sandbox 2027 256 (30, 20)" in one.model.told[-1], one.model.told
        assert found == {"when": date(2026, 1, 2), "pair": (1, 2), "set": {3}, "blob": bytes(range(256))[::-1]}


@claim
def pictures_and_tables_come_out() -> None:
    """A picture as the answer; a figure, a table and a number as what a step ends with."""
    figure = "import matplotlib.pyplot as plt\nfig, ax = plt.subplots()\nax.plot([1, 2, 3])\nfig"
    table = "import pandas as pd\npd.DataFrame({'a': [1, 2]})"
    answer = "from PIL import Image\nfinal_answer(Image.new('RGB', (64, 48), 'blue'))"
    with agent(answer, additional_authorized_imports=["matplotlib", "pandas", "PIL"]) as one:
        assert isinstance(one.python_executor(figure).output, PIL.Image.Image)
        assert one.python_executor(table).output is not None
        assert one.python_executor("6 * 7").output == "42"
        assert one.run("go").to_raw().size == (64, 48)


@claim
def packages_that_are_there_need_no_network_and_others_are_missing_soon() -> None:
    """`!pip install` finds the one at once; for the other it ends soon, and the import says that it is missing."""
    codes = ("import numpy as np\nimport nowhere", "final_answer(int(np.arange(5).sum()))")
    began = time.monotonic()
    with agent(*codes, additional_authorized_imports=["numpy", "nowhere"]) as one:
        assert one.run("go") == 10
        assert "No module named 'nowhere'" in one.model.told[1], one.model.told
        said = one.python_executor.sandbox.run_code("!pip install nowhere").logs
        assert "No matching distribution found for nowhere" in "".join(said.stderr), said
    assert time.monotonic() - began < 30


@claim
def options_of_the_sandbox_are_its_users() -> None:
    """What `executor_kwargs` names is given to the sandbox, and what it cannot have is refused by name."""
    kwargs = {"timeout": 60, "envs": {"GREETING": "hello"}, "metadata": {"of": "smolagents"}}
    with agent("import os\nfinal_answer(os.environ['GREETING'])", executor_kwargs=kwargs) as one:
        assert one.run("go") == "hello"
        mine = one.python_executor.sandbox.get_info()
        assert mine.metadata == {"of": "smolagents"}
        assert 0 < (mine.end_at - mine.started_at).total_seconds() < 100
    refused = raised(e2b.SandboxException, lambda: agent("pass", executor_kwargs={"allow_internet_access": True}))
    assert "internet" in str(refused), refused


@claim
def an_endless_step_is_ended_and_the_agent_goes_on() -> None:
    """A client that gives up interrupts what runs."""
    with agent("final_answer('on')") as one:
        box = one.python_executor.sandbox
        raised(e2b.TimeoutException, lambda: box.run_code("while True: pass", timeout=1))
        assert one.run("go") == "on"


@claim
def a_sandbox_that_was_killed_is_said_to_be_gone() -> None:
    """By name, and cleaning up afterwards is no error."""
    one = agent("final_answer(1)")
    Sandbox.kill(one.python_executor.sandbox.sandbox_id)
    gone = raised(e2b.SandboxException, lambda: one.python_executor("1"))
    assert "sandbox" in str(gone).lower(), gone
    one.cleanup()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(tell_all())
