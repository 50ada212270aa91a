"""Where a template's Debian comes from: what the host's apt files say, read with care."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringfence.templates import debian

DEB822 = """\
# the usual file of a cloud image
Types: deb deb-src
URIs: mirror+file:///etc/apt/mirrors/debian.list
Suites: bookworm bookworm-updates bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: https://mirror.example/debian-security
Suites: bookworm-security
Components: main contrib
"""


def test_deb822_gives_one_line_per_address_and_suite() -> None:
    """A stanza with several suites becomes several lines; backports are not part of plain Debian."""
    signed = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] "
    assert debian.sources_from([("debian.sources", DEB822)], "bookworm") == [
        f"deb {signed}mirror+file:///etc/apt/mirrors/debian.list bookworm main",
        f"deb {signed}mirror+file:///etc/apt/mirrors/debian.list bookworm-updates main",
        "deb https://mirror.example/debian-security bookworm-security main contrib",
    ]


def test_one_line_sources_are_taken_as_they_are() -> None:
    """Options in brackets stay; comments and source packages are left out."""
    line = "deb [arch=amd64] http://mirror/debian bookworm main"
    text = f"{line}\n# deb http://x bookworm main\ndeb-src http://y bookworm main\n"
    assert debian.sources_from([("sources.list", text)], "bookworm") == [line]


def test_a_third_party_with_a_key_of_its_own_is_left_out() -> None:
    """An archive that borrows Debian's suite name brings no package into a sandbox."""
    texts = [
        ("debian.list", "deb http://deb.debian.org/debian bookworm main"),
        ("tool.list", "deb [signed-by=/etc/apt/keyrings/tool.gpg] https://apt.tool.example bookworm main"),
        ("other.list", "deb https://packages.example bookworm-pgdg main"),
    ]
    assert debian.sources_from(texts, "bookworm") == ["deb http://deb.debian.org/debian bookworm main"]


def test_a_mirror_signed_anew_is_used_when_it_is_all_there_is() -> None:
    """A company that signs its own mirror still gets its templates from it."""
    line = "deb [signed-by=/etc/apt/keyrings/company.gpg] https://mirror.company bookworm main"
    assert debian.sources_from([("company.list", line)], "bookworm") == [line]


@pytest.mark.parametrize(
    "text",
    ["", "deb http://x trixie main\n", "deb http://x bookworm-security main\n", "deb http://x bookworm contrib\n"],
)
def test_sources_without_the_suite_itself_are_no_sources(text: str) -> None:
    """Half of a Debian is none: the builder then turns to Debian's own mirror."""
    assert debian.sources_from([("sources.list", text)], "bookworm") == []


def test_a_disabled_stanza_and_an_inline_key_are_understood() -> None:
    """`Enabled: no` is obeyed, and a key written into the stanza does not end up as a path."""
    inline = DEB822.replace(
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg", "Signed-By:\n -----BEGIN\n .\n x"
    )
    assert debian.sources_from([("a.sources", inline)], "bookworm")[0].startswith("deb mirror+file:")
    assert debian.sources_from([("a.sources", "Enabled: no\n" + DEB822.partition("\n\n")[0])], "bookworm") == []


def test_files_that_apt_ignores_are_ignored(tmp_path: Path) -> None:
    """A backup beside the real file does not count; with nothing left, Debian's own mirror does."""
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / "debian.list.save").write_text("deb http://old bookworm main\n")
    assert debian.host_sources(tmp_path) == debian.default_sources()


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("deb http://m/debian bookworm main", "deb http://m/debian trixie main"),
        ("deb [signed-by=/k.gpg] http://m/s bookworm-security main contrib",
         "deb [signed-by=/k.gpg] http://m/s trixie-security main contrib"),
        ("deb http://m/bookworm bookworm-updates main", "deb http://m/bookworm trixie-updates main"),
    ],
)  # fmt: skip
def test_a_host_of_another_release_lends_its_mirror(line: str, asked: str) -> None:
    """Templates are of one release whatever the host's; the mirror that the host can reach serves them all."""
    assert debian.of_our_suite(line, "bookworm") == asked
