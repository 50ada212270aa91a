"""Random state after a fork: every generator that a template's imports made draws numbers of its own (attack 110)."""

from __future__ import annotations

import json
import os
import random
import ssl
import subprocess
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ringfence.guest import reseed
from tests.support.subjects import TEMPLATES


class Mine(random.Random):
    """A library's own kind of generator."""


HELD: dict[str, Any] = {"list": [random.Random(1)], "own kind": Mine(2), "halfway": random.Random(3)}
HELD["halfway"].gauss(0, 1)  # a second number is now kept for the next call


def draws() -> dict[str, Any]:
    """One number of each kind."""
    return {
        "module": random.random(),
        "in a list": HELD["list"][0].random(),
        "own kind": HELD["own kind"].random(),
        "kept": HELD["halfway"].gauss(0, 1),
        "uuid4": str(uuid.uuid4()),
        "temporary name": next(tempfile._get_candidate_names()),  # type: ignore[attr-defined]
        "openssl": ssl.RAND_bytes(8).hex(),
    }


def forked(before: Callable[[], None]) -> dict[str, Any]:
    """What a fork of this process draws, after doing `before`."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            before()
            os.write(writer, json.dumps(draws()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader) as pipe:
        answer: dict[str, Any] = json.load(pipe)
        return answer


def test_two_forks_draw_different_numbers() -> None:
    """After the reseeders ran, nothing of two siblings is the same."""
    found = reseed.find()
    one, two = (forked(lambda: reseed.apply(found)) for _ in range(2))
    assert {name for name in one if one[name] == two[name]} == set()


def test_without_it_they_do_not() -> None:
    """The test sees what it looks for: left alone, siblings draw the same."""
    one, two = (forked(lambda: None) for _ in range(2))
    assert {name for name in one if one[name] == two[name]} >= {"in a list", "own kind", "kept"}


def test_a_generator_that_cannot_be_reseeded_refuses_everything() -> None:
    """One failure and there is no sandbox: it is not skipped."""

    class Stubborn(random.Random):
        ready = False

        def seed(self, *args: Any, **kwargs: Any) -> None:
            """Works once, at birth."""
            if self.ready:
                raise ValueError("not again")
            super().seed(*args, **kwargs)

    held = Stubborn()
    held.ready = True
    with pytest.raises(reseed.CannotReseed, match="not again"):
        reseed.apply(reseed.find())
    held.ready = False


def test_what_has_no_state_is_left_alone() -> None:
    """The system's own generator is nobody's to seed."""
    held = random.SystemRandom()
    reseed.apply(reseed.find())
    assert held.random() != held.random()


NUMPY = """
import json, os, sys
import numpy as np
from numpy import random as r
{source}
held = {{
    "default_rng": r.default_rng(1),
    "legacy": r.RandomState(2),
    "in a dict": {{"x": r.default_rng(3)}},
    **{{name: getattr(r, name)(4) for name in ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")}},
}}
spawner = r.default_rng(5)
def draws():
    return {{
        "module": float(r.random()),
        "normal": float(r.normal()),
        "default_rng": float(held["default_rng"].random()),
        "legacy": float(held["legacy"].rand()),
        "in a dict": float(held["in a dict"]["x"].random()),
        **{{n: int(held[n].random_raw()) for n in ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")}},
        "half a word": int(held["default_rng"].integers(0, 2**31, dtype=np.uint32)),
        "spawned": float(spawner.spawn(1)[0].random()) if hasattr(spawner, "spawn") else os.urandom(4).hex(),
        "seed sequence": int(spawner.bit_generator._seed_seq.spawn(1)[0].generate_state(1)[0]),
        "fresh": float(r.default_rng().random()),
    }}
held["legacy"].randn(1); r.randn(1); held["default_rng"].integers(0, 5, dtype=np.uint32)
found = find()
answers = []
for _ in range(2):
    reader, writer = os.pipe()
    if os.fork() == 0:
        apply(found)
        os.write(writer, json.dumps(draws()).encode())
        os._exit(0)
    os.wait()
    answers.append(json.loads(os.read(reader, 65536)))
print(json.dumps([n for n in answers[0] if answers[0][n] == answers[1][n]]))
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or not (TEMPLATES / "index" / "python.json").exists(), reason="needs root and the python template"
)
def test_numpys_generators_too() -> None:
    """Legacy state, generators, bare bit generators, and what they spawn: nothing is the same in two siblings."""
    digest = json.loads((TEMPLATES / "index" / "python.json").read_text())["digest"]
    root = TEMPLATES / digest / "root"
    ours = "from ringfence.guest.annotations import"  # words for annotations, which the chroot does not have
    lines = Path(reseed.__file__).read_text().replace("from __future__ import annotations\n", "").splitlines()
    source = "\n".join("Any = Final = None" if line.startswith(ours) else line for line in lines)
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "OPENBLAS_NUM_THREADS": "1", "LANG": "C.UTF-8"}
    done = subprocess.run(
        ["chroot", str(root), "/usr/bin/python3", "-I", "-B", "-c", NUMPY.format(source=source)],
        env=env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
