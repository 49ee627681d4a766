"""What a run found, in words."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tests.mutants.operators import Mutant
from tests.mutants.trial import Verdict

ALIVE = (Verdict.SURVIVED, Verdict.NOT_REACHED)


@dataclass(frozen=True, slots=True)
class Tried:
    """A mutant of a file, and what became of it."""

    path: str
    source: bytes
    mutant: Mutant
    verdict: Verdict
    tests: int  # how many reach the line

    @property
    def room(self) -> str:
        """The package that the file is in, at most two levels deep."""
        return "/".join(self.path.split("/")[:-1][:2])

    def describe(self) -> str:
        """Where, what and the changed lines."""
        ran = f" {self.tests} tests" if self.verdict is Verdict.SURVIVED else ""
        place = f"{self.path}:{self.mutant.line}"
        return "\n".join([f"{place}: {self.mutant.kind} {self.verdict}{ran}", *self._difference()])

    def _difference(self) -> Iterator[str]:
        old = self.source.decode().splitlines()
        new = self.mutant.apply(self.source).decode().splitlines()
        for line in difflib.unified_diff(old, new, lineterm="", n=0):
            if line[0] in "+-" and line[:3] not in ("+++", "---"):
                yield f"    {line}"


def summary(results: Iterable[Tried]) -> str:
    """A line for each room, and one for all."""
    counted: dict[str, Counter[Verdict]] = {}
    for one in results:
        counted.setdefault(one.room, Counter())[one.verdict] += 1
    lines = [_row(room, counts) for room, counts in sorted(counted.items())]
    if len(counted) > 1:
        lines.append(_row("in all", sum(counted.values(), Counter())))
    return "\n".join(lines)


def _row(name: str, counts: Counter[Verdict]) -> str:
    total = counts.total()
    alive = sum(counts[verdict] for verdict in ALIVE)
    parts = [f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict]]
    return f"{name:<24} {total - alive:>4} of {total:<4} noticed   ({', '.join(parts)})"
