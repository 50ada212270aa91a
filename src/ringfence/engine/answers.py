"""What node and guest answer, as structs. The node is trusted to be well formed; the guest is not trusted at all.

A guest payload is bounded by its frame, decoded here and nowhere else, and a bad one costs its own stream alone.
"""

from __future__ import annotations

import functools
import json
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from ringfence import wire
from ringfence.domain import errors
from ringfence.domain.limits import Limits
from ringfence.domain.process import How, Timings, Usage
from ringfence.domain.sandbox import State

T = TypeVar("T")
Text = Annotated[str, msgspec.Meta(max_length=64 * 1024)]


class Known(msgspec.Struct, frozen=True):
    """Base of both kinds of answer; later fields are ignored."""


# --- from the node ---------------------------------------------------------------------------------------------------


class NodeError(Known, frozen=True):
    """A refusal or a fault of the node."""

    code: str
    cause: str
    remediation: str = ""
    status: int = 500


class NodeAnswer(Known, frozen=True):
    """The header of any END."""

    error: NodeError | None = None


class Override(Known, frozen=True):
    """The node's own verdict on a program, which stands above the guest's."""

    how: How
    reason: str = ""


class RunEnd(NodeAnswer, frozen=True):
    """The end of `run` and of a program opened by `open`; what the guest says of it is beside."""

    sandbox: str | None = None
    override: Override | None = None
    oom_kills: int = 0
    oom_hidden: bool = False  # no signal shows a kill for memory
    usage: Usage | None = None
    timings: Timings | None = None


class NodeSandbox(Known, frozen=True):
    """A sandbox as the node knows it."""

    id: str
    tenant: str
    template: str
    state: State
    created_at: float
    template_digest: str = ""
    runtime: str = ""
    expires_at: float | None = None
    labels: dict[str, str] = {}
    limits: Limits | None = None
    layers: list[str] = []
    limits_by: str = ""
    egress: dict[str, Any] = {}
    egress_gateway: str = ""
    secrets: list[str] = []
    ttl_seconds: float | None = None
    on_timeout: wire.OnTimeout = "stop"
    wake: bool = False
    expiring: bool = False  # its time is over, and it is kept for a moment to be paused
    exit: wire.Exit | None = None
    usage: Usage | None = None

    def public(self, timings: Timings | None = None, ended_at: float | None = None) -> wire.Sandbox:
        """As its owner sees it."""
        return wire.Sandbox(
            id=self.id,
            template=self.template,
            state=self.state,
            created_at=self.created_at,
            template_digest=self.template_digest,
            runtime=self.runtime,
            expires_at=self.expires_at,
            ended_at=ended_at,
            labels=self.labels,
            limits=self.limits,
            layers=self.layers,
            limits_by=self.limits_by,
            egress=self.egress,
            egress_gateway=self.egress_gateway,
            secrets=self.secrets,
            ttl_seconds=self.ttl_seconds,
            on_timeout=self.on_timeout,
            wake=self.wake,
            exit=self.exit,
            usage=self.usage,
            timings=timings,
        )


class SandboxEnd(NodeAnswer, frozen=True):
    """The end of create, get, extend and stop."""

    sandbox: NodeSandbox | None = None
    timings: Timings | None = None


class PauseEnd(NodeAnswer, frozen=True):
    """The end of pause; beside it the agent says whether all was sent."""

    override: Override | None = None
    described: NodeSandbox | None = None
    begins: bytes = b""  # the agent's order for the program it begins with, as the api once made it


class SandboxesEnd(NodeAnswer, frozen=True):
    """The end of list."""

    sandboxes: list[NodeSandbox] = []


class TemplatesEnd(NodeAnswer, frozen=True):
    """The end of templates."""

    templates: list[wire.Template] = []


class RuntimesEnd(NodeAnswer, frozen=True):
    """The end of runtimes."""

    runtimes: list[wire.Runtime] = []


class StatusEnd(NodeAnswer, frozen=True):
    """The end of status."""

    sandboxes: int = 0
    pools: list[dict[str, Any]] = []
    uptime_seconds: float = 0.0


class NodeEvent(Known, frozen=True):
    """Something the node saw."""

    type: str
    tenant: str
    sandbox: str
    time: float
    data: dict[str, Any] = {}


class NodeEventMessage(Known, frozen=True):
    """A CONTROL frame of the events stream."""

    event: NodeEvent


# --- from the guest --------------------------------------------------------------------------------------------------


class GuestError(Known, frozen=True):
    """A refusal by the agent."""

    code: Text
    cause: Text = ""


class GuestExit(Known, frozen=True):
    """A program's end as the agent saw it."""

    how: Literal["exited", "signalled", "timed_out", "stopped"]
    code: int | None = None
    signal: int | None = None
    scratch_full: bool = False

    def public(self) -> wire.Exit:
        """As the owner sees it."""
        return wire.Exit(how=How(self.how), code=self.code, signal=self.signal)


class GuestProcess(Known, frozen=True):
    """A row of `list`."""

    pid: int
    argv: list[str] = []
    kind: Literal["exec", "run"] = "exec"
    tag: str | None = None
    started_at: float | None = None
    running: bool = True
    exit: GuestExit | None = None

    def public(self) -> wire.Process:
        """As the owner sees it."""
        return wire.Process(
            pid=self.pid,
            argv=self.argv,
            kind=self.kind,
            tag=self.tag,
            started_at=self.started_at,
            running=self.running,
            exit=self.exit.public() if self.exit else None,
        )


class GuestEnd(Known, frozen=True):
    """The payload of any guest END: every field of every op."""

    error: GuestError | None = None
    exit: GuestExit | None = None
    processes: list[GuestProcess] = []
    entry: wire.Entry | None = None
    entries: list[wire.Entry] = []
    truncated: bool = False
    size: int = 0
    count: int = 0


class GuestStarted(Known, frozen=True):
    """Who was started; `pid` is absent for a watch or a tunnel."""

    pid: int | None = None


class GuestControl(Known, frozen=True):
    """A CONTROL frame of a guest stream."""

    started: GuestStarted | None = None
    event: wire.FileEvent | None = None


_STATUS: Final[dict[int, type[errors.RingfenceError]]] = {
    400: errors.BadRequest,
    401: errors.Unauthenticated,
    403: errors.Forbidden,
    404: errors.NotFound,
    409: errors.Conflict,
    413: errors.TooLarge,
    429: errors.OverQuota,
    500: errors.PlatformFault,
    502: errors.SandboxLost,
}
_CODE: Final[dict[str, type[errors.RingfenceError]]] = {
    kind.default_code: kind
    for kind in (errors.SandboxRefused, errors.SandboxLost, errors.NodeLost, errors.Overloaded, errors.PlatformFault)
}
_GUEST: Final[dict[str, tuple[type[errors.RingfenceError], str]]] = {
    "not_found": (errors.NotFound, "check the path, the program or the pid inside the sandbox"),
    "not_a_file": (errors.BadRequest, "name a regular file"),
    "exists": (errors.Conflict, "remove it first or choose another name"),
    "permission": (errors.Forbidden, 'the sandbox\'s user may not do this; try user "root" or another path'),
    "bad_request": (errors.BadRequest, ""),
    "no_space": (errors.Conflict, "raise limits.scratch_bytes or remove files"),
    "io": (errors.Conflict, "the sandbox's file system or the port answered with an error"),
    "no_input": (errors.Conflict, "start it with an input, and send that kind"),
    "not_running": (errors.Conflict, "the process has ended"),
    "not_listening": (errors.Conflict, "start a server on that port inside the sandbox"),
    "busy": (errors.Conflict, "wait for the other use to end"),
    "no_python": (errors.BadRequest, "give argv or shell, or use an image with Python"),
    "no_shell": (errors.BadRequest, "give argv, or use an image with a shell"),
}


def raise_node(error: NodeError | None) -> None:
    """Raise the node's error as ours, code and words kept."""
    if error is None:
        return
    kind = _CODE.get(error.code) or _STATUS.get(error.status)
    if kind is None:
        kind = errors.Overloaded if error.status == 503 else errors.PlatformFault
    raise kind(error.cause, code=error.code, remediation=error.remediation)


def raise_guest(error: GuestError | None) -> None:
    """Raise the agent's error as ours; an unknown code is a broken agent."""
    if error is None:
        return
    known = _GUEST.get(error.code)
    if known is None:
        raise errors.SandboxLost("the sandbox answered with an unknown error", remediation="create a new sandbox")
    kind, remediation = known
    raise kind(f"in the sandbox: {error.cause[:500]}", code=f"guest_{error.code}", remediation=remediation)


@functools.lru_cache(maxsize=64)
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def decode_node(payload: bytes, kind: type[T]) -> T:
    """The node's header as `kind`. Raises NodeLost when it is not one."""
    try:
        wanted: Any = kind
        answer: T = _decoder(wanted).decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise errors.NodeLost(
            f"the node's answer was not understood: {error}", remediation="run one version of ringfence"
        ) from None
    return answer


_guest_end: Final = msgspec.json.Decoder(GuestEnd)
_guest_control: Final = msgspec.json.Decoder(GuestControl)


def _decode_guest(payload: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    try:
        try:
            return decoder.decode(payload)
        except msgspec.ValidationError:
            raise
        except (msgspec.DecodeError, ValueError):
            # A file name that is not UTF-8 travels as a lone surrogate: show it with a mark instead of failing.
            return decoder.decode(json.dumps(json.loads(payload), ensure_ascii=False).encode("utf-8", "replace"))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise errors.SandboxLost("the sandbox's agent broke the protocol", remediation="create a new sandbox") from None


def guest_end(payload: bytes) -> GuestEnd:
    """A guest's last words; an empty payload says nothing. Raises SandboxLost for a lie, or the agent's own refusal."""
    if not payload:
        return GuestEnd()
    end = _decode_guest(payload, _guest_end)
    raise_guest(end.error)
    return end


def guest_control(payload: bytes) -> GuestControl:
    """A guest's message. Raises SandboxLost for a lie."""
    return _decode_guest(payload, _guest_control)
