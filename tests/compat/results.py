"""The file of results: one JSON line an attempt, so that an interrupted comparison goes on where it was."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection
from pathlib import Path

from tests.compat.places import Ending
from tests.compat.programs import Program


class Results:
    """Attempts by program, root and place, on disk as they come."""

    def __init__(self, path: Path, roots: dict[str, str]) -> None:
        """`roots` are the digests of the templates: results of another root are not results of this one."""
        self._path = path
        self._roots = roots
        self._lock = threading.Lock()
        self._of: dict[tuple[str, str, str], list[Ending]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_text().splitlines() if path.exists() else ():
            said = json.loads(line)
            ending = Ending.unpacked(said["ending"])
            if not ending.ours:  # a failure of the platform is no result: that program is run again
                self._of.setdefault((said["program"], said["root"], said["place"]), []).append(ending)

    def _key(self, program: Program, place: str) -> tuple[str, str, str]:
        return program.digest(), self._roots[program.template], place

    def of(self, program: Program, place: str) -> list[Ending]:
        """The attempts so far."""
        with self._lock:
            return list(self._of.get(self._key(program, place), ()))

    def add(self, program: Program, place: str, ending: Ending) -> None:
        """Keep one more."""
        digest, root, name = self._key(program, place)
        line = {"name": program.name, "program": digest, "root": root, "place": name, "ending": ending.packed()}
        with self._lock:
            self._of.setdefault((digest, root, name), []).append(ending)
            with open(self._path, "a") as file:
                file.write(json.dumps(line) + "\n")

    def forget(self, place: str, programs: Collection[str] | None = None) -> None:
        """Drop a place's attempts (those of the programs of these digests), to run them again."""

        def kept(digest: str, name: str) -> bool:
            return name != place or (programs is not None and digest not in programs)

        said = [(json.loads(line), line) for line in self._path.read_text().splitlines()]
        self._path.write_text("".join(line + "\n" for fields, line in said if kept(fields["program"], fields["place"])))
        self._of = {key: endings for key, endings in self._of.items() if kept(key[0], key[2])}
