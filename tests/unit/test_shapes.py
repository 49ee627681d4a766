"""The shapes that keep the code readable: what a constructor may ask for, and whose names we use.

How complex a function may be is in `pyproject.toml` (C901), and ruff checks it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import proxy

ROOT = Path(proxy.__file__).parent

#: Parameters of a constructor, besides `self`. Beyond that, what belongs together gets a name.
MOST = 7


def constructors(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every class that can be constructed, and how many arguments that takes.

    A frozen dataclass is a record: each of its fields is a fact with a name, and has no constructor
    that does anything. Of other dataclasses, fields with a default are state, not parameters.
    """
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef):
            continue
        decorators = [ast.unparse(one) for one in node.decorator_list]
        if any("dataclass" in one and "frozen=True" not in one for one in decorators):
            yield node.name, len([one for one in node.body if _required(one)])
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and method.name in ("__init__", "__new__"):
                given = method.args
                every = [*given.posonlyargs, *given.args, *given.kwonlyargs]
                # A catch-all hides what it takes.
                hidden = [one for one in (given.vararg, given.kwarg) if one is not None]
                yield node.name, len(every) - 1 + (MOST if len(hidden) == 2 else 0)


def _required(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.AnnAssign)
        and statement.value is None
        and "ClassVar" not in ast.unparse(statement.annotation)
    )


def test_no_constructor_asks_for_more_than_seven_things() -> None:
    """What belongs together is passed as one object with a name."""
    found = {
        f"{path.relative_to(ROOT)}: {name}": number
        for path in sorted(ROOT.rglob("*.py"))
        for name, number in constructors(ast.parse(path.read_text()))
    }
    assert len(found) > 200
    assert not {name: number for name, number in found.items() if number > MOST}


@pytest.mark.parametrize(
    ("source", "number"),
    [
        ("class A:\n def __init__(self, a, b, /, c, *, d=1): ...", 4),
        ("@dataclass\nclass A:\n a: int\n b: int = 1\n c: ClassVar[int]", 1),
        ("@dataclass(slots=True)\nclass A:\n a: int\n b: int", 2),
        ("class A:\n def __new__(cls, a): ...", 1),
        ("class A:\n def __init__(self, a, *b, **c): ...", 8),
    ],
)
def test_parameters_are_counted(source: str, number: int) -> None:
    """Whether by position, by keyword, with a default or behind a catch-all."""
    assert list(constructors(ast.parse(source))) == [("A", number)]


def test_a_record_is_no_constructor() -> None:
    """A frozen dataclass may have many fields."""
    assert not list(constructors(ast.parse("@dataclass(frozen=True)\nclass A:\n a: int")))


#: The only places that use names with an underscore of somebody else's: adapters of one function.
ADAPTERS = {
    "core/futures.py": {"_asyncio_future_blocking"},
    "core/redis/pushes.py": {"_parser"},
}

#: Documented names that begin with one, and types without a public name, for annotations.
PUBLIC = {"_exit", "_asdict", "_replace", "_fields"} | {"_SubParsersAction", "_Hash"}


def private_names(tree: ast.AST) -> set[str]:
    """The names with an underscore in front that a file uses without defining them, in the room
    that it stands in: as an attribute, in a `getattr`, or imported."""
    used: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            used.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            used |= {one.name for one in node.names} | set((node.module or "").split("."))
        elif isinstance(node, ast.Import):
            used |= {part for one in node.names for part in one.name.split(".")}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr"):
            name = node.args[1]
            used |= {name.value} if isinstance(name, ast.Constant) else set()
    return {name for name in used if name.startswith("_") and not name.endswith("__")}


def defined_names(tree: ast.AST) -> set[str]:
    """Every name that a file gives to something of its own."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if ast.unparse(node.value) in ("self", "cls"):
                found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)  # `__slots__`
    return found


def test_private_names_of_libraries_are_used_by_adapters_alone() -> None:
    """A library may change them in any release: each stands behind one small, tested function."""
    trees = {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text())
        for path in sorted(ROOT.rglob("*.py"))
    }
    ours = set().union(*map(defined_names, trees.values())) - set().union(*ADAPTERS.values())
    astray = {
        (file, name)
        for file, tree in trees.items()
        for name in private_names(tree) - ours - defined_names(tree) - PUBLIC
        if name not in ADAPTERS.get(file, set())
    }
    assert not astray


#: Lines that a file may have. Most have fewer than 300, and none should stay above 400 for long.
LONGEST = 420

#: Longer files, each with the reason.
LONGER = {
    "resilience/circuit/circuit.py": "one state machine, with its rules: a part of it misleads"
}


def test_no_file_is_longer_than_a_reader_keeps_in_mind() -> None:
    """A longer one has more than one job, and is split where they part."""
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines())
        for path in ROOT.rglob("*.py")
    }
    assert {file for file, length in lengths.items() if length > LONGEST} == set(LONGER)
