"""Registries on loopback: Debian's own, and small ones that lie, stall and redirect. Each is gone in the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from ringfence.templates.image.jobs import JOB_ID
from tests.support.images import Made
from tests.support.served import free_port

USER, PASSWORD = "reader", "open sesame"
# PASSWORD, by bcrypt, the only kind that the registry reads.
HTPASSWD = f"{USER}:$2b$04$lYGTvKpnCWd6GL.syuovOeUap20bQWQymbxpYXF9tdctyoeNUt5Uu\n"
CONFIG = """
version: 0.1
log: {{accesslog: {{disabled: false}}, level: error}}
storage: {{filesystem: {{rootdirectory: {storage}}}, cache: {{blobdescriptor: inmemory}}}}
http: {{addr: "127.0.0.1:{port}", secret: none, {tls}}}
{auth}
"""
NEEDED = ("skopeo", "docker-registry", "busybox", "openssl")


def need_tools() -> None:
    """Skip where a tool is missing; in CI that is a failure."""
    missing = [tool for tool in NEEDED if shutil.which(tool, path="/usr/bin:/bin:/usr/sbin:/sbin") is None]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"missing in CI: {', '.join(missing)}")
    if missing:
        pytest.skip(f"missing: {', '.join(missing)}")


@dataclass(frozen=True)
class Registry:
    """A running docker-registry."""

    port: int
    scheme: str
    log: Path
    ca: Path | None
    auth: tuple[str, str] | None

    @property
    def host(self) -> str:
        """As references name it."""
        return f"127.0.0.1:{self.port}"

    @property
    def allow(self) -> str:
        """As the operator allows it."""
        return f"http://{self.host}" if self.scheme == "http" else self.host

    def asked_for(self, digest: str) -> int:
        """How often a blob was fetched."""
        lines = self.log.read_text(errors="replace").splitlines()
        return sum('"GET /v2/' in line and f"blobs/{digest}" in line for line in lines)

    def push(self, name: str, tag: str, made: Made) -> str:
        """Upload an image; returns its reference by tag."""
        verify = ssl.create_default_context(cafile=self.ca) if self.ca else True
        with httpx.Client(
            base_url=f"{self.scheme}://{self.host}", verify=verify, auth=self.auth, trust_env=False
        ) as to:
            for digest, blob in made.blobs.items():
                started = to.post(f"/v2/{name}/blobs/uploads/").raise_for_status()
                place = httpx.URL(started.headers["location"]).copy_merge_params({"digest": digest})
                to.put(place, content=blob, headers={"Content-Type": "application/octet-stream"}).raise_for_status()
            to.put(
                f"/v2/{name}/manifests/{tag}", content=made.manifest, headers={"Content-Type": made.media}
            ).raise_for_status()
        return f"{self.host}/{name}:{tag}"

    def serve_list(self, name: str, tag: str, several: Made) -> None:
        """Upload a list of manifests, whose other parts need not be there: straight into the registry's storage."""
        base = self.log.parent / "storage/docker/registry/v2"
        tags = base / f"repositories/{name}/_manifests"
        bare = several.digest.removeprefix("sha256:")
        blob = base / f"blobs/sha256/{bare[:2]}/{bare}/data"
        blob.parent.mkdir(parents=True)
        blob.write_bytes(several.manifest)
        for place in (
            f"revisions/sha256/{bare}/link",
            f"tags/{tag}/current/link",
            f"tags/{tag}/index/sha256/{bare}/link",
        ):
            (tags / place).parent.mkdir(parents=True, exist_ok=True)
            (tags / place).write_text(several.digest)


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that only who is given it trusts, and its key."""
    cert, key = folder / "registry.crt", folder / "registry.key"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    words += ["-days", "2", "-subj", "/CN=registry", "-addext", "subjectAltName=IP:127.0.0.1,IP:0.0.0.0"]
    subprocess.run([*words, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return cert, key


@contextlib.contextmanager
def registry(folder: Path, *, private: bool = False, tls: bool = False) -> Iterator[Registry]:
    """Debian's docker-registry, with its files below `folder`."""
    port, log, ca, words = free_port(), folder / "registry.log", None, ""
    if tls:
        ca, key = certificate(folder)
        words = f"tls: {{certificate: {ca}, key: {key}}}"
    if private:
        (folder / "htpasswd").write_text(HTPASSWD)
    auth = f"auth: {{htpasswd: {{realm: tests, path: {folder / 'htpasswd'}}}}}" if private else ""
    config = folder / "registry.yml"
    config.write_text(CONFIG.format(storage=folder / "storage", port=port, tls=words, auth=auth))
    with log.open("wb") as out, subprocess.Popen(
        ["docker-registry", "serve", str(config)], stdout=out, stderr=out, stdin=subprocess.DEVNULL
    ) as process:  # fmt: skip
        try:
            _wait_for(port, process)
            yield Registry(port, "https" if tls else "http", log, ca, (USER, PASSWORD) if private else None)
        finally:
            process.terminate()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise RuntimeError("the registry did not start")


@dataclass
class Hostile:
    """A registry written for one test: paths and what each does with a request."""

    port: int = 0
    routes: dict[str, Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    @property
    def host(self) -> str:
        """As references name it."""
        return f"127.0.0.1:{self.port}"

    @property
    def allow(self) -> str:
        """As the operator allows it."""
        return f"http://{self.host}"

    def serve(self, made: Made, name: str = "trap") -> str:
        """Answer honestly for an image; a test then changes what it wants to be wrong."""
        self.routes["/v2/"] = lambda request: send(request, b"{}")
        for tag in ("latest", made.digest):
            self.routes[f"/v2/{name}/manifests/{tag}"] = lambda request: send(
                request, made.manifest, **{"Content-Type": made.media, "Docker-Content-Digest": made.digest}
            )
        for digest, blob in made.blobs.items():
            self.routes[f"/v2/{name}/blobs/{digest}"] = lambda request, blob=blob: send(request, blob)  # type: ignore[misc]
        return f"{self.host}/{name}:latest"


def send(request: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    """Answer with a body."""
    request.send_response(status)
    for key, value in headers.items():
        request.send_header(key, value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)


def redirect(where: str) -> Callable[[BaseHTTPRequestHandler], None]:
    """Send the client somewhere else."""
    return lambda request: send(request, b"", 307, Location=where)


@contextlib.contextmanager
def hostile() -> Iterator[Hostile]:
    """A registry whose every answer a test decides."""
    trap = Hostile()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            trap.asked.append(self.path)
            answer = trap.routes.get(self.path.partition("?")[0], lambda request: send(request, b"{}", 404))
            with contextlib.suppress(OSError):
                answer(self)
            self.close_connection = True

        do_HEAD = do_GET  # noqa: N815 - the base class's own spelling

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    trap.port = int(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield trap
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def jobs_alive() -> list[str]:
    """Processes that fetch or unpack for anybody under the jobs' own user."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if "ringfence.templates.image.confine" in words or (
                    os.stat(f"/proc/{name}").st_uid == JOB_ID and "skopeo" in words
                ):
                    found.append(f"{name} {words:.80}")
    return found
