"""Write client/_sync from client/_async, so that the two faces of the SDK cannot drift apart.

The translation is by token: `async` and `await` are dropped, and names are exchanged by the table below.
Files listed in BY_HAND exist in both folders, because there waiting itself differs; they are left alone.

    python tools/unasync.py          write the files
    python tools/unasync.py --check  exit 1 when a file on disk is not what would be written
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path
from typing import Final

CLIENT: Final = Path(__file__).resolve().parent.parent / "src" / "ringfence" / "client"
BY_HAND: Final = frozenset({"link.py"})
BANNER: Final = "# Generated from client/_async/{name} by tools/unasync.py: edit that file, not this one.\n"
QUIET: Final = "# ruff: noqa: SIM117, UP028 - these advise shapes that the asynchronous source cannot have\n"

NAMES: Final = {
    "_async": "_sync",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
    "aclose": "close",
    "aiter_bytes": "iter_bytes",
    "anext": "next",
    "aread": "read",
    "asynccontextmanager": "contextmanager",
    "StopAsyncIteration": "StopIteration",
    "asynchronous": "synchronous",
}
DROPPED: Final = frozenset({"async", "await"})
CHANGED: Final = frozenset({tokenize.NAME, tokenize.STRING, tokenize.COMMENT})
PREFIXED: Final = re.compile(r"Async(?=[A-Z])")
WORD: Final = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
KEYWORD_IN_PROSE: Final = re.compile(r"\basync (?=with\b|for\b|def\b)|\bawait (?=[a-z_])")


def renamed(word: str) -> str:
    """The synchronous twin of one name."""
    return NAMES.get(word, PREFIXED.sub("", word))


def prose(text: str) -> str:
    """A string or comment with its examples and names translated."""
    return WORD.sub(lambda match: renamed(match.group()), KEYWORD_IN_PROSE.sub("", text))


def replacement(token: tokenize.TokenInfo) -> str:
    """What stands in a token's place."""
    if token.type != tokenize.NAME:
        return prose(token.string)
    return "" if token.string in DROPPED else renamed(token.string)


def translated(source: str) -> str:
    """The synchronous source for an asynchronous one; layout is kept except where a keyword went."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    out: list[str] = []
    at = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in CHANGED:
            continue
        begin, end = (starts[row - 1] + column for row, column in (token.start, token.end))
        out += [source[at:begin], replacement(token)]
        gone = token.type == tokenize.NAME and token.string in DROPPED
        at = end + 1 if gone and source[end : end + 1] == " " else end
    return "".join(out) + source[at:]


def tidied(source: str) -> str:
    """The source with its imports sorted and its lines laid out as the project's formatter would."""
    name = str(CLIENT / "_sync" / "generated.py")
    ours = ["--config", 'lint.isort.known-first-party = ["ringfence"]']  # also before the files exist
    sort = ["check", "--select", "I,RUF100,SIM117,UP028", "--fix", "--quiet", *ours]
    for command in (sort, ["format", "--quiet"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--stdin-filename", name, "-"],
            input=source, capture_output=True, text=True, check=True,
        )  # fmt: skip
        source = done.stdout
    return source


def wanted() -> dict[Path, str]:
    """Every generated file and what it should hold."""
    return {
        CLIENT / "_sync" / file.name: tidied(BANNER.format(name=file.name) + QUIET + translated(file.read_text()))
        for file in sorted((CLIENT / "_async").glob("*.py"))
        if file.name not in BY_HAND
    }


def stale(files: dict[Path, str]) -> list[Path]:
    """The files whose content on disk is not the wanted one."""
    return [path for path, text in files.items() if not path.exists() or path.read_text() != text]


def main(arguments: list[str]) -> int:
    """Write or check; the exit code says whether anything was stale under --check."""
    files = wanted()
    old = stale(files)
    if arguments == ["--check"]:
        for path in old:
            print(f"stale: {path.name}; run python tools/unasync.py", file=sys.stderr)
        return 1 if old else 0
    for path in old:
        path.write_text(files[path])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
