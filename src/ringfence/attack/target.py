"""What is attacked: something that runs a program in a sandbox, and keeps a neighbour alive beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

from ringfence.attack.observation import Ran
from ringfence.attack.table import Probe

# What the neighbour runs first: it tells its namespaces, and leaves a beating process and a file behind.
NEIGHBOUR: str = """
import json, os, time
print(json.dumps({kind: os.readlink(f"/proc/self/ns/{kind}") for kind in os.listdir("/proc/self/ns")}), flush=True)
open("secret", "w").write(os.environ["SECRET"])
open("beat", "w").write("0")
if os.fork() == 0:
    os.setsid()
    os.closerange(0, 256)
    beat, beats = os.open("beat", os.O_WRONLY), 0
    while True:
        beats += 1
        os.pwrite(beat, b"%20d" % beats, 0)
        time.sleep(0.1)
"""

# What it is asked afterwards: is the process alive, is the file as it was, can it still work?
ASKED: str = """
import os, time
before = int(open("beat").read())
deadline = time.monotonic() + 60
while (after := int(open("beat").read())) <= before and time.monotonic() < deadline:
    time.sleep(0.02)
print("beats" if after > before else "stopped", open("secret").read(), sum(range(1000)))
"""


class Neighbour(Protocol):
    """A sandbox of somebody else, who must notice nothing."""

    @property
    def namespaces(self) -> Mapping[str, str]:
        """Inodes of its namespaces, as it sees them."""
        ...

    def trouble(self) -> str:
        """What is wrong with it now; empty when it answers as before."""
        ...

    def close(self) -> None:
        """Let it go."""
        ...


class Target(Protocol):
    """Runs attacking programs. Implementations answer what a tenant would see, and never raise for a refusal."""

    @property
    def runtime(self) -> str:
        """Which runtime is attacked, for the report."""
        ...

    @property
    def forks(self) -> bool:
        """Whether sandboxes are forks of one interpreter, so that siblings could share more than their template."""
        ...

    def run(self, probe: Probe, facts: Mapping[str, Any]) -> Ran:
        """One copy of the probe's program in a fresh sandbox; `facts` reach it in its environment."""
        ...

    def neighbour(self, secret: str) -> Neighbour:
        """A sandbox beside the attacked ones, holding `secret`."""
        ...


def environment(facts: Mapping[str, Any]) -> dict[str, str]:
    """How facts are told to a program."""
    return {"PROBE_FACTS": json.dumps(facts)}


def last_report(stdout: str) -> dict[str, Any]:
    """The last line that is a JSON object: whatever else a program printed is not its report."""
    for line in reversed(stdout.splitlines()):
        if not line.startswith("{"):
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return {}


def answer_is_right(answer: str, secret: str) -> str:
    """What is wrong with a neighbour's answer to ASKED; empty when nothing is."""
    expected = f"beats {secret} {sum(range(1000))}"
    return "" if answer.strip() == expected else f"answered {answer.strip()[:200]!r}"
