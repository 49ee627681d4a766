"""What can be changed in a source file: small edits that a good test notices.

Left out is what no test should depend on: annotations, decorators, assertions, log lines, what only
type checkers read, and how things look in a debugger.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

KINDS = ("comparison", "constant", "logic", "condition", "arithmetic", "removal", "return")

COMPARISONS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
OPERATORS: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
}
OPPOSITES = {"min": "max", "max": "min", "any": "all", "all": "any"}
LOGGERS = re.compile(r"_?(log|logger|logging|warnings)")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One edit of a file's bytes from `start` to `end`."""

    line: int  # the first line of what is changed, from 1
    kind: str  # of KINDS
    start: int
    end: int
    replacement: bytes

    def apply(self, source: bytes) -> bytes:
        """The file with this edit."""
        return source[: self.start] + self.replacement + source[self.end :]


def mutants(source: bytes) -> list[Mutant]:
    """Everything that can be changed in a file, in the order of its lines."""
    finder = _Finder(source)
    finder.visit(ast.parse(source))
    return sorted(set(finder.found), key=lambda one: (one.line, one.start, one.replacement))


class _Finder(ast.NodeVisitor):
    """Walks a syntax tree and collects edits."""

    def __init__(self, source: bytes) -> None:
        self.found: list[Mutant] = []
        self._source = source
        self._lines = [0]
        for line in source.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))

    # --- what is left out ------------------------------------------------------------------------

    def visit_Assert(self, node: ast.Assert) -> None:
        """Assertions state what holds anyway."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """An annotation is for readers; the value counts."""
        if node.value is not None:
            self.visit(node.value)

    def visit_arg(self, node: ast.arg) -> None:
        """Parameters have nothing but a name and an annotation."""

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """The body of a class, without its decorators and bases."""
        self._visit_all(node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """Defaults and body of a function; not of one that only shows an object."""
        if node.name not in ("__repr__", "__str__"):
            defaults = [*node.args.defaults, *node.args.kw_defaults]
            self._visit_all([*(one for one in defaults if one is not None), *node.body])

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        """As any other function."""
        self.visit_FunctionDef(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Texts are for people. Positions in f-strings are wrong before Python 3.12, too."""

    def _visit_all(self, nodes: list[ast.expr] | list[ast.stmt] | list[ast.AST]) -> None:
        for node in nodes:
            self.visit(node)

    # --- what is changed -------------------------------------------------------------------------

    def visit_Compare(self, node: ast.Compare) -> None:
        """`<` becomes `<=`, `in` becomes `not in`."""
        operands = [node.left, *node.comparators]
        for left, operator, right in zip(operands, node.ops, operands[1:], strict=False):
            old, new = COMPARISONS[type(operator)]
            self._swap(left, right, old, new, "comparison", node.lineno)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        """`+` becomes `-`."""
        texts = (ast.Constant, ast.JoinedStr)
        is_text = any(
            isinstance(side, texts) and not isinstance(getattr(side, "value", ""), int | float)
            for side in (node.left, node.right)
        )
        if type(node.op) in OPERATORS and not is_text:
            old, new = OPERATORS[type(node.op)]
            self._swap(node.left, node.right, old, new, "arithmetic", node.lineno)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """`+=` becomes `-=`."""
        if type(node.op) in OPERATORS:
            old, new = OPERATORS[type(node.op)]
            self._swap(node.target, node.value, old + "=", new + "=", "arithmetic", node.lineno)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        """`and` becomes `or`."""
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._swap(left, right, old, new, "logic", right.lineno)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        """`not x` becomes `x`."""
        if isinstance(node.op, ast.Not):
            self._replace(node, self._text(node.operand), "condition")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        """Numbers grow by one, truth values flip."""
        if isinstance(node.value, bool):
            self._replace(node, str(not node.value), "constant")
        elif isinstance(node.value, int | float):
            self._replace(node, repr(node.value + 1), "constant")

    def visit_Name(self, node: ast.Name) -> None:
        """`min` becomes `max`."""
        if node.id in OPPOSITES:
            self._replace(node, OPPOSITES[node.id], "arithmetic")

    def visit_If(self, node: ast.If) -> None:
        """A condition is negated; blocks for type checkers are left alone."""
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            self._visit_all(node.orelse)
        else:
            self._negate(node.test)
            self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        """A condition is negated."""
        self._negate(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        """A condition is negated."""
        if not isinstance(node.test, ast.Constant):
            self._negate(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        """A filter is negated."""
        for test in node.ifs:
            self._negate(test)
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        """A call for its effect is left out, unless it only logs."""
        call = node.value.value if isinstance(node.value, ast.Await) else node.value
        if isinstance(call, ast.Call):
            if _logs(call):
                return
            self._replace(node, "pass", "removal")
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        """Nothing is raised. What an error says is not looked at."""
        self._replace(node, "pass", "removal")

    def visit_Assign(self, node: ast.Assign) -> None:
        """An attribute or element keeps its value."""
        if all(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets):
            self._replace(node, "pass", "removal")
        self.generic_visit(node)

    def visit_Break(self, node: ast.Break) -> None:
        """The loop goes on."""
        self._replace(node, "continue", "removal")

    def visit_Continue(self, node: ast.Continue) -> None:
        """The loop ends."""
        self._replace(node, "break", "removal")

    def visit_Return(self, node: ast.Return) -> None:
        """A computed value becomes None; constants and comparisons have edits of their own."""
        if node.value is not None:
            if not isinstance(node.value, ast.Constant | ast.Compare | ast.BoolOp | ast.UnaryOp):
                self._replace(node.value, "None", "return")
            self.visit(node.value)

    # --- edits -----------------------------------------------------------------------------------

    def _negate(self, test: ast.expr) -> None:
        if not isinstance(test, ast.Compare) and not (
            isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
        ):
            self._replace(test, f"(not ({self._text(test)}))", "condition")

    def _swap(
        self, left: ast.AST, right: ast.AST, old: str, new: str, kind: str, line: int
    ) -> None:
        """Replace an operator, which stands somewhere between its operands."""
        start, end = self._span(left)[1], self._span(right)[0]
        words = rb"\s+".join(re.escape(word) for word in old.encode().split())
        if old[0].isalpha():
            words = rb"\b" + words + rb"\b"
        if match := re.search(words, self._source[start:end]):
            found = (start + match.start(), start + match.end())
            self.found.append(Mutant(line, kind, *found, new.encode()))

    def _replace(self, node: ast.expr | ast.stmt, new: str, kind: str) -> None:
        self.found.append(Mutant(node.lineno, kind, *self._span(node), new.encode()))

    def _text(self, node: ast.AST) -> str:
        start, end = self._span(node)
        return self._source[start:end].decode()

    def _span(self, node: ast.AST) -> tuple[int, int]:
        assert isinstance(node, ast.expr | ast.stmt)
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self._lines[node.lineno - 1] + node.col_offset
        return start, self._lines[node.end_lineno - 1] + node.end_col_offset


def _logs(call: ast.Call) -> bool:
    """Whether a call only writes to the log."""
    function = call.func
    return (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name | ast.Attribute)
        and LOGGERS.fullmatch(
            function.value.id if isinstance(function.value, ast.Name) else function.value.attr
        )
        is not None
    )


def statements(source: bytes) -> Iterator[tuple[int, int]]:
    """First and last line of every statement, outer ones first."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt) and node.end_lineno is not None:
            yield node.lineno, node.end_lineno
