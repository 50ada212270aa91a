"""Names on this machine: our block in a hosts file, which harms no other line, and a name server for one domain."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence.cli.hostsfile import HostsFile, block
from ringfence.cli.nameserver import Zone
from ringfence.domain.errors import Conflict, PlatformFault

OTHERS = b"127.0.0.1\tlocalhost\r\n# a comment with \xff bytes\n::1 localhost ip6-localhost\n10.0.0.1 \xe9l\xe8ve"
LINES = block("127.0.0.1", ["sbx.test", "api.sbx.test"])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A hosts file with other people's lines, the last of them without an end."""
    made = tmp_path / "hosts"
    made.write_bytes(OTHERS)
    made.chmod(0o640)
    return made


def test_our_block_comes_and_goes_and_others_stay(file: Path) -> None:
    """Byte for byte; the file keeps its mode, and nothing is left beside it."""
    hosts = HostsFile(file)
    assert hosts.put(LINES)
    assert file.read_bytes() == OTHERS + b"\n" + LINES
    assert not hosts.put(LINES)
    with file.open("ab") as more:
        more.write(b"10.0.0.2 behind\n")
    assert hosts.put(block("127.0.0.1", ["sbx.test"]))
    assert file.read_bytes().endswith(b"ringfence hosts: end\n10.0.0.2 behind\n")
    assert b"api.sbx.test" not in file.read_bytes()
    assert hosts.remove()
    assert not hosts.remove()
    assert file.read_bytes() == OTHERS + b"\n10.0.0.2 behind\n"
    assert file.stat().st_mode & 0o7777 == 0o640
    assert os.listdir(file.parent) == ["hosts"]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from([b"a\n", b"\r\n", b"# ringfence hosts\n", b"\xff\x00", b"x", b"\n"])).map(b"".join))
def test_whatever_stands_there_stays(tmp_path_factory: pytest.TempPathFactory, before: bytes) -> None:
    """Written twice and removed, the file is what it was, but for the end of its last line."""
    file = tmp_path_factory.mktemp("hosts") / "hosts"
    file.write_bytes(before)
    hosts = HostsFile(file)
    hosts.put(LINES)
    hosts.put(block("::1", ["other.test"]))
    hosts.remove()
    assert file.read_bytes() == before + (b"" if not before or before.endswith(b"\n") else b"\n")


@pytest.mark.parametrize("kind", ["no end", "no begin", "the wrong way round", "twice"])
def test_marks_that_are_no_pair_are_not_guessed_at(file: Path, kind: str) -> None:
    """A block whose end somebody deleted does not take the rest of the file with it."""
    begin, *_, end = LINES.splitlines(keepends=True)
    spoilt = {
        "no end": begin + OTHERS,
        "no begin": OTHERS + b"\n" + end,
        "the wrong way round": end + OTHERS + b"\n" + begin,
        "twice": LINES + LINES,
    }[kind]
    file.write_bytes(spoilt)
    for change in (lambda: HostsFile(file).put(LINES), HostsFile(file).remove):
        with pytest.raises(Conflict) as refused:
            change()
        assert refused.value.code == "hosts_marks"
    assert file.read_bytes() == spoilt


def test_a_link_is_followed_and_stays_one(tmp_path: Path, file: Path) -> None:
    """Some systems keep the file elsewhere."""
    link = tmp_path / "link"
    link.symlink_to(file)
    assert HostsFile(link).put(LINES)
    assert link.is_symlink()
    assert LINES in file.read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_a_file_that_is_a_mount_is_written_in_place(tmp_path: Path, file: Path) -> None:
    """In a container /etc/hosts cannot be replaced; the lines before ours are not even written."""
    target = tmp_path / "mounted"
    target.touch()
    subprocess.run(["mount", "--bind", str(file), str(target)], check=True)
    try:
        assert HostsFile(target).put(LINES)
        assert file.read_bytes() == OTHERS + b"\n" + LINES
        assert HostsFile(target).remove()
        assert file.read_bytes() == OTHERS + b"\n"
    finally:
        subprocess.run(["umount", str(target)], check=True)


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    """None is made: a system without the file has its reasons."""
    with pytest.raises(PlatformFault, match="cannot be changed"):
        HostsFile(tmp_path / "none").put(LINES)


# --- the name server --------------------------------------------------------------------------------------------------

ZONE = Zone("sbx.test", "127.0.0.1")
A, AAAA, TXT = 1, 28, 16


def packet(name: str, kind: int = A, flags: int = 0x0100, group: int = 1) -> bytes:
    """A question."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".") if label)
    return struct.pack(">HHHHHH", 7, flags, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, group)


def said(data: bytes | None) -> tuple[int, list[bytes]]:
    """The code of an answer, and its addresses."""
    assert data is not None
    number, flags, _, answers, _, _ = struct.unpack_from(">HHHHHH", data)
    assert number == 7
    assert flags & 0x8000
    return flags & 15, [data[-4:]] * answers


@pytest.mark.parametrize("name", ["sbx.test", "api.sbx.test", "8000-s" + "a" * 26 + ".sbx.test", "A.B.SBX.Test"])
def test_every_name_below_the_domain_is_this_machine(name: str) -> None:
    """However it is spelt; types it has none of are no error, so that a client does not give the name up."""
    assert said(ZONE.answer(packet(name))) == (0, [b"\x7f\0\0\1"])
    assert said(ZONE.answer(packet(name, AAAA))) == said(ZONE.answer(packet(name, TXT))) == (0, [])
    six = Zone("sbx.test", "::1").answer(packet(name, AAAA))
    assert six is not None
    assert six.endswith(b"\0" * 15 + b"\1")


@pytest.mark.parametrize("name", ["", "test", "example.com", "xsbx.test", "sbx.test.example.com"])
def test_of_other_names_somebody_else_is_to_be_asked(name: str) -> None:
    """REFUSED, which sends resolvers to their next server; NXDOMAIN would end the search."""
    assert said(ZONE.answer(packet(name))) == (5, [])


@pytest.mark.parametrize(
    "data",
    [
        packet("a.sbx.test")[:-1], packet("a.sbx.test", group=3), packet("a" * 63 + ("." + "b" * 63) * 4 + ".sbx.test"),
        packet("x")[:12] + b"\xc0\x0c" + b"\0\1\0\1", packet("x")[:12], packet("sbx.test", flags=0x2800),
        packet("x")[:4] + b"\0\2" + packet("x")[6:],
    ],
)  # fmt: skip
def test_what_is_no_question_is_told_so(data: bytes) -> None:
    """Cut short, compressed, too long, of another class or kind: a code and no record."""
    assert said(ZONE.answer(data)) in ((1, []), (4, []))


@given(st.binary(max_size=600))
def test_rubbish_is_harmless(data: bytes) -> None:
    """An answer is hardly longer than its question, and is itself never answered, or two servers would not stop."""
    answer = ZONE.answer(data)
    assert answer is None or len(answer) <= len(data) + 16
    if len(data) > 2 and data[2] & 0x80:
        assert answer is None


def test_it_answers_over_the_wire() -> None:
    """As the command starts it; also after a client that sent rubbish and one that left before its answer."""
    words = [sys.executable, "-m", "ringfence", "hosts", "--dns", "127.0.0.1:0", "--domain", "sbx.test", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as server:
        assert server.stdout is not None
        where = ("127.0.0.1", json.loads(server.stdout.readline())["port"])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(60)
            client.connect(where)
            client.send(b"rubbish")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
                gone.sendto(packet("sbx.test"), where)
            client.send(packet("api.sbx.test"))
            assert said(client.recv(512)) == (0, [b"\x7f\0\0\1"])
        server.terminate()


RESOLVED = "import socket; print(socket.getaddrinfo('{}', 443, proto=6)[0][4][0])"


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="namespaces")
def test_the_systems_own_resolver_finds_names_by_it(tmp_path: Path) -> None:
    """In a namespace where it stands at port 53, above a server that answers nothing."""
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    script = (
        f"mount --bind {tmp_path}/resolv.conf /etc/resolv.conf && ip link set lo up && "
        f'{{ "$PYTHON" -m ringfence hosts --dns --domain sbx.test & }} && for i in $(seq 50); do '
        f'"$PYTHON" -c "{RESOLVED.format("49983-anything.sbx.test")}" 2>/dev/null && break; sleep 0.2; done; '
        f'"$PYTHON" -c "{RESOLVED.format("example.com")}" 2>&1 | tail -1; kill %1'
    )
    done = subprocess.run(
        ["unshare", "--net", "--mount", "bash", "-mc", script],
        env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "\n127.0.0.1\n" in "\n" + done.stdout, done.stdout + done.stderr
    assert "gaierror" in done.stdout
