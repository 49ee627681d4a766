"""Which tests reach a line, and how long they take: known from one run of them all."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.mutants.operators import statements


@dataclass(slots=True)
class Coverage:
    """What the unchanged program's tests did."""

    seconds: dict[str, float] = field(default_factory=dict)  # by test, set-up included
    # By file, by line: the tests that ran it. What ran in an import belongs to no test.
    reached: dict[str, dict[int, frozenset[str]]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, record: Path, report: Path) -> Coverage:
        """From a `Recorder` and from `coverage json --show-contexts`."""
        recorded = json.loads(record.read_text(encoding="utf-8"))
        files = json.loads(report.read_text(encoding="utf-8"))["files"]
        reached = {
            name: {
                int(line): frozenset(one.rpartition("|")[0] for one in contexts if one)
                for line, contexts in file["contexts"].items()
            }
            for name, file in files.items()
        }
        return cls(recorded["seconds"], reached, recorded["failed"])

    def tests_of(self, path: str, source: bytes, line: int) -> list[str]:
        """The tests that may notice a change of a line, the fastest first.

        They are those that run the line. A line that runs only in an import (a constant, a class
        body) is up to all tests that run anything in the file.
        """
        lines = self.reached.get(path, {})
        if line not in lines:  # part of a statement whose first line is what counts
            around = [first for first, last in statements(source) if first <= line <= last]
            line = max((first for first in around if first in lines), default=line)
        if line not in lines:
            return []
        return self.in_order(lines[line] or frozenset().union(*lines.values()))

    def in_order(self, tests: Iterable[str]) -> list[str]:
        """The fastest first: a mutant that dies, dies soon."""
        return sorted(tests, key=lambda one: (self.seconds.get(one, 0.0), one))
