"""The development domain for real: `serve --dev-domain`, its words, its authority, and the example beside it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509

from ringfence.cli.main import main
from ringfence.config import read_server
from ringfence.domain.errors import BadRequest, PlatformFault
from ringfence.edge.authority import Authority
from tests.edge.inside import until
from tests.edge.test_traefik import tool
from tests.support.served import TEMPLATES, free_port, key

EXAMPLE = Path(__file__).parents[2] / "examples" / "dev-domain"
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@dataclass
class Server:
    """A server with a development domain."""

    state: Path
    port: int
    edge: int
    pid: int
    said: list[str] = field(default_factory=list)

    @property
    def place(self) -> Path:
        """Where the authority is."""
        return self.state / "dev" / "sbx.test"

    def __str__(self) -> str:
        return "".join(self.said)

    def until(self, words: str, seconds: float = 60) -> None:
        """Wait until it said something."""
        deadline = time.monotonic() + seconds
        while words not in str(self):
            assert time.monotonic() < deadline, str(self)
            time.sleep(0.05)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Started as its reader would start it."""
    state, port = Path(tempfile.mkdtemp(prefix="rf-dev-")), free_port()
    state.chmod(0o755)
    words = ["serve", "--dev-domain", "sbx.test", "--state", str(state), "--templates", TEMPLATES, "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-m", "ringfence", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    made = Server(state, port, 0, process.pid)
    out = process.stdout
    assert out is not None
    threading.Thread(target=lambda: made.said.extend(iter(out.readline, "")), daemon=True).start()
    try:
        made.until("E2B_DOMAIN=sbx.test:")
        made.edge = int(re.findall(r"E2B_DOMAIN=sbx\.test:(\d+)", str(made))[0])
        yield made
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(state, ignore_errors=True)


def curl(server: Server, host: str, path: str = "/health") -> bytes:
    """Ask by a name, with only the authority trusted."""
    words = [tool("curl"), "-sS", "-m", "60", "--cacert", str(server.place / "ca.crt")]
    words += ["--resolve", f"{host}:{server.edge}:127.0.0.1", f"https://{host}:{server.edge}{path}"]
    return subprocess.run(words, capture_output=True, check=True, timeout=90).stdout


def test_it_says_how_to_trust_it_and_how_to_find_it(server: Server) -> None:
    """In words that can be pasted, with files that are there; the keys are nobody else's to read."""
    place = server.place
    for words in (f"SSL_CERT_FILE={place}/bundle.crt", f"NODE_EXTRA_CA_CERTS={place}/ca.crt",
                  "ringfence hosts --write", "ringfence hosts --dns", f"api.sbx.test:{server.edge}"):  # fmt: skip
        assert words in str(server)
    assert server.edge == server.port + 1000
    modes = {file.name: file.stat().st_mode & 0o777 for file in server.place.iterdir()}
    assert modes == {"ca.crt": 0o644, "bundle.crt": 0o644, "server.crt": 0o644, "ca.key": 0o600, "server.key": 0o600}
    ssl.create_default_context(cafile=str(server.place / "bundle.crt"))


def test_the_api_answers_at_its_name(server: Server) -> None:
    """By the process that gave root up, with a certificate that root alone can read the key of."""
    assert b"ok" in curl(server, "api.sbx.test")


def test_the_example_does_what_its_page_says(server: Server, tmp_path: Path) -> None:
    """The name goes into /etc/hosts, here one of a mount namespace; an ordinary program fetches the page by it."""
    secret = key(server.state / "api" / "ringfence.db")
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n")
    script = (
        f"mount --bind {tmp_path}/hosts /etc/hosts && $PYTHON {EXAMPLE}/publish.py && cat /etc/hosts && "
        "$PYTHON -m ringfence hosts --remove && cat /etc/hosts"
    )
    env = {
        **os.environ,
        "PYTHON": sys.executable,
        "RINGFENCE_URL": f"http://127.0.0.1:{server.port}",
        "RINGFENCE_KEY": secret,
        "RINGFENCE_STATE": str(server.state),
        "SSL_CERT_FILE": str(server.place / "bundle.crt"),
    }
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", script], env=env, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fetched: <h1>served from inside</h1>" in done.stdout
    assert re.search(rf"published: https://8000-s[a-z2-7]{{26}}\.sbx\.test:{server.edge}\n", done.stdout)
    assert re.search(r"\n127\.0\.0\.1 8000-s[a-z2-7]{26}\.sbx\.test\n", done.stdout)
    assert (tmp_path / "hosts").read_text() == "127.0.0.1 localhost\n"


def test_a_renewed_certificate_is_shown_without_a_restart(server: Server) -> None:
    """Files that do not fit together are told of once and change nothing; an api started anew shows the new one."""

    def serial() -> int:
        pem = ssl.get_server_certificate(("127.0.0.1", server.edge), timeout=60)
        return x509.load_pem_x509_certificate(pem.encode()).serial_number

    before = serial()
    authority = Authority(server.place, "sbx.test")
    pair = authority.issue(authority.names)
    authority.server.write_bytes(pair.certificate)
    server.until("the old certificate stays")
    assert serial() == before
    authority.server_key.write_bytes(pair.key)
    server.until("shows a new certificate")
    until(lambda: serial() != before)  # it was handed over, and is put to use a moment later
    fresh = serial()
    os.kill(child(server.pid, b"ringfence.api"), signal.SIGKILL)
    server.until("the api ended")
    until(lambda: b"ok" in curl(server, "api.sbx.test"))  # it is told to be busy until the next one is up
    assert serial() == fresh


def child(parent: int, words: bytes) -> int:
    """The child of a process that runs something."""
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            of = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if of == parent and words in (place / "cmdline").read_bytes():
                return int(place.name)
    raise AssertionError(f"no child of {parent} runs {words!r}")


# --- the authority ----------------------------------------------------------------------------------------------------


def test_an_authority_is_made_once_and_its_certificate_renewed(tmp_path: Path) -> None:
    """Whoever trusted it need not again; a server's certificate that is spoilt or for other names is made anew."""
    made = Authority(tmp_path / "ca", "sbx.test")
    made.ensure()
    files = {file.name: file.read_bytes() for file in made.place.iterdir()}
    made.ensure()
    assert {file.name: file.read_bytes() for file in made.place.iterdir()} == files
    for spoilt in (b"", b"rubbish", made.issue(["other.test"]).certificate):
        made.server.write_bytes(spoilt)
        made.ensure()
        assert made.server.read_bytes() not in {spoilt, files["server.crt"]}
        assert made.certificate.read_bytes() == files["ca.crt"]


def test_an_authority_that_is_spoilt_is_not_replaced_in_silence(tmp_path: Path) -> None:
    """Somebody trusts it; they have to know that a new one is needed."""
    made = Authority(tmp_path, "sbx.test")
    made.ensure()
    (tmp_path / "ca.key").write_bytes(b"rubbish")
    with pytest.raises(PlatformFault, match="cannot be used"):
        made.ensure()


@pytest.mark.parametrize("domain", ["example.com", "sbx.dev", "test.com", "com", "sbx.testing"])
def test_no_authority_is_made_for_a_name_that_could_be_somebodys(tmp_path: Path, domain: str) -> None:
    """And nothing is written; the command says what to do instead."""
    with pytest.raises(BadRequest, match="could be somebody's name"):
        Authority(tmp_path / "ca", domain).ensure()
    assert not (tmp_path / "ca").exists()
    assert main(["serve", "--dev-domain", domain, "--state", str(tmp_path), "--port", str(free_port())]) != 0


@pytest.mark.parametrize(
    "domain", ["SBX.test", "sbx_test", "../x.test", "a..test", "-a.test", "x.test.", "a" * 64 + ".test"]
)
def test_a_development_domain_is_a_plain_name(domain: str) -> None:
    """It becomes a directory and goes into certificates: whatever is odd is refused before."""
    with pytest.raises(BadRequest, match="not a domain in lower case"):
        read_server(environ={}, dev_domain=domain)
