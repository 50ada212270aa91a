"""The places a program is run in: the host, and a server's three isolations."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from ringfence.client import Client
from ringfence.domain.limits import MIB, Limits
from ringfence.templates.catalog import Built
from tests.compat.programs import Program

CHECKOUT = Path(__file__).parents[2]
HOST = "host"
ISOLATIONS = ("jail", "container", "gvisor")
LIMITS = Limits(memory_bytes=1024 * MIB, cpus=2.0, processes=256, wall_seconds=180, cpu_seconds=180)
# What every sandbox has as it is, or one runtime refuses to promise (gVisor counts no files).
NOT_ASKED = {"idle_soft_seconds", "idle_hard_seconds", "scratch_files"}
SLACK_SECONDS = 60.0
STDERR_KEPT = 20_000
FAILED = "platform: "  # begins the `how` of a run that was not one
#: Variables every sandbox has, here for the host as well; one program compares them.
VARIABLES = {
    "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
    "HOME": "/home/user",
    "USER": "user",
    "LOGNAME": "user",
    "SHELL": "/bin/bash",
    "TMPDIR": "/tmp",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
    "PIP_RETRIES": "0",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}


@dataclass(frozen=True)
class Ending:
    """How a program ended: its stdout and exit are compared, stderr only helps to see why."""

    how: str
    code: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes = b""

    def same_as(self, other: Ending) -> bool:
        """Whether a user of the program would see no difference."""
        return self.fate == other.fate and self.stdout == other.stdout

    @property
    def fate(self) -> tuple[str, int | None, int | None]:
        """How it ended, without what it wrote."""
        return self.how, self.code, self.signal

    @property
    def ours(self) -> bool:
        """Whether the platform failed, rather than the program end."""
        return self.how.startswith(FAILED)

    def packed(self) -> dict[str, object]:
        """As JSON."""
        kept = replace(self, stderr=self.stderr[-STDERR_KEPT:])
        return {k: v.decode("latin-1") if isinstance(v, bytes) else v for k, v in asdict(kept).items()}

    @classmethod
    def unpacked(cls, fields: dict[str, object]) -> Ending:
        """From JSON."""
        raw = {"stdout", "stderr"}
        return cls(**{k: str(v).encode("latin-1") if k in raw else v for k, v in fields.items()})  # type: ignore[arg-type]


class Place(Protocol):
    """Somewhere a program can be run."""

    name: str

    def run(self, program: Program, seconds: float) -> Ending:
        """Run it to its end, or for so long."""


class OnHost:
    """No isolation: the template's interpreter and libraries, the host's kernel."""

    name = HOST

    def __init__(self, built: dict[str, Built]) -> None:
        self._built = built

    def run(self, program: Program, seconds: float) -> Ending:
        """See Place."""
        built = self._built[program.template]
        order = {
            "root": str(built.root),
            "argv": ["/usr/bin/python3", "/home/user/main.py", *program.args],
            "env": {**VARIABLES, **dict(built.template.env), **dict(program.env)},
            "files": {**dict(program.files), "main.py": program.code},
            "limits": asdict(LIMITS),
            "timeout": seconds,
        }
        done = subprocess.run(
            [sys.executable, "-m", "tests.compat.onhost"],
            input=json.dumps(order).encode(),
            capture_output=True,
            timeout=seconds + SLACK_SECONDS,
            cwd=CHECKOUT,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"the host could not run {program.name}: {done.stderr.decode()[-2000:]}")
        said = json.loads(done.stdout)
        out, err = base64.b64decode(said["stdout"]), base64.b64decode(said["stderr"])
        return Ending(said["how"], said["code"], said["signal"], out, err)


class InSandbox:
    """One isolation of a running server, by way of its own SDK."""

    def __init__(self, name: str, client: Client) -> None:
        self.name = name
        self._client = client

    def run(self, program: Program, seconds: float) -> Ending:
        """See Place."""
        result = self._client.run(
            program.code,
            template=program.template,
            isolation=self.name,
            args=program.args,
            env=dict(program.env),
            files=dict(program.files),
            timeout=seconds,
            limits={name: value for name, value in asdict(LIMITS).items() if name not in NOT_ASKED},
            deadline=seconds + SLACK_SECONDS,
        )
        end = result.exit
        return Ending(str(end.how), end.code, end.signal, result.stdout_bytes, result.stderr_bytes)
