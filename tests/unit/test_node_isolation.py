"""Which way to isolate a request gets: never another one than was asked for, and a reason when it cannot be had."""

from __future__ import annotations

import pytest

from ringfence.domain.errors import BadRequest
from ringfence.domain.template import Image, Template
from ringfence.node.isolation import Isolation
from ringfence.runtimes.base import Runtime
from ringfence.runtimes.fake import Fake, Host

OURS = Template(name="ours")
IMAGE = Template(name="theirs", image=Image("registry/x:1", "sha256:" + "0" * 64))


def runtime(name: str) -> Runtime:
    """A runtime of that name; none of it is asked to do anything here."""
    made = Fake(Host())
    made.name = name
    return made


HERE = Isolation(runtime("jail"), runtime("container"), absent={"gvisor": "runsc is not installed"})


@pytest.mark.parametrize(
    ("asked", "template", "chosen"),
    [
        ("auto", OURS, "jail"),
        ("container", OURS, "container"),
        ("auto", IMAGE, "container"),
        ("auto", Template(name="t", runtime="container"), "container"),
        ("container", Template(name="t", runtime="container"), "container"),
    ],
)
def test_what_is_chosen(asked: str, template: Template, chosen: str) -> None:
    """A request's own word, else its template's, else what suits the template."""
    assert HERE.choose(asked, template).name == chosen


@pytest.mark.parametrize(
    ("asked", "template", "code", "words"),
    [
        ("gvisor", OURS, "runtime_absent", "runsc is not installed"),
        ("auto", Template(name="t", runtime="gvisor"), "runtime_absent", "runsc is not installed"),
        ("microvm", OURS, "unknown_runtime", "no such runtime"),
        ("jail", IMAGE, "runtime_unsuited", "comes from an image"),
        ("jail", Template(name="t", runtime="container"), "isolation_conflict", "isolated by container"),
    ],
)
def test_what_is_refused(asked: str, template: Template, code: str, words: str) -> None:
    """Nothing is replaced by something weaker, or by something else, without a word."""
    with pytest.raises(BadRequest, match=words) as refused:
        HERE.choose(asked, template)
    assert refused.value.code == code


def test_an_image_where_nothing_can_run_it() -> None:
    """A node with the jail alone says what is missing."""
    alone = Isolation(runtime("jail"), absent={"container": "runc is not installed"})
    with pytest.raises(BadRequest, match="runc is not installed"):
        alone.choose("auto", IMAGE)
