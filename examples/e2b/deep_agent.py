"""LangChain: a deep agent whose files and commands are a sandbox's."""

from __future__ import annotations

from typing import Any

from deepagents import create_deep_agent
from e2b import Sandbox
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_e2b import E2BSandbox


class Scripted(GenericFakeChatModel):
    """Stands for a model: says one message of the script after the other."""

    def bind_tools(self, tools: Any, **_: Any) -> Scripted:
        """See LangChain."""
        return self


def call(name: str, **args: str) -> AIMessage:
    """The model asks for a tool."""
    return AIMessage("", tool_calls=[{"name": name, "args": args, "id": name}])


SCRIPT = [
    call(
        "write_file",
        file_path="/home/user/primes.py",
        content="print([n for n in range(2, 30) if all(n % d for d in range(2, n))])",
    ),
    call("execute", command="python3 primes.py"),
    AIMessage("There they are."),
]
sandbox = Sandbox.create(timeout=300)
try:
    agent = create_deep_agent(model=Scripted(messages=iter(SCRIPT)), backend=E2BSandbox(sandbox=sandbox))
    result = agent.invoke({"messages": [("user", "Which primes are below 30?")]})
    for message in result["messages"]:
        print(f"{message.type}: {message.text}")
finally:
    sandbox.kill()
