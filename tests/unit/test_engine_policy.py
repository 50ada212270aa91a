"""What is refused before anything starts: paths, labels, programs, limits, and the count of what runs."""

from __future__ import annotations

import pytest

from ringfence import wire
from ringfence.domain.errors import BadRequest, NotFound, OverQuota, TooLarge
from ringfence.domain.limits import MIB, Limits
from ringfence.engine import checks
from ringfence.engine.policy import Admission, Ceiling, Policy


@pytest.mark.parametrize("path", ["..", "../x", "a/../b", "/..", "a\0b", "", "x/.."])
def test_a_path_that_could_mean_another_place_is_refused(path: str) -> None:
    """Written out or not at all."""
    with pytest.raises(BadRequest):
        checks.path(path)


def test_a_path_is_bounded() -> None:
    """A hundred kilobytes are too many, in characters or in bytes."""
    with pytest.raises(TooLarge):
        checks.path("x" * 100_000)
    with pytest.raises(TooLarge):
        checks.path("é" * 3000)
    assert checks.path("..x/.../a..b") == "..x/.../a..b"


@pytest.mark.parametrize("name", ["", "-a", "a-", "a b", "ä", "x" * 64, "a\n", "a=b"])
def test_a_labels_name_is_plain(name: str) -> None:
    """It must be shown, stored and searched everywhere."""
    with pytest.raises(BadRequest):
        checks.labels({name: "v"})


@pytest.mark.parametrize("value", ["x" * 256, "a\nb", "\x1b[31m"])
def test_a_labels_value_is_printable(value: str) -> None:
    """No control character reaches a terminal or a log through it."""
    with pytest.raises(BadRequest):
        checks.labels({"a": value})


@pytest.mark.parametrize(
    "request_",
    [
        wire.RunRequest(),
        wire.RunRequest(code="x", shell="y"),
        wire.RunRequest(argv=[]),
        wire.RunRequest(argv=[""]),
        wire.RunRequest(argv=["a\0b"]),
        wire.RunRequest(shell="a\0b"),
        wire.RunRequest(argv=["ls"], args=["x"]),
        wire.RunRequest(code="x", env={"": "v"}),
        wire.RunRequest(code="x", env={"A=B": "v"}),
        wire.RunRequest(code="x", env={"A": "\0"}),
        wire.RunRequest(code="x", cwd="../.."),
    ],
)
def test_a_program_that_cannot_be_is_refused(request_: wire.RunRequest) -> None:
    """Exactly one way to start it, and nothing the kernel could not take."""
    with pytest.raises(BadRequest):
        checks.program(request_)


@pytest.mark.parametrize("wanted", [0, 65, -1, "NOPE", "", "SIGSIG"])
def test_a_signal_has_a_name_or_a_number(wanted: str | int) -> None:
    """Others are refused."""
    with pytest.raises(BadRequest):
        checks.signal_number(wanted)
    assert checks.signal_number("term") == checks.signal_number("SIGTERM") == checks.signal_number(15) == 15


@pytest.mark.parametrize("text", ["", "s", "s" + "a" * 25, "S" + "a" * 26, "r" + "a" * 26, "s" + "a" * 27, "../etc"])
def test_what_is_not_an_id_does_not_exist(text: str) -> None:
    """The same answer as for a well-formed id that is unknown."""
    with pytest.raises(NotFound):
        checks.identifier(text, "s")


def test_a_template_never_lends_more_than_the_tenant_may_have() -> None:
    """Defaults give way to the tenant's maximum; a wish above it is refused, not cut."""
    ceiling = Ceiling(most=Limits(memory_bytes=64 * MIB, cpus=4.0))
    assert ceiling.limits({}, Limits(memory_bytes=512 * MIB)).memory_bytes == 64 * MIB
    assert ceiling.limits({"cpus": 2}, Limits()).cpus == 2.0
    with pytest.raises(BadRequest, match="maximum"):
        ceiling.limits({"memory_bytes": 65 * MIB}, Limits())


def test_a_place_is_counted_until_it_is_free() -> None:
    """Exactly as many as allowed; one tenant's are not another's."""
    admission = Admission(Policy(ceiling=lambda _: Ceiling(max_sandboxes=2, max_runs=1)))
    with admission.run("ada"), admission.run("bob"):
        with pytest.raises(OverQuota), admission.run("ada"):
            pass
        assert admission.runs("ada") == 1
    assert admission.runs("ada") == 0
    with admission.creating("ada"):
        admission.joined("ada", "one")
    with admission.creating("ada"):
        with pytest.raises(OverQuota), admission.creating("ada"):
            pass
        admission.joined("ada", "two")
    assert admission.sandboxes("ada") == 2
    admission.left("ada", "one")
    admission.left("ada", "one")
    assert admission.sandboxes("ada") == 1


def test_a_runtime_the_operator_does_not_offer_is_refused() -> None:
    """And the offered ones are named."""
    with pytest.raises(BadRequest, match="not offered") as caught:
        Policy(runtimes=frozenset({"jail"})).isolation("other")
    assert "jail" in caught.value.remediation
