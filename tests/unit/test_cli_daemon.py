"""A server in the background is known by its process, not by a number that may have been given to another one."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import msgspec
import pytest

from ringfence.cli.daemon import Daemon, Record, _answers
from ringfence.config import ServerSettings
from ringfence.domain.errors import Conflict, NotFound


def daemon(state: Path, port: int = 8642) -> Daemon:
    """The server of a state directory."""
    return Daemon(ServerSettings(state=str(state), port=port))


def test_a_process_that_reuses_a_pid_is_not_the_server(tmp_path: Path) -> None:
    """A stale file never leads to a signal for somebody else's process."""
    place = daemon(tmp_path)
    place.file.write_bytes(msgspec.json.encode(Record(os.getpid(), 1, "http://127.0.0.1:1")))
    assert place.running() is None
    with pytest.raises(NotFound):
        place.stop()


def test_a_server_writes_itself_down_while_it_serves(tmp_path: Path) -> None:
    """Whoever serves a state directory can be found through it, and no longer afterwards."""
    place = daemon(tmp_path)
    with place.recorded():
        record = place.running()
        assert record is not None
        assert (record.pid, record.url) == (os.getpid(), "http://127.0.0.1:8642")
    assert not place.file.exists()


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"pid": "x"}', b"\xff"])
def test_a_damaged_file_is_no_server(tmp_path: Path, text: bytes) -> None:
    """A file cut short by a crash does not stand in the way."""
    place = daemon(tmp_path)
    place.file.write_bytes(text)
    assert place.running() is None


def test_a_port_that_is_taken_is_named_before_anything_is_started(tmp_path: Path) -> None:
    """Somebody else's service on the port is not taken for a server of ours."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = daemon(tmp_path, listener.getsockname()[1])
        with pytest.raises(Conflict, match="already listens") as raised:
            place.ensure()
    assert "--port" in raised.value.remediation
    assert not place.log.exists()


def test_a_server_that_takes_connections_and_says_nothing_is_not_ready() -> None:
    """Its port is taken, and nobody may be told that it serves: a busy machine starts slowly."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert not _answers(url, slowly=False)
        assert _answers(url)
    assert not _answers(url)
