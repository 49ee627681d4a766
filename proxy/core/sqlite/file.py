"""An SQLite file of ours: opened, migrated, checked, set aside; one writer, several readers.

The only file that imports aiosqlite. The store of jobs and the trace decide what to write and
when; here is how.
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

# What SQLite or its binding says about a value, not about the file.
REFUSED = (
    sqlite3.IntegrityError,
    sqlite3.ProgrammingError,
    sqlite3.InterfaceError,
    sqlite3.DataError,
    OverflowError,
    ValueError,
)


class UnusableFile(Exception):
    """The file is damaged or somebody else's: to be set aside. The message says which."""


class NewerSchema(Exception):
    """The file is of a later release: not touched, as an older one cannot know what it means."""


@dataclass(frozen=True, slots=True)
class Schema:
    """What a file of one kind looks like. `application_id` tells our files from others';
    `migrations` are numbered from 1; `settings` are run at every opening, before them, and `birth`
    before those when the file is new. `readers` connections share the reads that somebody waits
    for; `surveyors` have the surveys, which may take longer: neither waits for the other. A read
    that takes longer than its limit, in seconds, is interrupted, and counts as silence."""

    application_id: int
    migrations: Sequence[Sequence[str]]
    settings: Sequence[str]
    birth: Sequence[str] = ()
    readers: int = 2
    read_timeout: float = 1.0
    surveyors: int = 1
    survey_timeout: float = 10.0


def is_damage(error: Exception) -> bool:
    """Whether SQLite says that the file is not what it should be."""
    # The low byte is the primary code; the rest says more (SQLITE_CORRUPT_VTAB and so on).
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED


class SqliteFile:
    """`await open()`, work, `await close()`. `on_suspect` is called when a reader meets damage."""

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
        """Open or make the file, bring it to the newest schema.

        Raises `UnusableFile`, `NewerSchema`, `OSError` or `sqlite3.Error`, and is closed then.
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
        # In SQL, so that it is the writer's thread that compresses.
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
        """Read the whole file on a connection of its own; the owner acts on what is found."""
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
                await interrupt(db)  # it may take minutes yet
                raise
            finally:
                await close_in_time(db)
        if not sound:
            self._on_suspect()

    async def close(self) -> None:
        """Let go of every connection; a running check ends."""
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
        """Close, and rename the file, its log and its index out of the way. Raises `OSError`."""
        await self.close()
        stamp = datetime.fromtimestamp(self._clock.time(), UTC).strftime("%Y%m%dT%H%M%S%fZ")
        kept = self.path.with_name(f"{self.path.name}.{why}-{stamp}")
        await asyncio.to_thread(_rename, self.path, kept)
        return kept

    async def misplaced(self) -> Literal["removed", "replaced"] | None:
        """What somebody did to the open file: SQLite goes on writing to it where nobody will look
        for it. None: nothing, or it cannot be told."""
        try:
            found = await asyncio.to_thread(self.path.stat)
        except FileNotFoundError:
            return "removed"
        except OSError:
            return None
        return None if self._identity == (found.st_dev, found.st_ino) else "replaced"

    async def log_size(self) -> int:
        """Bytes of the write-ahead log."""
        try:
            return (await asyncio.to_thread(Path(f"{self.path}-wal").stat)).st_size
        except OSError:
            return 0

    async def write_anew(self) -> None:
        """Copy a removed file to its place, and close it. Raises `OSError`, `sqlite3.Error`."""
        assert self.writer is not None
        try:
            await asyncio.to_thread(_clear, self.path)
            await self.writer.execute("VACUUM INTO ?", (str(self.path),))
        finally:
            await self.close()

    async def transaction(
        self, rounds: Iterable[tuple[Sequence[str], Sequence[Mapping[str, Any]]]]
    ) -> None:
        """Run each round's statements, each for all parameters, as one commit; all or nothing.

        Raises `sqlite3.Error` and what else `REFUSED` names. A connection that was closed meanwhile
        is no refusal, though its binding says it in the same words.
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
                await interrupt(db)  # or else the rollback would wait for the statement's end
            # SQLite rolls back by itself after some errors; then this is one too many.
            with suppress(sqlite3.Error, ValueError):
                await db.execute("ROLLBACK")
            if isinstance(error, REFUSED) and (self.writer is not db or _is_closed(error)):
                await self.close()
                raise sqlite3.OperationalError("closed meanwhile") from error
            raise

    async def rows(self, statement: str, params: Params = (), *, survey: bool = False) -> list[Any]:
        """What a query finds; `survey`: nobody waits for it. Raises `Silent`."""
        readers = self._surveys if survey else self._readers
        try:
            return await readers.rows(statement, params)
        except (sqlite3.Error, ValueError) as error:
            if is_damage(error):
                self._on_suspect()
            raise Silent(str(error)) from error


def _is_closed(error: Exception) -> bool:
    """Whether that is what sqlite3 and aiosqlite say of a connection that is closed."""
    told = str(error).lower()
    return "connection closed" in told or "no active connection" in told or "closed data" in told


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
    """Make room for a file: a log without its file would be taken for that of the new one."""
    make_directory(path.parent)
    for tail in ("-wal", "-shm"):
        Path(f"{path}{tail}").unlink(missing_ok=True)


def _rename(path: Path, kept: Path) -> None:
    for tail in ("", "-wal", "-shm"):
        source = Path(f"{path}{tail}")
        if source.exists():
            source.rename(f"{kept}{tail}")
    close_to_others(kept)
