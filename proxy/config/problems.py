"""Problems and warnings of a config file, with their place and their text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from proxy.core.text import printable

Key = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to fix. `line` counts from 1; `key` is the dotted path, `""` for the file."""

    file: Path
    line: int
    key: str
    expected: str
    found: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: {self.key or '(file)'}"
        return printable(f"{where}: expected {self.expected}, found {self.found}")


@dataclass(frozen=True, slots=True)
class ConfigWarning:
    """Something legal that is probably a mistake. `check` shows it; it prevents nothing."""

    file: Path
    line: int
    key: str
    text: str

    def __str__(self) -> str:
        return printable(f"{self.file}:{self.line}: {self.key or '(file)'}: warning: {self.text}")


class ConfigError(Exception):
    """The config cannot be used. `problems` lists every problem, in file order."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(
            sorted(dict.fromkeys(problems), key=lambda problem: (problem.line, problem.key))
        )
        super().__init__("\n".join(map(str, self.problems)))


def dotted(key: Key) -> str:
    """`("routes", 0, "path")` as `routes[0].path`."""
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text
