"""Streams are cut into lines and events the same way however the network cut them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.client import Unreachable
from ringfence.client import lines as module
from ringfence.client.lines import Lines, ServerEvents


@given(st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"\n", b"").replace(b"\r", b"")), max_size=8), st.data())
def test_lines_do_not_depend_on_where_the_pieces_end(lines: list[bytes], data: st.DataObject) -> None:
    """Any way of cutting the same bytes gives the same lines."""
    whole = b"".join(line + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    reader = Lines()
    assert [line for piece in pieces for line in reader.feed(piece)] == lines
    assert reader.complete()


def test_a_cut_line_is_not_complete() -> None:
    """A stream that ends inside a line can be told from one that ended."""
    reader = Lines()
    assert list(reader.feed(b'{"a": 1}\n{"b"')) == [b'{"a": 1}']
    assert not reader.complete()


def test_an_endless_line_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken server cannot fill the client's memory."""
    monkeypatch.setattr(module, "MOST", 10)
    with pytest.raises(Unreachable, match="more than"):
        list(Lines().feed(b"x" * 11))


def test_events_carry_their_name_id_and_data() -> None:
    """Names, ids and several data lines are read; comments and unknown fields are not events."""
    reader = ServerEvents()
    found = list(
        reader.feed(b": keep-alive\n\nevent: sandbox.created\nid: 7\ndata: {\ndata: }\nretry: 5\n\ndata:x\n\nda")
    )
    assert [(e.name, e.id, e.data) for e in found] == [("sandbox.created", "7", "{\n}"), ("message", "7", "x")]
    assert next(reader.feed(b"ta: y\n\n")).data == "y"
