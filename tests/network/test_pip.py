"""The pip of a template inside a real sandbox of every runtime, against an index of the test internet's own."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringfence.node.live import Live
from tests.network.lab import ALLOWED, FORBIDDEN, NAMES, PEER, Lab, Site
from tests.network.labnode import LabNode, need
from tests.support import scale

PACKAGE = "idna"  # a real one, small, in pure Python, installed here because the SDK needs it
#: Brings the certificate of the test's own index into the sandbox.
TRUST = "open('/tmp/ca.pem', 'w').write({certificate!r}); print('trusted')"
INSTALL = """
import subprocess
words = ["--no-deps", "--no-cache-dir", "--target", "/tmp/site"]
done = subprocess.run(["python3", "-m", "pip", "--cert", "/tmp/ca.pem", "install", *words, "idna"],
                      capture_output=True, text=True)
print(done.returncode, done.stderr[-1500:])
"""
#: How a start of pip got its modules: out of one file, or each out of its own.
STARTED = """
import pip._internal.cli.main, pip._internal.commands.install
specs = [getattr(module, "__spec__", None) for module in sys.modules.values()]
print(sum(type(spec and spec.loader).__name__ == "Loader" for spec in specs) > 300)
"""
USE = "import sys; sys.path.insert(0, '/tmp/site'); import idna; print(idna.__file__, idna.encode('bücher.example'))"


def zipped(package: str) -> bytes:
    """An installed package as a file, with all that its installer needs to know of it."""
    data = io.BytesIO()
    found = importlib.metadata.distribution(package)
    with zipfile.ZipFile(data, "w") as archive:
        for file in found.files or ():
            if ".." not in file.parts and file.suffix != ".pyc" and file.name not in {"INSTALLER", "REQUESTED"}:
                archive.write(str(file.locate()), str(file))
    return data.getvalue()


@pytest.fixture(scope="module", autouse=True)
def index(lab: Lab) -> Iterator[None]:
    """pypi.org and files.pythonhosted.org, each at an address of its own."""
    wheel = f"{PACKAGE}-{importlib.metadata.version(PACKAGE)}-py3-none-any.whl"
    package = zipped(PACKAGE)
    link = f"https://files.pythonhosted.org/{wheel}#sha256={hashlib.sha256(package).hexdigest()}"
    Site.pages[f"/simple/{PACKAGE}/"] = f'<!DOCTYPE html><a href="{link}">{wheel}</a>'.encode()
    Site.pages[f"/{wheel}"] = package
    lab.names.table |= {"pypi.org": [[ALLOWED]], "files.pythonhosted.org": [[PEER]]}
    yield
    Site.pages.clear()


@pytest.fixture(params=scale.RUNTIMES)
def live(node: LabNode, lab: Lab, request: pytest.FixtureRequest) -> Iterator[Live]:
    """A sandbox that may reach the index, and trusts it."""
    need(request.param)
    made = node.made({"bundles": ["pypi"]}, isolation=request.param, template="python")
    assert node.python(made, TRUST.format(certificate=Path(lab.certificate).read_text())) == "trusted"
    yield made
    node.release(made)


def test_the_bundle_installs_a_package_and_nothing_else_is_reached(lab: Lab, node: LabNode, live: Live) -> None:
    """Index and files, over TLS, by their names; the uplink saw those two and the resolver."""
    said = node.python(live, INSTALL)
    assert said.split()[0] == "0", said
    assert node.python(live, USE) == "/tmp/site/idna/__init__.py b'xn--bcher-kva.example'"
    for place in ("http://evil.example.net/", f"http://{FORBIDDEN}/", "http://pypi.org/", f"http://{ALLOWED}:8080/"):
        assert node.python(live, f"print(fetch('{place}')[:9])") in {"URLError", "403 ringf"}, place
    assert lab.capture.destinations() == {NAMES, ALLOWED, PEER}
    assert set(lab.names.asked) == {"pypi.org", "files.pythonhosted.org"}
    told = node.told(live, "egress.allowed", count=2)
    assert {event["name"] for event in told} == {"pypi.org", "files.pythonhosted.org"}


def test_without_the_bundle_it_fails_soon_and_says_why(lab: Lab, node: LabNode, live: Live) -> None:
    """pip hears that there is no such index; its owner hears that it is not on the list; nobody was asked."""
    node.allow(live, ["api.example.com"])
    lab.capture.clear()
    lab.names.asked.clear()
    code, reason = node.python(live, INSTALL).split(maxsplit=1)
    assert code == "1"
    assert "No matching distribution" in reason
    began = node.python(live, "t = time.monotonic(); print(fetch('https://pypi.org/'), time.monotonic() - t < 12)")
    assert "resolution" in began
    assert began.endswith("True")
    assert FORBIDDEN not in lab.capture.destinations()
    assert lab.names.asked == []
    denied = node.told(live, "egress.denied")
    assert denied[0]["name"] == "pypi.org"
    assert denied[0]["reason"] == "the name is not on this sandbox's list"


def test_it_starts_from_one_file(node: LabNode, live: Live) -> None:
    """Not from five hundred, which under gVisor would be half of the time until it says no."""
    assert node.python(live, STARTED) == "True"
