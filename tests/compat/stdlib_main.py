"""Run one module of the standard library's tests; print each test and how it ended, sorted, without times.

This file is itself the program that is compared: it is sent as source, with the module's name as its argument.
"""

# ruff: noqa: N802, N815 - the names are unittest's

import importlib
import os
import sys
import traceback
import unittest

from test import support

KEPT_TRACEBACK = 4000
RANK = ("ok", "skipped", "failed")


class Endings(unittest.TestResult):
    """The worst ending of each test; details go to stderr, which nobody compares."""

    def __init__(self):
        super().__init__()
        self.of = {}

    def note(self, test, ending, details=""):
        name = getattr(test, "test_case", test).id()
        self.of[name] = max(self.of.get(name, "ok"), ending, key=RANK.index)
        if details:
            print(f"{ending}: {name}: {details[-KEPT_TRACEBACK:]}", file=sys.stderr, flush=True)

    def addSuccess(self, test):
        self.note(test, "ok")

    def addExpectedFailure(self, test, _err):
        self.note(test, "ok")

    def addUnexpectedSuccess(self, test):
        self.note(test, "failed", "unexpected success")

    def addSkip(self, test, reason):
        self.note(test, "skipped", reason)

    def addError(self, test, err):
        self.note(test, "failed", "".join(traceback.format_exception(*err)))

    addFailure = addError

    def addSubTest(self, test, _subtest, err):
        if err is not None:
            self.addError(test, err)


def endings(module):
    """Run the module's tests; its own words go nowhere."""
    support.verbose = 0
    support.use_resources = []
    try:
        importlib.import_module(module)
    except unittest.SkipTest as skip:
        print(f"{module}: {skip}", file=sys.stderr)
        return {module: "skipped"}
    result = Endings()
    unittest.defaultTestLoader.loadTestsFromName(module).run(result)
    return result.of


def main():
    """Print what is compared on the stdout we were given; meanwhile descriptor 1 is the null device."""
    out = os.dup(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
    of = endings(sys.argv[1])
    with open(out, "w", encoding="utf-8", errors="backslashreplace") as lines:
        lines.writelines(f"{name} {of[name]}\n" for name in sorted(of))
    sys.exit(int("failed" in of.values()))


if __name__ == "__main__":
    main()
