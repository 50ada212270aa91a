"""What calls answer. A program's fate is a value here: `.exit.how`; only `.check()` raises for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Self, TypeVar

from ringfence import wire
from ringfence.client.calls import T, decoded
from ringfence.client.errors import ProgramFailed, Unreachable, error_from
from ringfence.client.lines import ServerEvent
from ringfence.domain.errors import RingfenceError
from ringfence.domain.process import Timings, Usage


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of output, in the order it was written to its stream."""

    stream: Literal["stdout", "stderr"]
    data: bytes

    @property
    def text(self) -> str:
        """The bytes as text; what is not UTF-8 becomes the replacement character."""
        return self.data.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class _Result:
    exit: wire.Exit
    stdout_bytes: bytes = field(repr=False)
    stderr_bytes: bytes = field(repr=False)
    truncated: bool
    timings: Timings
    usage: Usage

    @property
    def stdout(self) -> str:
        """Standard output as text; what is not UTF-8 becomes the replacement character."""
        return self.stdout_bytes.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """Standard error as text; what is not UTF-8 becomes the replacement character."""
        return self.stderr_bytes.decode("utf-8", "replace")

    @property
    def ok(self) -> bool:
        """True only for a program that ended by itself with code 0."""
        return self.exit.ok

    def check(self) -> Self:
        """This result when the program succeeded. Raises ProgramFailed otherwise."""
        if not self.ok:
            raise ProgramFailed(self.exit, self.stderr)
        return self


@dataclass(frozen=True, slots=True)
class RunResult(_Result):
    """A one-shot run that ended. `files` holds what was collected, `file_errors` why the others could not be."""

    id: str
    sandbox: str
    template: str
    created_at: float
    labels: Mapping[str, str]
    files: Mapping[str, bytes] = field(repr=False)
    file_errors: Mapping[str, RingfenceError]


@dataclass(frozen=True, slots=True)
class ProcessResult(_Result):
    """A process of a sandbox that ended."""

    pid: int


def fault(error: wire.ErrorBody) -> RingfenceError:
    """An error reported inside an answer, as its class."""
    return error_from(500, {"code": error.code, "cause": error.cause, "remediation": error.remediation})


def _bytes(text: str | None, raw: bytes | None) -> bytes:
    return raw if raw is not None else (text or "").encode()


def run_result(run: wire.Run) -> RunResult:
    """An ended run as its user sees it. Raises what the platform reported when it failed the run."""
    if run.exit is None:
        unknown = Unreachable("the server called a run ended without its exit", code="bad_answer")
        raise fault(run.error) if run.error else unknown
    return RunResult(
        exit=run.exit,
        stdout_bytes=_bytes(run.stdout, run.stdout_base64),
        stderr_bytes=_bytes(run.stderr, run.stderr_base64),
        truncated=run.truncated,
        timings=run.timings or Timings(),
        usage=run.usage or Usage(),
        id=run.id,
        sandbox=run.sandbox or "",
        template=run.template,
        created_at=run.created_at,
        labels=run.labels,
        files={path: file.base64 or b"" for path, file in run.files.items() if file.error is None},
        file_errors={path: fault(file.error) for path, file in run.files.items() if file.error is not None},
    )


def process_result(result: wire.ProcessResult) -> ProcessResult:
    """An ended process as its user sees it."""
    return ProcessResult(
        exit=result.exit,
        stdout_bytes=_bytes(result.stdout, result.stdout_base64),
        stderr_bytes=_bytes(result.stderr, result.stderr_base64),
        truncated=result.truncated,
        timings=result.timings or Timings(),
        usage=result.usage or Usage(),
        pid=result.pid,
    )


def event_of(kind: type[T], event: ServerEvent) -> T:
    """The wire type a server-sent event carries. Raises the error it carries instead when the stream failed."""
    if event.name == "error":
        raise fault(decoded(wire.ErrorAnswer, event.data.encode()).error)
    return decoded(kind, event.data.encode())


def chunk(line: wire.Line) -> Chunk | None:
    """The piece of output a stream's line carries, if it carries one."""
    if line.stdout is not None or line.stdout_base64 is not None:
        return Chunk("stdout", _bytes(line.stdout, line.stdout_base64))
    if line.stderr is not None or line.stderr_base64 is not None:
        return Chunk("stderr", _bytes(line.stderr, line.stderr_base64))
    return None


_R = TypeVar("_R", bound=_Result)


def with_output(result: _R, stdout: bytes, stderr: bytes) -> _R:
    """The same result, carrying the output that was streamed beside it."""
    return dataclasses.replace(result, stdout_bytes=stdout, stderr_bytes=stderr)
