"""Responses of the admin API for people: facts as lines, rows as tables that fit the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from proxy.core.text import printable

# The columns of tables, if the rows have them; `--json` shows everything.
_COLUMNS = (
    "name",
    "service",
    "state",
    "failures",
    "until",
    "reason",
    "job_id",
    "id",
    "mirror",
    "status",
    "progress",
    "last_sync",
    "keys",
    "copied",
    "missing",
    "deleted",
    "restored",
    "kept",
    "seconds",
    "seen_at",
    "created_at",
    "updated_at",
    "expires_at",
    "deleted_at",
    "error",
)

_IDS = frozenset({"job_id", "id", "name"})

# Columns that are dropped on a narrow terminal, in this order; `--json` shows everything.
_EXPENDABLE = (
    "expires_at",
    "updated_at",
    "progress",
    "created_at",
    "mirror",
    "until",
    "failures",
    "last_sync",
    "seconds",
    "reason",
    "error",
)
_TEXT_WIDTH = 16  # the least width of a reason or an error


def show(answer: Any) -> None:
    """Print facts as lines, rows as tables, and deeper structures as JSON."""
    if isinstance(answer, list):
        _table("", answer)
        return
    if not isinstance(answer, dict):
        print("ok" if answer is None else _cell(answer))
        return
    for name, value in answer.items():
        if not (isinstance(value, list) and all(isinstance(row, dict) for row in value)):
            print(f"{printable(name)}: {_cell(value)}")
    for name, value in answer.items():
        if isinstance(value, list) and all(isinstance(row, dict) for row in value):
            _table(name, value)


def _table(title: str, rows: Sequence[Any]) -> None:
    if not rows:
        print(f"no {title or 'entries'}")
        return
    if not all(isinstance(row, dict) for row in rows):
        print("\n".join(map(_cell, rows)))
        return
    columns = [name for name in _COLUMNS if any(name in row for row in rows)]
    columns = columns or list(dict.fromkeys(name for row in rows for name in row))
    if not sys.stdout.isatty():
        cells = [[_cell(row.get(name)) for name in columns] for row in rows]
        print("\n".join("\t".join(line) for line in [columns, *cells]))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    shown = [{name: _short(name, _cell(row.get(name))) for name in columns} for row in rows]
    widths = {name: max(len(name), *(len(row[name]) for row in shown)) for name in columns}
    columns = fitting(widths, console.width)
    cells = [[row[name] for name in columns] for row in shown]
    table = Table(title=printable(title) or None, title_justify="left")
    for name in columns:
        # A truncated ID cannot be copied, so other columns give way to it.
        table.add_column(name, overflow="fold", no_wrap=name in _IDS)
    for line in cells:
        table.add_row(*map(Text, line))
    console.print(table)
    if len(columns) < len(widths):
        hidden = [name for name in widths if name not in columns]
        print(f"not shown in {console.width} columns: {', '.join(map(printable, hidden))}")


def _short(name: str, cell: str) -> str:
    """Shorten a date to the second, to make room for other columns."""
    return cell[:19] if name.endswith("_at") and cell[19:20] == "." else cell


def fitting(widths: Mapping[str, int], width: int) -> list[str]:
    """The columns that fit the terminal, given the widths of their cells."""
    needs = {
        name: min(need, _TEXT_WIDTH) if name in ("reason", "error") else need
        for name, need in widths.items()
    }
    for name in _EXPENDABLE:
        if sum(needs.values()) + 3 * len(needs) + 1 <= width:
            break
        if len(needs) > 1:
            needs.pop(name, None)
    return list(needs)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return printable(text)
