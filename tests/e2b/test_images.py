"""Templates that tenants build upon images of any registry: by released clients, and by strangers."""

from __future__ import annotations

import contextlib
import gzip
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest

from ringfence.runtimes.oci.versions import installed, lacking
from ringfence.templates.catalog import Catalog
from tests.e2b import sdks
from tests.e2b.server import Served, api_of, serving
from tests.e2b.test_builds import announced, claims, ended, run, sandbox
from tests.support import images, registries, scale
from tests.support.registries import PASSWORD, USER, Hostile, Registry
from tests.support.served import TEMPLATES

HERE = Path(__file__).parent
WITH_PASSWORD = {"type": "registry", "username": USER, "password": PASSWORD}
# Small enough that a test can go past them.
SETTINGS = """
[e2b.builds]
registries = ["*", "{private}", "{hostile}"]
at_once = 3
step_seconds = 30
seconds = 90
disk_mib = 500
registry_seconds = 8
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need jails, made with privileges")


@dataclass(frozen=True)
class Place:
    """A server, a registry with a password, one that a test decides over, and what is in the first."""

    server: Served
    registry: Registry
    trap: Hostile
    debian: str
    small: str
    small_layer: str

    @property
    def env(self) -> dict[str, str]:
        """For programs of claims."""
        words = {"IMAGE_DEBIAN": self.debian, "IMAGE_SMALL": self.small}
        return {**words, "IMAGE_USER": USER, "IMAGE_PASSWORD": PASSWORD}

    @property
    def pulled(self) -> Path:
        """Where the node keeps what it pulled."""
        return self.server.state / "node" / "pulled"


@contextlib.contextmanager
def place_of(scratch: Path, more: str = "") -> Iterator[Place]:
    """All of it."""
    registries.need_tools()
    base, made = Catalog(Path(TEMPLATES)).read("base"), images.busybox()
    with registries.registry(scratch, private=True) as registry, registries.hostile() as trap:
        debian = images.slim(base.root, Env=["PATH=/usr/local/bin:/usr/bin:/bin", "GREETING=hello"], User="nobody")
        references = registry.push("team/debian", "1", debian), registry.push("small", "1", made)
        layer = next(name for name, blob in made.blobs.items() if blob[:2] == b"\x1f\x8b")
        settings = SETTINGS.format(private=registry.allow, hostile=trap.allow)
        with serving(settings + more) as server:
            yield Place(server, registry, trap, *references, layer)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One for this module."""
    with place_of(tmp_path_factory.mktemp("registry")) as made:
        yield made


@pytest.fixture(scope="module")
def ada(place: Place) -> Iterator[httpx.Client]:
    """A tenant."""
    with place.server.client() as client:
        yield client


@pytest.fixture(scope="module")
def bob(place: Place) -> Iterator[httpx.Client]:
    """Another."""
    with place.server.client(place.server.other_key) as client:
        yield client


def built(client: httpx.Client, name: str, image: str, *each: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A build upon an image, to its end."""
    template, build = announced(client, name)
    words = {"fromImage": image, "steps": list(each), **more}
    seen = client.post(f"/v2/templates/{template}/builds/{build}", json=words)
    assert seen.status_code == 202, seen.text
    return {**ended(client, template, build, 90), "template": template, "build": build}


def half_made(place: Place) -> list[Path]:
    """What there is of pulls that are over, once they had time to go."""
    deadline = time.monotonic() + 20
    while (left := list(place.pulled.glob("building-*"))) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


@pytest.mark.timeout(270)
def test_the_newest_python_client_builds_upon_images_unmodified(place: Place) -> None:
    """Every claim of `images.py`."""
    words = [sys.executable, "-P", str(HERE / "images.py")]
    claims(place.server, words, PYTHONPATH=str(sdks.python(sdks.NEWEST)), **place.env)


@pytest.mark.timeout(270)
def test_the_newest_javascript_client_builds_upon_images_unmodified(place: Place) -> None:
    """Every claim of `images.mjs`."""
    claims(place.server, [str(sdks.node()), str(HERE / "images.mjs"), str(sdks.javascript(sdks.NEWEST))], **place.env)


@pytest.mark.timeout(270)
@pytest.mark.skipif(not scale.EVERYTHING, reason="declared: under CI=true; elsewhere the test below")
@pytest.mark.parametrize("isolation", ["container", "gvisor"])
def test_e2b_s_client_uses_them_on_every_runtime(isolation: str, tmp_path: Path) -> None:
    """As in the jail."""
    with place_of(tmp_path, f'[e2b]\nisolation = "{isolation}"\n') as other:
        other.server.need()
        words = [sys.executable, "-P", str(HERE / "images.py"), "debian", "a_sandbox_of_it", "without_bash"]
        claims(other.server, words, PYTHONPATH=str(sdks.python(sdks.NEWEST)), **other.env)


@pytest.mark.timeout(120)
def test_what_was_built_upon_an_image_runs_on_every_runtime(place: Place, ada: httpx.Client) -> None:
    """Commands by the image's shell, source code by its Python; where it has none, that is said."""
    small = built(ada, "runs-small", place.small, fromImageRegistry=WITH_PASSWORD)
    debian = built(ada, "runs-debian", place.debian, fromImageRegistry=WITH_PASSWORD)
    assert (small["status"], debian["status"]) == ("ready", "ready"), (small, debian)
    names = ["built-" + each["build"].replace("-", "") for each in (small, debian)]
    own = {"Authorization": f"Bearer {place.server.key}"}
    here = ["jail", *(each for each in ("container", "gvisor") if not lacking(each, installed()))]
    with httpx.Client(base_url=place.server.url, headers=own, timeout=60, trust_env=False) as plain:

        def ran(name: str, isolation: str, **words: Any) -> dict[str, Any]:
            seen: dict[str, Any] = plain.post(
                "/v1/runs", json={"template": name, "isolation": isolation, **words}
            ).json()
            return seen

        for isolation in here:
            shell = "id -un; pwd; echo $GREETING"
            assert ran(names[0], isolation, shell=shell)["stdout"] == "user\n/home/user\nhi=there\n", isolation
            assert ran(names[0], isolation, code="print(1)")["error"]["code"] == "guest_no_python", isolation
            assert ran(names[1], isolation, shell=shell)["stdout"] == "user\n/home/user\nhello\n", isolation
            code = "import os, sys, tarfile, json; print(sys.executable, os.getcwd(), os.environ['GREETING'])"
            assert ran(names[1], isolation, code=code)["stdout"] == "/usr/bin/python3 /home/user hello\n", isolation
            rows = plain.get("/v1/templates").json()
            assert not [row for row in (rows if isinstance(rows, list) else rows["templates"]) if "pulled" in str(row)]


def test_what_one_tenant_s_password_opened_is_no_other_s(place: Place, ada: httpx.Client, bob: httpx.Client) -> None:
    """By the same image, by the name the node has for it, or by its layer in another image; each pulls for itself."""
    first = built(ada, "private", place.small, run("true"), fromImageRegistry=WITH_PASSWORD)
    assert first["status"] == "ready", first
    before = place.registry.asked_for(place.small_layer)
    again = built(ada, "private", place.small, run("true"), fromImageRegistry=WITH_PASSWORD)
    assert (again["status"], place.registry.asked_for(place.small_layer)) == ("ready", before)
    for client, wrong in ((ada, {"fromImageRegistry": {**WITH_PASSWORD, "password": "wrong"}}), (ada, {}), (bob, {})):
        seen = built(client, "refused", place.small, run("true"), **wrong)
        assert (seen["status"], seen["reason"]["step"]) == ("error", "base"), seen
        assert "other credentials" in seen["reason"]["message"]
    # Who serves a manifest that names the private layer has to serve the layer, too.
    made, blobs = images.busybox(), images.busybox().blobs
    private = place.trap.serve(made)
    place.trap.routes[f"/v2/trap/blobs/{place.small_layer}"] = lambda request: registries.send(request, b"{}", 404)
    assert place.small_layer in blobs
    stolen = built(bob, "stolen", private, run("true"))
    assert stolen["status"] == "error", stolen
    names = [each.name for each in place.pulled.iterdir()]
    assert names
    for name in names:
        for client in (ada, bob):
            template, build = announced(client, "thief")
            for base in (f"pulled-{name}", name):
                seen = client.post(f"/v2/templates/{template}/builds/{build}", json={"fromTemplate": base})
                assert seen.status_code == 404, seen.text
            assert client.post("/v2/sandboxes", json={"templateID": f"pulled-{name}"}).status_code == 404
    before = place.registry.asked_for(place.small_layer)
    theirs = built(bob, "private", place.small, run("true"), fromImageRegistry=WITH_PASSWORD)
    assert (theirs["status"], place.registry.asked_for(place.small_layer)) == ("ready", before + 1)
    assert PASSWORD not in str([first, again, theirs, stolen])
    grep = ["grep", "-rlF", "--exclude=log", PASSWORD, str(place.server.state)]
    assert subprocess.run(grep, capture_output=True, text=True, check=False).stdout == ""
    assert PASSWORD not in (place.server.state / "log").read_text()


def test_a_registry_that_lies_stalls_or_leads_astray_fails_the_build(place: Place, ada: httpx.Client) -> None:
    """With its reason; nothing of it is left. Another registry that the operator allows is no way in for it."""
    made, ways = images.made_of(images.file("x")), []
    for number, (part, answer, why) in enumerate((
        ("/manifests/", lambda _: time.sleep(20), "too little for too long"),
        ("/blobs/", lambda request: registries.send(request, b"another layer, of another size"), "digest"),
        ("/manifests/", registries.redirect("http://10.0.0.1/x"), "not spoken to"),
        ("/manifests/", registries.redirect(f"http://{place.registry.host}/v2/small/manifests/1"), "not spoken to"),
    )):  # fmt: skip
        reference = place.trap.serve(made, f"astray-{number}")
        for path in place.trap.routes:
            if f"astray-{number}{part}" in path:
                place.trap.routes[path] = answer
        template, build = announced(ada, "astray")
        seen = ada.post(f"/v2/templates/{template}/builds/{build}", json={"fromImage": reference})
        assert seen.status_code == 202, seen.text
        ways.append((template, build, why))
        if number:  # the first takes its time
            ended(ada, template, build, 90)
    for template, build, why in ways:
        seen = ended(ada, template, build, 90)
        assert (seen["status"], seen["reason"]["step"]) == ("error", "base"), (why, seen)
        assert why in seen["reason"]["message"], seen
    for outside in ("127.0.0.1:1/x", "10.0.0.1/x", "0.0.0.0:9642/x", "169.254.169.254/x", "8.8.8.8:22/x"):
        template, build = announced(ada, "astray")
        seen = ada.post(f"/v2/templates/{template}/builds/{build}", json={"fromImage": outside})
        if seen.status_code == 202:
            assert "not at port 443" in ended(ada, template, build, 60)["reason"]["message"], outside
        else:
            assert seen.status_code == 400, (outside, seen.text)
    assert not half_made(place)


def test_an_image_is_held_to_the_build_s_bounds(place: Place, ada: httpx.Client) -> None:
    """What it unpacks to is what a build may hold; and it plays no tricks with the home."""
    zeros = images.tar([images.file("zeros", bytes(160 << 20))])
    bomb = images.Recipe([zeros], packed=[gzip.compress(zeros, 9, mtime=0)]).make()
    seen = built(ada, "bounds", place.registry.push("bomb", "1", bomb), fromImageRegistry=WITH_PASSWORD)
    assert (seen["status"], seen["reason"]["step"]) == ("error", "base"), seen
    assert "times as much" in seen["reason"]["message"], seen
    link = images.made_of(images.folder("home"), images.link("home/user", "/etc"))
    seen = built(ada, "bounds", place.registry.push("linked", "1", link), fromImageRegistry=WITH_PASSWORD)
    assert "symbolic link" in seen["reason"]["message"], seen
    assert not half_made(place)


def test_the_image_s_own_user_1000_keeps_his_name_and_ours_is_the_first(place: Place, ada: httpx.Client) -> None:
    """What an image has in /home/user is there, too, and what its modules of the C library would say is not asked."""
    more = images.tar([
        images.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnode:x:1000:1000::/home/node:/bin/sh\n"),
        images.file("etc/group", b"root:x:0:\nnode:x:1000:\n"),
        images.file("etc/nsswitch.conf", b"passwd: evil\ngroup: evil\n"),
        images.file("home/user/brought", b"along"),
    ])  # fmt: skip
    image = place.registry.push("node", "1", images.busybox(more))
    look = run("id -un; cat ~/brought; echo; chown node /opt 2>&1; grep -c :1000:1000: /etc/passwd")
    workdir = {"type": "WORKDIR", "args": ["/srv/new"]}
    seen = built(ada, "node", image, look, workdir, run("touch mine && pwd"), fromImageRegistry=WITH_PASSWORD)
    assert seen["status"] == "ready", seen
    assert {"user", "along", "2", "/srv/new"} <= set(seen["lines"]), seen["lines"]
    with sandbox(ada, "node") as box:
        assert box


def test_a_build_s_log_is_read_by_itself(place: Place, ada: httpx.Client) -> None:
    """From a moment on, forwards or backwards, of a level or above; nonsense and another's are refused."""
    made = built(ada, "logged", place.small, run("echo out; echo err >&2"), fromImageRegistry=WITH_PASSWORD)
    path = f"/templates/{made['template']}/builds/{made['build']}/logs"
    whole = ada.get(path).json()["logs"]
    assert [each["message"] for each in whole] == made["lines"]
    assert [each["message"] for each in ada.get(f"{path}?direction=backward&limit=2").json()["logs"]] == (
        made["lines"][:-3:-1]
    )
    assert "err" in [each["message"] for each in ada.get(f"{path}?level=warn").json()["logs"]]
    assert "out" not in [each["message"] for each in ada.get(f"{path}?level=warn").json()["logs"]]
    assert ada.get(f"{path}?cursor={int((time.time() + 60) * 1000)}").json()["logs"] == []
    for wrong in ("limit=x", "cursor=-1", "direction=up", "level=loud", "source=nowhere"):
        assert ada.get(f"{path}?{wrong}").status_code == 400, wrong
    with place.server.client(place.server.other_key) as other:
        assert other.get(path).status_code == 404


@pytest.mark.timeout(120)
def test_a_pull_ends_with_the_process_that_wanted_it(place: Place, ada: httpx.Client) -> None:
    """The api is killed in the middle: no process of it, no file, no password is left, and the build has failed."""
    reference = place.trap.serve(images.made_of(images.file("x")), "slow")
    place.trap.routes["/v2/slow/manifests/latest"] = slowly
    template, build = announced(ada, "cut-off")
    words = {"fromImage": reference, "fromImageRegistry": WITH_PASSWORD}
    assert ada.post(f"/v2/templates/{template}/builds/{build}", json=words).status_code == 202
    deadline = time.monotonic() + 60
    while "/v2/slow/manifests/latest" not in place.trap.asked and time.monotonic() < deadline:
        time.sleep(0.02)
    folder = next(place.pulled.glob("building-*"))
    assert jobs_below(folder)
    grep = ["grep", "-rlF", "--exclude=log", PASSWORD, str(place.server.state)]
    assert subprocess.run(grep, capture_output=True, text=True, check=False).stdout == ""
    assert not said_on_a_command_line(PASSWORD)
    os.kill(api_of(place.server), signal.SIGKILL)
    while (folder.exists() or jobs_below(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not folder.exists()
    assert not jobs_below(folder)
    seen: dict[str, Any] = {}
    while seen.get("status") != "error" and time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError, ValueError):
            seen = ada.get(f"/templates/{template}/builds/{build}/status").json()
        time.sleep(0.1)
    assert "restarted" in seen["reason"]["message"], seen


def slowly(request: BaseHTTPRequestHandler) -> None:
    """Send what never comes to an end, fast enough not to be given up."""
    request.send_response(200)
    request.send_header("Content-Length", "4000000")
    request.end_headers()
    for _ in range(240):
        request.wfile.write(bytes(1 << 14))
        time.sleep(0.2)


def command_lines() -> Iterator[bytes]:
    """Of every process there is."""
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield (place / "cmdline").read_bytes()


def jobs_below(folder: Path) -> list[bytes]:
    """The jobs without rights that work in this folder."""
    return [words for words in command_lines() if str(folder).encode() in words]


def said_on_a_command_line(secret: str) -> bool:
    """Whether any process was started with it."""
    return any(secret.encode() in words for words in command_lines())
