"""The mutation tester: what it changes, what it leaves alone, which tests it runs, its report."""

from __future__ import annotations

import ast
from pathlib import Path
from textwrap import dedent

import pytest

from tests.mutants.coverage import Coverage
from tests.mutants.operators import Mutant, mutants
from tests.mutants.report import Tried, summary
from tests.mutants.trial import Verdict

ROOT = Path(__file__).parents[2]


def edits(source: str) -> set[str]:
    """The source with each edit, one at a time."""
    raw = source.encode()
    return {one.apply(raw).decode() for one in mutants(raw)}


@pytest.mark.parametrize(
    ("source", "changed"),
    [
        ("a < b", {"a <= b"}),
        ("a is  not b", {"a is b"}),
        ("a < b >= c", {"a <= b >= c", "a < b > c"}),
        ("(a) in (b)", {"(a) not in (b)"}),
        ("x = 60", {"x = 61"}),
        ("x = True", {"x = False"}),
        ("a and b or c", {"a or b or c", "a and b and c"}),
        ("x = not a", {"x = a"}),
        ("x = a if b else c", {"x = a if (not (b)) else c"}),
        ("x += 'é' + a", {"x -= 'é' + a"}),
        ("x = max(a, b)", {"x = min(a, b)"}),
        ("x = [a for a in b if a]", {"x = [a for a in b if (not (a))]"}),
        ("f(a)", {"pass"}),
        ("self.a = b", {"pass"}),
        ("if a:\n    raise B(1)", {"if (not (a)):\n    raise B(1)", "if a:\n    pass"}),
        ("while True:\n    break", {"while False:\n    break", "while True:\n    continue"}),
        ("def f():\n    return a.b", {"def f():\n    return None"}),
        ("def f(a=1): ...", {"def f(a=2): ..."}),
    ],
)
def test_small_edits(source: str, changed: set[str]) -> None:
    """Conditions, operators, numbers, effects and results are changed, one at a time."""
    assert edits(source) == changed


@pytest.mark.parametrize(
    "source",
    [
        "'''A text.'''",
        "def f(a: Literal[1]) -> Literal[2]: ...",
        "x: Annotated[int, 1]",
        "@dataclass(frozen=True)\nclass A(B, total=False): ...",
        "assert a < 1",
        "logger.info('took %d', 1 + a)",
        "self._log.warning('no')",
        "if TYPE_CHECKING:\n    import a",
        "def __repr__(self):\n    return f(1)",
        "x = f'{a + 1}'",
        "x = 'a' + b",
    ],
)
def test_what_no_test_should_depend_on(source: str) -> None:
    """Annotations, decorators, assertions, log lines and texts stay as they are."""
    assert edits(source) == set()


def test_every_mutant_of_the_program_is_a_program() -> None:
    """Each edit of a long file still parses, and changes something."""
    source = (ROOT / "proxy" / "http1" / "request_head.py").read_bytes()
    tree = ast.dump(ast.parse(source))
    found = mutants(source)
    assert len(found) > 100
    for one in found:
        assert ast.dump(ast.parse(one.apply(source))) != tree, one


def test_only_tests_that_reach_a_line_are_run() -> None:
    """The fastest first; a line of an import is up to all tests of the file, one inside a
    statement to those of the statement."""
    source = dedent(
        """\
        LIMIT = 5
        def f(a):
            return (
                a < LIMIT
            )
        def g():
            return 0
        """
    ).encode()
    one, two = frozenset({"t::slow", "t::fast"}), frozenset({"t::fast"})
    coverage = Coverage(
        {"t::slow": 2.0, "t::fast": 0.1},
        {"a.py": {1: frozenset(), 2: frozenset(), 3: one, 7: two}},
    )
    assert coverage.tests_of("a.py", source, 1) == ["t::fast", "t::slow"]
    assert coverage.tests_of("a.py", source, 4) == ["t::fast", "t::slow"]
    assert coverage.tests_of("a.py", source, 7) == ["t::fast"]
    assert coverage.tests_of("b.py", source, 1) == []


def test_survivors_are_shown_with_their_place() -> None:
    """Where, what kind, how many tests ran, and the line before and after."""
    source = b"def full(n):\n    return n >= 3\n"
    mutant = next(one for one in mutants(source) if one.kind == "comparison")
    tried = Tried("proxy/http1/pool.py", source, mutant, Verdict.SURVIVED, 7)
    assert tried.describe().splitlines() == [
        "proxy/http1/pool.py:2: comparison survived 7 tests",
        "    -    return n >= 3",
        "    +    return n > 3",
    ]


def test_the_summary_counts_by_room() -> None:
    """Killed and hung mutants count as noticed; several rooms are added up."""
    mutant = Mutant(1, "constant", 0, 1, b"2")
    results = [
        Tried(f"proxy/{room}/a.py", b"1", mutant, verdict, 1)
        for room, verdict in (
            ("http1", Verdict.KILLED),
            ("http1", Verdict.NOT_REACHED),
            ("jobs/store", Verdict.TIMED_OUT),
        )
    ]
    lines = [" ".join(line.split()) for line in summary(results).splitlines()]
    assert lines == [
        "proxy/http1 1 of 2 noticed (1 killed, 1 not reached)",
        "proxy/jobs 1 of 1 noticed (1 timed out)",
        "in all 2 of 3 noticed (1 killed, 1 timed out, 1 not reached)",
    ]
