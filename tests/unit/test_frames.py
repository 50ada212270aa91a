"""The frame format: what goes in comes out, however it is cut, and a lie is noticed before it costs memory."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.guest import frames

RAW = (frames.STDIN, frames.STDOUT, frames.STDERR)
JSON = (frames.OPEN, frames.CONTROL, frames.END)
BOUNDS = dict.fromkeys(RAW, frames.MAX_DATA) | dict.fromkeys(JSON, frames.MAX_JSON)
BOUNDS |= {frames.EOF: 0, frames.CANCEL: 0, frames.CREDIT: 4}
STREAMS = st.integers(0, 2**32 - 1)


def _frame(type_: int) -> st.SearchStrategy[frames.Frame]:
    most = min(BOUNDS[type_], 3000)
    return st.builds(frames.Frame, st.just(type_), STREAMS, st.binary(min_size=4 if most == 4 else 0, max_size=most))


FRAMES = st.lists(st.sampled_from(sorted(BOUNDS)).flatmap(_frame), max_size=20)


def _pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """The data in pieces, some of them empty."""
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def _encoded(sent: list[frames.Frame]) -> bytes:
    return b"".join(frames.encode(*frame) for frame in sent)


@given(FRAMES, st.lists(st.integers(0, 1 << 20), max_size=40))
def test_any_cutting_gives_the_same_frames(sent: list[frames.Frame], cuts: list[int]) -> None:
    """A stream of bytes has no edges: wherever it is cut, the same frames come out, and nothing is left over."""
    parser = frames.Parser()
    received = [frame for piece in _pieces(_encoded(sent), cuts) for frame in parser.feed(piece)]
    assert received == sent
    assert parser.pending == 0


@given(FRAMES, st.binary(max_size=200), st.lists(st.integers(0, 1 << 20), max_size=20))
def test_garbage_gives_frames_or_an_error(sent: list[frames.Frame], garbage: bytes, cuts: list[int]) -> None:
    """Whatever follows good frames, they were delivered byte for byte, and the rest is held, parsed or refused."""
    data = _encoded(sent) + garbage
    parser = frames.Parser()
    received: list[frames.Frame] = []
    fed = 0
    try:
        for piece in _pieces(data, cuts):
            fed += len(piece)
            received += parser.feed(piece)
            assert parser.pending <= frames.MAX_JSON + frames.HEADER.size
            assert _encoded(received) == data[: fed - parser.pending]
    except frames.FrameError:
        assert data.startswith(_encoded(received))


@given(FRAMES, st.integers(11, 255), st.integers(0, 1 << 20))
def test_byte_by_byte_everything_before_a_lie_is_delivered(sent: list[frames.Frame], type_: int, length: int) -> None:
    """An unknown type is refused with its header, whatever its length says, and costs none of what came before."""
    parser = frames.Parser()
    received: list[frames.Frame] = []
    *truth, last = _encoded(sent) + frames.HEADER.pack(length, type_, 1)
    for byte in truth:
        received += parser.feed(bytes([byte]))
    with pytest.raises(frames.FrameError):
        parser.feed(bytes([last]))
    assert received == sent


@pytest.mark.parametrize(("type_", "bound"), sorted(BOUNDS.items()))
def test_a_length_past_its_bound_is_refused_by_its_header(type_: int, bound: int) -> None:
    """Nothing is collected for a frame that lies about its size: 2³¹ and one too many are refused alike."""
    for length in (bound + 1, 2**31, 2**32 - 1):
        with pytest.raises(frames.FrameError):
            frames.Parser().feed(frames.HEADER.pack(length, type_, 7))


@pytest.mark.parametrize(("type_", "bound"), sorted(BOUNDS.items()))
def test_the_bound_itself_is_allowed(type_: int, bound: int) -> None:
    """A frame exactly as large as its type allows goes through; one byte more is refused by the sender too."""
    assert frames.Parser().feed(frames.encode(type_, 1, bytes(bound))) == [(type_, 1, bytes(bound))]
    with pytest.raises(frames.FrameError):
        frames.encode(type_, 1, bytes(bound + 1))


@pytest.mark.parametrize("length", [0, 1, 2, 3, 5])
def test_a_credit_of_the_wrong_length_is_refused(length: int) -> None:
    """Credit is four bytes, on both sides."""
    with pytest.raises(frames.FrameError):
        frames.credit_of(bytes(length))
    with pytest.raises(frames.FrameError):
        frames.Parser().feed(frames.HEADER.pack(length, frames.CREDIT, 1) + bytes(length))


@pytest.mark.parametrize("type_", [0, 11, 255, -1])
def test_an_unknown_type_is_not_sent(type_: int) -> None:
    """The sender refuses what the reader would."""
    with pytest.raises(frames.FrameError):
        frames.encode(type_, 1)


@given(STREAMS, st.integers(0, 2**32 - 1))
def test_credit_survives_the_way(stream: int, count: int) -> None:
    """A CREDIT frame carries its count."""
    ((type_, to, payload),) = frames.Parser().feed(frames.credit(stream, count))
    assert (type_, to, frames.credit_of(payload)) == (frames.CREDIT, stream, count)


def test_half_a_frame_is_kept_and_no_more() -> None:
    """A frame that never completes holds what came of it; bytes fed after whole frames are not kept."""
    parser = frames.Parser()
    parser.feed(frames.HEADER.pack(frames.MAX_JSON, frames.OPEN, 1))
    for _ in range(100):
        assert parser.feed(b"x" * 1000) == []
    assert parser.pending == frames.HEADER.size + 100_000
    (frame,) = parser.feed(b"x" * (frames.MAX_JSON - 100_000))
    assert len(frame.payload) == frames.MAX_JSON
    assert parser.pending == 0


def test_the_header_is_what_the_page_says() -> None:
    """Length, type, stream; big-endian; nine bytes. A second implementation can rely on it."""
    assert frames.encode(frames.STDIN, 0x01020304, b"hi") == struct.pack(">IBI", 2, 2, 0x01020304) + b"hi"
