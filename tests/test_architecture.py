"""The shape of the house, checked: which module may import which, how long things are, and what is forbidden.

Rules are data with reasons; what the code does is read from its syntax trees, never from running it.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src"
OURS = "ringfence"
DEEPEST, LONGEST_MODULE, LONGEST_FUNCTION = 25, 600, 60

# Which floor a module stands on: the longest prefix counts. A module imports from its own floor or a lower one.
FLOORS = {
    "ringfence.domain": 0,
    "ringfence.guest": 1,
    "ringfence.guest.frames": 1,
    "ringfence.shapes": 2,
    "ringfence.wire": 2,
    "ringfence.wire_egress": 2,
    "ringfence.wire_secrets": 2,
    "ringfence.runtimes.base": 2,
    "ringfence.store.base": 2,
    "ringfence.config": 2,
    "ringfence.claims": 2,  # which numbers of this machine's are ours: for runtimes and the network
    "ringfence.templates": 3,
    "ringfence.runtimes": 3,
    "ringfence.network": 3,
    "ringfence.store": 3,
    "ringfence.node": 4,
    "ringfence.engine": 4,
    "ringfence.edge.parse": 2,  # pure: one reading of HTTP, for published ports and for the opener
    "ringfence.edge.body": 2,
    "ringfence.edge": 5,
    "ringfence.api": 5,
    "ringfence.client": 6,
    "ringfence": 6,  # the package itself: it offers the client's names
    "ringfence.attack": 7,
    "ringfence.bench": 7,
    "ringfence.doctor": 7,
    "ringfence.serve": 7,
    "ringfence.cli": 8,
    "ringfence.__main__": 9,
}

# Who may see whom, where the floors alone would allow more. (importer, the only prefixes of ours it may import)
ONLY = {
    "ringfence.domain": ("ringfence.domain",),
    "ringfence.guest": ("ringfence.guest",),
    "ringfence.client": (
        "ringfence.client",
        "ringfence.domain",
        "ringfence.wire",
        "ringfence.wire_egress",
        "ringfence.wire_secrets",
        "ringfence.config",
        "ringfence.guest.frames",
    ),
    "ringfence.config": ("ringfence.domain", "ringfence.wire"),
    "ringfence.shapes": ("ringfence.domain",),
    "ringfence.wire": ("ringfence.domain", "ringfence.shapes"),
    "ringfence.wire_egress": ("ringfence.wire",),
    "ringfence.wire_secrets": ("ringfence.wire",),
    "ringfence.runtimes.base": ("ringfence.domain",),
    "ringfence.store.base": ("ringfence.domain", "ringfence.wire", "ringfence.wire_egress"),
    "ringfence.engine": (
        "ringfence.engine",
        "ringfence.domain",
        "ringfence.wire",
        "ringfence.wire_egress",
        "ringfence.wire_secrets",
        "ringfence.guest.frames",
        "ringfence.runtimes.base",
        "ringfence.store.base",
    ),
    "ringfence.edge": (
        "ringfence.edge",
        "ringfence.engine",
        "ringfence.domain",
        "ringfence.wire",
        "ringfence.config",
        "ringfence.guest.frames",
        "ringfence.store.base",
    ),
    "ringfence.node": (
        "ringfence.node",
        "ringfence.domain",
        "ringfence.guest",
        "ringfence.runtimes.base",
        "ringfence.templates.catalog",
    ),
}

# (importer, imported) that a rule above forbids, and why it is right all the same.
EXCEPTIONS = {
    ("ringfence.node.__main__", "ringfence.runtimes.here"): "the node's own composition root opens what this host has",
    ("ringfence.api.__main__", "ringfence.store.sqlite"): "the api's own composition root names its store",
}

# (module, what it reads from the environment): everything else takes arguments.
READS_ENVIRONMENT = {
    "ringfence.config": "the one place that reads settings",
    "ringfence.attack.probes": "programs that are sent into a sandbox; what they read is what a stranger would find",
    "ringfence.attack.own_server": "starts a server of its own with our environment, less our settings",
    "ringfence.attack.command": "NO_COLOR, which every command line program honours",
    "ringfence.bench.e2b": "where caches are kept, and the environment of a client as its user has it, less settings",
    "ringfence.doctor.report": "NO_COLOR, which every command line program honours",
    "ringfence.guest.agent": "inside a sandbox the environment is the template's, and what programs inherit",
    "ringfence.guest.boot": "the same, for an agent that a container tool started",
    "ringfence.guest.zygote": "it sets the template's environment before it forks anything",
    "ringfence.guest.runner": "it is the program's environment, not ours",
    "ringfence.guest.kernel": "the same, of cells",
    "ringfence.runtimes.jail.zygotes": "hands PATH and PYTHONPATH on to the launcher, and nothing else",
}


@dataclass(frozen=True, eq=False)
class Module:
    """One source file."""

    name: str
    path: Path
    tree: ast.Module
    lines: int


@cache
def modules() -> tuple[Module, ...]:
    """Every module of ours."""
    found = []
    for path in sorted(SRC.rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text()
        found.append(Module(name, path, ast.parse(text), text.count("\n")))
    return tuple(found)


@cache
def by_name() -> dict[str, Module]:
    """Them, found by what they are called."""
    return {module.name: module for module in modules()}


def imported(module: Module) -> Iterator[tuple[str, int, bool]]:
    """(module of ours, line, whether it stands inside a function) for each import."""
    inside = {id(node) for outer in functions(module) for node in ast.walk(outer) if node is not outer}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in by_name() else str(node.module) for name in names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == OURS:
                yield name, node.lineno, id(node) in inside


@cache
def functions(module: Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method, the inner ones included."""
    return [node for node in ast.walk(module.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def within(name: str, prefix: str) -> bool:
    """Whether a module is a package or inside it."""
    return name == prefix or name.startswith(prefix + ".")


def floor_of(name: str) -> int:
    """The floor a module stands on."""
    fitting = [prefix for prefix in FLOORS if within(name, prefix)]
    return FLOORS[max(fitting, key=len)]


def excused(importer: str, name: str) -> bool:
    """Whether an import is one of the exceptions."""
    return any(importer == who and within(name, what) for who, what in EXCEPTIONS)


def test_there_is_something_to_check() -> None:
    """The walk found the package, and the main doors are in it."""
    assert len(modules()) > 50
    assert {"ringfence.node.supervisor", "ringfence.guest.agent", "ringfence.runtimes.base"} <= set(by_name())


def test_imports_point_down() -> None:
    """A module imports from its own floor or a lower one."""
    assert not [
        f"{module.name} line {line} (floor {floor_of(module.name)}) imports {other} (floor {floor_of(other)})"
        for module in modules()
        for other, line, _ in imported(module)
        if floor_of(other) > floor_of(module.name) and not excused(module.name, other)
    ]


@pytest.mark.parametrize("prefix", ONLY)
def test_some_may_see_only_some(prefix: str) -> None:
    """Where a wall stands within a floor, nothing looks over it."""
    seen = [
        f"{module.name} line {line}: {other}"
        for module in modules()
        if within(module.name, prefix)
        for other, line, _ in imported(module)
        if not any(within(other, allowed) for allowed in ONLY[prefix]) and not excused(module.name, other)
    ]
    assert not seen


def test_exceptions_are_used() -> None:
    """An exception that nothing needs any more is removed."""
    used = {(who, what) for who, what in EXCEPTIONS for other, _, _ in imported(by_name()[who]) if within(other, what)}
    assert used == set(EXCEPTIONS)


def test_no_cycles() -> None:
    """No module imports itself, however far around: not counting a package's own __init__, which names its parts."""
    edges = {m.name: {other for other, _, _ in imported(m) if other != m.name} for m in modules()}
    state: dict[str, int] = {}
    cycles: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if state.get(name) == 2 or name not in edges:
            return
        if state.get(name) == 1:
            cycles.append(" > ".join([*path[path.index(name) :], name]))
            return
        state[name] = 1
        for other in sorted(edges[name]):
            visit(other, (*path, name))
        state[name] = 2

    for name in edges:
        visit(name, ())
    assert not cycles


def test_no_import_hides_in_a_function() -> None:
    """Every import of ours is at the top of its module."""
    assert not [f"{m.name} line {line}: {other}" for m in modules() for other, line, inside in imported(m) if inside]


def test_the_guest_needs_nothing_but_the_standard_library() -> None:
    """What runs inside a sandbox runs on any Python the template has."""
    foreign = []
    for module in modules():
        if within(module.name, "ringfence.guest"):
            for node in ast.walk(module.tree):
                if isinstance(node, ast.Import):
                    tops = [alias.name.split(".")[0] for alias in node.names]
                else:
                    tops = [str(node.module).split(".")[0]] if isinstance(node, ast.ImportFrom) else []
                foreign += [
                    f"{module.name}: {top}" for top in tops if top != OURS and top not in sys.stdlib_module_names
                ]
    assert not foreign


def test_the_node_needs_nothing_but_the_standard_library() -> None:
    """Whatever the node can reach by importing is ours or Python's: it runs as root."""
    waiting, seen, foreign = ["ringfence.node.__main__"], set[str](), set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for node in ast.walk(by_name()[name].tree):
            if isinstance(node, ast.Import):
                foreign |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                foreign.add(str(node.module).split(".")[0])
        waiting += [other for other, _, _ in imported(by_name()[name]) if other in by_name()]
    assert not foreign - {OURS} - set(sys.stdlib_module_names)
    assert not [name for name in seen if within(name, "ringfence.api") or within(name, "ringfence.store")]


def test_modules_are_short() -> None:
    """Nothing grows past what can be read in one sitting."""
    assert not [f"{m.name} has {m.lines} lines" for m in modules() if m.lines > LONGEST_MODULE]


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Its lines, from `def` to the last."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def test_functions_are_short() -> None:
    """No function is longer than a screen."""
    assert not [
        f"{m.name}.{f.name} has {length(f)} lines"
        for m in modules()
        for f in functions(m)
        if length(f) > LONGEST_FUNCTION
    ]


def test_most_functions_are_very_short() -> None:
    """Half of all functions fit in eight lines, nine of ten in twenty-five."""
    lengths = sorted(length(f) - 1 for m in modules() for f in functions(m))
    assert lengths[len(lengths) // 2] <= 8
    assert lengths[len(lengths) * 9 // 10] <= DEEPEST


def test_no_assert() -> None:
    """`python -O` removes assertions: a check that matters is an `if`."""
    assert not [
        f"{m.name} line {node.lineno}" for m in modules() for node in ast.walk(m.tree) if isinstance(node, ast.Assert)
    ]


def reads_environment(module: Module) -> list[int]:
    """Lines that touch os.environ or os.getenv."""
    return [
        node.lineno
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute)
        and node.attr in {"environ", "environb", "getenv"}
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    ]


def test_only_settings_read_the_environment() -> None:
    """Everyone else takes arguments."""
    assert not [
        f"{module.name} line {line}"
        for module in modules()
        if not any(within(module.name, excused) for excused in READS_ENVIRONMENT)
        for line in reads_environment(module)
    ]


def test_readers_of_the_environment_do_read_it() -> None:
    """A module on the list that reads nothing any more is taken off it."""
    assert not [
        prefix
        for prefix in READS_ENVIRONMENT
        if not any(reads_environment(m) for m in modules() if within(m.name, prefix))
    ]


Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public(module: Module) -> Iterator[tuple[str, Documented]]:
    """Every class and function whose name is for others: not private, not a dunder, not local to a function."""
    for node in module.tree.body:
        if isinstance(node, Documented) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) and not inner.name.startswith("_"):
                        yield f"{node.name}.{inner.name}", inner


def overloaded(node: Documented) -> bool:
    """Whether it is only a type checker's view of another."""
    return any(ast.unparse(each).endswith(("overload", ".setter")) for each in node.decorator_list)


def test_everything_public_says_what_it_is_for() -> None:
    """A module, a class, a function that others may use has a docstring."""
    assert not [
        f"{module.name}: {what}"
        for module in modules()
        for what, node in public(module)
        if not ast.get_docstring(node) and not overloaded(node)
    ]
    assert not [module.name for module in modules() if module.tree.body and not ast.get_docstring(module.tree)]


FORBIDDEN_CALLS = {
    "eval": "no text becomes code in our own processes",
    "exec": "no text becomes code in our own processes",
    "pickle.loads": "bytes from elsewhere are never objects",
    "pickle.load": "bytes from elsewhere are never objects",
    "marshal.loads": "bytes from elsewhere are never objects",
    "os.system": "no shell line is ever built",
    "yaml.load": "JSON and TOML are enough",
    "tempfile.mktemp": "a name is not a file",
}
MAY_CALL = {("ringfence.guest.runner", "exec"): "running a program inside a sandbox is what it is for"}


def test_dangerous_calls_are_not_made() -> None:
    """What turns bytes into code is called nowhere but where that is the point."""
    made = {
        (module.name, ast.unparse(node.func))
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call)
    }
    assert not {(name, call) for name, call in made if call in FORBIDDEN_CALLS} - MAY_CALL.keys()


def test_shells_are_not_used() -> None:
    """No subprocess is given a line for a shell to read."""
    given = [
        f"{module.name} line {node.lineno}"
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.keyword) and node.arg == "shell" and ast.unparse(node.value) == "True"
    ]
    assert not given


def test_the_client_can_be_used_without_the_server() -> None:
    """Importing the SDK pulls in no part of the server."""
    found = importlib.util.find_spec("ringfence.client")
    assert found is not None
    waiting, seen = ["ringfence.client"], set[str]()
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += [other for other, _, _ in imported(by_name()[name]) if other in by_name()]
    servers = ("api", "node", "engine", "store", "runtimes", "templates", "serve")
    assert not [name for name in seen if any(within(name, f"ringfence.{part}") for part in servers)]
