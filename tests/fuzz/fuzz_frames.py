"""Fuzz the frame parser and an agent's channel: python tests/fuzz/fuzz_frames.py -max_total_time=300 (needs atheris).

Options are libFuzzer's. Inputs that reach something new are kept in build/fuzz, one that breaks something in ./crash-*:
put it into tests/fuzz/corpus when it is fixed, so that it stays fixed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]

HERE = Path(__file__).resolve().parent
FOUND = HERE.parents[1] / "build" / "fuzz"
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[1] / "src")]

with atheris.instrument_imports(include=["ringfence.guest"]):
    from ringfence.guest import frames, loop, stream  # noqa: F401 - imported here to be instrumented

from tests.fuzz import target  # noqa: E402 - after the path is set


def main() -> None:
    """Run until told to stop."""
    options = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    places = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    if not places:
        FOUND.mkdir(parents=True, exist_ok=True)
        places = [str(FOUND), str(HERE / "corpus")]
    atheris.Setup([sys.argv[0], "-max_len=20000", *options, *places], target.one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
