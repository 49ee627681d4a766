"""The schema of the store's SQLite file, and the mirror's names for its errors."""

from __future__ import annotations

from proxy.core.sqlite.file import REFUSED, Params, Schema, Silent
from proxy.jobs.store.migrations import APPLICATION_ID, MIGRATIONS, SETTINGS

__all__ = ["REFUSED", "SCHEMA", "Params", "StoreSilent"]

#: Raised when the store cannot answer now.
StoreSilent = Silent

SCHEMA = Schema(APPLICATION_ID, MIGRATIONS, SETTINGS)
