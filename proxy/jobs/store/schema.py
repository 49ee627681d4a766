"""The schema of a ledger's SQLite file, and how the mirror's files call its troubles."""

from __future__ import annotations

from proxy.core.sqlite.file import REFUSED, Params, Schema, Silent
from proxy.jobs.store import sql

__all__ = ["REFUSED", "SCHEMA", "LedgerSilent", "Params"]

#: The ledger cannot answer now.
LedgerSilent = Silent

SCHEMA = Schema(sql.APPLICATION_ID, sql.MIGRATIONS, sql.SETTINGS)
