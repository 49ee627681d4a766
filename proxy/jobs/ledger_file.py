"""The ledger's SQLite file, and the names by which the mirror's files know its troubles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from proxy.clock import Clock
from proxy.jobs import sql
from proxy.sqlite_file import REFUSED, Newer, Params, Schema, Silent, SqliteFile, Unfit, is_damage

__all__ = ["REFUSED", "LedgerSilent", "Newer", "Params", "Unfit", "is_damage", "ledger_file"]

#: The ledger cannot answer now.
LedgerSilent = Silent


def ledger_file(path: Path, clock: Clock, on_suspect: Callable[[], None]) -> SqliteFile:
    """The file of one mirror's ledger."""
    schema = Schema(sql.APPLICATION_ID, sql.MIGRATIONS, sql.SETTINGS)
    return SqliteFile(path, schema, clock, on_suspect)
