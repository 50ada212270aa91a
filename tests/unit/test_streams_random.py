"""Any sequence of frames, and any bytes: the channel keeps its promises (listed in tests/fuzz/target.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence.guest import frames
from tests.fuzz import target

CORPUS = Path(target.__file__).parent / "corpus"
STREAMS = st.integers(1, 4)
OPENS = st.sampled_from([json.dumps({"op": op}).encode() for op in (*target.OPS, "unknown")] + [b"", b"[]", b"\xff"])
MESSAGES = st.sampled_from([b"{}", b'{"resize": {"cols": -1}}', b"[", b"null", b"7", b'{"a":' * 3000])
DATA = st.integers(0, frames.MAX_DATA).map(lambda size: b"\x01\x02" * (size // 2) + b"\x03" * (size % 2))

FRAMES = st.one_of(
    st.builds(frames.encode, st.just(frames.OPEN), STREAMS, OPENS),
    st.builds(frames.encode, st.just(frames.STDIN), STREAMS, DATA),
    st.builds(frames.encode, st.sampled_from([frames.EOF, frames.CANCEL]), STREAMS),
    st.builds(frames.credit, STREAMS, st.integers(0, 300_000) | st.integers(0, 2**32 - 1)),
    st.builds(frames.encode, st.just(frames.CONTROL), STREAMS, MESSAGES),
    st.builds(frames.encode, st.sampled_from([frames.STDOUT, frames.STDERR, frames.END]), STREAMS, st.binary()),
    st.binary(min_size=1, max_size=12),
)
STEPS = st.sampled_from([9, 1000, 65_545, 1 << 20])


@settings(deadline=None)
@given(st.lists(FRAMES, max_size=30), STEPS, st.booleans())
def test_random_frames_break_nothing(sent: list[bytes], step: int, greedy: bool) -> None:
    """Frames in any order, true or false, read eagerly or hardly at all: no exception, no byte past the credit."""
    data = b"".join(sent)
    target.check_channel(data, max(step, len(data) // 500), greedy)


@settings(deadline=None)
@given(st.lists(FRAMES, max_size=10), STEPS)
def test_random_bytes_are_parsed_alike_however_cut(sent: list[bytes], step: int) -> None:
    """The parser's answer does not depend on the cut."""
    target.check_parser(b"".join(sent), step)


@pytest.mark.parametrize("seed", sorted(CORPUS.iterdir()), ids=lambda seed: str(seed.name))
def test_the_corpus_breaks_nothing(seed: Path) -> None:
    """Every seed, and every input that once broke something, keeps being tried without a fuzzer."""
    target.one_input(seed.read_bytes())
