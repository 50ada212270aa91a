"""The steps of a build as its client sends them, read into frozen ones. What cannot be done is refused here."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ringfence.api.compat.e2b.shapes import Shape
from ringfence.domain.building import Copy, Recipe, Setting, Step
from ringfence.domain.errors import BadRequest
from ringfence.domain.template import ENV_NAME

MOST_STEPS: Final = 300
MOST_TEXT: Final = 64 * 1024  # of a command, as of a kernel's argument
MOST_PATH: Final = 1024
MOST_ENV: Final = 1024
#: Images that are E2B's names for templates of ours.
IMAGES: Final = {
    "e2bdev/base": "base",
    "e2bdev/code-interpreter": "code-interpreter-v1",
}
#: Others than these are lost, for a template's files are root's and all may read them; the home's are its user's.
MODES: Final = {"": 0, "0644": 0o644, "644": 0o644, "0755": 0o755, "755": 0o755}
HASH: Final = re.compile(r"[0-9a-f]{64}")
_USER: Final = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_OWNER: Final = re.compile(r"[a-z_][a-z0-9_-]{0,31}(:[a-z_][a-z0-9_-]{0,31})?")
_VARIABLE: Final = re.compile(r"\\\$|\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})")
_KNOWN: Final = frozenset({"type", "args", "force", "filesHash", "forceUpload"})
_FINAL_USERS: Final = ("user", "root")
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class StartBuild(Shape, frozen=True):
    """What is to be built."""

    from_image: str = ""
    from_template: str = ""
    from_image_registry: dict[str, Any] | None = None
    force: bool = False
    steps: list[dict[str, Any]] = []
    start_cmd: str = ""
    ready_cmd: str = ""


def base_of(asked: StartBuild) -> tuple[str, bool]:
    """What it is built upon, a template's name, and whether an image of E2B's was named. Raises BadRequest."""
    if bool(asked.from_image) == bool(asked.from_template):
        raise _bad("give fromImage or fromTemplate, one of them")
    if asked.from_template:
        if asked.from_image_registry:
            raise _bad("fromImageRegistry goes with fromImage")
        return asked.from_template, False
    return ours(asked), True


def ours(asked: StartBuild) -> str:
    """The template of ours that an image of E2B's stands for; empty for every other image, and one with credentials."""
    name = asked.from_image.removeprefix("docker.io/").removesuffix(":latest")
    return IMAGES.get(name, "") if asked.from_image_registry is None else ""


def recipe_of(asked: StartBuild, template: str, inherited: Inherited, *, image: bool = False) -> Recipe:
    """The recipe. Raises BadRequest with the number of the step that cannot be done.

    `image`: what it is built upon is not here yet, and may set variables that nobody knows.
    """
    if len(asked.steps) > MOST_STEPS:
        raise _bad(f"more than {MOST_STEPS} steps")
    reading = _Reading(inherited.setting, knows_all=not image)
    for number, step in enumerate(asked.steps, 1):
        try:
            reading.take(number, step)
        except _BadStep as error:
            raise _bad(f"step {number}: {error}") from None
    if reading.setting.user not in _FINAL_USERS:
        raise _bad(f"the last USER is {reading.setting.user!r}; sandboxes have {' and '.join(_FINAL_USERS)}")
    start, ready = (_command(word) for word in (asked.start_cmd, asked.ready_cmd))
    if not start and not ready:
        start, ready = inherited.start, inherited.ready
    return Recipe(template, tuple(reading.steps), reading.setting, start, ready)


class Inherited(msgspec.Struct, frozen=True):
    """What a template hands on to those that are built upon it."""

    setting: Setting = Setting()
    start: str = ""
    ready: str = ""


class _BadStep(Exception):
    """This step cannot be done."""


def _bad(what: str) -> BadRequest:
    return BadRequest(what, code="bad_build")


def _command(text: str) -> str:
    if "\0" in text or len(text.encode("utf-8", "replace")) > MOST_TEXT:
        raise _bad("a command has a NUL byte or is too long")
    return text


class _Reading:
    """Reads steps one after another, keeping what is set."""

    def __init__(self, setting: Setting, *, knows_all: bool = True) -> None:
        self._knows_all = knows_all
        self.setting = setting
        self.steps: list[Step] = []

    def take(self, number: int, step: Mapping[str, Any]) -> None:
        """One step. Raises _BadStep."""
        kind, args = step.get("type"), step.get("args") or []
        unknown = [name for name, value in step.items() if name not in _KNOWN and value]
        if unknown:
            raise _BadStep(f"{unknown[0]!s:.60} is not supported by this server")
        if not isinstance(args, list) or not all(isinstance(word, str) for word in args):
            raise _BadStep("its arguments must be texts")
        if any("\0" in word or len(word.encode("utf-8", "replace")) > MOST_TEXT for word in args):
            raise _BadStep("an argument has a NUL byte or is too long")
        forced = step.get("force", False)
        if forced is not None and not isinstance(forced, bool):
            raise _BadStep("force must be true or false")
        read = {"RUN": self._run, "COPY": self._copy, "ENV": self._env, "WORKDIR": self._workdir, "USER": self._user}
        if kind not in read:
            raise _BadStep(f"{kind!r:.40} is no kind of step")
        if kind != "COPY" and (step.get("filesHash") or step.get("forceUpload")):
            raise _BadStep("only COPY has files")
        read[kind](number, args, step)

    def _add(self, number: int, step: Mapping[str, Any], **more: Any) -> None:
        self.steps.append(Step(number=number, setting=self.setting, forced=bool(step.get("force")), **more))

    def _set(self, **more: Any) -> None:
        self.setting = Setting(
            **{name: more.get(name, getattr(self.setting, name)) for name in ("user", "workdir", "env")}
        )

    def _run(self, number: int, args: list[str], step: Mapping[str, Any]) -> None:
        if not 1 <= len(args) <= 2 or not args[0].strip():
            raise _BadStep("RUN takes a command, and who runs it")
        kept, text = self.setting, f"RUN {args[0]}"
        if len(args) == 2 and args[1]:
            self._set(user=_user(args[1]))
        self._add(number, step, kind="RUN", text=text, command=args[0])
        self.setting = kept

    def _copy(self, number: int, args: list[str], step: Mapping[str, Any]) -> None:
        source, target, user, mode, *rest = [*args, "", "", "", ""][: max(4, len(args))]
        if len(args) < 2 or rest or not source or not target:
            raise _BadStep("COPY takes a source, a target, an owner and a mode")
        if mode not in MODES:
            raise _BadStep(f"COPY's mode {mode!r:.20} would not be kept; 0644 and 0755 are")
        files = step.get("filesHash")
        if not isinstance(files, str) or not HASH.fullmatch(files):
            raise _BadStep("COPY's filesHash is no SHA-256")
        if source.startswith("/") or ".." in source.split("/"):
            raise _BadStep("COPY's source leads out of what is copied")
        owner = user or self.setting.user
        if not _OWNER.fullmatch(owner):
            raise _BadStep(f"{owner!r:.60} is no user's name")
        copy = Copy(_path(source), _path(target), owner, MODES[mode], files)
        self._add(number, step, kind="COPY", text=f"COPY {source} {target}", copy=copy)

    def _env(self, _number: int, args: list[str], _step: Mapping[str, Any]) -> None:
        if not args or len(args) % 2:
            raise _BadStep("ENV takes names and values")
        env = dict(self.setting.env)
        for name, value in zip(args[::2], args[1::2], strict=True):
            if not ENV_NAME.fullmatch(name):
                raise _BadStep(f"{name!r:.60} is no variable's name")
            env[name] = _expanded(value, env, knows_all=self._knows_all)
            if len(env[name].encode("utf-8", "replace")) > MOST_TEXT or len(env) > MOST_ENV:
                raise _BadStep("there are too many variables, or too long ones")
        self._set(env=tuple(sorted(env.items())))

    def _workdir(self, number: int, args: list[str], step: Mapping[str, Any]) -> None:
        if len(args) != 1 or not args[0]:
            raise _BadStep("WORKDIR takes a path")
        home = "/root" if self.setting.user == "root" else f"/home/{self.setting.user}"
        path = home + args[0][1:] if args[0] == "~" or args[0].startswith("~/") else args[0]
        self._set(workdir=posixpath.normpath("/" + posixpath.join(self.setting.workdir, _path(path)).lstrip("/")))
        self._add(number, step, kind="WORKDIR", text=f"WORKDIR {args[0]}", command=self.setting.workdir)

    def _user(self, _number: int, args: list[str], _step: Mapping[str, Any]) -> None:
        if len(args) != 1:
            raise _BadStep("USER takes a name")
        self._set(user=_user(args[0]))


def _user(name: str) -> str:
    if not _USER.fullmatch(name):
        raise _BadStep(f"{name!r:.60} is no user's name")
    return name


def _path(text: str) -> str:
    if len(text.encode("utf-8", "replace")) > MOST_PATH:
        raise _BadStep("a path is too long")
    return text


def _expanded(value: str, env: Mapping[str, str], *, knows_all: bool = True) -> str:
    """A value with the variables that were set before, as a shell would put them in."""
    known = {"PATH": _PATH, "HOME": "/home/user", **env}

    def put(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name is None:
            return "$"
        if name not in known and not knows_all:
            return ""
        if name not in known:
            raise _BadStep(f"ENV uses ${name:.60}, which no step before has set; write \\$ for a dollar sign")
        return known[name]

    return _VARIABLE.sub(put, value)
