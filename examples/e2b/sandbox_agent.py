"""The OpenAI Agents SDK: an agent with a workspace in a sandbox finds a mistake and mends it."""

from __future__ import annotations

import asyncio

from agents import RunConfig, Runner, set_tracing_disabled
from agents.extensions.sandbox.e2b import E2BSandboxClient, E2BSandboxClientOptions, E2BSandboxType
from agents.sandbox import Manifest, SandboxAgent, SandboxRunConfig
from agents.sandbox.entries import File
from agents.testing import ScriptedModel, assistant_message, function_call

SCRIPT = ScriptedModel(
    [
        [function_call("exec_command", {"cmd": "python3 mean.py"}, call_id="1")],
        [
            function_call(
                "exec_command", {"cmd": "sed -i 's/numbers) - 1/numbers)/' mean.py && python3 mean.py"}, call_id="2"
            )
        ],
        [assistant_message("The mean was divided by one too few; now it is right.")],
    ]
)
agent = SandboxAgent(
    name="mender",
    model=SCRIPT,
    instructions="Mend what is wrong.",
    default_manifest=Manifest(
        entries={"mean.py": File(content=b"numbers = [1, 2, 3]\nprint(sum(numbers) / (len(numbers) - 1))\n")}
    ),
)
sandboxes = SandboxRunConfig(
    client=E2BSandboxClient(), options=E2BSandboxClientOptions(sandbox_type=E2BSandboxType.E2B)
)

set_tracing_disabled(True)
result = asyncio.run(Runner.run(agent, "mean.py is wrong.", run_config=RunConfig(sandbox=sandboxes)))
for item in result.new_items:
    if item.type == "tool_call_output_item":
        print("the sandbox said", str(item.output).splitlines()[-1])
print(result.final_output)
