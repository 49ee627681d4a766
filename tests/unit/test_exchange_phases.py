"""Each field of an exchange is set in one phase, by the room that the phase names.

A reader who asks where a field comes from looks at its phase in `proxy/forward/exchange.py`, and
need not search the tree. This test reads the tree for every assignment.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import proxy
from proxy.forward import exchange as module
from proxy.forward.exchange import Answered, Attempted, Ended, Exchange, Routed, Staged

ROOT = Path(proxy.__file__).parent

WRITERS: dict[type, tuple[str, ...]] = {
    Routed: ("server",),
    Staged: ("routes",),
    Attempted: ("forward", "server/fast_path.py"),
    Answered: ("forward", "server"),
    Ended: ("server",),
}

# Fields that one more file sets, each with the reason.
ALSO = {
    (
        "routes/extensions/runner.py",
        "plan",
    ): "a user's stage edits a copy of it",
    ("routes/jobs/context.py", "correlation_id"): "a worker's call carries the ID of its job",
    ("routes/jobs/create.py", "added"): "the stage adds fields to the answer that is relayed",
    ("routes/jobs/read.py", "added"): "the stage adds fields to the answer that is relayed",
    ("routes/upload.py", "detail"): "in report mode nothing else records why it would be refused",
}


def fields(phase: type) -> set[str]:
    """The fields that a phase declares."""
    return {name for name in {**vars(phase), **phase.__annotations__} if not name.startswith("_")}


def assignments() -> Iterator[tuple[str, str]]:
    """Every file that sets a field of an exchange, and the field."""
    for path in sorted(ROOT.rglob("*.py")):
        if path == Path(module.__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
                owner = ast.unparse(node.value)
                if owner.rpartition(".")[2].lstrip("_") == "exchange":
                    yield path.relative_to(ROOT).as_posix(), node.attr


def allowed(file: str, field: str) -> bool:
    """Whether `file` may set `field`."""
    phases = [phase for phase in WRITERS if field in fields(phase)]
    return (file, field) in ALSO or any(
        file == writer or file.startswith(f"{writer}/")
        for phase in phases
        for writer in WRITERS[phase]
    )


def test_a_field_is_set_in_its_phase() -> None:
    """No room sets a field of another room's phase, nor one that the constructor sets for good."""
    astray = {(file, field) for file, field in assignments() if not allowed(file, field)}
    assert not astray


def test_the_phases_are_complete() -> None:
    """They share no field, each is used, and the exceptions are needed."""
    phases = [fields(phase) for phase in WRITERS]
    assert sum(map(len, phases)) == len(set().union(*phases))
    assert set(Exchange.__mro__) == {Exchange, object, *WRITERS}
    used = set(assignments())
    assert set(ALSO) <= used
    own = ast.parse(Path(module.__file__).read_text())
    set_here = {n.attr for n in ast.walk(own) if isinstance(n, ast.Attribute)}
    assert set().union(*phases) - {field for _, field in used} <= set_here


@pytest.mark.parametrize(
    ("file", "field"),
    [
        ("routes/trace.py", "status"),  # a stage answers by returning a reply
        ("forward/attempts.py", "code"),  # an error is raised, and becomes a code at the end
        ("server/connection.py", "target"),
        ("telemetry/facts.py", "method"),  # set once, when the head was read
    ],
)
def test_what_is_astray_is_found(file: str, field: str) -> None:
    """The rule refuses these, so it is not empty."""
    assert not allowed(file, field)
