"""What can be tried through the API alone, on the runtimes that somebody else's tool makes."""

from __future__ import annotations

import hashlib
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from ringfence.attack.host import SEARCH, new_token
from tests.attacks.conftest import Box, need, output
from tests.attacks.test_filesystem import LAY, REWRITE, SWAP

TOOLS = ("runc", "crun", "runsc")
NAMES = ("main.py", "run.sh", "stdin", "stdout", "config.json", "state.json", ".result", "data.txt")


@pytest.fixture(scope="module", params=("container", "gvisor"))
def runtime(request: pytest.FixtureRequest) -> str:
    """Which."""
    need(request.param)
    return str(request.param)


@pytest.fixture(autouse=True)
def tools_unchanged() -> Iterator[None]:
    """The tools that make sandboxes are byte for byte what they were, whatever was tried."""
    paths = [path for name in TOOLS if (path := shutil.which(name, path=SEARCH))]
    before = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]
    yield
    assert [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths] == before


@pytest.fixture
def box(boxes: Callable[..., Box], runtime: str) -> Box:
    """A live sandbox of this runtime."""
    return boxes(isolation=runtime)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of the host's that everyone may read."""
    tmp_path.chmod(0o755)
    file = tmp_path / "secret"
    file.write_text(new_token())
    file.chmod(0o644)
    return file


def as_it_is(file: Path) -> tuple[object, ...]:
    """Everything about a file that must not change."""
    seen = file.stat()
    return file.read_bytes(), seen.st_mode, seen.st_uid, seen.st_gid, seen.st_mtime_ns


@pytest.mark.row(3, 4)
def test_names_the_platform_writes_cannot_be_turned_into_links_out(box: Box, secret: Path) -> None:
    """Links in the place of every likely name lead nowhere on the host, for whoever writes or reads them."""
    before = as_it_is(secret)
    box.run(LAY.format(targets=dict.fromkeys(NAMES, str(secret))).replace('os.chdir("out")', ""))
    assert output(box.run("print(6 * 7)")) == b"42\n"
    for name in NAMES:
        box.put(name, b"overwritten")
        assert before[0] not in box.get(name).content  # type: ignore[operator]
    assert {box.list(".")[name]["type"] for name in NAMES if name in box.list(".")} <= {"symlink", "file"}
    assert as_it_is(secret) == before


@pytest.mark.row(6)
def test_swapping_a_directory_for_a_link_during_transfers_reaches_nothing(box: Box, secret: Path) -> None:
    """While a program swaps a directory and a link out, uploads and downloads touch nothing outside."""
    before = as_it_is(secret)
    box.start({"code": SWAP.format(target=str(secret.parent)), "detach": True})
    got = set()
    for number in range(60):
        box.put(f"swap/real/{secret.name}", str(number).encode())
        got.add(box.get(f"swap/real/{secret.name}").content)
    assert as_it_is(secret) == before
    assert [content for content in got if before[0] in content] == []  # type: ignore[operator]
    assert list(secret.parent.iterdir()) == [secret]


@pytest.mark.row(8)
def test_a_pipe_or_socket_in_the_results_blocks_nobody(box: Box) -> None:
    """Asking for a FIFO's, a socket's or a device's content is refused at once."""
    box.run("import os, socket; os.mkfifo('fifo'); s = socket.socket(socket.AF_UNIX); s.bind('sock')")
    for name in ("fifo", "sock", "/dev/zero", "/dev/tty"):
        assert box.get(name).status_code in range(400, 500), name


@pytest.mark.row(14, 120)
@pytest.mark.parametrize("cwd", ["/proc/self/fd/7", "/proc/self/fd/8/..", "/proc/1/cwd", "/dev", "/proc/self/root"])
def test_a_working_directory_of_the_tools_is_refused(box: Box, cwd: str) -> None:
    """CVE-2024-21626: a working directory by way of a leaked descriptor is refused before the sandbox hears of it."""
    assert box.start({"argv": ["pwd"], "cwd": cwd}).status_code in range(400, 500)


@pytest.mark.row(15)
def test_programs_started_into_a_sandbox_cannot_be_rewritten(box: Box) -> None:
    """CVE-2019-5736: holding /proc/PID/exe of all that is started into a sandbox never makes it writable."""
    box.start({"code": REWRITE, "detach": True, "tag": "rewriter"})
    for _ in range(10):
        assert box.start({"argv": ["true"]}).json()["exit"]["code"] == 0
    assert output(box.run(REWRITE.replace("4000", "20"))) == b"False\n"


@pytest.mark.row(25)
def test_a_setuid_copy_gives_nothing_back(box: Box) -> None:
    """A setuid shell made by the sandbox's root runs, for its user, as that user: no new privilege exists."""
    made = "cp /bin/dash /tmp/s && chmod 4755 /tmp/s"
    assert box.start({"shell": made, "user": "root"}).json()["exit"]["code"] == 0
    assert output(box.start({"argv": ["/tmp/s", "-p", "-c", "id -u"]}).json()) == b"1000\n"


SMUGGLED = {
    "LD_PRELOAD": "/home/user/evil.so", "LD_LIBRARY_PATH": "/home/user", "PYTHONPATH": "/home/user",
    "PYTHONSTARTUP": "/home/user/evil.py", "PYTHONHOME": "/home/user", "BASH_ENV": "/home/user/evil.sh",
    "PATH": "/home/user:/usr/bin", "RUNC_ROOT": "/", "XDG_RUNTIME_DIR": "/", "NOTIFY_SOCKET": "/run/notify",
    "LISTEN_FDS": "3", "_LIBCONTAINER_INITPIPE": "3", "GODEBUG": "gctrace=1", "DEBUG": "1",
}  # fmt: skip


@pytest.mark.row(123)
def test_a_requests_environment_and_words_reach_its_program_alone(
    http: httpx.Client, boxes: Callable[..., Box], runtime: str
) -> None:
    """Variables that tools and loaders read, and words that look like options, are a program's own affair."""
    labels = {"org.criu.config": "/etc/shadow", "run.oci.handler": "evil", "dev.gvisor.spec.mount": "/:/h"}
    box = boxes(isolation=runtime, labels=labels)
    box.put("evil.py", b"open('/home/user/loaded', 'w').write('yes')")
    box.put("sitecustomize.py", b"open('/home/user/loaded', 'w').write('yes')")
    answer = box.start({"argv": ["sh", "-c", "echo out"], "env": SMUGGLED})
    assert answer.status_code in {200, *range(400, 500)}
    assert output(box.run("print(6 * 7)")) == b"42\n"
    assert "loaded" not in box.list(".")
    for words in (["--privileged"], ["-v", "/:/h"], ["a;id"], ["$(id)"], ["--root=/", "run"]):
        ran = http.post("/v1/runs", json={"argv": words, "isolation": runtime})
        assert ran.status_code in range(400, 500) or ran.json()["exit"]["code"] != 0, words
    assert http.post("/v1/runs", json={"argv": ["true"], "isolation": "container --privileged"}).status_code == 400


@pytest.mark.row(88, 100)
def test_a_listener_is_reachable_by_nobody_else(boxes: Callable[..., Box], runtime: str) -> None:
    """A program may bind port 80 and any other: neither the host nor another sandbox sees it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    first, second = boxes(isolation=runtime), boxes(isolation=runtime)
    code = f"import socket, time; kept = [socket.create_server(('', p)) for p in (80, {port})]; time.sleep(60)"
    assert first.start({"code": code, "detach": True}).status_code == 202
    probe = f"import socket\nfor port in (80, {port}):\n    print(socket.socket().connect_ex(('127.0.0.1', port)))"
    assert set(output(second.run(probe)).split()) == {b"111"}
    with socket.socket() as caller:
        caller.settimeout(30)
        assert caller.connect_ex(("127.0.0.1", port)) == 111


@pytest.mark.row(107, 114)
def test_nothing_written_by_one_sandbox_is_loaded_by_another(http: httpx.Client, runtime: str) -> None:
    """A module and a compiled file left in every place that can be written are not what the next sandbox imports."""
    poison = """
import os, sys
for folder in [*sys.path, os.getcwd(), "/tmp", "/usr/lib/python3.13", "/var/tmp", "/.ringfence", "/run"]:
    for name in ("json.py", "helper.py", "sitecustomize.py", "__pycache__/json.cpython-313.pyc"):
        try:
            open(os.path.join(folder or ".", name), "w").write("print('poisoned')")
        except OSError:
            pass
"""
    look = "import json\ntry:\n    import helper\nexcept ImportError:\n    print('clean')"
    http.post("/v1/runs", json={"code": poison, "isolation": runtime}).raise_for_status()
    ran = http.post("/v1/runs", json={"code": look, "isolation": runtime})
    assert output(ran.json()) == b"clean\n"
