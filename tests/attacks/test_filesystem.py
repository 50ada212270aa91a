"""Attacks on files: the host's, the image's, and the traps a program leaves for whoever collects its results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ringfence.attack.host import new_token
from tests.attacks.conftest import TEMPLATES, Box, Held, Run, output
from tests.support.canaries import Canaries

LAY = """
import os
os.makedirs("out", exist_ok=True)
os.chdir("out")
for name, target in {targets!r}.items():
    if os.path.lexists(name):
        os.unlink(name)
    os.symlink(target, name)
"""


@pytest.fixture(scope="module", autouse=True)
def image_unchanged() -> Iterator[None]:
    """The image's programs and libraries are byte for byte what they were, whatever the attacks did."""
    root = Path(json.loads((TEMPLATES / "index" / "base.json").read_text())["digest"])
    files = [TEMPLATES / root / "root" / name for name in ("usr/bin/python3.13", "etc/passwd", "usr/bin/dash")]
    before = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    yield
    assert [hashlib.sha256(file.read_bytes()).hexdigest() for file in files] == before


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of the host's that everyone may read."""
    tmp_path.chmod(0o755)
    file = tmp_path / "secret"
    file.write_text(new_token())
    file.chmod(0o644)
    return file


@pytest.mark.row(1)
def test_host_files_are_not_there(held: Held) -> None:
    """Neither the host's secret files nor planted tokens can be found, as user or as root."""
    held("host-secrets")
    held("host-secrets-root")


@pytest.mark.row(2)
def test_the_image_cannot_be_written(held: Held) -> None:
    """Creating or opening for writing anywhere in the image fails, as user or as root."""
    held("read-only-root")
    held("read-only-root-root")


@pytest.mark.row(3)
def test_links_in_results_lead_nowhere(box: Box, secret: Path) -> None:
    """A link among the results is listed as a link, and its content is never the host's."""
    targets = {"r": "/etc/shadow", "d": "/", "p": "/proc/self/environ", "s": str(secret), "one": "/proc/1/environ"}
    box.run(LAY.format(targets=targets))
    listed = box.list("out")
    assert {name: listed[name]["type"] for name in targets} == dict.fromkeys(targets, "symlink")
    for name in ("r", "d", "s", "one"):
        assert box.get(f"out/{name}").status_code in range(400, 500), name
    environment = box.get("out/p")
    assert secret.read_text().encode() not in environment.content
    assert b"RFCANARY" not in environment.content
    assert environment.status_code in range(400, 500)


@pytest.mark.row(3, 8, 9)
def test_traps_among_collected_results_bring_nothing(held: Held) -> None:
    """Collecting links, pipes, sockets and huge files brings nothing the program could not read itself."""
    held("output-traps")


@pytest.mark.row(4)
def test_names_the_platform_writes_cannot_be_turned_into_links_out(box: Box, secret: Path) -> None:
    """Replacing every likely name by a link to a host file between two runs changes nothing on the host."""
    before = (secret.read_bytes(), secret.stat().st_mode, secret.stat().st_uid, secret.stat().st_mtime_ns)
    names = ("main.py", "run.sh", "stdin", "stdout", "stderr", "meta", ".result", "data.txt")
    box.run(LAY.format(targets=dict.fromkeys(names, str(secret))).replace('os.chdir("out")', ""))
    assert output(box.run("print(6 * 7)")) == b"42\n"
    for name in names:
        box.put(name, b"overwritten")
    assert (secret.read_bytes(), secret.stat().st_mode, secret.stat().st_uid, secret.stat().st_mtime_ns) == before


SWAP = """
import ctypes, os, time
os.makedirs("swap/real", exist_ok=True)
open("swap/real/file", "w").write("inside")
os.symlink({target!r}, "swap/link")
libc = ctypes.CDLL(None)
print("swapping", flush=True)
while True:
    libc.syscall(316, -100, b"swap/real", -100, b"swap/link", 2)
"""


@pytest.mark.row(6)
def test_swapping_a_directory_for_a_link_during_transfers_reaches_nothing(box: Box, secret: Path) -> None:
    """While a program swaps a directory and a link out, uploads and downloads touch nothing outside."""
    before = secret.read_bytes()
    box.start({"code": SWAP.format(target=str(secret.parent)), "detach": True})
    got = set()
    for number in range(150):
        box.put(f"swap/real/{secret.name}", str(number).encode())
        got.add(box.get(f"swap/real/{secret.name}").content)
    assert secret.read_bytes() == before
    assert [content for content in got if before in content] == []
    assert list(secret.parent.iterdir()) == [secret]


@pytest.mark.row(7)
def test_links_to_files_of_the_image_cannot_be_made(run: Run) -> None:
    """link() of a root-owned or setuid file and rename across mounts fail."""
    code = """
import os
for source in ("/etc/passwd", "/usr/bin/su", "/usr/bin/passwd"):
    try:
        os.link(source, "mine")
        print("linked", source)
    except OSError as error:
        print(error.errno)
"""
    assert b"linked" not in output(run(code))


@pytest.mark.row(8)
def test_a_pipe_or_socket_in_the_results_blocks_nobody(box: Box) -> None:
    """Asking for a FIFO's or a socket's content is refused at once; the server goes on answering."""
    box.run("import os, socket; os.mkfifo('fifo'); s = socket.socket(socket.AF_UNIX); s.bind('sock')")
    assert {name: box.list(".")[name]["type"] for name in ("fifo", "sock")} == {"fifo": "other", "sock": "other"}
    assert box.get("fifo").status_code in range(400, 500)
    assert box.get("sock").status_code in range(400, 500)
    assert box.get("/dev/zero").status_code in range(400, 500)


@pytest.mark.row(9)
def test_a_huge_sparse_file_costs_the_server_nothing(boxes: Callable[..., Box]) -> None:
    """A file of a terabyte cannot be made past the scratch, and a listing of ten thousand files is bounded."""
    box = boxes(limits={"scratch_bytes": 16 * 1024 * 1024, "scratch_files": 20_000})
    made = box.run("import os; open('sparse', 'w').close(); os.truncate('sparse', 1 << 40)")
    assert made["exit"]["code"] != 0
    box.run("import os; os.mkdir('many'); [open(f'many/{n}', 'w').close() for n in range(10_000)]")
    answer = box.http.get(f"{box.at}/files", params={"path": "many", "depth": 2})
    assert answer.status_code == 200
    assert len(answer.content) < 16 * 1024 * 1024


@pytest.mark.row(9)
def test_a_file_that_grows_while_it_is_read_ends(boxes: Callable[..., Box]) -> None:
    """Fetching a file that a program keeps appending to ends, within the scratch's size."""
    box = boxes(limits={"scratch_bytes": 32 * 1024 * 1024})
    box.start({"code": "while True:\n    open('log', 'ab').write(b'x' * 65536)", "detach": True})
    assert len(box.get("log").content) <= 40 * 1024 * 1024


@pytest.mark.row(12, 13)
def test_mounting_and_walking_out_of_a_chroot_are_refused(held: Held) -> None:
    """Every way to mount, to change the root and to walk out of it is refused, also to the sandbox's root."""
    held("new-namespaces")
    held("new-namespaces-root")


@pytest.mark.row(14)
def test_no_descriptor_is_left_open(held: Held) -> None:
    """A program starts with its three standard streams and nothing else."""
    held("descriptors")
    held("descriptors-exec")


@pytest.mark.row(14)
@pytest.mark.parametrize("cwd", ["/proc/self/fd/7", "/proc/1/cwd", "/dev", "/sys", "/proc/self/root", "/proc"])
def test_a_working_directory_outside_is_refused(box: Box, cwd: str) -> None:
    """The API refuses a working directory below /proc, /dev or /sys."""
    assert box.start({"argv": ["pwd"], "cwd": cwd}).status_code in range(400, 500)


REWRITE = """
import os
found = set()
for _ in range(4000):
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            try:
                fd = os.open(f"/proc/{pid}/exe", os.O_RDONLY)
                for mode in (os.O_WRONLY, os.O_RDWR):
                    try:
                        os.write(os.open(f"/proc/self/fd/{fd}", mode), b"#!/bin/sh")
                        found.add("wrote")
                    except OSError as error:
                        found.add(error.errno)
                os.close(fd)
            except OSError as error:
                found.add(error.errno)
print("wrote" in found)
"""


@pytest.mark.row(15)
def test_programs_started_into_a_sandbox_cannot_be_rewritten(box: Box) -> None:
    """Holding /proc/PID/exe of newly started programs never makes it writable (CVE-2019-5736)."""
    box.start({"code": REWRITE, "detach": True, "tag": "rewriter"})
    for _ in range(30):
        assert box.start({"argv": ["true"]}).json()["exit"]["code"] == 0
    assert output(box.run(REWRITE.replace("4000", "50"))) == b"False\n"


@pytest.mark.row(17, 60)
def test_no_device_can_be_found_or_made(held: Held) -> None:
    """/dev holds the six harmless devices; nodes cannot be made or opened elsewhere."""
    held("devices")


@pytest.mark.row(20, 74, 75)
def test_attributes_files_and_bytes_are_counted(held: Held) -> None:
    """Trusted and security attributes are refused; bytes, files and user attributes stop at the scratch's size."""
    held("scratch")


@pytest.mark.row(24)
def test_the_mount_table_is_tight(held: Held) -> None:
    """Every mount is nosuid and nodev, and only the scratch may be written."""
    held("mounts")


@pytest.mark.row(24)
def test_the_mount_table_tells_nothing_of_the_host(held: Held) -> None:
    """No host path and no device of the host is named in the mount table."""
    held("host-paths")


@pytest.mark.row(24)
def test_the_size_of_the_file_system_is_the_sandboxs_own(run: Run) -> None:
    """statvfs of the home directory shows the scratch's size, not the host's disk."""
    ran = run("import os; s = os.statvfs('.'); print(s.f_blocks * s.f_frsize)", limits={"scratch_bytes": 33_554_432})
    assert int(output(ran)) == 33_554_432


@pytest.mark.row(26)
def test_crashing_leaves_no_core(held: Held) -> None:
    """A program that aborts again and again leaves no core, on the host or in its home."""
    held("core-dumps")


def test_the_servers_own_files_are_as_they_were(canaries: Canaries, run: Run) -> None:
    """Files planted beside the server's own are unchanged after all of the above."""
    run("print(1)")
    assert canaries.changed() == []
