"""Local files at the end of a transfer: whole or not at all, and never more open than they were."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import httpx
import pytest

from ringfence.client import DeadlineExceeded, transfer
from ringfence.client.deadline import HEAD_SECONDS, Deadline


def test_a_broken_transfer_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    """Half a download never replaces a file."""
    target = tmp_path / "data"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), transfer.target(target) as file:
        file.write(bytes(1 // (len(target.read_text()) - 3)))
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_new_file_is_as_open_as_any_other_and_an_old_one_as_it_was(tmp_path: Path) -> None:
    """A temporary file's privacy is not left on the result, and a private file stays private."""
    fresh, private = tmp_path / "fresh", tmp_path / "private"
    private.touch(0o600)
    old = os.umask(0o027)
    try:
        for path in (fresh, private):
            with transfer.target(path) as file:
                file.write(b"x")
    finally:
        os.umask(old)
    assert fresh.stat().st_mode & 0o777 == 0o640
    assert private.stat().st_mode & 0o777 == 0o600


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    """A download to a name that is a link does not write where the link points."""
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_text("untouched")
    link.symlink_to(victim)
    with transfer.target(link) as file:
        file.write(b"new")
    assert victim.read_text() == "untouched"
    assert not link.is_symlink()
    assert link.read_text() == "new"


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    """`-o out:/dev/stdout` and named pipes work."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    with transfer.target(pipe) as file:
        file.write(b"through")
    reader.join(60)
    assert read == [b"through"]
    assert pipe.is_fifo()


def test_an_open_file_stays_open() -> None:
    """What the caller opened the caller closes."""
    buffer = io.BytesIO(b"abc")
    with transfer.source(buffer) as file:
        assert b"".join(transfer.pieces(file)) == b"abc"
    assert not buffer.closed


def test_a_deadline_is_the_sum_of_all_waits() -> None:
    """Nothing is left of a deadline that has passed, and none of it is spent on pauses that do not fit."""
    gone = Deadline(0.0)
    with pytest.raises(DeadlineExceeded, match="within 0 s"):
        gone.left()
    assert list(gone.pauses()) == []
    assert Deadline(None).left() is None
    bounded = Deadline(None, silence=2)
    request = httpx.Request("GET", "http://x", extensions={"timeout": bounded.httpx().as_dict()})
    assert request.extensions["timeout"]["read"] == HEAD_SECONDS
    bounded.listen(httpx.Response(200, request=request))
    assert request.extensions["timeout"]["read"] == 2
    assert (Deadline(1.0, silence=5).httpx().read or 9) <= 1
