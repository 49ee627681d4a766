"""The schema of a store's SQLite file, and how the mirror's files call its troubles."""

from __future__ import annotations

from proxy.core.sqlite.file import REFUSED, Params, Schema, Silent
from proxy.jobs.store import sql

__all__ = ["REFUSED", "SCHEMA", "Params", "StoreSilent"]

#: The store cannot answer now.
StoreSilent = Silent

SCHEMA = Schema(sql.APPLICATION_ID, sql.MIGRATIONS, sql.SETTINGS)
