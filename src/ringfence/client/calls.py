"""Every HTTP request the SDK makes, as a plain value. No I/O: the sync and the async client send the same ones."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypedDict, TypeVar
from urllib.parse import quote

import msgspec

from ringfence import wire, wire_egress, wire_secrets
from ringfence.client.errors import Unreachable

ROOT: Final = "/v1"
JSON_TYPE: Final = ("Content-Type", "application/json")
RAW_TYPE: Final = ("Content-Type", "application/octet-stream")
DEFAULT_WALL_SECONDS: Final = 300.0  # the server's limit for a program when the caller gave none
SLACK_SECONDS: Final = 30.0  # to wait for a warm sandbox and to carry the output home

Text = str | bytes
Pairs = tuple[tuple[str, str], ...]
T = TypeVar("T")


class RunOptions(TypedDict, total=False):
    """What may be said about a one-shot run besides the program itself."""

    template: str
    isolation: str
    files: Mapping[str, Text]
    collect: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    user: Literal["user", "root"]
    args: Sequence[str]
    stdin: Text
    limits: Mapping[str, float]
    timeout: float
    labels: Mapping[str, str]
    egress: wire.Egress
    egress_gateway: str
    secrets: Sequence[str]


class ProcessOptions(TypedDict, total=False):
    """What may be said about a process in a sandbox besides the program itself."""

    args: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    user: Literal["user", "root"]
    stdin: Text
    timeout: float
    tag: str


@dataclass(frozen=True, slots=True)
class Call:
    """One request. `repeatable` means sending it twice does its work once."""

    method: str
    path: str
    params: Pairs = ()
    body: bytes | None = None
    headers: Pairs = ()
    repeatable: bool = False


def decoded(kind: type[T], body: bytes) -> T:
    """An answer's body as the wire type it should be. Raises Unreachable when it is something else."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        hint = "check that the client's and the server's versions fit: `ringfence version`, `ringfence status`"
        raise Unreachable(
            f"the server's answer is not understood: {error}", code="bad_answer", remediation=hint
        ) from None


def words(text: Text) -> str | wire.Data:
    """Text as it is, bytes as base64 when they are not text."""
    if isinstance(text, str):
        return text
    try:
        return text.decode()
    except UnicodeDecodeError:
        return wire.Data(base64=text)


def _says_nothing(field: msgspec.structs.FieldInfo, value: Any) -> bool:
    if field.required:
        return False
    default = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    return bool(value == default)


def encoded(request: wire.Request) -> bytes:
    """A request without the fields left at their defaults, so that an older server meets no name it does not know."""
    fields = [(field, getattr(request, field.name)) for field in msgspec.structs.fields(request)]
    return msgspec.json.encode({field.name: value for field, value in fields if not _says_nothing(field, value)})


def _post(path: str, request: wire.Request, *, headers: Pairs = (), repeatable: bool = False) -> Call:
    return Call("POST", ROOT + path, (), encoded(request), (JSON_TYPE, *headers), repeatable)


def _get(path: str, *params: tuple[str, Any]) -> Call:
    return Call("GET", ROOT + path, given(*params), repeatable=True)


def given(*params: tuple[str, Any]) -> Pairs:
    """Query parameters, without those that are None."""
    return tuple((name, _word(value)) for name, value in params if value is not None)


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _labelled(labels: Mapping[str, str] | None) -> Pairs:
    return tuple(("label", f"{name}={value}") for name, value in (labels or {}).items())


def _once(key: str | None) -> Pairs:
    return ((wire.IDEMPOTENCY_HEADER, key or uuid.uuid4().hex),)


def _prepared(options: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: value for name, value in options.items() if value is not None}
    if "stdin" in fields:
        fields["stdin"] = words(fields["stdin"])
    if "files" in fields:
        fields["files"] = {path: words(content) for path, content in fields["files"].items()}
    return fields | {name: list(fields[name]) for name in ("args", "collect", "argv", "secrets") if name in fields}


# --- runs ------------------------------------------------------------------------------------------------------------


def run(program: Mapping[str, Any], options: RunOptions, *, stream: bool, key: str | None) -> Call:
    """POST /v1/runs, with a key that makes it safe to repeat."""
    request = wire.RunRequest(stream=stream, **_prepared({**program, **options}))
    return _post("/runs", request, headers=_once(key), repeatable=True)


def get_run(run_id: str) -> Call:
    """GET one run's record."""
    return _get(f"/runs/{quote(run_id, safe='')}")


def list_runs(labels: Mapping[str, str] | None, limit: int | None, cursor: str | None) -> Call:
    """GET a page of run records."""
    call = _get("/runs", ("limit", limit), ("cursor", cursor))
    return Call(call.method, call.path, call.params + _labelled(labels), repeatable=True)


def wall(options: Mapping[str, Any]) -> float:
    """How long the program itself may take, as far as the client can know."""
    limits = options.get("limits") or {}
    return float(options.get("timeout") or limits.get("wall_seconds") or DEFAULT_WALL_SECONDS)


# --- sandboxes -------------------------------------------------------------------------------------------------------


def sandbox_path(sandbox: str, rest: str = "") -> str:
    """A path under one sandbox; the id is quoted so that it cannot name another place."""
    return f"/sandboxes/{quote(sandbox, safe='')}{rest}"


def create(request: wire.SandboxRequest, key: str | None) -> Call:
    """POST /v1/sandboxes, with a key that makes it safe to repeat."""
    return _post("/sandboxes", request, headers=_once(key), repeatable=True)


def get_sandbox(sandbox: str) -> Call:
    """GET one sandbox."""
    return _get(sandbox_path(sandbox))


def list_sandboxes(labels: Mapping[str, str] | None, state: str | None, limit: int | None, cursor: str | None) -> Call:
    """GET a page of sandboxes."""
    call = _get("/sandboxes", ("state", state), ("limit", limit), ("cursor", cursor))
    return Call(call.method, call.path, call.params + _labelled(labels), repeatable=True)


def extend(sandbox: str, ttl_seconds: float) -> Call:
    """POST a new expiry, counted from now; twice is the same as once."""
    return _post(sandbox_path(sandbox, "/extend"), wire.ExtendRequest(ttl_seconds=ttl_seconds), repeatable=True)


def allow(sandbox: str, egress: wire.Egress) -> Call:
    """PUT another egress policy; twice is the same as once."""
    body = encoded(wire.EgressRequest(egress=egress))
    return Call("PUT", ROOT + sandbox_path(sandbox, "/egress"), (), body, (JSON_TYPE,), repeatable=True)


def starting(command: str | Sequence[str] | Mapping[str, Any] | None) -> wire.Start | None:
    """The program a sandbox begins with: shell text, words, or a mapping with `code`, `user` and what else goes."""
    if command is None:
        return None
    if isinstance(command, str):
        return wire.Start(shell=command)
    return wire.Start(**_prepared(command)) if isinstance(command, Mapping) else wire.Start(argv=list(command))


def reset(sandbox: str) -> Call:
    """POST that a sandbox be made anew; not repeated by itself, for it may be used again by then."""
    return Call("POST", ROOT + sandbox_path(sandbox, "/reset"))


def check_egress(egress: wire.Egress) -> Call:
    """POST a policy to be explained."""
    return _post("/egress/check", wire.EgressRequest(egress=egress), repeatable=True)


def learned_egress(ids: Sequence[str], *, generalise: bool) -> Call:
    """POST the runs and sandboxes from which a policy is proposed."""
    request = wire_egress.EgressLearnRequest(ids=list(ids), generalise=generalise)
    return _post("/egress/learned", request, repeatable=True)


def egress_report(seconds: float, step: float) -> Call:
    """GET what went where, by destination and step of time."""
    return _get("/egress/report", ("seconds", float(seconds)), ("step", float(step)))


def egress_bundles() -> Call:
    """GET every bundle."""
    return _get("/egress/bundles")


def egress_gateways() -> Call:
    """GET the gateways this key's tenant may use."""
    return _get("/egress/gateways")


def pause(sandbox: str, *, memory: bool) -> Call:
    """POST a pause; not repeated by itself, for the second would find it paused."""
    return _post(sandbox_path(sandbox, "/pause"), wire.PauseRequest(memory=memory))


def resume(sandbox: str, ttl_seconds: float | None) -> Call:
    """POST a resumption; likewise."""
    return _post(sandbox_path(sandbox, "/resume"), wire.ResumeRequest(ttl_seconds=ttl_seconds))


def stop(sandbox: str) -> Call:
    """DELETE a sandbox."""
    return Call("DELETE", ROOT + sandbox_path(sandbox))


# --- secrets ---------------------------------------------------------------------------------------------------------


def secret_path(name: str) -> str:
    """A path to one secret."""
    return f"/secrets/{quote(name, safe='')}"


def set_secret(name: str, request: wire_secrets.SecretRequest) -> Call:
    """PUT a secret; twice is the same as once."""
    return Call("PUT", ROOT + secret_path(name), (), encoded(request), (JSON_TYPE,), repeatable=True)


def get_secret(name: str) -> Call:
    """GET all of a secret but its value."""
    return _get(secret_path(name))


def list_secrets() -> Call:
    """GET every secret, without values."""
    return _get("/secrets")


def remove_secret(name: str) -> Call:
    """DELETE a secret."""
    return Call("DELETE", ROOT + secret_path(name))


# --- published ports -------------------------------------------------------------------------------------------------


def publish(sandbox: str, port: int, *, public: bool, wait: float) -> Call:
    """POST a port to publish; twice is the same as once."""
    request = wire.PublishRequest(port=port, public=public, wait_seconds=wait)
    return _post(sandbox_path(sandbox, "/ports"), request, repeatable=True)


def publish_all(sandbox: str, *, public: bool, token: str | None, wait: float) -> Call:
    """POST every port to publish; not repeated by itself, for each may make another token."""
    request = wire.PublishAllRequest(public=public, token=token, wait_seconds=wait)
    return _post(sandbox_path(sandbox, "/ports/any"), request)


def unpublish_all(sandbox: str) -> Call:
    """DELETE the publication of every port."""
    return Call("DELETE", ROOT + sandbox_path(sandbox, "/ports/any"))


def published(sandbox: str) -> Call:
    """GET the ports a sandbox publishes."""
    return _get(sandbox_path(sandbox, "/ports"))


def unpublish(sandbox: str, port: int) -> Call:
    """DELETE a published port."""
    return Call("DELETE", ROOT + sandbox_path(sandbox, f"/ports/{int(port)}"))


def share(sandbox: str, port: int, *, ttl: float, once: bool) -> Call:
    """POST a new link to a published port; not repeated by itself, for each makes another."""
    return _post(sandbox_path(sandbox, f"/ports/{int(port)}/links"), wire.LinkRequest(ttl_seconds=ttl, once=once))


def unshare(sandbox: str, port: int, link: str | None) -> Call:
    """DELETE a link, or every link of a port."""
    rest = "" if link is None else f"/{quote(link, safe='')}"
    return Call("DELETE", ROOT + sandbox_path(sandbox, f"/ports/{int(port)}/links{rest}"))


# --- processes -------------------------------------------------------------------------------------------------------


def start_process(sandbox: str, program: Mapping[str, Any], options: Mapping[str, Any], **how: Any) -> Call:
    """POST a process; never repeated by itself, for a program may have run."""
    request = wire.ProcessRequest(**how, **_prepared({**program, **options}))
    return _post(sandbox_path(sandbox, "/processes"), request)


def list_processes(sandbox: str) -> Call:
    """GET the processes of a sandbox."""
    return _get(sandbox_path(sandbox, "/processes"))


def process_path(sandbox: str, pid: int, rest: str) -> str:
    """A path under one process."""
    return sandbox_path(sandbox, f"/processes/{int(pid)}{rest}")


def output(sandbox: str, pid: int) -> Call:
    """GET what a process wrote lately and what it writes from now on."""
    return _get(process_path(sandbox, pid, "/output"))


def signal(sandbox: str, pid: int, name: str | int) -> Call:
    """POST a signal."""
    return _post(process_path(sandbox, pid, "/signal"), wire.SignalRequest(signal=name))


def resize(sandbox: str, pid: int, cols: int, rows: int) -> Call:
    """POST a terminal's new size; twice is the same as once."""
    return _post(process_path(sandbox, pid, "/resize"), wire.PtySize(cols=cols, rows=rows), repeatable=True)


def send_input(sandbox: str, pid: int, data: bytes, *, close: bool) -> Call:
    """POST bytes to a process's stdin; not repeatable, for bytes must arrive once."""
    params = given(("close", close or None))
    return Call("POST", ROOT + process_path(sandbox, pid, "/input"), params, data, (RAW_TYPE,))


# --- files -----------------------------------------------------------------------------------------------------------


def read_file(sandbox: str, path: str) -> Call:
    """GET a file's bytes."""
    return _get(sandbox_path(sandbox, "/files/content"), ("path", path))


def write_file(sandbox: str, path: str, data: bytes | None) -> Call:
    """PUT a file; whole bytes may be sent again, a stream (None) cannot."""
    where = ROOT + sandbox_path(sandbox, "/files/content")
    return Call("PUT", where, (("path", path),), data, (RAW_TYPE,), repeatable=data is not None)


def list_files(sandbox: str, path: str, depth: int) -> Call:
    """GET a directory's entries."""
    return _get(sandbox_path(sandbox, "/files"), ("path", path), ("depth", depth))


def stat_file(sandbox: str, path: str) -> Call:
    """GET what a name is."""
    return _get(sandbox_path(sandbox, "/files/stat"), ("path", path))


def make_directory(sandbox: str, path: str, *, parents: bool) -> Call:
    """POST a directory."""
    return _post(sandbox_path(sandbox, "/files/mkdir"), wire.MkdirRequest(path=path, parents=parents))


def move_file(sandbox: str, source: str, target: str) -> Call:
    """POST a rename."""
    return _post(sandbox_path(sandbox, "/files/move"), wire.MoveRequest(source=source, target=target))


def remove_file(sandbox: str, path: str, *, recursive: bool) -> Call:
    """DELETE a file or a directory."""
    return Call("DELETE", ROOT + sandbox_path(sandbox, "/files"), given(("path", path), ("recursive", recursive)))


def watch_files(sandbox: str, path: str, *, recursive: bool) -> Call:
    """GET changes as they happen."""
    return _get(sandbox_path(sandbox, "/files/watch"), ("path", path), ("recursive", recursive))


# --- the machine -----------------------------------------------------------------------------------------------------


def templates() -> Call:
    """GET every template."""
    return _get("/templates")


def runtimes() -> Call:
    """GET every runtime."""
    return _get("/runtimes")


def status() -> Call:
    """GET how the server is."""
    return _get("/status")


def why(what: str) -> Call:
    """GET why a run or a sandbox ended as it did."""
    return _get(f"/why/{quote(what, safe='')}")


def events(after: str | None) -> Call:
    """GET what happens, from a cursor on."""
    return _get("/events", ("after", after))


def health() -> Call:
    """GET whether anybody is there; needs no key."""
    return Call("GET", "/health", repeatable=True)
