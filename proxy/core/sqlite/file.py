"""An SQLite file with one writer and several readers: opened, migrated, checked, set aside.

The job store and the trace decide what to write and when; this file knows how.
"""

from __future__ import annotations

import asyncio
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import aiosqlite

from proxy.core.clock import Clock
from proxy.core.process.private_files import close_to_others, make, make_directory
from proxy.core.sqlite.readers import Params, Readers, Silent, close_in_time, interrupt

__all__ = [
    "REFUSED",
    "NewerSchema",
    "Params",
    "Schema",
    "Silent",
    "SqliteFile",
    "UnusableFile",
    "is_damage",
]

CHECK_AT_START = 32 * 1024 * 1024  # bytes; bigger files are checked while in use

_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}

# Errors of SQLite or its binding that concern a value, not the file.
REFUSED = (
    sqlite3.IntegrityError,
    sqlite3.ProgrammingError,
    sqlite3.InterfaceError,
    sqlite3.DataError,
    OverflowError,
    ValueError,
)


class UnusableFile(Exception):
    """The file is damaged or not ours, and has to be set aside. The message says which."""


class NewerSchema(Exception):
    """The file was written by a later release. It is left alone, because we cannot interpret it."""


@dataclass(frozen=True, slots=True)
class Schema:
    """The layout of one kind of file. `application_id` marks our files; `migrations` are numbered
    from 1; `settings` are executed before them each time the file is opened, and `birth` before
    those if the file is new. `readers` connections share the reads that somebody waits for;
    `surveyors` run the surveys, which may take longer, so that neither waits for the other. A read
    that exceeds its limit, in seconds, is interrupted and raises `Silent`."""

    application_id: int
    migrations: Sequence[Sequence[str]]
    settings: Sequence[str]
    birth: Sequence[str] = ()
    readers: int = 2
    read_timeout: float = 1.0
    surveyors: int = 1
    survey_timeout: float = 10.0


def is_damage(error: Exception) -> bool:
    """Whether SQLite reports a damaged file."""
    # The low byte is the primary code; the rest says more (SQLITE_CORRUPT_VTAB and so on).
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED


class SqliteFile:
    """`await open()`, work, `await close()`. `on_suspect` is called when a reader finds damage."""

    def __init__(
        self, path: Path, schema: Schema, clock: Clock, on_suspect: Callable[[], None]
    ) -> None:
        self.path = path
        self.writer: aiosqlite.Connection | None = None
        self._schema = schema
        self._clock = clock
        self._on_suspect = on_suspect
        self._readers = Readers(schema.read_timeout)
        self._surveys = Readers(schema.survey_timeout)
        self._check: asyncio.Task[None] | None = None
        self._identity: tuple[int, int] | None = None  # device and inode of what is open

    async def open(self) -> None:
        """Open or create the file and migrate it to the newest schema.

        Raises `UnusableFile`, `NewerSchema`, `OSError` or `sqlite3.Error`; it is closed then.
        """
        try:
            await self._open()
        except BaseException as error:
            await self.close()
            if isinstance(error, sqlite3.Error) and is_damage(error):
                raise UnusableFile("damaged") from error
            raise

    async def _open(self) -> None:
        await asyncio.to_thread(make_directory, self.path.parent)
        await asyncio.to_thread(make, self.path)
        schema = self._schema
        self.writer = db = await aiosqlite.connect(self.path, isolation_level=None)
        application_id = await _scalar(db, "PRAGMA application_id")
        version = await _scalar(db, "PRAGMA user_version")
        tables = await _scalar(db, "SELECT count(*) FROM sqlite_master")
        if application_id != schema.application_id and (tables or version or application_id):
            raise UnusableFile("foreign")
        newest = len(schema.migrations)
        if version > newest:
            raise NewerSchema(f"made by a newer release: schema {version}, not {newest}")
        for setting in (*(schema.birth if not version else ()), *schema.settings):
            await db.execute(setting)
        # A function in SQL, so that the writer's thread does the compression.
        await db.create_function("deflate", 1, _deflate, deterministic=True)
        await _migrate(db, schema, version)
        await asyncio.to_thread(close_to_others, self.path)
        found = await asyncio.to_thread(self.path.stat)
        self._identity, size = (found.st_dev, found.st_ino), found.st_size
        if size <= CHECK_AT_START and await _scalar(db, "PRAGMA quick_check(1)") != "ok":
            raise UnusableFile("damaged")
        pools = [self._readers] * schema.readers + [self._surveys] * schema.surveyors
        for readers in pools:
            await readers.add(await aiosqlite.connect(self.path, isolation_level=None))
        if size > CHECK_AT_START:
            self._check = asyncio.create_task(
                self._check_in_use(), name=f"sqlite-check:{self.path.name}"
            )

    async def _check_in_use(self) -> None:
        """Check the whole file on a connection of its own; the owner acts on the result."""
        try:
            db = await aiosqlite.connect(self.path)
        except sqlite3.Error as error:
            sound = not is_damage(error)
        else:
            try:
                sound = await _scalar(db, "PRAGMA quick_check(1)") == "ok"
            except sqlite3.Error as error:
                sound = not is_damage(error)
            except asyncio.CancelledError:
                await interrupt(db)  # it might take minutes more
                raise
            finally:
                await close_in_time(db)
        if not sound:
            self._on_suspect()

    async def close(self) -> None:
        """Close every connection and end a running check."""
        check, self._check = self._check, None
        if check is not None:
            check.cancel()
            with suppress(asyncio.CancelledError):
                await check
        writer, self.writer = self.writer, None
        await self._readers.close()
        await self._surveys.close()
        if writer is not None:
            await close_in_time(writer)

    async def set_aside(self, why: str) -> Path:
        """Close the file and rename it, its log and its index out of the way. Raises `OSError`."""
        await self.close()
        stamp = datetime.fromtimestamp(self._clock.time(), UTC).strftime("%Y%m%dT%H%M%S%fZ")
        kept = self.path.with_name(f"{self.path.name}.{why}-{stamp}")
        await asyncio.to_thread(_rename, self.path, kept)
        return kept

    async def misplaced(self) -> Literal["removed", "replaced"] | None:
        """Whether somebody removed or replaced the open file, to which SQLite would go on writing
        unseen. None: neither, or it is unknown."""
        try:
            found = await asyncio.to_thread(self.path.stat)
        except FileNotFoundError:
            return "removed"
        except OSError:
            return None
        return None if self._identity == (found.st_dev, found.st_ino) else "replaced"

    async def log_size(self) -> int:
        """The size of the write-ahead log, in bytes."""
        try:
            return (await asyncio.to_thread(Path(f"{self.path}-wal").stat)).st_size
        except OSError:
            return 0

    async def write_anew(self) -> None:
        """Copy a removed file back to its place, and close it. Raises `OSError`,
        `sqlite3.Error`."""
        assert self.writer is not None
        try:
            await asyncio.to_thread(_clear, self.path)
            await self.writer.execute("VACUUM INTO ?", (str(self.path),))
        finally:
            await self.close()

    async def transaction(
        self, rounds: Iterable[tuple[Sequence[str], Sequence[Mapping[str, Any]]]]
    ) -> None:
        """Run each round's statements, each for all parameters, in one transaction.

        Raises `sqlite3.Error` and the other errors of `REFUSED`. A connection that was closed
        meanwhile is not a refusal, although the binding raises the same errors for it.
        """
        db = self.writer
        if db is None:
            raise sqlite3.OperationalError("not open")
        try:
            await db.execute("BEGIN IMMEDIATE")
            for statements, params in rounds:
                for statement in statements:
                    await db.executemany(statement, params)
            await db.execute("COMMIT")
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                await interrupt(db)  # otherwise the rollback would wait for the statement to end
            # SQLite has already rolled back after some errors; then this one fails.
            with suppress(sqlite3.Error, ValueError):
                await db.execute("ROLLBACK")
            if isinstance(error, REFUSED) and (self.writer is not db or _is_closed(error)):
                await self.close()
                raise sqlite3.OperationalError("closed meanwhile") from error
            raise

    async def rows(self, statement: str, params: Params = (), *, survey: bool = False) -> list[Any]:
        """The rows of a query; `survey`: nobody waits for it. Raises `Silent`."""
        readers = self._surveys if survey else self._readers
        try:
            return await readers.rows(statement, params)
        except (sqlite3.Error, ValueError) as error:
            if is_damage(error):
                self._on_suspect()
            raise Silent(str(error)) from error


def _is_closed(error: Exception) -> bool:
    """Whether sqlite3 or aiosqlite raised the error because the connection is closed."""
    text = str(error).lower()
    return "connection closed" in text or "no active connection" in text or "closed data" in text


async def _migrate(db: aiosqlite.Connection, schema: Schema, version: int) -> None:
    for number, statements in enumerate(schema.migrations[version:], version + 1):
        await db.execute("BEGIN IMMEDIATE")
        try:
            for statement in statements:
                await db.execute(statement)
            await db.execute(f"PRAGMA application_id={schema.application_id}")
            await db.execute(f"PRAGMA user_version={number}")
            await db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                await db.execute("ROLLBACK")
            raise


def _deflate(data: str | bytes) -> bytes:
    return zlib.compress(data.encode("utf-8") if isinstance(data, str) else data, 1)


async def _scalar(db: aiosqlite.Connection, statement: str) -> Any:
    rows = list(await db.execute_fetchall(statement))
    return rows[0][0] if rows else None


def _clear(path: Path) -> None:
    """Make room for a new file: a log left behind would be taken for the new file's."""
    make_directory(path.parent)
    for tail in ("-wal", "-shm"):
        Path(f"{path}{tail}").unlink(missing_ok=True)


def _rename(path: Path, kept: Path) -> None:
    for tail in ("", "-wal", "-shm"):
        source = Path(f"{path}{tail}")
        if source.exists():
            source.rename(f"{kept}{tail}")
    close_to_others(kept)
