"""Reading connections to one SQLite file, each with one query at a time and a time limit.

1. A query gets a free connection, first come first served. It never waits behind a slow query while
   another connection is free.
2. A query that exceeds its limit is interrupted: SQLite checks every `_STEPS` steps whether to go
   on, and is interrupted from outside as well. Its connection is free once the query has stopped.
3. The limit includes the wait for a connection.
4. Closing fails the waiting queries, interrupts the running ones, and is bounded. An idle
   connection is not interrupted: SQLite would remember it and skip the work of an orderly close.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import aiosqlite

log = logging.getLogger(__name__)

Params = Sequence[Any] | Mapping[str, Any]

#: Steps of SQLite's virtual machine between two checks of the clock, some milliseconds. Each check
#: needs the interpreter's lock, and may have to wait as long for it.
_STEPS = 200_000

#: Seconds that a connection has to close by itself, and after it was interrupted.
_CLOSING, _INTERRUPTED = 1.0, 2.0


class Silent(Exception):
    """The file cannot answer now: not open, damaged, or slower than the limit."""


class _Reader:
    """One connection. `until` is the deadline of its query, in monotonic seconds."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self.connection = connection
        self.until = 0.0

    async def prepare(self) -> None:
        await self.connection.execute("PRAGMA busy_timeout=200")
        await self.connection.execute("PRAGMA query_only=ON")
        await self.connection.set_progress_handler(self._over, _STEPS)

    def _over(self) -> int:
        """Called by SQLite in the connection's thread; a result other than 0 ends the query."""
        return time.monotonic() >= self.until

    async def query(self, statement: str, params: Params) -> list[Any]:
        return list(await self.connection.execute_fetchall(statement, params))

    async def interrupt(self) -> None:
        """End its query now, from outside its thread."""
        self.until = 0.0
        await interrupt(self.connection)


class Readers:
    """The connections for one kind of reads. `limit` is in seconds."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._free: deque[_Reader] = deque()
        self._all: list[_Reader] = []
        self._waiting: deque[asyncio.Future[_Reader]] = deque()
        self._queries: set[asyncio.Task[list[Any]]] = set()

    async def add(self, connection: aiosqlite.Connection) -> None:
        """Add a connection. Raises `sqlite3.Error`."""
        reader = _Reader(connection)
        self._all.append(reader)
        await reader.prepare()
        self._free.append(reader)

    async def rows(self, statement: str, params: Params) -> list[Any]:
        """The rows of a query. Raises `Silent`, `sqlite3.Error` and `ValueError`."""
        if not self._all:
            raise Silent("not open")
        until = time.monotonic() + self._limit
        reader = await self._take()
        reader.until = until
        query = asyncio.create_task(reader.query(statement, params), name="sqlite-query")
        self._queries.add(query)
        query.add_done_callback(lambda ended: self._ended(ended, reader))
        try:
            async with asyncio.timeout(until - time.monotonic()):
                return await asyncio.shield(query)
        except TimeoutError:
            await reader.interrupt()
            raise self._late() from None
        except asyncio.CancelledError:
            if not query.done():
                await reader.interrupt()
            raise
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
                raise self._late() from None
            raise

    async def _take(self) -> _Reader:
        if self._free:
            return self._free.popleft()
        turn: asyncio.Future[_Reader] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self._limit):
                return await turn
        except (TimeoutError, asyncio.CancelledError) as error:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._give(turn.result())  # the connection arrived at the same moment
            if isinstance(error, TimeoutError):
                raise self._late() from None
            raise

    def _late(self) -> Silent:
        return Silent(f"no answer within {self._limit:g} s")

    def _ended(self, query: asyncio.Task[list[Any]], reader: _Reader) -> None:
        self._queries.discard(query)
        if not query.cancelled():
            query.exception()  # the caller may be gone
        self._give(reader)

    def _give(self, reader: _Reader) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(reader)
                return
        if reader in self._all:
            self._free.append(reader)

    async def close(self) -> None:
        """Close every connection (rule 4)."""
        readers, self._all = self._all, []
        for turn in self._waiting:
            if not turn.done():
                turn.set_exception(Silent("closed"))
        self._waiting.clear()
        idle = set(self._free)
        self._free.clear()
        for reader in readers:
            if reader not in idle:
                await reader.interrupt()
        for reader in readers:
            await close_in_time(reader.connection)


async def interrupt(connection: aiosqlite.Connection) -> None:
    """Interrupt the running statement."""
    with suppress(sqlite3.Error, ValueError):
        await connection.interrupt()


async def close_in_time(connection: aiosqlite.Connection) -> None:
    """Close; a statement that takes too long is interrupted. A connection that still does not close
    (the disk hangs) is left to its thread."""
    closing = asyncio.ensure_future(connection.close())
    await asyncio.wait((closing,), timeout=_CLOSING)
    if not closing.done():
        await interrupt(connection)
        await asyncio.wait((closing,), timeout=_INTERRUPTED)
    if not closing.done():
        log.error("an SQLite connection does not close")
        closing.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return
    with suppress(sqlite3.Error, ValueError):
        closing.result()
