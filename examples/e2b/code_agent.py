"""smolagents: an agent writes Python, a sandbox runs it."""

from __future__ import annotations

from typing import Any

from smolagents import CodeAgent, LogLevel, Model
from smolagents.models import ChatMessage, MessageRole

SCRIPT = [
    "import pandas as pd\ntable = pd.DataFrame(orders)\nprint(table.groupby('region')['sum'].sum())",
    "final_answer(table.groupby('region')['sum'].sum().idxmax())",
]


class Scripted(Model):
    """Stands for a model: says one line of the script after the other."""

    def generate(self, messages: list[Any], **_: Any) -> ChatMessage:
        """See smolagents."""
        turn = sum(message.role == MessageRole.ASSISTANT for message in messages)
        return ChatMessage(MessageRole.ASSISTANT, f"Thought: next.\n<code>\n{SCRIPT[turn]}\n</code>")


orders = [{"region": "north", "sum": 12}, {"region": "south", "sum": 30}, {"region": "north", "sum": 5}]
with CodeAgent(
    tools=[],
    model=Scripted(),
    executor_type="e2b",
    additional_authorized_imports=["pandas"],
    verbosity_level=LogLevel.ERROR,
) as agent:
    print("most was sold in the", agent.run("Where was most sold?", additional_args={"orders": orders}))
