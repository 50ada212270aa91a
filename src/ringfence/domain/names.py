"""Host names and addresses, read by one strict parser wherever they come from: a policy, a packet, a header.

A check that reads a name differently from whoever uses it is no check (attack 90). So there is one spelling: ASCII
letters, digits and hyphens, in lower case, in labels, without a dot at the end. Nothing is repaired on the way in.
"""

from __future__ import annotations

import re
import unicodedata
from encodings import punycode  # by name: in the gate, whose root is empty, no codec can be looked up any more
from ipaddress import IPv4Address, IPv4Network
from typing import Final

MOST_NAME: Final = 253
MOST_LABEL: Final = 63
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_OCTET: Final = r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_ADDRESS: Final = re.compile(rf"{_OCTET}(\.{_OCTET}){{3}}")
# Alphabets with letters that pass for Latin ones.
_LOOKALIKES: Final = frozenset({"CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE", "COPTIC", "FULLWIDTH", "MATHEMATICAL"})


class BadName(ValueError):
    """Not a name, or not an address; its text says why, to follow the words of who found it."""


def _characters(text: str) -> None:
    if "\0" in text:
        raise BadName("has a NUL in it")
    if not text.isascii():
        raise BadName("is not plain ASCII: characters of other alphabets can look like it; write it as xn--...")
    if any(c.isspace() or not c.isprintable() for c in text):
        raise BadName("has a blank or a control character in it")
    if text != text.lower():
        raise BadName("has upper case letters: write it in lower case")


def _encoded(label: str) -> None:
    """An xn-- label must be the one encoding of something, and not of letters that pass for others."""
    try:
        plain = punycode.punycode_decode(label[4:], "strict")
        same = punycode.punycode_encode(plain).decode("ascii") == label[4:]
    except (UnicodeError, ValueError):
        raise BadName(f"has a label that is no valid punycode: {label:.63}") from None
    if not same or plain.isascii():
        raise BadName(f"has a label that is no proper punycode: {label:.63}")
    scripts = {unicodedata.name(c, "?").split()[0] for c in plain if not c.isdigit() and c != "-"}
    if scripts & _LOOKALIKES and len(scripts) > 1:
        raise BadName(f"has a label that mixes alphabets which look alike: {label:.63}")


def _label(label: str) -> None:
    if not label:
        raise BadName("has an empty label: two dots in a row, or one at the start")
    if len(label) > MOST_LABEL:
        raise BadName(f"has a label longer than {MOST_LABEL} characters")
    if not _LABEL.fullmatch(label):
        raise BadName("has a label of other than letters, digits and inner hyphens")
    if label.startswith("xn--"):
        _encoded(label)
    elif label[2:4] == "--":
        raise BadName("has a label with hyphens at its third and fourth place, which is reserved")


def host_name(text: str) -> str:
    """A name of at least two labels, exactly as it is spelt. Raises BadName saying what is wrong with it."""
    if not text:
        raise BadName("is empty")
    if len(text) > MOST_NAME:
        raise BadName(f"is longer than {MOST_NAME} characters")
    _characters(text)
    if text.endswith("."):
        raise BadName("ends with a dot: leave it out")
    labels = text.split(".")
    # Whoever resolves 127.1, 0x7f.1 or 2130706433 takes it for an address (attack 90).
    if _NUMBER.fullmatch(labels[-1]):
        raise BadName("ends in a number and would be taken for an address")
    for label in labels:
        _label(label)
    if len(labels) < 2:
        raise BadName("has a single label")
    return text


def heard_name(raw: bytes) -> str:
    """A name from a packet or a header: as `host_name`, but its case says nothing. Raises BadName."""
    if len(raw) > MOST_NAME:
        raise BadName(f"is longer than {MOST_NAME} characters")
    return host_name(raw.decode("latin-1").lower() if raw.isascii() else raw.decode("latin-1"))


def pattern(text: str) -> str:
    """A name, or `*.` and a name for everything below it but not itself. Raises BadName."""
    if text == "*":
        raise BadName("allows every name: list the names")
    if "*" not in text:
        return host_name(text)
    if not text.startswith("*.") or "*" in text[1:]:
        raise BadName("has a wildcard elsewhere than as its whole first label")
    host_name(text[2:])
    return text


def address(text: str) -> IPv4Address:
    """An IPv4 address in its one plain spelling: no octal, no hexadecimal, no missing part. Raises BadName."""
    if not _ADDRESS.fullmatch(text):
        raise BadName("is no address of four plain numbers")
    return IPv4Address(text)


def network(text: str) -> IPv4Network:
    """An IPv4 network as a.b.c.d/n whose host bits are zero. Raises BadName."""
    base, slash, size = text.partition("/")
    if ":" in text:
        raise BadName("is IPv6, which no sandbox has")
    if slash and not (re.fullmatch(r"[0-9]{1,2}", size) and int(size) <= 32 and str(int(size)) == size):
        raise BadName("has no prefix length from 0 to 32")
    first = address(base)
    try:
        return IPv4Network((int(first), int(size) if slash else 32))
    except ValueError:
        raise BadName("has bits set behind its prefix") from None
