"""Attacks through the public door: what a tenant with a key can do, and nothing more."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, cast

from ringfence import wire
from ringfence.attack.observation import Ran
from ringfence.attack.table import Probe
from ringfence.attack.target import ASKED, NEIGHBOUR, answer_is_right, environment, last_report
from ringfence.client import Client, RunResult, Sandbox
from ringfence.client.calls import RunOptions
from ringfence.domain.errors import RingfenceError

PATIENCE = 120.0  # seconds beyond a program's own deadline before the server counts as stuck


class OverHttp:
    """A server, attacked by one tenant. See target.Target."""

    def __init__(self, client: Client, isolation: str = "auto") -> None:
        self._client = client
        self._isolation = isolation
        offered = {found.name: found for found in client.runtimes() if found.available}
        self.runtime = next(iter(offered), isolation) if isolation == "auto" else isolation
        layers = offered[self.runtime].layers if self.runtime in offered else []
        self._unbounded = {layer.name for layer in layers if not layer.in_force}  # limits that it would refuse
        self.forks = self.runtime in offered and bool(offered[self.runtime].capabilities.get("fork_warm"))

    def run(self, probe: Probe, facts: Mapping[str, Any]) -> Ran:
        """One run of the probe's program."""
        options: RunOptions = {
            "template": probe.template,
            "isolation": self._isolation,
            "env": environment(facts),
            "user": "root" if probe.user == "root" else "user",
            "limits": {name: value for name, value in probe.limits.items() if name not in self._unbounded},
            "timeout": probe.timeout,
            "collect": list(probe.collect),
        }
        if probe.egress is not None:
            options["egress"] = cast("wire.Egress", probe.egress(facts))
        begun = time.monotonic()
        deadline = probe.timeout + PATIENCE
        try:
            if probe.argv:
                result = self._client.run(argv=["python3", "-c", probe.program], deadline=deadline, **options)
            else:
                result = self._client.run(probe.program, deadline=deadline, **options)
        except RingfenceError as error:
            return Ran("refused", refused=f"{error.code}: {error.cause}")
        return _ran(result, time.monotonic() - begun)

    def neighbour(self, secret: str) -> Beside:
        """A live sandbox of the same tenant's."""
        return Beside(self._client, self._isolation, secret)


class Beside:
    """A live sandbox with a beating process. See target.Neighbour."""

    def __init__(self, client: Client, isolation: str, secret: str) -> None:
        self._secret = secret
        self._sandbox = Sandbox.create(ttl=3600, isolation=isolation, client=client)
        try:
            result = self._sandbox.run(NEIGHBOUR, env={"SECRET": secret}).check()
        except BaseException:
            self.close()
            raise
        self.namespaces = {name: str(value) for name, value in last_report(result.stdout).items()}

    def trouble(self) -> str:
        """What is wrong with it; empty when nothing is."""
        try:
            answer = self._sandbox.run(ASKED, timeout=90)
        except RingfenceError as error:
            return error.cause
        return answer_is_right(answer.stdout, self._secret)

    def close(self) -> None:
        """Stop it."""
        self._sandbox.stop(missing_ok=True)


def _ran(result: RunResult, took: float) -> Ran:
    return Ran(
        how=str(result.exit.how),
        code=result.exit.code,
        signal=result.exit.signal,
        said=last_report(result.stdout),
        stdout_bytes=len(result.stdout_bytes) + len(result.stderr_bytes),
        stderr=result.stderr[-2000:],
        truncated=result.truncated,
        cpu_seconds=result.usage.cpu_seconds,
        peak_memory_bytes=result.usage.peak_memory_bytes,
        wall_seconds=took,
        files={path: data.decode("utf-8", "replace") for path, data in result.files.items()}
        | dict.fromkeys(result.file_errors, ""),
    )
