"""What a framework must be able to do, one claim after the other, told as a line each.

Its programs are no test files: a test runs one of them with a framework's release in PYTHONPATH and reads the lines.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import time
import traceback
from collections.abc import Callable

PATIENCE = 250.0  # seconds: by then something hangs, under gVisor on a crowded machine too
CLAIMS: list[Callable[[], None]] = []


def claim(test: Callable[[], None]) -> Callable[[], None]:
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


def tell_all() -> int:
    """Try every claim; how many do not hold."""
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    wrong, only = 0, os.environ.get("ONLY_CLAIM", "")
    for test in CLAIMS:
        if only not in test.__name__:
            continue
        began, error = time.monotonic(), None
        try:
            test()
        except Exception:  # noqa: BLE001 - whatever it was, it is told
            error, wrong = traceback.format_exc()[-3000:], wrong + 1
        seconds = round(time.monotonic() - began, 2)
        sys.__stdout__.write("\n" + json.dumps({"claim": test.__name__, "error": error, "seconds": seconds}) + "\n")
        sys.__stdout__.flush()
    return wrong
