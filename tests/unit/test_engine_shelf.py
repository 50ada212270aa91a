"""Where paused sandboxes' files are kept: whole or not at all, counted, bounded, and checked before they are used."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ringfence.domain.errors import Overloaded, OverQuota, PlatformFault, RingfenceError, TooLarge
from ringfence.engine.shelf import PART, PIECE, Shelf
from ringfence.store.base import PauseRow

pytestmark = pytest.mark.anyio
NAME = "s" + "a" * 26
ROOMY = 10**12


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[tuple[Path, Shelf]]:
    """A directory and the shelf in it."""
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield tmp_path, Shelf(fd, kept_free=0)
    os.close(fd)


async def kept(shelf: Shelf, data: bytes, name: str = NAME, *, most: int = ROOMY, quota: int = ROOMY) -> PauseRow:
    """Put away."""
    async with shelf.writing("ada", name, most, quota) as blob:
        for at in range(0, len(data), 60_000):
            await blob.write(data[at : at + 60_000])
        row = await blob.finish(1.0)
        blob.keep(row)
    return row


async def test_what_is_put_away_is_had_again(place: tuple[Path, Shelf]) -> None:
    """Every byte, under its own name alone, readable by nobody else; removed, nothing is left."""
    folder, shelf = place
    data = os.urandom(3 * PIECE + 17)
    row = await kept(shelf, data)
    assert os.listdir(folder) == [NAME]
    assert (folder / NAME).stat().st_mode & 0o777 == 0o600
    assert shelf.used("ada") == len(data) == row.size
    assert b"".join([piece async for piece in shelf.reading(row)]) == data
    await shelf.remove(NAME)
    assert (os.listdir(folder), shelf.used("ada")) == ([], 0)


@pytest.mark.parametrize("when", ["writing", "finished"])
async def test_what_is_not_kept_is_removed(place: tuple[Path, Shelf], when: str) -> None:
    """Half a file never has a name of its own, and neither has a whole one that no record speaks of."""
    folder, shelf = place
    with contextlib.suppress(ZeroDivisionError):
        async with shelf.writing("ada", NAME, ROOMY, ROOMY) as blob:
            await blob.write(os.urandom(2 * PIECE))
            assert os.listdir(folder) == [NAME + PART]
            if when == "finished":
                await blob.finish(1.0)
                assert os.listdir(folder) == [NAME]
            raise ZeroDivisionError
    assert (os.listdir(folder), shelf.used("ada")) == ([], 0)


async def test_a_writer_that_is_cancelled_leaves_nothing(place: tuple[Path, Shelf]) -> None:
    """Whenever it is broken off: no file, no descriptor, no count."""
    folder, shelf = place
    before = len(os.listdir("/proc/self/fd"))
    for steps in range(12):
        task = asyncio.create_task(kept(shelf, os.urandom(4 * PIECE)))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await shelf.do(lambda: None)
        assert (os.listdir(folder), shelf.used("ada")) == ([], 0)
    assert len(os.listdir("/proc/self/fd")) <= before + 1


async def test_two_at_once_share_one_quota(place: tuple[Path, Shelf]) -> None:
    """What is being written counts: both together cannot have what one may."""
    folder, shelf = place
    both = [kept(shelf, bytes(3 * PIECE), NAME[:-1] + end, quota=4 * PIECE) for end in "bc"]
    answers = await asyncio.gather(*both, return_exceptions=True)
    assert len([answer for answer in answers if isinstance(answer, OverQuota)]) >= 1
    assert shelf.used("ada") == sum(file.stat().st_size for file in folder.iterdir()) <= 4 * PIECE


async def test_more_than_allowed_is_refused(place: tuple[Path, Shelf]) -> None:
    """One byte past what a sandbox can hold."""
    folder, shelf = place
    await kept(shelf, bytes(1000), most=1000)
    with pytest.raises(TooLarge):
        await kept(shelf, bytes(1001), NAME[:-1] + "b", most=1000)
    assert os.listdir(folder) == [NAME]


async def test_what_no_record_knows_is_swept(place: tuple[Path, Shelf]) -> None:
    """At the start: parts, strangers' files; and records without their file are named."""
    folder, shelf = place
    row = await kept(shelf, b"x")
    (folder / (NAME[:-1] + "b" + PART)).write_bytes(b"half")
    (folder / (NAME[:-1] + "c")).write_bytes(b"whole, and nobody's")
    missing = PauseRow(NAME[:-1] + "d", "ada", 1, b"", 1.0)
    fresh = Shelf(os.open(folder, os.O_RDONLY | os.O_DIRECTORY), kept_free=0)
    assert fresh.adopt([row, missing]) == [missing]
    assert (os.listdir(folder), fresh.used("ada")) == ([NAME], 1)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of one mebibyte."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount one")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], check=True)
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("kept_free", [0, -(1 << 40)], ids=["seen before", "seen by the write"])
async def test_a_full_disk_is_a_fault_of_ours(small: Path, kept_free: int) -> None:
    """It is said as that, nothing is left of the attempt, and what was kept before is whole."""
    fd = os.open(small, os.O_RDONLY | os.O_DIRECTORY)
    shelf = Shelf(fd, kept_free)
    row = await kept(shelf, b"first")
    with pytest.raises(Overloaded) as fault:
        await kept(shelf, os.urandom(3 * PIECE), NAME[:-1] + "b")
    assert fault.value.code == "paused_disk_full"
    assert os.listdir(small) == [NAME]
    assert b"".join([piece async for piece in shelf.reading(row)]) == b"first"
    os.close(fd)


async def test_a_directory_or_a_pipe_in_its_place_is_no_file(place: tuple[Path, Shelf]) -> None:
    """Whatever stands where a file was kept is not opened in good faith."""
    folder, shelf = place
    row = await kept(shelf, b"x")
    for make in (os.mkdir, os.mkfifo):
        path = folder / NAME
        path.unlink() if path.is_file() else os.rmdir(path)
        make(path)
        with pytest.raises((PlatformFault, RingfenceError)):
            async with asyncio.timeout(60):
                await anext(shelf.reading(row))
