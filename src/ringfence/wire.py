"""The JSON shapes that cross HTTP, as frozen structs shared by server, SDK and CLI.

A `Request` refuses unknown fields: a misspelt limit must not be ignored in silence. An `Answer` tolerates them,
so that an older client can read a newer server. Decoding is strict: "1" is not 1 and true is not 1.
Bytes fields are base64 text in JSON. Moments are Unix seconds, phases are milliseconds.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from ringfence import shapes
from ringfence.domain.limits import Limits
from ringfence.domain.process import Timings, Usage
from ringfence.domain.sandbox import State

DEFAULT_PORT: Final = 8642
DEFAULT_TEMPLATE: Final = "base"
IDEMPOTENCY_HEADER: Final = "Idempotency-Key"
ACCESS_HEADER: Final = "X-Ringfence-Access"
ACCESS_PARAMETER: Final = "ringfence-access"
NDJSON: Final = "application/x-ndjson"

# Part of this module's vocabulary, made where both kinds of struct are.
Answer = shapes.Answer
Data = shapes.Data
ErrorAnswer = shapes.ErrorAnswer
ErrorBody = shapes.ErrorBody
Exit = shapes.Exit
PtySize = shapes.PtySize
Request = shapes.Request

PortNumber = Annotated[int, msgspec.Meta(ge=1, le=65_535)]
Pid = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
User = Literal["user", "root"]
OnTimeout = Literal["stop", "pause"]


# --- one-shot runs ---------------------------------------------------------------------------------------------------


# What a sandbox may reach: "none", a list of rules (names, or tables with domain or cidr, ports, protocol, methods,
# paths), or a table with allow, bundles and max_bytes. null: what the template says, which says none by default.
Egress = str | list[str | dict[str, Any]] | dict[str, Any] | None


class RunRequest(Request, frozen=True):
    """Run one program in a fresh sandbox: `code`, `argv` or `shell`.

    With a template made from an image none of them runs what the image says: its ENTRYPOINT, followed by `args` or,
    without any, by its CMD.
    """

    code: str | None = None
    argv: list[str] | None = None
    shell: str | None = None
    args: list[str] = []
    template: str = DEFAULT_TEMPLATE
    isolation: str = "auto"
    files: dict[str, str | Data] = {}
    collect: list[str] = []
    env: dict[str, str] = {}
    cwd: str | None = None
    user: User | None = None
    stdin: str | Data | None = None
    limits: dict[str, Any] = {}
    timeout: Seconds | None = None
    labels: dict[str, str] = {}
    stream: bool = False
    egress: Egress = None
    egress_gateway: str = ""
    secrets: list[str] = []


class Collected(Answer, frozen=True, omit_defaults=True):
    """A file handed back by a run: its bytes, or why it could not be read."""

    base64: bytes | None = None
    size: int = 0
    error: ErrorBody | None = None


RunState = Literal["running", "finished", "failed"]


class Run(Answer, frozen=True):
    """A run and its result. `exit` is null while it runs, and when the platform failed (`error` says how).

    A stream that is not UTF-8 is in `stdout_base64` (`stderr_base64`) and its text field is null.
    Records read back later carry no output at all.
    """

    id: str
    state: RunState
    template: str
    created_at: float
    sandbox: str | None = None
    finished_at: float | None = None
    exit: Exit | None = None
    error: ErrorBody | None = None
    stdout: str | None = None
    stderr: str | None = None
    stdout_base64: bytes | None = None
    stderr_base64: bytes | None = None
    truncated: bool = False
    files: dict[str, Collected] = {}
    timings: Timings | None = None
    usage: Usage | None = None
    labels: dict[str, str] = {}
    limits: Limits | None = None


class RunPage(Answer, frozen=True):
    """Newest first; pass `next_cursor` back as `cursor` for older ones."""

    runs: list[Run]
    next_cursor: str | None = None


# --- sandboxes -------------------------------------------------------------------------------------------------------


class Start(Request, frozen=True):
    """The program a sandbox begins with, left to itself: exactly one of `argv`, `shell`, `code`."""

    argv: list[str] | None = None
    shell: str | None = None
    code: str | None = None
    args: list[str] = []
    env: dict[str, str] = {}
    cwd: str | None = None
    user: User | None = None


class SandboxRequest(Request, frozen=True):
    """Create a sandbox that lives until its ttl, a stop, or its idle limit.

    `start` runs from the beginning, and again after each reset and each pause.
    `on_timeout` "pause" keeps its files when its time is over; `wake` resumes it when it is used while paused. null:
    what the template says, which says "stop" and false by default.
    """

    template: str = DEFAULT_TEMPLATE
    isolation: str = "auto"
    limits: dict[str, Any] = {}
    labels: dict[str, str] = {}
    ttl_seconds: Seconds = 300.0
    egress: Egress = None
    start: Start | None = None
    egress_gateway: str = ""
    secrets: list[str] = []
    on_timeout: OnTimeout | None = None
    wake: bool | None = None


class PauseRequest(Request, frozen=True):
    """Pause a sandbox: its programs end and its files are kept. No runtime here can keep `memory`."""

    memory: bool = False


class ResumeRequest(Request, frozen=True):
    """Resume a paused sandbox for `ttl_seconds`; without them, for as long as it was last given."""

    ttl_seconds: Seconds | None = None


class EgressRequest(Request, frozen=True):
    """Replace what a sandbox may reach. What the new policy does not allow is cut before the answer comes."""

    egress: Egress


class ExtendRequest(Request, frozen=True):
    """Expire `ttl_seconds` from now instead."""

    ttl_seconds: Seconds


class Paused(Answer, frozen=True):
    """What is kept of a paused sandbox: `bytes` of files until `expires_at`; its programs ended at `at`."""

    at: float
    bytes: int
    expires_at: float
    kept: Literal["files"] = "files"
    reason: str = ""


class Sandbox(Answer, frozen=True):
    """A sandbox as its owner sees it. `layers` are the walls in force, `limits_by` who enforces the limits."""

    id: str
    template: str
    state: State
    created_at: float
    template_digest: str = ""
    runtime: str = ""
    expires_at: float | None = None
    ended_at: float | None = None
    labels: dict[str, str] = {}
    limits: Limits | None = None
    layers: list[str] = []
    limits_by: str = ""
    egress: dict[str, Any] = {}
    egress_gateway: str = ""
    secrets: list[str] = []
    ttl_seconds: float | None = None
    on_timeout: OnTimeout = "stop"
    wake: bool = False
    paused: Paused | None = None
    exit: Exit | None = None
    error: ErrorBody | None = None
    usage: Usage | None = None
    timings: Timings | None = None


class SandboxPage(Answer, frozen=True):
    """Newest first; pass `next_cursor` back as `cursor` for older ones."""

    sandboxes: list[Sandbox]
    next_cursor: str | None = None


# --- published ports -------------------------------------------------------------------------------------------------


class PublishRequest(Request, frozen=True):
    """Give a port inside a URL. Private unless `public`; a request waits up to `wait_seconds` for it to accept."""

    port: PortNumber
    public: bool = False
    wait_seconds: Annotated[float, msgspec.Meta(ge=0, le=60)] = 10.0


class LinkRequest(Request, frozen=True):
    """A link to a private port, good for `ttl_seconds`; `once` for one browser only."""

    ttl_seconds: Seconds = 600.0
    once: bool = False


class PortLink(Answer, frozen=True):
    """A link. `url` (for a browser) and `token` (for the X-Ringfence-Access header) are told once, when it is made."""

    id: str
    expires_at: float
    once: bool = False
    used: bool = False
    url: str | None = None
    token: str | None = None


class PublishedPort(Answer, frozen=True):
    """A port inside with a URL of its own. `path` leads to it on the edge's own name, for clients that send a token."""

    port: int
    url: str
    path: str
    public: bool
    wait_seconds: float
    created_at: float
    links: list[PortLink] = []


class PublishAllRequest(Request, frozen=True):
    """Give every port inside a URL: for everybody with `public`, else for who sends `token`; without, it is made."""

    public: bool = False
    token: Annotated[str, msgspec.Meta(min_length=16, max_length=256)] | None = None
    wait_seconds: Annotated[float, msgspec.Meta(ge=0, le=60)] = 0.0


class PublishedAll(Answer, frozen=True):
    """Every port inside, published at once. `{port}` in `url` and `host` stands for its number.

    `token` is told once, when it is set; a client sends it as E2B-Traffic-Access-Token.
    """

    url: str
    host: str
    public: bool
    wait_seconds: float
    created_at: float
    token: str | None = None


class PublishedPortList(Answer, frozen=True):
    """The ports a sandbox publishes; `any` is there when it publishes all of them."""

    ports: list[PublishedPort]
    any: PublishedAll | None = None


# --- processes -------------------------------------------------------------------------------------------------------


class ProcessRequest(Request, frozen=True):
    """Start a process in a sandbox. Exactly one of `argv`, `shell`, `code`.

    `stdin` is given to the program and closed. `stdin_open` keeps it open for later input instead.
    `detach` answers at once with the pid; `stream` answers line by line.
    """

    argv: list[str] | None = None
    shell: str | None = None
    code: str | None = None
    args: list[str] = []
    env: dict[str, str] = {}
    cwd: str | None = None
    user: User | None = None
    stdin: str | Data | None = None
    stdin_open: bool = False
    timeout: Seconds | None = None
    tag: str | None = None
    pty: PtySize | None = None
    detach: bool = False
    stream: bool = False


class ProcessStarted(Answer, frozen=True):
    """A process that now runs by itself."""

    pid: int


class ProcessResult(Answer, frozen=True):
    """A process that ended, with what it wrote (see Run for the base64 fields)."""

    pid: int
    exit: Exit
    stdout: str | None = None
    stderr: str | None = None
    stdout_base64: bytes | None = None
    stderr_base64: bytes | None = None
    truncated: bool = False
    timings: Timings | None = None
    usage: Usage | None = None


class Process(Answer, frozen=True):
    """A process the sandbox knows of, alive or ended."""

    pid: int
    argv: list[str] = []
    kind: Literal["exec", "run"] = "exec"
    tag: str | None = None
    started_at: float | None = None
    running: bool = True
    exit: Exit | None = None


class ProcessList(Answer, frozen=True):
    """Every process started through the API in one sandbox."""

    processes: list[Process]


class SignalRequest(Request, frozen=True):
    """A signal by name ("TERM", "SIGTERM") or number."""

    signal: str | int


# --- streams ---------------------------------------------------------------------------------------------------------


class Started(Answer, frozen=True, omit_defaults=True):
    """What a stream's first line names: a run and its sandbox, or a process."""

    id: str | None = None
    sandbox: str | None = None
    pid: int | None = None


class Line(Answer, frozen=True, omit_defaults=True):
    """One line of an NDJSON stream: exactly one field is set. `run`, `process` or `error` is the last line."""

    started: Started | None = None
    stdout: str | None = None
    stdout_base64: bytes | None = None
    stderr: str | None = None
    stderr_base64: bytes | None = None
    run: Run | None = None
    process: ProcessResult | None = None
    error: ErrorBody | None = None


class TerminalInput(Request, frozen=True):
    """A text message from a terminal or attached client: exactly one field."""

    resize: PtySize | None = None
    signal: str | int | None = None
    eof: bool | None = None


class TerminalOutput(Answer, frozen=True, omit_defaults=True):
    """A text message to a terminal or attached client; `exit` or `error` is the last."""

    started: Started | None = None
    exit: Exit | None = None
    error: ErrorBody | None = None


# --- files -----------------------------------------------------------------------------------------------------------


class Entry(Answer, frozen=True):
    """A name in a sandbox's file system."""

    name: str
    path: str
    type: Literal["file", "dir", "symlink", "other"]
    size: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime: float = 0.0
    target: str | None = None


class EntryList(Answer, frozen=True):
    """A directory's entries; `truncated` when there were more than are shown."""

    entries: list[Entry]
    truncated: bool = False


class MkdirRequest(Request, frozen=True):
    """Make a directory."""

    path: str
    parents: bool = True


class MoveRequest(Request, frozen=True):
    """Rename within one sandbox."""

    source: str
    target: str


class Written(Answer, frozen=True):
    """A file that was written."""

    path: str
    size: int


class FileEvent(Answer, frozen=True):
    """A change seen by a watch. `from` is a renamed file's earlier name; "overflow": some changes were left out."""

    type: Literal["create", "write", "remove", "rename", "chmod", "overflow"]
    path: str = ""
    source: str | None = msgspec.field(default=None, name="from")


# --- what the machine offers, and what happened ----------------------------------------------------------------------


class Pool(Answer, frozen=True):
    """Warm sandboxes of one template."""

    idle: int = 0
    starting: int = 0
    least: int = 0
    most: int = 0


class TemplateImage(Answer, frozen=True):
    """The container image a template was made from, and what it says should be run."""

    reference: str
    digest: str
    entrypoint: list[str] = []
    cmd: list[str] = []
    workdir: str = "/"
    user: str = ""


class Template(Answer, frozen=True):
    """A built template."""

    name: str
    description: str = ""
    digest: str = ""
    size_bytes: int = 0
    runtime: str = ""
    zygote: str = ""
    preload: list[str] = []
    limits: Limits | None = None
    pool: Pool | None = None
    image: TemplateImage | None = None
    owner: str = ""  # the tenant who built it, and alone can use it; empty: everybody


class TemplateList(Answer, frozen=True):
    """Every template on this machine."""

    templates: list[Template]


class Layer(Answer, frozen=True):
    """One wall: whether it is in force on this machine, and why not."""

    name: str
    in_force: bool
    reason: str = ""


class Runtime(Answer, frozen=True):
    """One way to isolate, and what it offers here."""

    name: str
    available: bool
    reason: str = ""
    layers: list[Layer] = []
    limits_by: str = ""
    capabilities: dict[str, Any] = {}


class RuntimeList(Answer, frozen=True):
    """Every runtime this machine knows."""

    runtimes: list[Runtime]


class Event(Answer, frozen=True):
    """Something that happened to one of the tenant's sandboxes or runs. `id` is the stream's cursor."""

    id: int
    type: str
    time: float
    sandbox: str | None = None
    run: str | None = None
    data: dict[str, Any] = {}


class Status(Answer, frozen=True):
    """How the server is, as this tenant may know it: its own counts only."""

    ready: bool
    version: str
    tenant: str
    sandboxes: int
    runs: int
    uptime_seconds: float = 0.0
    pools: list[dict[str, Any]] = []


class WhyLimit(Answer, frozen=True):
    """The limit that ended a program: its value, what was seen, and what to change."""

    name: str
    value: str
    seen: str
    change: str


class Why(Answer, frozen=True):
    """Why a run or a sandbox ended as it did, and where its time went, in plain words."""

    id: str
    kind: Literal["run", "sandbox"]
    state: str
    summary: str
    advice: str = ""
    exit: Exit | None = None
    error: ErrorBody | None = None
    limit: WhyLimit | None = None
    time: str = ""
    timings: Timings | None = None
    usage: Usage | None = None
    events: list[Event] = []
