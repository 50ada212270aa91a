"""A sandbox's first word, and the ways in which it does not come."""

from __future__ import annotations

import socket

import pytest

from ringfence.domain.errors import SandboxRefused
from ringfence.runtimes.ready import ready

pytestmark = pytest.mark.anyio


def ends() -> tuple[socket.socket, socket.socket]:
    """The host's end, which waits for nothing, and the guest's."""
    host, guest = socket.socketpair()
    host.setblocking(False)
    return host, guest


async def test_a_guest_that_dies_is_told_from_one_that_is_slow() -> None:
    """Whether it had read our word or not: the one is an end of its stream, the other a reset."""
    for unread in (b"", b"G"):
        host, guest = ends()
        host.send(unread)
        guest.close()
        with host, pytest.raises(SandboxRefused) as caught:
            await ready(host)
        assert caught.value.code == "died_in_setup"
