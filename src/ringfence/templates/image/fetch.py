"""Fetch an image's parts with skopeo, in a job that has no rights, and no network but the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from ringfence.domain.errors import BadRequest, Forbidden, NotFound, PlatformFault, RingfenceError
from ringfence.templates import commands
from ringfence.templates.image import jobs
from ringfence.templates.image.access import Access, auth_for
from ringfence.templates.image.gateway import PROXY_PORT, Gateway, doors
from ringfence.templates.image.manifest import MANIFEST_BYTES, Blob, Manifest
from ringfence.templates.image.reference import Reference, beyond, private

START_SECONDS: Final = 20.0
LOOK_SECONDS: Final = 0.1
TAIL_BYTES: Final = 16 * 1024
CHUNK: Final = 64 * 1024
# What the protocol itself adds: heads, tokens, TLS records, a second try.
SPARE_BYTES: Final = 4 * 1024 * 1024
SPARE_SHARE: Final = 0.1
CPU_SECONDS: Final = 1200
MEMORY: Final = 2 * 1024**3
THREADS: Final = 1024
LAYOUT: Final = "image"
AUTH: Final = "/auth.json"  # as confine.py places it, in the job's own memory
_DIRECT: Final = re.compile(r"dial tcp:? (\S+?): ")
_DENIED: Final = ("unauthorized", "authentication required", "access to the resource is denied", "invalid username")
_ABSENT: Final = ("manifest unknown", "name unknown", "not found", "status code 404", "status 404")
_LYING: Final = ("did not match", "doesn't match", "does not match", "digest invalid", "failed to verify")
_UNTRUSTED: Final = ("x509:", "certificate", "tls: ", "HTTP response to HTTPS client")

Look = Callable[["Arrived"], None]


@dataclass(frozen=True, slots=True)
class Arrived:
    """How far a download is."""

    received: int
    blobs: frozenset[str]


def nobody_looks(_arrived: Arrived) -> None:
    """Take no notice."""


@dataclass(slots=True)
class _Run:
    """One run of skopeo: its process, its gateway, and what it has said."""

    process: subprocess.Popen[bytes]
    gateway: Gateway
    bounds_seconds: float
    out: bytearray
    err: bytearray


async def _drain(stream: IO[bytes] | None, into: bytearray, most: int) -> None:
    """Take all that comes, keep what is within the bound."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), stream)
    while data := await reader.read(CHUNK):
        into += data[: max(0, most - len(into))]


def skopeo() -> str:
    """Return where skopeo is. Raises PlatformFault when it is nowhere."""
    found = shutil.which("skopeo", path=commands.PATH)
    if found is None:
        raise PlatformFault(
            "skopeo is not installed", code="skopeo_missing", remediation="as root: apt-get install skopeo"
        )
    return found


class Fetcher:
    """One image's registry, as far as one template's access reaches."""

    def __init__(self, reference: Reference, access: Access, work: Path) -> None:
        self._reference = reference
        self._access = access
        self._work = work
        self._skopeo = skopeo()

    def manifest(self, digest: str = "") -> bytes:
        """The raw manifest of the reference, or of another digest in the same repository."""
        return self._inspected(digest)

    def config(self, digest: str) -> bytes:
        """The raw configuration of the image whose manifest has this digest."""
        return self._inspected(digest, "--config")

    def _inspected(self, digest: str, *more: str) -> bytes:
        argv = ["inspect", "--raw", *more, *self._how(""), self._reference.at(digest, self._access.mirror)]
        with jobs.folder(self._work / "asking") as place:
            raw = self._run(argv, place, SPARE_BYTES + MANIFEST_BYTES, self._access.bounds.ask_seconds, nobody_looks)
        if not raw or len(raw) > MANIFEST_BYTES:
            raise BadRequest("the registry sent no manifest, or one larger than 4 MiB", code="image_too_large")
        return raw

    def blobs(self, manifest: Manifest, place: Path, have: Sequence[Blob], look: Look) -> None:
        """Bring the manifest's parts, but for those in `have`, into `place`; see `blob_path`."""
        for blob in have:
            _stand_in(place, blob)
        lacking = manifest.download_bytes - sum(blob.size for blob in set(have))
        most = int(lacking * (1 + SPARE_SHARE)) + SPARE_BYTES
        argv = ["copy", "--dest-oci-accept-uncompressed-layers", *self._how("src-")]
        argv += [self._reference.at(manifest.digest, self._access.mirror), f"oci:/folder/{LAYOUT}:image"]
        self._run(argv, place, most, self._access.bounds.fetch_seconds, look)

    def _how(self, prefix: str) -> list[str]:
        registry = self._asked()
        plain = registry in self._access.plain or registry.partition(":")[0] in self._access.plain
        words = [f"--{prefix}tls-verify={'false' if plain else 'true'}", f"--authfile={AUTH}"]
        return [*words, f"--{prefix}cert-dir=/folder/certificates"]

    def _asked(self) -> str:
        return (self._access.mirror or self._reference.registry).partition("/")[0]

    def _furnish(self, place: Path) -> None:
        """Lay a private authority's certificates beside where the job writes."""
        certificates = place / "certificates"
        certificates.mkdir(exist_ok=True)
        if self._access.ca:
            _place(certificates / "private.crt", self._access.ca)
        jobs.give(certificates)

    def _secrets(self) -> int:
        """A descriptor with the job's secrets, only those of the one registry it asks: no file of a disk has them."""
        prefix = self._access.mirror.partition("/")[2]
        path = f"{prefix}/{self._reference.path}" if prefix else self._reference.path
        auth = auth_for(self._access.auth, self._asked(), path)
        fd = os.memfd_create("auth", os.MFD_CLOEXEC)
        os.write(fd, json.dumps({"auths": auth}).encode())
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    def _environment(self) -> dict[str, str]:
        proxy = f"http://127.0.0.1:{PROXY_PORT}"
        return {
            "PATH": commands.PATH, "HOME": "/folder", "TMPDIR": "/folder", "XDG_RUNTIME_DIR": "/folder",
            "LC_ALL": "C.UTF-8", "HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "NO_PROXY": "",
        }  # fmt: skip

    def _run(self, argv: list[str], place: Path, most_bytes: int, seconds: float, look: Look) -> bytes:
        self._furnish(place)
        ours, theirs = socket.socketpair()
        hosts = doors(self._access)
        rlimits = {"FSIZE": most_bytes + SPARE_BYTES, "CPU": CPU_SECONDS, "DATA": MEMORY, "NPROC": THREADS}
        ports = [PROXY_PORT, *(port for port in hosts if port != PROXY_PORT)]
        words = [self._skopeo, "--insecure-policy", "--tmpdir=/folder", *argv]
        secrets = self._secrets()
        with ours:
            try:
                process = jobs.start(
                    "fetch", place, rlimits=rlimits, pass_fds=(theirs.fileno(), secrets),
                    ports=ports, talk=theirs.fileno(), auth=secrets, argv=words, env=self._environment(),
                )  # fmt: skip
            finally:
                theirs.close()
                os.close(secrets)
            with process:
                try:
                    return asyncio.run(self._attend(process, ours, most_bytes, seconds, look, place))
                finally:
                    process.kill()

    async def _attend(
        self, process: subprocess.Popen[bytes], talk: socket.socket, most_bytes: int, seconds: float,
        look: Look, place: Path,
    ) -> bytes:  # fmt: skip
        gateway = Gateway(self._access, most_bytes)
        run = _Run(process, gateway, seconds, bytearray(), bytearray())
        streams = [(process.stdout, run.out, MANIFEST_BYTES + 1), (process.stderr, run.err, TAIL_BYTES)]
        drains = [asyncio.create_task(_drain(stream, into, most)) for stream, into, most in streams]
        try:
            await gateway.serve(_listeners(talk))
            await self._watch(run, drains, look, place)
        finally:
            process.kill()
            await gateway.close()
            await asyncio.gather(*drains, return_exceptions=True)
        status = process.wait()
        if status != 0:
            raise self._failure(run, status)
        return bytes(run.out)

    async def _watch(self, run: _Run, drains: list[asyncio.Task[None]], look: Look, place: Path) -> None:
        """Wait for the end, and end what takes too long, too much, or stands still."""
        bounds = self._access.bounds
        started = marked_at = time.monotonic()
        marked = 0
        while run.process.poll() is None or not all(task.done() for task in drains):
            await asyncio.wait(drains, timeout=LOOK_SECONDS)
            if all(task.done() for task in drains):
                await asyncio.sleep(0.005)
            now = time.monotonic()
            look(Arrived(run.gateway.received, _names(place)))
            if run.gateway.exhausted:
                raise _endless()
            if run.gateway.received - marked >= bounds.stall_bytes:
                marked, marked_at = run.gateway.received, now
            if now - started > run.bounds_seconds or now - marked_at > bounds.stall_seconds:
                raise self._stalled(now - started)

    def _stalled(self, seconds: float) -> RingfenceError:
        return PlatformFault(
            f"the registry {self._asked()} sent too little for too long; given up after {seconds:.0f} seconds",
            code="registry_stalled",
            remediation="try again, or use a mirror",
        )

    def _failure(self, run: _Run, status: int) -> RingfenceError:
        said = _plain(bytes(run.err))
        if fault := jobs.broken(said):
            return fault
        if run.gateway.exhausted:
            return _endless()
        if run.gateway.denied:
            return self._beyond(run.gateway.denied[0])
        if "no space left on device" in said:
            return commands.no_space()
        direct = _DIRECT.search(said)
        if direct and "connection refused" in said and _is_loopback(direct[1]):
            return self._refused_on_loopback(direct[1])
        return self._said(said, status, run)

    def _refused_on_loopback(self, address: str) -> RingfenceError:
        """Inside the job nobody listens but the doors: so it was led to another place of this machine."""
        port = address.rpartition(":")[2]
        if port.isdigit() and int(port) in doors(self._access):
            return PlatformFault(f"the registry {address} does not answer", code="registry_unreachable")
        return self._beyond(address)

    def _beyond(self, address: str) -> RingfenceError:
        return private(address) if self._access.floor is None else beyond(address)

    def _said(self, said: str, status: int, run: _Run) -> RingfenceError:
        low, where = said.lower(), self._asked()
        last = next((line for line in reversed(said.splitlines()) if line.strip()), f"status {status}")[-300:]
        if any(word in low for word in _LYING):
            return BadRequest(f"the registry {where} lies about what it sends: {last}", code="image_digest_mismatch")
        if any(word in low for word in _DENIED):
            return Forbidden(
                f"the registry {where} wants other credentials, or there is no such image",
                code="registry_denied",
                remediation="give them: --auth-file FILE, or --username NAME --password-stdin",
            )
        if any(word in low for word in _ABSENT):
            return NotFound(f"the registry {where} has no image {self._reference.text}", code="image_not_found")
        if any(word.lower() in low for word in _UNTRUSTED):
            return PlatformFault(
                f"the registry {where} cannot be trusted: {last}",
                code="registry_untrusted",
                remediation="give its authority's certificate: --ca FILE",
            )
        if run.gateway.unreachable:
            return PlatformFault(f"{run.gateway.unreachable[0]} does not answer", code="registry_unreachable")
        return PlatformFault(f"fetching {self._reference.text} failed: {last}", code="registry_failed")


def _listeners(talk: socket.socket) -> list[socket.socket]:
    """The doors, opened inside the job's network. Raises nothing when the job died: its own words say why."""
    talk.settimeout(START_SECONDS)
    try:
        _, fds, _, _ = socket.recv_fds(talk, 1, 64)
    except TimeoutError:
        fds = []
    listeners = [socket.socket(fileno=fd) for fd in fds]
    for listener in listeners:
        listener.setblocking(False)
    return listeners


def _is_loopback(address: str) -> bool:
    return address.startswith(("127.", "[::1]", "localhost"))


def _endless() -> RingfenceError:
    return BadRequest(
        "the registry sends more than the image says it is",
        code="registry_sends_too_much",
        remediation="do not trust this registry",
    )


def _plain(raw: bytes) -> str:
    """What skopeo and so, perhaps, the registry said, without control characters."""
    text = raw.decode("utf-8", "replace").replace("\\n", "\n")
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


def _place(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)
    jobs.give(path)


def open_beneath(folder: Path, *names: str, flags: int = os.O_RDONLY) -> int:
    """Open a path that a job has made, following no link. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    for place, name in enumerate(names):
        kind = flags | os.O_NONBLOCK if place == len(names) - 1 else os.O_RDONLY | os.O_DIRECTORY
        inner = -1
        try:
            inner = os.open(name, kind | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        finally:
            os.close(fd)
        fd = inner
    return fd


def blob_names() -> tuple[str, ...]:
    """Where skopeo lays blobs, below the folder it was given."""
    return (LAYOUT, "blobs", "sha256")


def _names(place: Path) -> frozenset[str]:
    with contextlib.suppress(OSError):
        fd = open_beneath(place, *blob_names(), flags=os.O_RDONLY | os.O_DIRECTORY)
        try:
            return frozenset(os.listdir(fd))
        finally:
            os.close(fd)
    return frozenset()


def _stand_in(place: Path, blob: Blob) -> None:
    """A file without content, of the right name and size: skopeo then does not fetch what the store has unpacked."""
    folder = place
    for name in blob_names():
        folder /= name
        if not folder.exists():
            folder.mkdir()
            jobs.give(folder)
    with open(folder / blob.name, "xb") as file:
        file.truncate(blob.size)
    jobs.give(folder / blob.name)
