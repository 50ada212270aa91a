"""What every runtime promises about taking a sandbox's files out and putting them into another."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from ringfence.domain.limits import MIB, Limits
from tests.conformance.conftest import Bench, Box
from tests.support import scale
from tests.support.guestharness import Host, Reply

LONG = 60.0
# Prints one line for everything below a place: all that a pause promises to keep.
SURVEY = r"""
import hashlib, os, stat, sys
inodes = {}
def show(path):
    s = os.lstat(path)
    kind = stat.S_IFMT(s.st_mode)
    words = [ascii(path), oct(s.st_mode), s.st_uid, s.st_gid, s.st_mtime_ns]
    if stat.S_ISREG(kind):
        with open(path, "rb", opener=lambda p, f: os.open(p, f)) if s.st_mode & 0o400 else open(os.devnull, "rb") as f:
            words += [s.st_size, hashlib.sha256(f.read()).hexdigest(), inodes.setdefault(s.st_ino, ascii(path))]
    elif stat.S_ISLNK(kind):
        words += [ascii(os.readlink(path))]
    print(*words)
    if stat.S_ISDIR(kind):
        for name in sorted(os.listdir(path)):
            show(path + b"/" + name)
for top in (b"/home/user", b"/workspace", b"/tmp/kept", b"/var/tmp"):
    show(top)
"""
# Everything that has a form of its own: see ODD_ARE for what of it is looked at one by one.
MAKE = r"""
import os, socket
os.makedirs("/tmp/kept/deep/er"); os.makedirs("empty/dir"); os.mkdir("closed")
open("plain", "w").write("hello\n"); os.chmod("plain", 0o640)
open("suid", "w").write("x"); os.chmod("suid", 0o4755)
os.symlink("plain", "link"); os.symlink("/nowhere/" + "x" * 3000, "dangling")
for name in (b"caf\xc3\xa9", b"not utf8 \xff\xfe", b"new\nline", b"-rf", b" ", b"x" * 255, b".hidden", b"*", b"a\\b"):
    open(b"/home/user/" + name, "wb").write(name)
os.link("plain", "hard"); os.link("plain", "empty/harder")
with open("sparse", "wb") as f:
    f.write(b"begin"); f.seek(20 << 20); f.write(b"middle"); f.truncate(24 << 20)
open("nothing", "w").close()
open("/tmp/kept/deep/er/file", "wb").write(os.urandom(100_000))
open("/var/tmp/too", "w").write("kept as well")
open("/workspace/own", "w").write("kept, too")
os.mkfifo("pipe", 0o620)
open("unreadable", "w").write("mine"); os.chmod("unreadable", 0)
open("closed/inside", "w").write("x"); os.chmod("closed", 0)
s = socket.socket(socket.AF_UNIX); s.bind("sock")
for name in ("plain", "empty/dir", "empty", "."):
    os.utime(name, ns=(10**18 + 7, 10**18 + 123456789))
"""

NOISE = "for i in 1 2 3 4; do (setsid sh -c 'while :; do echo line >> grows; done' &) ; done; sleep 0.3"
MANY = """
import os
for d in range({part}):
    os.makedirs(f"many/{{d}}")
    for f in range(100):
        open(f"many/{{d}}/{{f}}", "w").write(f"{{d}} {{f}}")
with open("big", "wb") as f:
    for _ in range({part}):
        f.write(os.urandom(1 << 20))
"""


def pack(host: Host) -> bytes:
    """A sandbox's files as it sends them."""
    reply = host.open("pack")
    answer = reply.answer(LONG)
    assert "error" not in answer, answer
    assert answer["size"] == len(reply.out)
    return bytes(reply.out)


def unpack(host: Host, data: bytes) -> Reply:
    """Hand them to another, and wait."""
    reply = host.open("unpack")
    reply.send(data)
    if reply.end is None:
        reply.close_input()
    reply.answer(LONG)
    return reply


def survey(host: Host) -> str:
    """All that is there."""
    reply = host.open("exec", argv=["python3", "-c", SURVEY])
    assert reply.answer(LONG)["exit"] == {**reply.answer()["exit"], "code": 0}, bytes(reply.err)
    return reply.out.decode()


def test_files_move_into_another_sandbox(start: Callable[..., Box]) -> None:
    """What was written is there again, and what the new sandbox had before is not."""
    first, second = start(), start()
    data = os.urandom(700_000)
    first.host.put("top/data", data, mode=0o600)
    first.host.put("/tmp/note", b"kept too")
    second.host.put("old", b"of another life")
    assert "error" not in (unpack(second.host, pack(first.host)).end or {})
    assert second.host.get("top/data") == data
    assert second.host.ask("stat", path="top/data")["entry"]["mode"] == 0o600
    assert second.host.get("/tmp/note") == b"kept too"
    assert second.host.ask("stat", path="old")["error"]["code"] == "not_found"
    assert second.host.open("exec", shell="cat /tmp/note").answer()["exit"]["code"] == 0


def test_programs_end_and_the_agent_goes_on(host: Host) -> None:
    """Packing ends every program; the sandbox itself still works, with its files as they were."""
    sleeper = host.open("exec", shell="sleep 100")
    sleeper.started()
    host.put("kept", b"1")
    assert pack(host)
    assert sleeper.answer()["exit"]["signal"] == 9
    assert host.get("kept") == b"1"
    assert host.open("exec", shell="echo on").answer()["exit"]["code"] == 0


def test_who_leaves_a_packing_leaves_nothing_behind(host: Host) -> None:
    """A packing that is cancelled half way is over, and the next one is whole."""
    host.put("data", bytes(range(256)) * 8000)
    reply = host.open("pack", automatic=False)
    reply.until(lambda r: len(r.out) > 100_000)
    reply.cancel()
    host.settle()
    assert len(pack(host)) > 2_000_000


@pytest.mark.parametrize("damage", ["", "no archive at all", "cut"])
def test_what_is_no_archive_is_refused(start: Callable[..., Box], damage: str) -> None:
    """Nothing, nonsense and half an archive are refused; the agent lives on."""
    first, second = start(), start()
    first.host.put("data", os.urandom(50_000))
    data = pack(first.host)[:-1000] if damage == "cut" else damage.encode()
    assert unpack(second.host, data).error == "bad_request"
    assert second.host.ask("ping") == {}


def test_everything_a_file_system_has_comes_back(bench: Bench, start: Callable[..., Box]) -> None:
    """Odd names, links of both kinds, holes, pipes, modes, times, empty and closed directories; a socket does not."""
    if not bench.subject.real:
        pytest.skip("its files are a dictionary's")
    first, second = start(), start()
    made = first.host.open("exec", argv=["python3", "-c", MAKE])
    assert made.answer(LONG)["exit"]["code"] == 0, bytes(made.err)
    first.host.ask("remove", path="sock")
    first.host.open("exec", shell="chmod 700 closed && touch -d @1000000000.5 .").answer()
    before = survey(first.host)
    first.host.open("exec", shell="chmod 0 closed; touch -d @1000 .; ls -la > /tmp/ls").answer()
    data = pack(first.host)
    assert len(data) < 2 * MIB, "holes are not sent"
    assert "error" not in (unpack(second.host, data).end or {})
    assert second.host.ask("stat", path="closed")["entry"]["mode"] == 0
    assert second.host.ask("stat", path=".")["entry"]["mtime"] == 1000
    second.host.open("exec", shell="chmod 700 closed && touch -d @1000000000.5 .").answer()
    after = survey(second.host)
    assert [line for line in after.splitlines() if line not in before] == []
    assert [line for line in before.splitlines() if line not in after] == []


def test_each_file_keeps_its_owner(bench: Bench, start: Callable[..., Box]) -> None:
    """What root made inside is root's again, also in a directory that root could not write to any more."""
    if "root" not in bench.can.users:
        pytest.skip("it has one user")
    first, second = start(), start()
    for user, line in (
        ("user", "mkdir mixed secret && chmod 777 mixed && echo mine > secret/mine && chmod 700 secret"),
        ("root", "umask 077; echo roots > mixed/roots && mkdir mixed/dir && echo deep > mixed/dir/deep"),
        ("root", "echo r > /tmp/r && chmod 600 /tmp/r && ln mixed/roots mixed/again"),
        ("user", "chmod 755 mixed && chmod 500 mixed"),
    ):
        reply = first.host.open("exec", shell=line, user=user)
        assert reply.answer()["exit"]["code"] == 0, bytes(reply.err)
    assert "error" not in (unpack(second.host, pack(first.host)).end or {})
    reply = second.host.open("exec", shell="stat -c '%n %u %a %h' mixed mixed/* secret /tmp/r", user="user")
    reply.answer()
    wanted = ["mixed 1000 500 3", "mixed/again 0 600 2", "mixed/dir 0 700 2", "mixed/roots 0 600 2"]
    assert bytes(reply.out).decode().splitlines() == [*wanted, "secret 1000 700 2", "/tmp/r 0 600 1"]
    second.host.open("exec", shell="chmod 755 mixed").answer()
    reply = second.host.open("exec", shell="cat mixed/roots mixed/dir/deep /tmp/r", user="root")
    reply.answer()
    assert bytes(reply.out) == b"roots\ndeep\nr\n"


def test_a_program_that_writes_and_forks_is_stopped_first(bench: Bench, start: Callable[..., Box]) -> None:
    """A file that grows all the while is whole in the archive: no program outlives the beginning of a packing."""
    if not bench.subject.real:
        pytest.skip("it has no processes")
    first, second = start(), start()
    noisy = first.host.open("exec", shell=NOISE)
    noisy.answer()
    data = pack(first.host)
    size = first.host.ask("stat", path="grows")["entry"]["size"]
    assert "error" not in (unpack(second.host, data).end or {})
    assert second.host.ask("stat", path="grows")["entry"]["size"] == size > 0
    assert first.host.ask("stat", path="grows")["entry"]["size"] == size


def test_a_hundred_mebibytes_and_ten_thousand_files(bench: Bench, start: Callable[..., Box]) -> None:
    """Size alone changes nothing, and it arrives whole; under gVisor a tenth of it, but for CI."""
    if not bench.subject.real:
        pytest.skip("its files are a dictionary's")
    roomy = Limits(memory_bytes=512 * MIB, cpus=2.0, scratch_bytes=160 * MIB, processes=32, wall_seconds=60)
    part = 10 if bench.subject.name == "gvisor" and not scale.EVERYTHING else 100
    first, second = start(limits=roomy), start(limits=roomy)
    made = first.host.open("exec", argv=["python3", "-c", MANY.format(part=part)])
    assert made.answer(LONG)["exit"]["code"] == 0, bytes(made.err)
    check = "find many -type f | sort | xargs cat | sha256sum; sha256sum big; find many -type f | wc -l"
    before = first.host.open("exec", shell=check)
    before.answer(LONG)
    assert "error" not in (unpack(second.host, pack(first.host)).end or {})
    after = second.host.open("exec", shell=check)
    after.answer(LONG)
    assert bytes(after.out) == bytes(before.out)
    assert f"\n{part * 100}\n".encode() in after.out


def test_a_depth_beyond_every_path_comes_back(bench: Bench, start: Callable[..., Box]) -> None:
    """Directories nested further than any path can name are walked step by step."""
    if not bench.subject.real:
        pytest.skip("its files are a dictionary's")
    first, second = start(), start()
    dig = "import os\nfor _ in range(3000):\n os.mkdir('d'); os.chdir('d')\nopen('bottom', 'w').write('here')"
    made = first.host.open("exec", argv=["python3", "-c", dig])
    assert made.answer(LONG)["exit"]["code"] == 0, bytes(made.err)
    assert "error" not in (unpack(second.host, pack(first.host)).end or {})
    look = "import os\nfor _ in range(3000): os.chdir('d')\nprint(open('bottom').read())"
    seen = second.host.open("exec", argv=["python3", "-c", look])
    seen.answer(LONG)
    assert bytes(seen.out) == b"here\n"


def test_an_archive_that_does_not_fit_is_refused(bench: Bench, start: Callable[..., Box]) -> None:
    """Into a sandbox with less room it does not go, and that is said."""
    if not bench.subject.real:
        pytest.skip("its files are a dictionary's")
    small = Limits(memory_bytes=128 * MIB, cpus=2.0, scratch_bytes=4 * MIB, processes=32, wall_seconds=60)
    first, second = start(), start(limits=small)
    first.host.put("data", os.urandom(8 * MIB))
    assert unpack(second.host, pack(first.host)).error == "no_space"
