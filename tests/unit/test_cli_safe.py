"""What an untrusted program prints cannot make our own terminal do anything but show text and colours."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.cli.safe import Sanitiser, StringFilter, clean

HOSTILE = {
    "write the clipboard": b"\x1b]52;c;c3R1ZmY=\x07",
    "write the clipboard, ended by ST": b"\x1b]52;c;c3R1ZmY=\x1b\\",
    "set the title": b"\x1b]0;pwned\x07",
    "have the title typed": b"\x1b[21t",
    "ask for the cursor": b"\x1b[6n",
    "ask who the terminal is": b"\x1b[c\x1b[>c\x1bZ",
    "a link to a script": b"\x1b]8;;javascript:alert(1)\x07",
    "define a key": b"\x1bP1;1|17/6c730d\x1b\\",
    "ask for a setting": b'\x1bP$q"p\x1b\\',
    "draw a picture": b"\x1bPq#0;2;0;0;0\x1b\\",
    "clear the screen": b"\x1b[2J\x1b[H",
    "hide the cursor, other screen": b"\x1b[?25l\x1b[?1049h",
    "repeat a character for ever": b"\x1b[999999999b",
    "reset the terminal": b"\x1bc",
    "eight-bit CSI": "\x9b6n".encode(),
    "eight-bit OSC": "\x9d0;pwned\x9c".encode(),
    "application message": b"\x1b_Gpayload\x1b\\",
    "privacy message": b"\x1b^x\x1b\\",
    "ring, back, vertical": b"\x07\x08\x0b\x0c\x0e\x0f\x7f\x05",
}
COLOUR = re.compile(r"\x1b\[[0-9;:]*m")


def shown(*pieces: bytes) -> str:
    """What is printed for these pieces."""
    guard = Sanitiser()
    return "".join(guard.feed(piece) for piece in pieces) + guard.close()


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_dropped_whole(name: str) -> None:
    """No byte of a control sequence reaches the terminal, and what is around it does."""
    assert shown(b"a", HOSTILE[name], b"z") == "az"


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_dropped_when_it_comes_one_byte_at_a_time(name: str) -> None:
    """A sequence cannot slip through by arriving in pieces."""
    assert shown(*(bytes([b]) for b in b"a" + HOSTILE[name] + b"z")) == "az"


def test_text_colours_and_line_ends_pass() -> None:
    """An ordinary program looks as it should, and a colour left on is ended."""
    assert shown("grün\t\x1b[1;32mok\x1b[0m\r\n".encode()) == "grün\t\x1b[1;32mok\x1b[0m\r\n"
    assert shown(b"\x1b[31mred") == "\x1b[31mred\x1b[0m"


def test_a_character_cut_in_two_is_one_character() -> None:
    """UTF-8 does not break where the network breaks."""
    word = "é☃".encode()
    assert shown(*(bytes([b]) for b in word)) == "é☃"
    assert shown(b"\xff") == "\N{REPLACEMENT CHARACTER}"


def test_an_unfinished_string_hides_at_most_its_line() -> None:
    """A program cannot make what comes later invisible."""
    assert shown(b"\x1b]0;never ended\nsecond line\n") == "\nsecond line\n"
    assert "A" * 5000 in shown(b"\x1b]0;" + b"A" * 5000)


@given(st.lists(st.binary(max_size=40) | st.sampled_from(sorted(HOSTILE.values())), max_size=6))
def test_no_bytes_whatever_leave_a_control_character(pieces: list[bytes]) -> None:
    """For any bytes in any pieces, only line ends, tabs and colours remain of the control characters."""
    left = COLOUR.sub("", shown(*pieces))
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", left)


@given(st.text(alphabet=st.characters(blacklist_categories=("Cc", "Cs"))))
def test_any_text_passes_unchanged(text: str) -> None:
    """Nothing but control characters is touched."""
    assert shown(text.encode()) == text


def test_a_name_in_a_table_is_one_harmless_line() -> None:
    """A label or a file name chosen by somebody else cannot break a table."""
    assert (
        clean("a\nb\x1b[2J\x9b") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}"
    )


@pytest.mark.parametrize("cut", range(12))
def test_a_real_terminal_session_keeps_its_cursor_but_not_its_strings(cut: int) -> None:
    """An editor works in `shell`; the clipboard, the title and pictures stay out, however the bytes are cut."""
    data = b"\x1b[2J\x1b]0;t\x07x\x1b[6;1Hy\x1bPq\x1b\\z"
    guard = StringFilter()
    assert guard.feed(data[:cut]) + guard.feed(data[cut:]) == b"\x1b[2Jx\x1b[6;1Hyz"


def test_an_endless_string_in_a_session_is_not_kept() -> None:
    """A string that never ends costs no memory and shows nothing, as on any terminal."""
    guard = StringFilter()
    assert guard.feed(b"\x1b]0;") == b""
    assert all(guard.feed(b"A" * 4096) == b"" for _ in range(50))
    assert guard.feed(b"\x07after") == b"after"
