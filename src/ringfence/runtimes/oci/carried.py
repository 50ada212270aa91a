"""What we bring into a sandbox: our guest code, and an interpreter of our own for images that have none.

One read-only tree for all sandboxes, made once from the `base` template's Python, named by what it is made from:

    code/ringfence/guest/*.py    ours, with compiled files beside it for the interpreter below
    early/site.py                empty, in place of a template's own until its fences stand
    bin/python3, lib/ld.so       the interpreter and the loader that is told where its libraries are
    lib/*.so, lib/python3.13/    its libraries and the part of the standard library that an agent could ever ask for

The files come from a template, so their names are followed within its root only, and what has to be run to compile
the code is run as nobody, with its own files for a root, on what it is given on its standard input.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ringfence.domain.errors import RingfenceError, SandboxRefused
from ringfence.guest.plan import NOBODY
from ringfence.runtimes.oci.versions import SEARCH
from ringfence.templates.catalog import Built, Catalog

FORMAT: Final = "4"  # changed whenever the same sources would make another tree
GUEST: Final = Path(__file__).parent.parent.parent / "guest"
SOURCE: Final = "base"  # the template whose Python is carried
COMPILE_SECONDS: Final = 60.0
KEEP_SECONDS: Final = 3600.0  # for how long a superseded tree may still be in use by a node that is being replaced
LINKS: Final = 16
EMPTY_ZIP: Final = b"PK\x05\x06" + bytes(18)
PYTHONS: Final = re.compile(r"python3\.(\d+)")
#: The agent imports a few dozen modules; these directories are what it cannot ask for.
LEFT_OUT: Final = frozenset({
    "__phello__", "_pyrepl", "asyncio", "concurrent", "curses", "dbm", "ensurepip", "email", "html", "http", "idlelib",
    "lib2to3", "logging", "multiprocessing", "pathlib", "pydoc_data", "sqlite3", "sysconfig", "test", "tkinter",
    "tomllib", "turtledemo", "unittest", "urllib", "venv", "wsgiref", "xml", "xmlrpc", "zipfile",
})  # fmt: skip
#: Compiles what it is sent: length-prefixed (name, source) pairs in, length-prefixed compiled files out.
_ALONE: Final = ("-I", "-S", "-B", "-c")
_COMPILER: Final = """
import importlib.util, marshal, struct, sys
data, out = sys.stdin.buffer, sys.stdout.buffer
def field():
    size = data.read(4)
    return data.read(struct.unpack("<I", size)[0]) if size else None
while (name := field()) is not None:
    source = field()
    code = compile(source, name.decode(), "exec", dont_inherit=True)
    # Unchecked: the tree is read-only and its name is a hash of the sources.
    pyc = importlib.util.MAGIC_NUMBER + struct.pack("<I", 1) + importlib.util.source_hash(source)
    pyc += marshal.dumps(code)
    out.write(struct.pack("<I", len(pyc)) + pyc)
"""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python in a template's root: where its program, its loader and its standard library are."""

    root: Path
    program: Path
    loader: Path
    library: Path
    objects: tuple[tuple[str, Path], ...]  # the name a library is asked for by, and its file

    @property
    def tag(self) -> str:
        """The word in the names of its compiled files."""
        return "cpython-" + self.library.name.removeprefix("python").replace(".", "")


class Carried:
    """The tree for this host, made when it is first wanted."""

    def __init__(self, templates: Path) -> None:
        """`templates` is the directory of built templates; the tree is kept in it."""
        self._catalog = Catalog(templates)
        self._place = templates / "carried"
        self._made: dict[str, Path] = {}

    def tree(self) -> Path:
        """Where it is. Blocks while it is made. Raises SandboxRefused without a `base` template."""
        try:
            built = self._catalog.read(SOURCE)
        except RingfenceError as error:
            raise SandboxRefused(
                f"there is no interpreter to carry: {error.cause}",
                code="no_carried_python",
                remediation=f"run: ringfence templates build {SOURCE}",
            ) from None
        known = self._made.get(built.digest)
        if known is None or not known.is_dir():
            known = self._made[built.digest] = self._make(built)
        return known

    def compiled(self) -> Path | None:
        """Where our own code's compiled files are, once the tree was made; blocks for a moment, and makes nothing.

        They were made by the `base` template's Python; another version of Python looks for other names.
        """
        try:
            built = self._catalog.read(SOURCE)
        except RingfenceError:
            return None
        known = self._made.get(built.digest)
        if known is None or not known.is_dir():
            known = self._place / _digest(built.digest, _sources())
            if not known.is_dir():
                return None
            self._made[built.digest] = known
        return known / "code" / "ringfence" / "guest" / "__pycache__"

    def _make(self, built: Built) -> Path:
        sources = _sources()
        target = self._place / _digest(built.digest, sources)
        if target.is_dir():
            return target
        try:
            self._place.mkdir(mode=0o755, exist_ok=True)
            with _locked(self._place / ".lock"):
                if not target.is_dir():
                    self._remove_others()
                    self._build(built, sources, target)
        except (OSError, struct.error, subprocess.SubprocessError) as error:
            raise SandboxRefused(f"cannot prepare our own interpreter: {error}", code="no_carried_python") from error
        return target

    def _build(self, built: Built, sources: dict[str, bytes], target: Path) -> None:
        interpreter = find(built.root)
        fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=self._place))
        fresh.chmod(0o755)
        _copy_interpreter(interpreter, fresh)
        _write_code(fresh / "code" / "ringfence", sources, _compiled(fresh, sources), interpreter.tag)
        fresh.rename(target)

    def _remove_others(self) -> None:
        """What a killed builder left (nobody else builds while the lock is held), and what was superseded.

        A sandbox needs its tree only until its fences stand; another node of an older version makes its own again.
        """
        for other in self._place.iterdir():
            unfinished = other.name.startswith(".new-")
            if unfinished or (other.is_dir() and other.stat().st_mtime < time.time() - KEEP_SECONDS):
                shutil.rmtree(other, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sources() -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(GUEST.glob("*.py"))}


def _digest(base: str, sources: dict[str, bytes]) -> str:
    whole = hashlib.sha256(f"{FORMAT} {base}".encode())
    for name, source in sources.items():
        whole.update(f"{name} {len(source)}\n".encode() + source)
    return whole.hexdigest()


def within(root: Path, path: str) -> Path:
    """Where `path` leads when `root` is /: links are followed inside, and none leads out."""
    waiting, place, links = [part for part in path.split("/") if part], root, 0
    while waiting:
        part = waiting.pop(0)
        if part in {".", ".."}:
            place = place if part == "." or place == root else place.parent
            continue
        step = place / part
        if not step.is_symlink():
            place = step
            continue
        links += 1
        if links > LINKS:
            raise OSError(0, f"too many links at {path}")
        word = os.readlink(step)
        place = root if word.startswith("/") else place
        waiting = [piece for piece in word.split("/") if piece] + waiting
    return place


def find(root: Path) -> Interpreter:
    """The Python of a Debian root. Raises OSError when something of it is not there."""
    program = within(root, "/usr/bin/python3")
    if not PYTHONS.fullmatch(program.name) or not program.is_file():
        raise OSError(0, "the base template has no /usr/bin/python3")
    library = within(root, f"/usr/lib/{program.name}")
    extensions = sorted((library / "lib-dynload").glob("*.so"))
    loader, objects = _needed(root, [program, *(e for e in extensions if e.name.split(".")[0] in EXTENSIONS)])
    return Interpreter(root, program, loader, library, objects)


#: Compiled modules the agent uses; what only others need (ssl, curses, test helpers) stays behind.
EXTENSIONS: Final = frozenset({"_ctypes", "mmap", "resource", "termios", "_json", "_struct", "_socket", "fcntl"})


def _needed(root: Path, programs: list[Path]) -> tuple[Path, tuple[tuple[str, Path], ...]]:
    """The loader, and every library that these programs and their libraries name."""
    places = [within(root, place) for place in ("/usr/lib/x86_64-linux-gnu", "/usr/lib")]
    loader, waiting, found = Path(), [*programs], dict[str, Path]()
    while waiting:
        wanted, names = _dynamic(waiting.pop().read_bytes())
        loader = within(root, wanted) if wanted else loader
        for name in names:
            if name not in found and not name.startswith("ld-linux"):
                at = [within(root, f"/{place.relative_to(root)}/{name}") for place in places]
                found[name] = next((path for path in at if path.is_file()), Path())
                if not found[name].name:
                    raise OSError(0, f"the library {name} is not there")
                waiting.append(found[name])
    return loader, tuple(sorted(found.items()))


def _dynamic(data: bytes) -> tuple[str, list[str]]:
    """The interpreter and the needed libraries an ELF file names. Raises struct.error for what is none."""
    if data[:6] != b"\x7fELF\x02\x01":
        raise OSError(0, "not an ELF file of this machine")
    offset, size, count = *struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54)
    headers = [struct.unpack_from("<IIQQQQQQ", data, offset + size * n) for n in range(count)]
    loads: list[tuple[int, int, int]] = [
        (h[3], h[2], h[5]) for h in headers if h[0] == 1
    ]  # virtual address, offset, size of each PT_LOAD

    def at(address: int) -> int:
        return next(start + address - low for low, start, length in loads if low <= address < low + length)

    def text(start: int) -> str:
        return data[start : data.index(0, start)].decode()

    loader = next((text(h[2]) for h in headers if h[0] == 3), "")
    dynamic = next((h for h in headers if h[0] == 2), None)
    if dynamic is None:
        return loader, []
    entries = list(struct.iter_unpack("<QQ", data[dynamic[2] : dynamic[2] + dynamic[5] // 16 * 16]))
    strings = at(next(value for tag, value in entries if tag == 5))
    return loader, [text(strings + value) for tag, value in entries if tag == 1]


def _copy_interpreter(interpreter: Interpreter, target: Path) -> None:
    (target / "bin").mkdir(mode=0o755)
    (target / "lib").mkdir(mode=0o755)
    shutil.copyfile(interpreter.program, target / "bin" / "python3")
    shutil.copyfile(interpreter.loader, target / "lib" / "ld.so")
    for program in (target / "bin" / "python3", target / "lib" / "ld.so"):
        program.chmod(0o755)
    for name, path in interpreter.objects:
        shutil.copyfile(path, target / "lib" / name)
    library = target / "lib" / interpreter.library.name
    # Looked for first, and then upward: without ours an image's own /lib would be asked, before any fence stands.
    (target / "lib" / f"{library.name.replace('.', '')}.zip").write_bytes(EMPTY_ZIP)
    shutil.copytree(interpreter.library, library, ignore=_ignored, symlinks=True)
    (library / "lib-dynload").mkdir(exist_ok=True)
    for folder, _, names in os.walk(library):
        Path(folder).chmod(0o755)
        for name in names:
            path = Path(folder) / name
            if path.is_symlink():
                path.unlink()  # a template's link would lead elsewhere in another root
            else:
                path.chmod(0o644)


def _ignored(folder: str, names: list[str]) -> set[str]:
    """What is left behind of the standard library."""
    if Path(folder).name == "lib-dynload":
        return {name for name in names if name.split(".")[0] not in EXTENSIONS}
    return {name for name in names if name in LEFT_OUT or name.startswith("config-") or name.endswith(".a")}


def _compiled(tree: Path, sources: dict[str, bytes]) -> dict[str, bytes]:
    """Each source's compiled file, made by the interpreter that will read it."""
    words = [f"/.ringfence/code/ringfence/guest/{name}".encode() for name in sources]
    sent = b"".join(_sized(word) + _sized(source) for word, source in zip(words, sources.values(), strict=True))
    # The state directory may be closed to nobody, and the template's Python need not see it: ours are all it sees.
    jailed = ["chroot", f"--userspec={NOBODY}:{NOBODY}", "--groups=", str(tree.parent)]
    here = f"/{tree.name}"
    done = subprocess.run(
        [*jailed, f"{here}/lib/ld.so", "--library-path", f"{here}/lib", f"{here}/bin/python3", *_ALONE, _COMPILER],
        input=sent,
        capture_output=True,
        timeout=COMPILE_SECONDS,
        env={"PATH": SEARCH},
        cwd="/",
        check=False,
    )
    if done.returncode:
        raise OSError(0, f"it does not run here: {done.stderr[-400:].decode('utf-8', 'replace')}")
    compiled, at = {}, 0
    for name in sources:
        (size,) = struct.unpack_from("<I", done.stdout, at)
        compiled[name] = done.stdout[at + 4 : at + 4 + size]
        at += 4 + size
    return compiled


def _sized(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def _write_code(package: Path, sources: dict[str, bytes], compiled: dict[str, bytes], tag: str) -> None:
    guest = package / "guest"
    (guest / "__pycache__").mkdir(parents=True)
    early = package.parent.parent / "early"
    early.mkdir()
    (early / "site.py").write_text(
        '"""Nothing, until the fences stand: then boot.py lets the template\'s own take over."""\n'
    )
    (package / "__init__.py").touch()
    for name, source in sources.items():
        (guest / name).write_bytes(source)
        (guest / "__pycache__" / f"{name.removesuffix('.py')}.{tag}.pyc").write_bytes(compiled[name])
