"""A real pip, in a sandbox's namespace, against a package index of the test internet's own."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringfence.network.network import NAMESERVER
from tests.network.lab import ALLOWED, FORBIDDEN, NAMES, PEER, Lab, Sandbox, Site, asked, get

pytestmark = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this Python has no pip")
NAME = "hello_ringfence-1.0-py3-none-any.whl"


def wheel() -> bytes:
    """A package of one module."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("hello_ringfence.py", "GREETING = 'hello'\n")
        info = "hello_ringfence-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: hello-ringfence\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return data.getvalue()


@pytest.fixture
def index(lab: Lab) -> Iterator[None]:
    """pypi.org and files.pythonhosted.org, each at an address of its own."""
    package = wheel()
    link = f"https://files.pythonhosted.org/{NAME}#sha256={hashlib.sha256(package).hexdigest()}"
    Site.pages["/simple/hello-ringfence/"] = f'<!DOCTYPE html><a href="{link}">{NAME}</a>'.encode()
    Site.pages[f"/{NAME}"] = package
    lab.names.table |= {"pypi.org": [[ALLOWED]], "files.pythonhosted.org": [[PEER]]}
    yield
    Site.pages.clear()


def pip(lab: Lab, sandbox: Sandbox, target: Path) -> tuple[subprocess.CompletedProcess[str], float]:
    """`pip install` as usual, but for the test's own certificate; and how long it took."""
    words = ["install", "--no-deps", "--no-cache-dir", "--disable-pip-version-check", "--retries", "0", "--isolated"]
    argv = [
        sys.executable,
        "-m",
        "pip",
        *words,
        "--cert",
        str(lab.certificate),
        "--target",
        str(target),
        "hello-ringfence",
    ]
    env = {"PATH": os.environ["PATH"], "HOME": str(target), "PIP_CONFIG_FILE": os.devnull}
    # With the resolver that a sandbox finds; the host's own file may name its loopback.
    resolver = target.parent / f"{target.name}.resolv.conf"
    resolver.write_text(NAMESERVER)
    mounted = ["unshare", "-m", "sh", "-c", f'mount --bind {resolver} /etc/resolv.conf && exec "$@"', "sh"]
    began = time.monotonic()
    done = sandbox.space.run(
        lambda: subprocess.run([*mounted, *argv], env=env, capture_output=True, text=True, timeout=55, check=False)
    )
    return done, time.monotonic() - began


@pytest.mark.usefixtures("index")
def test_the_bundle_installs_a_package_and_nothing_else_is_reached(lab: Lab, tmp_path: Path) -> None:
    """Index and files, over TLS, by their names; the uplink saw those two and the resolver."""
    sandbox = lab.sandbox("pip", {"bundles": ["pypi"]})
    done, _ = pip(lab, sandbox, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "hello_ringfence.py").exists()
    with sandbox.connection(FORBIDDEN, 80) as connection:
        assert b"403" in asked(connection, get("evil.example.net"))
    assert lab.capture.destinations() == {NAMES, ALLOWED, PEER}
    assert {event["name"] for event in lab.told(sandbox="pip", verdict="allowed")} == {
        "pypi.org",
        "files.pythonhosted.org",
    }


@pytest.mark.usefixtures("index")
def test_without_the_bundle_it_fails_soon_and_says_why(lab: Lab, tmp_path: Path) -> None:
    """pip hears that there is no such index; its owner hears that it is not on the list; nobody was asked."""
    sandbox = lab.sandbox("nopip", ["api.example.com"])
    done, took = pip(lab, sandbox, tmp_path)
    assert done.returncode != 0
    assert "No matching distribution" in done.stderr
    assert took < 10  # nearly all of it pip's own start
    assert lab.capture.destinations() == set()
    denied = lab.told(sandbox="nopip", verdict="denied")
    assert denied[0]["name"] == "pypi.org"
    assert denied[0]["reason"] == "the name is not on this sandbox's list"
