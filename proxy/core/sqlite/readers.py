"""Reading connections to one SQLite file, each with one query at a time and a limit to it.

1. A query gets a connection that is free, in order of asking; it never stands behind a slow one on
   a connection while another is free.
2. A query that has had its time is interrupted: SQLite asks every `_STEPS` steps whether it may go
   on, and is told to stop from outside as well. Its connection is free when it has stopped, not
   before.
3. The limit counts from asking: waiting for a connection is part of it.
4. Closing refuses who waits, interrupts what runs, and is bounded. What does not run is not
   interrupted: SQLite would remember it, and leave out the work of an orderly close.
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

#: Steps of SQLite's machine between two looks at the clock: some milliseconds. Each look needs the
#: interpreter's lock, for which it may have to wait as long.
_STEPS = 200_000

#: Seconds that a connection has to close by itself, and after it was interrupted.
_CLOSING, _INTERRUPTED = 1.0, 2.0


class Silent(Exception):
    """The file cannot answer now: not open, damaged, or slower than the limit."""


class _Reader:
    """One connection. `until` is when its query has had its time, in monotonic seconds."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self.connection = connection
        self.until = 0.0

    async def prepare(self) -> None:
        await self.connection.execute("PRAGMA busy_timeout=200")
        await self.connection.execute("PRAGMA query_only=ON")
        await self.connection.set_progress_handler(self._over, _STEPS)

    def _over(self) -> int:
        """Asked by SQLite, in the connection's thread: other than 0 ends the query."""
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
        """Take in a connection. Raises `sqlite3.Error`."""
        reader = _Reader(connection)
        self._all.append(reader)
        await reader.prepare()
        self._free.append(reader)

    async def rows(self, statement: str, params: Params) -> list[Any]:
        """What a query finds. Raises `Silent`, `sqlite3.Error` and `ValueError`."""
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
                self._give(turn.result())  # it came at the same moment
            if isinstance(error, TimeoutError):
                raise self._late() from None
            raise

    def _late(self) -> Silent:
        return Silent(f"no answer within {self._limit:g} s")

    def _ended(self, query: asyncio.Task[list[Any]], reader: _Reader) -> None:
        self._queries.discard(query)
        if not query.cancelled():
            query.exception()  # who asked may have gone
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
        """Let go of every connection (rule 4)."""
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
    """End the statement that runs."""
    with suppress(sqlite3.Error, ValueError):
        await connection.interrupt()


async def close_in_time(connection: aiosqlite.Connection) -> None:
    """Close; what runs for too long is interrupted, and a connection that does not even close then
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
