"""Kernels that are known again: what their tags say, and what they hear of whoever left in the middle of a line."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from typing import Any

import pytest

from ringfence.api.compat.e2b.interpreter.kernel import GREETING
from ringfence.api.compat.e2b.interpreter.tags import Tag

ID = str(uuid.UUID(int=7))


@pytest.mark.parametrize("cwd", ["/home/user", "/tmp/with spaces  and\nlines", "rel ative"])
@pytest.mark.parametrize("usual", [True, False])
def test_a_tag_says_which_context_it_is(cwd: str, usual: bool) -> None:
    """And is read back as it was."""
    tag = Tag(ID, "typescript", usual, cwd)
    assert Tag.read(tag.text) == tag
    assert not Tag.outdated(tag.text)


@pytest.mark.parametrize(
    "text",
    [
        None, "", "kernel-1", f"kernel-1 {ID}", f"kernel-1 {ID} python usual", f"kernel-1 {ID} cobol usual /tmp",
        f"kernel-1 {ID.upper()[:-1]}G python usual /tmp", f"kernel-1 {ID}x python own /tmp",
        f"kernel-2 {ID} python own /tmp",
        f"kernel-1 {ID} python own /a/../b", f"kernel-1 {ID} python own /a\0b", f"kernel-1 {ID} python own ",
        f"kernel-1 {ID} python own /{'x' * 5000}", "start", "terminal",
    ],
)  # fmt: skip
def test_a_tag_that_is_none_of_ours_is_nothing(text: str | None) -> None:
    """Whatever a program inside calls itself."""
    assert Tag.read(text) is None


def test_a_kernel_of_another_time_is_known_as_one() -> None:
    """It is ended, where a program that merely has some tag is left alone."""
    assert Tag.outdated(f"kernel-0 {ID} python own /tmp")
    assert not any(Tag.outdated(text) for text in (None, "", "kernel", "start", "terminal"))


PROGRAM = """
import json, os
from ringfence.guest.kernel.speech import Interrupts, Speech, requests
os.write(2, json.dumps(list(requests(0, b"", Speech(1, Interrupts())))).encode())
"""
CELL = json.dumps({"code": "é", "env": {}, "id": 1}).encode()


def asked(data: bytes) -> tuple[list[dict[str, Any]], bytes]:
    """What a kernel takes from its input, and what it answers by itself."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], input=data, capture_output=True, timeout=60, check=True)
    return json.loads(done.stderr), done.stdout


def test_a_greeting_ends_a_line_at_any_byte() -> None:
    """What was cut is not run, what comes next is; each answer begins a line of its own."""
    found, said = asked(b"".join(CELL[:at] + GREETING + CELL + b"\n" for at in range(len(CELL))))
    assert found == [json.loads(CELL)] * len(CELL)
    assert said == b'\n{"kind": "ready"}\n' * len(CELL)


def test_a_whole_line_that_lacks_its_end_alone_is_run() -> None:
    """All of it was said."""
    assert asked(CELL + GREETING)[0] == [json.loads(CELL)]
