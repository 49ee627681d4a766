"""The output of the tour: colours and a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


class Bar(Protocol):
    """A progress bar in use."""

    def show(self, share: float, text: str) -> None:
        """`share`: 0 to 1; `text`: the current activity."""


class Narrator:
    """Writes to one console."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)

    def step(self, number: int, total: int, title: str) -> None:
        """Announce a step."""
        self._console.print(f"[bold cyan]\\[{number}/{total}][/] [bold]{title}[/]")

    def saw(self, text: str) -> None:
        """Print what a step has seen, one or more lines."""
        for line in text.splitlines():
            self._console.print("      " + line, markup=False)

    def passed(self, seconds: float) -> None:
        self._console.print(f"      [green]ok[/] in {seconds:.1f} s")

    def failed(self, text: str) -> None:
        self._console.print("      FAILED: ", style="bold red", end="")
        self._console.print(text, markup=False)

    def line(self, text: str = "") -> None:
        """Print a line to copy from, neither wrapped nor styled."""
        self._console.print(text, markup=False)

    @contextmanager
    def bar(self) -> Iterator[Bar]:
        """A progress bar on a terminal; elsewhere one line for each new text."""
        if not self._console.is_terminal:
            yield _Lines(self)
            return
        columns = (TextColumn("     "), BarColumn(), TextColumn("{task.description}"))
        with Progress(
            *columns, TimeElapsedColumn(), console=self._console, transient=True
        ) as progress:
            yield _Moving(progress)


class _Lines:
    def __init__(self, narrator: Narrator) -> None:
        self._narrator = narrator
        self._last = ""

    def show(self, share: float, text: str) -> None:
        if text != self._last:
            self._narrator.saw(f"{share:4.0%}  {text}")
            self._last = text


class _Moving:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=1.0)

    def show(self, share: float, text: str) -> None:
        self._progress.update(self._task, completed=share, description=text)
