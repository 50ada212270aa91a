"""The few Python statements that the fake's `run` understands: enough to show every way in which code can end.

print, sys.stdout.write and sys.stderr.write, input, sys.argv, os.environ, raise, sys.exit, time.sleep, os.kill of
itself, bytearray, 1/0, `while True`. Nothing is executed: the syntax tree is walked.
"""

from __future__ import annotations

import ast
import asyncio
import signal
from typing import Any, Final

from ringfence.domain.limits import MIB
from ringfence.runtimes.fake.programs import Exited, Program
from ringfence.runtimes.fake.shell import BURN

LARGEST: Final = 16 * MIB  # of a value that is really made


class Raised(Exception):
    """An exception of the script's: its type and its text, as a traceback ends."""


class Script:
    """One program text being walked."""

    def __init__(self, program: Program, code: str, filename: str, argv: list[str]) -> None:
        self._program = program
        self._code = code
        self._filename = filename
        self._argv = [filename, *argv]
        self._unread = b""

    async def run(self) -> int:
        """Walk it, and end as an interpreter would."""
        number = 0
        try:
            for statement in ast.parse(self._code).body:
                number = statement.lineno
                await self._statement(statement)
        except Exited as end:
            return end.code
        except (SyntaxError, ValueError, RecursionError) as error:
            await self._program.err(f'  File "{self._filename}"\nSyntaxError: {error}\n'.encode())
            return 1
        except Raised as error:
            await self._traceback(number, str(error))
            return 1
        return 0

    async def _traceback(self, number: int, last: str) -> None:
        line = self._code.splitlines()[number - 1].strip()
        head = f'Traceback (most recent call last):\n  File "{self._filename}", line {number}, in <module>\n'
        await self._program.err(f"{head}    {line}\n{last}\n".encode())

    async def _statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Import() | ast.ImportFrom() | ast.Pass():
                return
            case ast.Expr(value=value):
                await self._value(value)
            case ast.Raise(exc=ast.expr() as error):
                await self._raise(error)
            case ast.While(test=ast.Constant(value=True)):
                await self._forever()
            case _:
                raise Raised(f"NotImplementedError: the fake does not understand {type(node).__name__}")

    async def _raise(self, error: ast.expr) -> None:
        name, values = ast.unparse(error), []
        if isinstance(error, ast.Call):
            name, values = ast.unparse(error.func), [await self._value(arg) for arg in error.args]
        if name == "SystemExit":
            await self._exit(values)
        raise Raised(f"{name}: {values[0]}" if values else name)

    async def _exit(self, values: list[Any]) -> None:
        code = values[0] if values else 0
        if isinstance(code, str):
            await self._program.err(f"{code}\n".encode())
        raise Exited(code if isinstance(code, int) else int(code is not None))

    async def _forever(self) -> None:
        while True:
            await asyncio.sleep(BURN)
            self._program.box.cpu_seconds += BURN

    async def _value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant() | ast.UnaryOp(operand=ast.Constant()):
                return ast.literal_eval(node)
            case ast.Name(id="__name__"):
                return "__main__"
            case ast.Attribute(value=ast.Name(id="sys"), attr="argv"):
                return self._argv
            case ast.Subscript(
                value=ast.Attribute(value=ast.Name(id="os"), attr="environ"), slice=ast.Constant(value=n)
            ):
                return self._program.env.get(str(n), "")
            case ast.BinOp(left=left, op=op, right=right):
                return await self._both(await self._value(left), op, await self._value(right))
            case ast.Call(func=function, args=args, keywords=keywords):
                told = {word.arg: ast.unparse(word.value) for word in keywords}
                return await self._call(ast.unparse(function), [await self._value(arg) for arg in args], told)
        raise Raised(f"NotImplementedError: the fake does not understand {ast.unparse(node):.80}")

    async def _both(self, left: Any, op: ast.operator, right: Any) -> Any:
        size = len(left) * right if isinstance(left, str | bytes) and isinstance(right, int) else 0
        await self._fits(size)
        try:
            match op:
                case ast.Add():
                    return left + right
                case ast.Mult() if size <= LARGEST and max(_bits(left), _bits(right)) < 64:
                    return left * right
                case ast.Div():
                    return left / right
        except (ZeroDivisionError, TypeError) as error:
            raise Raised(f"{type(error).__name__}: {error}") from None
        raise Raised("NotImplementedError: the fake does not calculate that")

    async def _fits(self, size: int) -> None:
        self._program.box.allocate(size, self._program)
        await asyncio.sleep(0)

    async def _call(self, name: str, args: list[Any], told: dict[str | None, str]) -> Any:
        program = self._program
        match name, args:
            case "print", _:
                out = program.err if told.get("file") == "sys.stderr" else program.out
                end = str(ast.literal_eval(told["end"])) if "end" in told else "\n"
                await out((" ".join(str(arg) for arg in args) + end).encode())
            case (("sys.stdout.write" | "sys.stderr.write"), [str() as text]):
                await (program.out if name == "sys.stdout.write" else program.err)(text.encode())
            case (("sys.exit" | "exit"), _):
                await self._exit(args)
            case "time.sleep", [int() | float() as seconds]:
                await asyncio.sleep(seconds)
            case "bytearray", [int() as size]:
                await self._fits(size)
            case "input", _:
                return await self._line()
            case "os.getpid", []:
                return program.pid
            case "os.kill", [pid, int() as number] if pid == program.pid:
                program.signal(signal.SIGKILL if number == 9 else number)
                await asyncio.sleep(0)
            case _:
                raise Raised(f"NotImplementedError: the fake does not know {name}")
        return None

    async def _line(self) -> str:
        while b"\n" not in self._unread and (data := await self._program.stdin.read()):
            self._unread += data
        if not self._unread:
            raise Raised("EOFError: EOF when reading a line")
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode("utf-8", "replace")


def _bits(value: object) -> int:
    return value.bit_length() if isinstance(value, int) else 0
