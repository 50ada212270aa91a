"""Unpacking: a tar reader that believes nothing, bounds that hold, and a job that has nothing to misuse."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence.domain.errors import BadRequest, PlatformFault
from ringfence.templates.image import jobs, layers
from ringfence.templates.image.access import Bounds
from ringfence.templates.image.entries import Entry, entry_from, plain_parts
from ringfence.templates.image.manifest import Blob
from ringfence.templates.image.tar import Archive, LayerError
from ringfence.templates.image.unpack import unpack
from tests.support import images
from tests.support.images import device, file, folder, hard, link

MOST = {"unpacked_bytes": 1 << 22, "file_bytes": 1 << 21, "entries": 50, "ratio": 20, "ratio_free_bytes": 1 << 16}
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
LONG = "/".join(["folder-with-a-long-name"] * 5)


def told(blob: bytes, place: Path, **most: int) -> list[Any]:
    """What the unpacker says of a blob, line by line."""
    said: list[str] = []
    place.mkdir(exist_ok=True)
    (place.parent / "blob").write_bytes(blob)
    folder_fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    with open(place.parent / "blob", "rb") as source:
        unpack(source.fileno(), folder_fd, {**MOST, **most}, said.append)
    os.close(folder_fd)
    return [json.loads(line) for line in said]


def refusal(blob: bytes, place: Path, **most: int) -> str:
    """The code that a blob is refused with; empty when it is not."""
    last = told(blob, place, **most)[-1]
    return str(last["refused"][0]) if "refused" in last else ""


@pytest.mark.parametrize("form", FORMATS)
def test_every_form_of_tar_is_read_alike(tmp_path: Path, form: str) -> None:
    """Long names, names that are no ASCII, every kind of entry; the content arrives byte by byte."""
    members = [
        folder("a"), file("a/one", b"1" * 1000, 0o755), file("./b/", type=tarfile.DIRTYPE), link("c", "a/one"),
        hard("d", "a/one"),
        file(f"{LONG}/{'n' * 90}", b"long"), file("\u00e9\u4e2d", b"text"), device("e"), file("zero"),
    ]  # fmt: skip
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=FORMATS[form]) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    *lines, done = told(gzip.compress(buffer.getvalue()), tmp_path / "files")
    entries = [Entry(*line) for line in lines]
    assert [(entry.kind, entry.path) for entry in entries] == [
        ("folder", "a"), ("file", "a/one"), ("folder", "b"), ("link", "c"), ("hard", "d"),
        ("file", f"{LONG}/{'n' * 90}"), ("file", "\u00e9\u4e2d"), ("file", "zero"),
    ]  # fmt: skip
    assert [(entry.number, entry.size, entry.executable) for entry in entries if entry.kind == "file"] == [
        (0, 1000, True), (1, 4, False), (2, 4, False), (3, 0, False),
    ]  # fmt: skip
    assert [(tmp_path / "files" / str(number)).read_bytes() for number in range(4)] == [
        b"1" * 1000,
        b"long",
        b"text",
        b"",
    ]
    assert done["done"] == images.digest(buffer.getvalue())
    assert done["dropped"]["devices"] == 1


def test_names_of_a_layer_are_never_names_on_disk(tmp_path: Path) -> None:
    """Numbers, all in one folder, whatever the entries are called."""
    names = ["etc/passwd", "/root/.ssh/authorized_keys", "a/b/c", "0", "index", "..."]
    told(images.tar([file(name, b"x") for name in names]), tmp_path / "files")
    assert sorted(os.listdir(tmp_path / "files")) == [str(number) for number in range(6)]
    assert sorted(os.listdir(tmp_path)) == ["blob", "files"]


BOUNDS: dict[str, tuple[bytes, dict[str, int], str]] = {
    "ratio": (gzip.compress(images.tar([file("x", bytes(1 << 20))])), {}, "image_bomb"),
    "total": (images.tar([file(str(n), bytes(1 << 20)) for n in range(5)]), {}, "image_too_large"),
    "behind the end": (gzip.compress(images.tar([]) + bytes(1 << 21)), {}, "image_bomb"),
    "one file": (images.tar([file("x", bytes(1000))]), {"file_bytes": 999}, "image_too_large"),
    "entries": (images.tar([file("x")] * 51), {}, "image_too_many_entries"),
    "devices count": (images.tar([device("x")] * 51), {}, "image_too_many_entries"),
    "a header": (images.tar([file("x", pax_headers={"comment": "c" * (2 << 20)})]), {}, "image_name_too_long"),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_hold(tmp_path: Path, name: str) -> None:
    """To the byte, and also for what leaves nothing on disk."""
    blob, most, code = BOUNDS[name]
    assert refusal(blob, tmp_path / "files", **most) == code


def test_bounds_are_not_met_by_what_is_just_within(tmp_path: Path) -> None:
    """Fifty entries, two mebibytes of a file, a ratio within the free part."""
    assert refusal(images.tar([file("x", bytes(1 << 21))]), tmp_path / "a") == ""
    assert refusal(gzip.compress(images.tar([file("x", bytes(40_000))])), tmp_path / "b") == ""
    assert refusal(images.tar([folder("x")] * 50), tmp_path / "c") == ""


def _with(offset: int, value: bytes) -> bytes:
    """One member whose header has other bytes at a place, with the checksum made right again."""
    raw = bytearray(images.tar([file("x", b"y" * 600)]))
    raw[offset : offset + len(value)] = value
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    return bytes(raw)


HEADERS = {
    "a negative size": _with(124, b"\xff" * 12),
    "a size of letters": _with(124, b"12345x78901\0"),
    "a size past the end": _with(124, b"00000777777\0"),
    "a binary size": _with(124, b"\x80" + b"\x7f" * 11),
    "an unknown kind": _with(156, b"V"),
    "a wrong checksum": images.tar([file("x")])[:148] + b"000000\0 " + images.tar([file("x")])[156:],
    "half a header": images.tar([file("x")])[:300],
    "pax without end": images.tar([file("x", pax_headers={"comment": "c"})]).replace(
        b"13 comment=c\n", b"99 comment=c\n"
    ),
    "pax of nothing": images.tar([file("x", pax_headers={"comment": "c"})]).replace(
        b"13 comment=c\n", b"0 comment=cx\n"
    ),
    "a pax size of letters": images.tar([file("x", pax_headers={"size": "-1"})]),
    "a header and no member": images.tar([file("x" * 150)])[:1024],
    "gzip of nothing": b"\x1f\x8b\x08",
    "gzip that breaks": gzip.compress(os.urandom(5000))[:-2000] + b"\0" * 2000,
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_malformed_stream_is_refused(tmp_path: Path, name: str) -> None:
    """With a stable code, never with a traceback."""
    assert refusal(HEADERS[name], tmp_path / "files") in {"image_layer_damaged", "image_too_large"}


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, size: int) -> bytes:
        """What is left, at most `size` of it."""
        return self._file.read(size)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2047), st.binary(min_size=1, max_size=12)), max_size=6))
def test_no_bytes_make_the_reader_do_anything_but_read_or_refuse(changes: list[tuple[int, bytes]]) -> None:
    """A valid archive with some bytes changed, the checksum made right: members or a LayerError, soon."""
    raw = bytearray(images.tar([file("x" * 120, b"y", pax_headers={"comment": "c"}), link("l", "t")]))
    for at, value in changes:
        raw[at : at + len(value)] = value
    for start in range(0, min(len(raw), 2048), 512):
        raw[start + 148 : start + 156] = b" " * 8
        raw[start + 148 : start + 156] = b"%06o\0 " % sum(raw[start : start + 512])
    with contextlib.suppress(LayerError):
        assert len(list(Archive(_Bytes(bytes(raw))))) < 100


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_no_line_of_a_job_is_believed_unchecked(line: bytes) -> None:
    """The job has read a stranger's bytes: its words are checked like theirs."""
    with contextlib.suppress(LayerError):
        entry_from(line)


@pytest.mark.parametrize(
    "values",
    [
        ["file", "../x", "", 0, 0, False], ["file", "x", "", -1, 0, False], ["file", "x", "", True, 0, False],
        ["root", "x", "", 0, 0, False], ["file", "x", "", 0, 0], ["link", "x", "", 0, 0, False],
        ["file", "x\0", "", 0, 0, False], ["file", "\ud800", "", 0, 0, False], {}, 1,
    ],
)  # fmt: skip
def test_a_line_that_an_honest_job_would_not_write_is_refused(values: object) -> None:
    """Paths that climb, numbers that are none, kinds that there are not."""
    with pytest.raises(LayerError):
        entry_from(json.dumps(values).encode())


def test_paths_are_split_into_plain_names() -> None:
    """Leading, doubled and single dots and slashes are nothing."""
    assert plain_parts("//a/./b//c/") == ("a", "b", "c")
    assert plain_parts(".") == plain_parts("/") == plain_parts("") == ()


# -- the job --------------------------------------------------------------------------------------------------------


@pytest.fixture
def staged(tmp_path: Path) -> Iterator[Path]:
    """Where layers are unpacked to."""
    place = tmp_path / "staged"
    place.mkdir()
    yield place
    assert [name for name in os.listdir("/proc") if name.isdigit() and _is_job(name)] == []


def _is_job(pid: str) -> bool:
    try:
        return b"image.confine" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def unpacked(blob: bytes, staged: Path, **bounds: Any) -> layers.Layer:
    """Unpack in the real job."""
    name = Blob(images.digest(blob), len(blob))
    (staged.parent / "fetched").mkdir(exist_ok=True)
    (staged.parent / "fetched" / name.name).write_bytes(blob)
    fd = layers.open_blob(staged.parent / "fetched", (), name, "layer")
    try:
        return layers.unpack(name, fd, staged, Bounds(**bounds), (1 << 24, 1000), lambda _: None)
    finally:
        os.close(fd)


def test_a_layer_that_a_job_unpacked_is_ours_and_plain(staged: Path) -> None:
    """Owner, modes and times; the list of entries is kept beside the files."""
    layer = unpacked(images.tar([file("a", b"1", 0o4755), file("b", b"2", 0o600), link("c", "a")]), staged)
    infos = [(layer.folder / "files" / name).stat() for name in ("0", "1")]
    assert [(oct(info.st_mode), info.st_uid, info.st_nlink, info.st_mtime) for info in infos] == [
        ("0o100755", os.geteuid(), 1, 1_700_000_000),
        ("0o100644", os.geteuid(), 1, 1_700_000_000),
    ]
    assert len((layer.folder / "index").read_text().splitlines()) == 4
    assert layer.dropped.set_id_bits == 1


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_job_that_unpacks_has_no_rights_no_network_and_sees_one_folder(tmp_path: Path) -> None:
    """Looked at from outside while it waits for its blob: the kernel's own account of it."""
    place = tmp_path / "files"
    place.mkdir()
    jobs.give(place)
    read, write = os.pipe()
    process = jobs.start("unpack", place, rlimits={"AS": 1 << 30}, stdin=read, most=MOST)
    os.close(read)
    try:
        deadline = time.monotonic() + 60
        pid, status = 0, ""
        while time.monotonic() < deadline and "NoNewPrivs:\t1" not in status:
            pid = next(iter(_children(process.pid)), 0)
            with contextlib.suppress(OSError):  # it may have ended since, and another have come
                status = Path(f"/proc/{pid}/status").read_text() if pid else ""
            time.sleep(0.01)
        sets = re.findall(r"^Cap(?:Inh|Prm|Eff|Bnd|Amb):\t([0-9a-f]+)$", status, re.MULTILINE)
        assert sets == ["0" * 16] * 5
        owner = jobs.JOB_ID if os.geteuid() == 0 else os.geteuid()
        assert f"Uid:\t{owner}\t{owner}\t{owner}\t{owner}" in status
        assert "Groups:\t \n" in status or os.geteuid() != 0
        for kind in ("user", "mnt", "pid", "net", "ipc", "uts"):
            assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind
        interfaces = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
        assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
        assert os.listdir(f"/proc/{pid}/root") == []
        mounts = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
        assert [line.split()[4] for line in mounts] == ["/"]
        opened = {name: os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}
        assert sorted(opened, key=int) == ["0", "1", "2", "3"]
        assert opened["3"].endswith("/files") or opened["3"] == "/"
    finally:
        os.close(write)
        with process:
            process.kill()


def test_a_job_dies_with_its_builder(tmp_path: Path) -> None:
    """However the builder dies: the kernel ends the job's namespace."""
    place = tmp_path / "files"
    place.mkdir()
    jobs.give(place)
    read, write = os.pipe()
    process = jobs.start("unpack", place, rlimits={}, stdin=read, most=MOST)
    os.close(read)
    deadline = time.monotonic() + 60
    while not (found := _children(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.01)
    with process:
        process.kill()
    while Path(f"/proc/{found[0]}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.close(write)
    assert not Path(f"/proc/{found[0]}").exists()


def test_an_ended_job_is_gone_with_all_that_is_in_it(tmp_path: Path) -> None:
    """At once, not a moment later: whoever asks next sees none of it, and its folder can be removed."""
    for n in range(20):
        place = tmp_path / str(n)
        place.mkdir()
        jobs.give(place)
        read, write = os.pipe()
        with jobs.start("unpack", place, rlimits={}, stdin=read, most=MOST) as process:
            os.close(read)
            deadline = time.monotonic() + 60
            while not (found := _children(process.pid)) and time.monotonic() < deadline:
                time.sleep(0.001)
            jobs.end(process)
        os.close(write)
        assert not _is_job(str(found[0]))


def test_a_refused_layer_is_refused_through_the_job_too(staged: Path) -> None:
    """The code and the path reach the builder."""
    with pytest.raises(BadRequest, match=r"\.\./x") as caught:
        unpacked(images.tar([file("../x")]), staged)
    assert caught.value.code == "image_path_escapes"


def test_a_layer_that_takes_too_long_is_given_up(staged: Path) -> None:
    """By the clock, whatever the job is doing."""
    blob = gzip.compress(images.tar([file(str(n), os.urandom(1 << 14)) for n in range(900)]))
    with pytest.raises(BadRequest) as caught:
        unpacked(blob, staged, unpack_seconds=0.01)
    assert caught.value.code == "image_unpack_slow"


@pytest.mark.parametrize("script", ["", "echo nonsense", "echo '{}'", "head -c 300000 /dev/zero", "kill -9 $$"])
def test_a_job_that_breaks_its_protocol_is_not_believed(
    staged: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    """Were a stranger's bytes to take a job over, this is what it could still do."""

    def start(*_args: object, **_more: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    monkeypatch.setattr(jobs, "start", start)
    with pytest.raises((PlatformFault, BadRequest)):
        unpacked(images.tar([file("x")]), staged)


@pytest.mark.parametrize("trick", ["link", "hard link", "folder", "pipe", "more", "fewer", "another size"])
def test_files_that_are_not_what_a_job_told_are_not_taken_over(staged: Path, trick: str) -> None:
    """Each file is opened without following a link, and looked at, before it becomes ours."""
    files = staged / "files"
    files.mkdir()
    victim = staged / "victim"
    victim.write_text("x")
    victim.chmod(0o600)
    place = files / "0"
    acts = {
        "link": lambda: place.symlink_to(victim), "hard link": lambda: place.hardlink_to(victim), "folder": place.mkdir,
        "pipe": lambda: os.mkfifo(place), "more": lambda: [place.write_text("x"), (files / "1").write_text("x")],
        "fewer": lambda: None, "another size": lambda: place.write_text("xy"),
    }  # fmt: skip
    acts[trick]()
    with pytest.raises(PlatformFault):
        layers._adopt_files(files, [Entry("file", "a", "", 0, 1, True)])
    assert (victim.read_text(), oct(victim.stat().st_mode)) == ("x", "0o100600")


def test_a_blob_of_a_wrong_size_or_digest_or_behind_a_link_is_not_opened(tmp_path: Path) -> None:
    """Before a byte of it is unpacked."""
    right = Blob(images.digest(b"right"), 5)
    (tmp_path / right.name).write_bytes(b"right")
    os.close(layers.open_blob(tmp_path, (), right, "layer"))
    for content, code in ((b"wrong", "image_digest_mismatch"), (b"longer", "image_size_mismatch")):
        (tmp_path / right.name).write_bytes(content)
        with pytest.raises(BadRequest) as caught:
            layers.open_blob(tmp_path, (), right, "layer")
        assert caught.value.code == code
    (tmp_path / right.name).rename(tmp_path / "elsewhere")
    (tmp_path / right.name).symlink_to("elsewhere")
    with pytest.raises(BadRequest):
        layers.open_blob(tmp_path, (), right, "layer")
