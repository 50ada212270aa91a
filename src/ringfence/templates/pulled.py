"""Pull an image for a tenant's build: `python -m ringfence.templates.pulled`, one job on standard input.

The node starts it as root, in a process of its own, which dies with it. It asks the registry anew each time, with the
credentials it was given: what is kept of an earlier pull is used only by who could pull it now. What comes is fetched
and unpacked by jobs without rights, as an operator's image is (image/make.py), and is shared with nobody: a layer has
the same name wherever it came from, and another tenant who knows that name must not get what a password opened.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Final

from ringfence.domain.egress import Floor
from ringfence.domain.errors import BadRequest, PlatformFault, RingfenceError
from ringfence.guest import syscalls as sc
from ringfence.templates import commands, furnish, homes, tree
from ringfence.templates.image import lint, make, model
from ringfence.templates.image.access import Access, Bounds, basic_auth
from ringfence.templates.image.gateway import TENANTS_PORT
from ringfence.templates.image.layers import Store, refusal
from ringfence.templates.image.reference import Reference, beyond, parse
from ringfence.templates.image.tar import LayerError
from ringfence.templates.progress import Progress

VERSION: Final = 1  # raise it when the same image would make another root
JOB_BYTES: Final = 4 * 1024 * 1024
ENV_BYTES: Final = 256 * 1024
TOLD_SECONDS: Final = 1.0  # between two lines of the same stage
PASSWD: Final = "etc/passwd"  # noqa: S105 - a file's name
_SPARE: Final = 512 * 1024 * 1024


@dataclass(slots=True)
class Teller:
    """Progress, as lines of JSON; a line of the same stage waits until the last is a second old."""

    stage: str = ""
    at: float = 0.0

    def __call__(self, progress: Progress) -> None:
        """Say it, unless it is too soon."""
        now = time.monotonic()
        if progress.stage == self.stage and now - self.at < TOLD_SECONDS:
            return
        self.stage, self.at = progress.stage, now
        _say({"said": progress.text})


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _floor(told: dict[str, Any]) -> Floor:
    closed, opened = (tuple(IPv4Network(text) for text in told[name]) for name in ("closed", "opened"))
    return Floor(closed, opened, tuple(told["names"]))


def _reference(job: dict[str, Any]) -> Reference:
    """Raises BadRequest for what no tenant may name."""
    allowed = frozenset(name.removeprefix("http://") for name in job["allow"])
    reference = parse(job["reference"], allowed)
    host, _, port = reference.registry.partition(":")
    if port not in {"", str(TENANTS_PORT)} and not {host, reference.registry} & allowed:
        raise beyond(reference.registry)
    return reference


def _access(job: dict[str, Any], reference: Reference) -> Access:
    """What is allowed for one registry is not for another: a stranger's may redirect to it."""
    host = reference.registry.partition(":")[0]
    names = {host, reference.registry}
    allow = tuple(name for name in job["allow"] if name.removeprefix("http://") in names)
    auth = basic_auth(reference.registry, job["username"], job["password"]) if job["username"] else {}
    return Access(allow=allow, auth=auth, bounds=Bounds(**job["bounds"]), floor=_floor(job["floor"]))


def key_of(tenant: str, digest: str) -> str:
    """What a pulled root is called: whose it is, and what was pulled."""
    return hashlib.sha256(json.dumps(["pulled", VERSION, tenant, digest]).encode()).hexdigest()


class Furnishing:
    """What E2B promises of any image: its user, who is the first of his number, and its sudo; and the home, aside."""

    def __init__(self, most: dict[str, int]) -> None:
        self._most = most
        self.shell = ""
        self.size = 0

    def __call__(self, root: model.Root, python: str) -> None:
        """Before it is written. Raises BadRequest and LayerError."""
        self.shell = lint.shell_in(root)
        self._first_of_his_number(root)
        if python:
            self._sudo(root, python)
        homes.put_aside(root, self._most["files"], self._most["bytes"])
        self.size = sum(node.size for _, node in root.walk() if isinstance(node, model.File))

    def _first_of_his_number(self, root: model.Root) -> None:
        """Who looks a number up gets the first line that has it: an image's own user 1000 keeps his name alone."""
        node = root.lookup(PASSWD)
        lines = node.content.splitlines() if isinstance(node, model.Text) else []
        name = furnish.USER.encode() + b":"
        others = [line for line in lines if not line.startswith(name)]
        mine = f"{furnish.USER}:x:{furnish.UID}:{furnish.UID}:{furnish.USER}:/home/{furnish.USER}:"
        others.insert(1, f"{mine}{self.shell or '/bin/sh'}".encode())
        root.put(PASSWD, model.Text(b"\n".join([*others, b""])))

    def _sudo(self, root: model.Root, python: str) -> None:
        """An image's own would need a set-id bit, and none works in a sandbox."""
        text = furnish.SUDO.read_text("utf-8").replace("#!/usr/bin/python3 ", f"#!{python} ", 1)
        try:
            root.folder("usr/bin", create=True).children["sudo"] = model.Text(text.encode(), executable=True)
        except (model.Absent, LayerError):
            return


def pull(job: dict[str, Any]) -> dict[str, Any]:
    """Ask what the reference is now; make a root of it, unless its asker has one. Raises RingfenceError."""
    reference, work, tell = _reference(job), Path(job["work"]), Teller()
    access = _access(job, reference)
    found = make.resolve(reference, access, work, tell)
    key = key_of(job["tenant"], found.manifest.digest)
    if key in job["known"]:
        return {"key": key, "known": True}
    if shutil.disk_usage(work).free < _SPARE + 3 * found.manifest.download_bytes:
        raise commands.no_space("the server's disk has no room for the image")
    furnishing = Furnishing(job["home"])
    try:
        image = make.Maker(found, access, Store(work / "none"), work, tell, furnishing).make()
    except LayerError as error:
        raise refusal(error) from None
    tree.remove_tree(work / make.STAGED)
    tree.normalise(work / "root")
    env = {name: value for name, value in image.env if value.isprintable()}
    if sum(len(name) + len(value) for name, value in env.items()) > ENV_BYTES:
        raise BadRequest("the image sets more variables than are taken", code="bad_image_config")
    words = {"digest": found.manifest.digest, "env": env, "python": image.python, "shell": furnishing.shell}
    return {"key": key, "size": furnishing.size, **words}


def _without_secrets(text: str, job: dict[str, Any]) -> str:
    """A client's last words should not have them; should they all the same, they stay here."""
    username, password = job["username"], job["password"]
    for secret in (base64.b64encode(f"{username}:{password}".encode()).decode(), password):
        text = text.replace(secret, "***") if secret else text
    return text


def _done(job: dict[str, Any]) -> dict[str, Any]:
    try:
        return pull(job)
    except RingfenceError as error:
        told = error
    except OSError as error:
        told = PlatformFault(f"pulling the image failed: {error.strerror or error}", code="image_pull_failed")
    return {"error": {"code": told.code, "cause": _without_secrets(told.cause, job), "status": type(told).status}}


def main() -> int:
    """Read a job, do it, say what came of it."""
    sc.execute(sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL))
    os.umask(0o022)
    _say(_done(json.loads(sys.stdin.buffer.read(JOB_BYTES))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
