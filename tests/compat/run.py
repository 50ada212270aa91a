"""Compare the host with every isolation: `python -m tests.compat.run` (the whole takes about half an hour).

Runs each program on the host and in a sandbox of each kind, two programs at a time at the lowest priority, and
writes docs/compatibility.md. An interrupted run goes on where it was. Exits 1 when a difference has no reason in
reasons.toml, or when fewer than 500 programs could be compared.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from ringfence.client import Client
from ringfence.config import read_server
from ringfence.domain.errors import RingfenceError
from ringfence.serve import embedded
from ringfence.templates.build import build
from ringfence.templates.catalog import Catalog, recipe_named
from ringfence.templates.progress import Printer
from tests.compat.compare import agree, read_reasons
from tests.compat.page import Report, page
from tests.compat.places import CHECKOUT, FAILED, HOST, ISOLATIONS, Ending, InSandbox, OnHost, Place
from tests.compat.programs import HERE, Program, everything
from tests.compat.results import Results

PAGE = CHECKOUT / "docs" / "compatibility.md"
KEPT = CHECKOUT / "build" / "compat" / "results.jsonl"
SECONDS = 170.0
ATTEMPTS = 3
WANTED = 500


def attempt(place: Place, program: Program) -> Ending:
    """One run; a failure of the platform is an ending like any other here, and never explained."""
    try:
        return place.run(program, SECONDS)
    except RingfenceError as error:
        return Ending(f"{FAILED}{error.code}: {error.cause}", None, None, b"")


def compare(program: Program, host: Place, others: Sequence[Place], results: Results) -> None:
    """Run it where it has not been run yet, and again, on both sides, where the two differ."""
    for place in (host, *others):
        if not results.of(program, place.name):
            results.add(program, place.name, attempt(place, program))
    for place in others:
        while not agree(results.of(program, HOST), results.of(program, place.name)):
            theirs = results.of(program, place.name)
            if len(theirs) >= ATTEMPTS or [ending.how for ending in theirs].count("timed_out") > 1:
                break
            results.add(program, place.name, attempt(place, program))
            if len(results.of(program, HOST)) < ATTEMPTS:
                results.add(program, HOST, attempt(host, program))


class Progress:
    """A line that says how far it is and how long it will be."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._began = total, 0, time.monotonic()
        self._lock = threading.Lock()

    def done(self, program: Program) -> None:
        """One program more."""
        with self._lock:
            self._done += 1
            left = (time.monotonic() - self._began) / self._done * (self._total - self._done)
            line = f"{self._done:4}/{self._total} {left / 60:5.1f} min left  {program.name[:60]:60}"
            sys.stderr.write(f"\r{line}" if sys.stderr.isatty() else f"{line}\n")
            sys.stderr.flush()


def work(
    waiting: queue.SimpleQueue[Program], host: Place, server: tuple[str, str], results: Results, progress: Progress
) -> None:
    """One worker, with a connection of its own, until nothing waits."""
    with Client(*server) as client:
        others = [InSandbox(name, client) for name in ISOLATIONS]
        while True:
            try:
                program = waiting.get_nowait()
            except queue.Empty:
                return
            compare(program, host, others, results)
            progress.done(program)


@contextlib.contextmanager
def own_server(templates: Path) -> Iterator[tuple[str, str]]:
    """A server for this comparison, gone with it. Says what is missing rather than leave an isolation out."""
    with tempfile.TemporaryDirectory(prefix="ringfence-compat-") as state:
        settings = read_server(None, state=state, templates=str(templates))
        with embedded(settings, tenant="compat") as server:
            with Client(server.url, server.key) as client:
                absent = {r.name: r.reason for r in client.runtimes() if r.name in ISOLATIONS and not r.available}
            if absent:
                raise SystemExit("; ".join(f"{name}: {why}" for name, why in absent.items()))
            yield server.url, server.key


def run_all(programs: Sequence[Program], templates: Path, results: Results, workers: int) -> None:
    """Everything that has not been run yet."""
    waiting: queue.SimpleQueue[Program] = queue.SimpleQueue()
    for program in programs:
        waiting.put(program)
    host, progress = OnHost(Catalog(templates).load()), Progress(len(programs))
    with own_server(templates) as server:
        threads = [
            threading.Thread(target=work, args=(waiting, host, server, results, progress)) for _ in range(workers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def forget(chosen: argparse.Namespace, programs: Sequence[Program], results: Results) -> None:
    """Drop the earlier results that are not wanted."""
    for place in chosen.again:
        results.forget(place)
    if chosen.doubted:
        names = {difference.program for difference in Report.of(programs, results, ()).differences}
        digests = {program.digest() for program in programs if program.name in names}
        for place in (HOST, *ISOLATIONS):
            results.forget(place, digests)


def options() -> argparse.Namespace:
    """Our command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--templates", type=Path, default=Path("/var/lib/ringfence/templates"))
    parser.add_argument("--results", type=Path, default=KEPT, help="where results are kept (default: %(default)s)")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--again", choices=ISOLATIONS, action="append", default=[], help="forget those of one place")
    parser.add_argument("--doubted", action="store_true", help="forget what differed, and run that again")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="programs of such a name; writes no page")
    parser.add_argument("--report", action="store_true", help="run nothing: only write the page")
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args()


def main() -> int:
    """Build what is missing, run, write, judge."""
    if os.geteuid() != 0:
        raise SystemExit("the host's side needs root, to enter the template's root without a sandbox")
    chosen = options()
    os.nice(19)
    build(recipe_named(str(HERE / "compat.toml")), chosen.templates, Printer("compat", sys.stderr))
    built = Catalog(chosen.templates).load()
    if chosen.fresh:
        chosen.results.unlink(missing_ok=True)
    results = Results(chosen.results, {name: entry.digest for name, entry in built.items()})
    programs = [program for program in everything() if fnmatchcase(program.name, chosen.only)]
    forget(chosen, programs, results)
    if not chosen.report:
        run_all(programs, chosen.templates, results, chosen.workers)
    report = Report.of(programs, results, read_reasons())
    if chosen.only == "*":
        PAGE.write_text(page(report))
        for title in report.unused:
            print(f"explains nothing any more: {title}")
    for difference in report.unexplained:
        print(f"no reason: {difference.place}: {difference.key}: {difference.on_host} -> {difference.there}")
    print(report.summary())
    return int(bool(report.unexplained) or (chosen.only == "*" and len(report.compared) < WANTED))


if __name__ == "__main__":
    sys.exit(main())
