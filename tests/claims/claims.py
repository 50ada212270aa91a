"""What a program must be able to do, one claim after the other, told as a line each.

The programs are no test files: a test runs one of them with a release in PYTHONPATH, and this folder behind it, and
reads the lines. Words after a program's name choose the claims whose names hold one of them.
"""

from __future__ import annotations

import faulthandler
import json
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

PATIENCE = 250.0  # seconds: by then something hangs, under gVisor on a crowded machine too
CLAIMS: list[Callable[..., None]] = []


def claim(test: Callable[..., None]) -> Callable[..., None]:
    """Make a function one of the claims."""
    CLAIMS.append(test)
    return test


def raised(kind: type[BaseException], call: Callable[[], object]) -> BaseException:
    """The error of this kind that a call must raise."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"nothing was raised, least of all {kind.__name__}")


def tell_all(*given: Any) -> int:
    """Try every claim on what is given; how many do not hold."""
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    wrong, wanted = 0, sys.argv[1:] or [""]
    for test in CLAIMS:
        if not any(word in test.__name__ for word in wanted):
            continue
        began, error = time.monotonic(), None
        try:
            test(*given)
        except Exception:  # noqa: BLE001 - whatever it was, it is told
            error, wrong = traceback.format_exc()[-3000:], wrong + 1
        seconds = round(time.monotonic() - began, 2)
        sys.__stdout__.write("\n" + json.dumps({"claim": test.__name__, "error": error, "seconds": seconds}) + "\n")
        sys.__stdout__.flush()
    return wrong
