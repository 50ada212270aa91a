"""Requests checked at the door, before anything is started. Pure: a request in, guest words or a refusal out."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ringfence import wire
from ringfence.domain.errors import BadRequest, NotFound, TooLarge
from ringfence.domain.sandbox import ID, START_BYTES

_encode: Final = msgspec.json.Encoder().encode
LONGEST_PATH: Final = 4096
MOST_LABELS: Final = 32
MOST_FILES: Final = 1000
MOST_WORDS: Final = 10_000
_LABEL: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_./-]{0,61}[A-Za-z0-9])?")
_PRINTABLE: Final = re.compile(r"[^\x00-\x1f\x7f]*")
_SIGNALS: Final = {name.removeprefix("SIG"): int(number) for name, number in signal.Signals.__members__.items()}


def path(text: str, what: str = "path") -> str:
    """A path inside a sandbox, resolved there and nowhere else; relative ones start at the home directory."""
    if len(text.encode("utf-8", "replace")) > LONGEST_PATH:
        raise TooLarge(f"{what} is longer than {LONGEST_PATH} bytes", code="path_too_long")
    if not text or "\0" in text:
        raise BadRequest(f"{what} is empty or has a NUL byte", code="bad_path")
    if ".." in text.split("/"):
        raise BadRequest(f"{what} has a '..' part", code="bad_path", remediation="write the path out")
    return text


def labels(wanted: Mapping[str, str]) -> None:
    """Refuse labels that could not be shown, stored or searched everywhere."""
    if len(wanted) > MOST_LABELS:
        raise BadRequest(f"more than {MOST_LABELS} labels", code="bad_label")
    for name, value in wanted.items():
        if not _LABEL.fullmatch(name):
            raise BadRequest(
                "a label's name is 1 to 63 letters, digits, '_', '.', '/' or '-'",
                code="bad_label",
                remediation="start and end it with a letter or a digit",
            )
        if len(value) > 255 or not _PRINTABLE.fullmatch(value):
            raise BadRequest(f"label {name}: at most 255 printable characters", code="bad_label")


def label_filter(texts: list[str]) -> tuple[tuple[str, str], ...]:
    """`name=value` filters, all of which must hold."""
    pairs = [text.partition("=") for text in texts]
    if any(not sign for _, sign, _ in pairs):
        raise BadRequest("a label filter is name=value", code="bad_label")
    wanted = tuple((name, value) for name, _, value in pairs)
    labels(dict(wanted))
    return wanted


def identifier(text: str, kind: str) -> str:
    """An id of this kind; anything else does not exist."""
    if not ID.fullmatch(text) or text[0] != kind:
        raise missing(text, kind)
    return text


def missing(text: str, kind: str) -> NotFound:
    """The one answer for what never existed, is gone, or is somebody else's."""
    return NotFound(f"no {'sandbox' if kind == 's' else 'run'} {text[:40]!r}", remediation="check the id")


def signal_number(wanted: str | int) -> int:
    """A signal's number from its name or number."""
    number = wanted if isinstance(wanted, int) else _SIGNALS.get(wanted.upper().removeprefix("SIG"), 0)
    if not 1 <= number <= 64:
        raise BadRequest(f"unknown signal {wanted!r:.40}", code="bad_signal", remediation='use a name such as "TERM"')
    return number


def stdin_bytes(wanted: str | wire.Data | None) -> bytes | None:
    """What to feed the program; None means none."""
    if wanted is None:
        return None
    return wanted.base64 if isinstance(wanted, wire.Data) else wanted.encode()


def _words(values: list[str], what: str) -> list[str]:
    if len(values) > MOST_WORDS:
        raise TooLarge(f"{what} has more than {MOST_WORDS} entries")
    if any("\0" in value for value in values):
        raise BadRequest(f"{what} has a NUL byte", code="bad_program")
    return values


def environment(values: Mapping[str, str]) -> dict[str, str]:
    """Variables for a program. Raises BadRequest for a name or value that cannot be."""
    if len(values) > MOST_WORDS:
        raise TooLarge(f"env has more than {MOST_WORDS} entries")
    for name, value in values.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise BadRequest(f"env has a name or value that cannot be: {name!r:.60}", code="bad_env")
    return dict(values)


def _way(request: wire.RunRequest | wire.ProcessRequest, image: wire.TemplateImage | None) -> dict[str, Any]:
    given = [name for name in ("code", "argv", "shell") if getattr(request, name) is not None]
    if not given and image is not None:
        return {"op": "exec", "argv": _as_the_image_says(request, image)}
    if len(given) != 1:
        raise BadRequest(
            f"give exactly one of code, argv and shell, not {len(given)}", code="bad_program", remediation="choose one"
        )
    if request.args and request.code is None:
        raise BadRequest("args goes with code; put arguments into argv", code="bad_program")
    if request.code is not None:
        return {"op": "run", "code": request.code, "argv": _words(request.args, "args")}
    if request.shell is not None:
        return {"op": "exec", "shell": _words([request.shell], "shell")[0]}
    if not request.argv or not request.argv[0]:
        raise BadRequest("argv is empty", code="bad_program")
    return {"op": "exec", "argv": _words(request.argv, "argv")}


def _as_the_image_says(request: wire.RunRequest | wire.ProcessRequest, image: wire.TemplateImage) -> list[str]:
    """ENTRYPOINT and the request's arguments, or CMD where it has none: as every container tool does it."""
    argv = [*image.entrypoint, *(_words(request.args, "args") or image.cmd)]
    if not argv or not argv[0]:
        raise BadRequest(
            f"the image {image.reference} does not say what to run",
            code="bad_program",
            remediation="give argv, shell or code",
        )
    return argv


def program(request: wire.RunRequest | wire.ProcessRequest, image: wire.TemplateImage | None = None) -> dict[str, Any]:
    """The guest's OPEN for a program. Raises BadRequest or TooLarge; nothing was started."""
    words = _way(request, image)
    if request.env:
        words["env"] = environment(request.env)
    if request.cwd is not None:
        words["cwd"] = path(request.cwd, "cwd")
    if request.user is not None:
        words["user"] = request.user
    if request.timeout is not None:
        words["timeout"] = request.timeout
    if request.stdin is not None:
        words["stdin"] = True
    return words


def process(request: wire.ProcessRequest) -> dict[str, Any]:
    """The guest's OPEN for a process in a living sandbox."""
    words = program(request)
    if request.stdin is not None and request.stdin_open:
        raise BadRequest("stdin is closed after its text; give stdin or stdin_open", code="bad_program")
    if request.stdin_open or request.pty is not None:
        words["stdin"] = True
    if request.pty is not None:
        words["pty"] = {"cols": request.pty.cols, "rows": request.pty.rows}
    if request.tag is not None:
        if len(request.tag) > 64 or not _PRINTABLE.fullmatch(request.tag):
            raise BadRequest("tag is at most 64 printable characters", code="bad_tag")
        words["tag"] = request.tag
    if request.detach:
        words["detach"] = True
    return words


def start(request: wire.Start | None) -> bytes:
    """The guest's OPEN for the program a sandbox begins with, as it is sent; empty for none."""
    if request is None:
        return b""
    fields = {name: getattr(request, name) for name in request.__struct_fields__}
    words = _encode(process(wire.ProcessRequest(**fields, detach=True, tag="start")))
    if len(words) > START_BYTES:
        raise TooLarge(
            f"start is larger than {START_BYTES // 1024} KiB",
            remediation="put it into the template, and start it there",
        )
    return words


def run_files(request: wire.RunRequest) -> None:
    """Refuse bad paths before a sandbox is made for them."""
    if len(request.files) > MOST_FILES or len(request.collect) > MOST_FILES:
        raise TooLarge(f"more than {MOST_FILES} files")
    for name in request.files:
        path(name, "a path in files")
    for name in request.collect:
        path(name, "a path in collect")
