"""A shell in miniature: `;`, `&&`, `||`, `|`, `>`, `>>`, `>&2`, quotes, `$NAME`, `$$`, and some twenty commands."""

from __future__ import annotations

import asyncio
import re
import shlex
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from ringfence.runtimes.fake.programs import Exited, Program
from ringfence.runtimes.fake.tree import TreeError

JOINTS: Final = frozenset({";", "&&", "||"})
BURN: Final = 0.02  # seconds of processor time claimed at a time
CHUNK: Final = 32 * 1024
_SPLIT: Final = re.compile(r"'[^']*'|\$\$|\$([A-Za-z_]\w*)")
_ESCAPES: Final = {"\\n": "\n", "\\t": "\t", "\\0": "\0", "\\\\": "\\"}

Writer = Callable[[bytes], Awaitable[None]]
Reader = Callable[[], Awaitable[bytes]]


@dataclass
class Io:
    """What one command reads and writes."""

    program: Program
    read: Reader
    out: Writer
    err: Writer


Command = Callable[[Io, list[str]], Awaitable[int]]


async def run_line(program: Program, line: str) -> int:
    """Run a shell line to its end."""
    try:
        return await _run(Io(program, program.stdin.read, program.out, program.err), _words(program, line))
    except Exited as end:
        return end.code
    except ValueError as error:
        await program.err(f"sh: {error}\n".encode())
        return 2


async def run_argv(program: Program, argv: list[str]) -> int:
    """Run one command."""
    try:
        return await _command(Io(program, program.stdin.read, program.out, program.err), argv)
    except Exited as end:
        return end.code


def _words(program: Program, line: str) -> list[str]:
    def value(match: re.Match[str]) -> str:
        if match[0].startswith("'"):
            return match[0]
        return str(program.pid) if match[0] == "$$" else program.env.get(match[1], "")

    words = shlex.shlex(_SPLIT.sub(value, line), posix=True, punctuation_chars=";&|<>")
    words.whitespace_split = True
    words.commenters = ""
    return list(words)


async def _run(io: Io, words: list[str]) -> int:
    code, joint, at = 0, ";", 0
    while at < len(words):
        end = next((i for i in range(at, len(words)) if words[i] in JOINTS), len(words))
        if joint == ";" or (joint == "&&") == (code == 0):
            code = await _pipeline(io, words[at:end])
        joint, at = (words[end] if end < len(words) else ";"), end + 1
    return code


async def _pipeline(io: Io, words: list[str]) -> int:
    """Left and right run together; the left ends when nobody reads it any more."""
    if "|" not in words:
        return await _redirected(io, words)
    at = words.index("|")
    between: asyncio.Queue[bytes] = asyncio.Queue(4)
    left = asyncio.ensure_future(_redirected(Io(io.program, io.read, between.put, io.err), words[:at]))
    done = asyncio.ensure_future(_close(left, between))
    try:
        return await _pipeline(Io(io.program, between.get, io.out, io.err), words[at + 1 :])
    finally:
        left.cancel()
        done.cancel()


async def _close(left: asyncio.Future[int], between: asyncio.Queue[bytes]) -> None:
    await asyncio.wait([left])
    await between.put(b"")


async def _redirected(io: Io, words: list[str]) -> int:
    at = next((i for i, word in enumerate(words) if word in {">", ">>", ">&"}), -1)
    if at < 0:
        return await _command(io, words)
    how, target, rest = words[at], words[at + 1], words[:at] + words[at + 2 :]
    if how == ">&":
        return await _redirected(Io(io.program, io.read, io.err if target == "2" else io.out, io.err), rest)
    box, path = io.program.box, io.program.box.tree.at(target, io.program.cwd)

    async def store(data: bytes) -> None:
        if path != "/dev/null":
            box.tree.write(path, data, append=True, parents=False)
        await asyncio.sleep(0)

    try:
        if how == ">" and path != "/dev/null":
            box.tree.write(path, b"", parents=False)
        return await _redirected(Io(io.program, io.read, store, io.err), rest)
    except TreeError as error:
        await io.err(f"sh: {target}: {error}\n".encode())
        return 1


async def _command(io: Io, words: list[str]) -> int:
    if not words:
        return 0
    name = words[0].removeprefix("/bin/").removeprefix("/usr/bin/")
    command = COMMANDS.get(name)
    if command is None:
        await io.err(f"{words[0]}: not found\n".encode())
        return 127
    try:
        return await command(io, words[1:])
    except TreeError as error:
        if error.code == "no_space":
            raise  # it is the redirection's to report
        await io.err(f"{name}: {error}\n".encode())
        return 1


# -- commands ---------------------------------------------------------------------------------------------------


async def _echo(io: Io, args: list[str]) -> int:
    bare = args[:1] == ["-n"]
    await io.out((" ".join(args[bare:]) + ("" if bare else "\n")).encode("utf-8", "surrogateescape"))
    return 0


async def _printf(io: Io, args: list[str]) -> int:
    text = re.sub(r"\\[nt0\\]", lambda m: _ESCAPES[m[0]], args[0])
    for value in args[1:]:
        text = text.replace("%s", value, 1)
    await io.out(text.encode())
    return 0


async def _cat(io: Io, args: list[str]) -> int:
    for path in args:
        await io.out(io.program.box.tree.read(io.program.box.tree.at(path, io.program.cwd)))
    while not args and (data := await io.read()):
        await io.out(data)
    return 0


async def _exit(_: Io, args: list[str]) -> int:
    raise Exited(int(args[0]) if args else 0)


async def _sleep(_: Io, args: list[str]) -> int:
    await asyncio.sleep(float("inf") if args[0] == "infinity" else float(args[0]))
    return 0


async def _yes(io: Io, args: list[str]) -> int:
    line = ((args[0] if args else "y") + "\n").encode()
    while True:
        await io.out(line * (CHUNK // len(line) + 1))


async def _kill(io: Io, args: list[str]) -> int:
    word = args[0].lstrip("-").removeprefix("SIG") if args[0].startswith("-") else "TERM"
    target = io.program.box.programs.get(int(args[-1]))
    if target is None or target.fate is not None:
        await io.err(f"kill: {args[-1]}: no such process\n".encode())
        return 1
    target.signal(int(word) if word.isdigit() else signal.Signals[f"SIG{word}"].value)
    await asyncio.sleep(0)
    return 0


async def _head(io: Io, args: list[str]) -> int:
    """`head -c N [FILE]`: from /dev/zero too, which is endless."""
    left = int(args[1])
    source = io.program.box.tree.at(args[2], io.program.cwd) if len(args) > 2 else ""
    zeros = source == "/dev/zero"
    data = io.program.box.tree.read(source) if source and not zeros else b""
    while left:
        piece = bytes(min(left, CHUNK)) if zeros else data[:left] if source else await io.read()
        await io.out(piece[:left])
        left -= min(left, len(piece))
        if not piece or (source and not zeros):
            break
    return 0


async def _wc(io: Io, _: list[str]) -> int:
    count = 0
    while data := await io.read():
        count += len(data)
    await io.out(f"{count}\n".encode())
    return 0


async def _env(io: Io, _: list[str]) -> int:
    await io.out("".join(f"{name}={value}\n" for name, value in io.program.env.items()).encode())
    return 0


async def _pwd(io: Io, _: list[str]) -> int:
    await io.out(f"{io.program.cwd}\n".encode())
    return 0


async def _ls(io: Io, args: list[str]) -> int:
    tree = io.program.box.tree
    rows = tree.listing(tree.at(args[0], io.program.cwd) if args else io.program.cwd, 1)
    await io.out("".join(f"{row['name']}\n" for row in rows).encode())
    return 0


async def _touch(io: Io, args: list[str]) -> int:
    for path in args:
        io.program.box.tree.write(io.program.box.tree.at(path, io.program.cwd), b"", append=True, parents=False)
    return 0


async def _rm(io: Io, args: list[str]) -> int:
    for path in args:
        io.program.box.tree.remove(io.program.box.tree.at(path, io.program.cwd), recursive=False)
    return 0


async def _id(io: Io, args: list[str]) -> int:
    await io.out(b"1000\n" if args else b"uid=1000(user) gid=1000(user)\n")
    return 0


async def _sh(io: Io, args: list[str]) -> int:
    return await _run(io, _words(io.program, args[args.index("-c") + 1]))


async def _fill_memory(io: Io, _: list[str]) -> int:
    io.program.box.allocate(io.program.box.limits.memory_bytes + 1, io.program)
    await asyncio.sleep(0)
    return 0


async def _burn(io: Io, _: list[str]) -> int:
    """Claim a whole processor, without using it."""
    while True:
        await asyncio.sleep(BURN)
        io.program.box.cpu_seconds += BURN


async def _echo_server(io: Io, args: list[str]) -> int:
    port = int(args[0])
    io.program.box.ports.add(port)
    try:
        await io.out(b"listening\n")
        await asyncio.sleep(float("inf"))
    finally:
        io.program.box.ports.discard(port)
    return 0


def _constant(code: int) -> Command:
    async def give(_: Io, __: list[str]) -> int:
        return code

    return give


COMMANDS: Final[dict[str, Command]] = {
    "echo": _echo,
    "printf": _printf,
    "cat": _cat,
    "exit": _exit,
    "sleep": _sleep,
    "yes": _yes,
    "kill": _kill,
    "head": _head,
    "wc": _wc,
    "env": _env,
    "pwd": _pwd,
    "ls": _ls,
    "touch": _touch,
    "rm": _rm,
    "id": _id,
    "sh": _sh,
    "bash": _sh,
    "true": _constant(0),
    "false": _constant(1),
    "fill-memory": _fill_memory,
    "burn": _burn,
    "echo-server": _echo_server,
}
