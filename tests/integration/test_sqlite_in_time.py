"""SQLite answers in time or is interrupted; reads, surveys, writes and closing do not wait for each
other."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.core.clock import ManualClock
from proxy.core.sqlite import recovery
from proxy.core.sqlite.file import Schema, Silent, SqliteFile
from proxy.core.sqlite.recovery import FileEvents, FileRecovery
from proxy.jobs.document import parse
from proxy.jobs.store import sql
from proxy.jobs.store.store import JobStore
from tests.http1 import PATIENCE
from tests.jobs_kit import job

NOW = 1_795_450_902.0

#: Never ends by itself.
ENDLESS = """WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
             SELECT count(*) FROM n"""

ADD = ("INSERT INTO t VALUES (:v)",)


def schema(read: float = PATIENCE, survey: float = PATIENCE) -> Schema:
    """A file with one table, and two readers."""
    return Schema(
        application_id=7,
        migrations=[["CREATE TABLE t (v)"]],
        settings=["PRAGMA journal_mode=WAL", "PRAGMA wal_autocheckpoint=100",
                  "PRAGMA journal_size_limit=409600"],
        read_timeout=read,
        survey_timeout=survey,
    )  # fmt: skip


@contextlib.asynccontextmanager
async def opened(path: Path, shape: Schema) -> AsyncIterator[SqliteFile]:
    """An open file, closed afterwards."""
    file = SqliteFile(path, shape, ManualClock(NOW), lambda: None)
    await file.open()
    try:
        yield file
    finally:
        await file.close()


async def test_a_slow_read_is_interrupted(tmp_path: Path) -> None:
    """At its limit, with an error; both readers serve again at once."""
    async with opened(tmp_path / "t.db", schema(read=0.05)) as file:
        slow = [asyncio.create_task(file.rows(ENDLESS)) for _ in range(4)]
        for one in slow:
            with pytest.raises(Silent, match=r"within 0\.05 s"):
                await one
        for _ in range(4):
            async with asyncio.timeout(PATIENCE):
                while True:  # a thread may need a moment to notice
                    with contextlib.suppress(Silent):
                        assert await file.rows("SELECT 1") == [(1,)]
                        break


async def test_one_slow_read_is_in_nobodys_way(tmp_path: Path) -> None:
    """While one reader is busy the other serves, and so do the writer and the surveys."""
    async with opened(tmp_path / "t.db", schema()) as file:
        slow = asyncio.create_task(file.rows(ENDLESS))
        async with asyncio.timeout(PATIENCE):
            for _ in range(10):
                assert await file.rows("SELECT 1") == [(1,)]
            await file.transaction([(ADD, [{"v": 1}])])
            assert await file.rows("SELECT count(*) FROM t", survey=True) == [(1,)]
        assert not slow.done()
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow


async def test_surveys_and_answers_share_no_reader(tmp_path: Path) -> None:
    """Any number of slow surveys, and every answer comes."""
    async with opened(tmp_path / "t.db", schema()) as file:
        surveys = [asyncio.create_task(file.rows(ENDLESS, survey=True)) for _ in range(3)]
        async with asyncio.timeout(PATIENCE):
            for _ in range(10):
                assert await file.rows("SELECT 1") == [(1,)]
        for one in surveys:
            one.cancel()
        await asyncio.gather(*surveys, return_exceptions=True)


async def test_who_leaves_takes_its_query_along(tmp_path: Path) -> None:
    """Cancelled while it runs, while it waits, and as its turn comes: no reader is lost."""
    async with opened(tmp_path / "t.db", schema()) as file:
        tasks = [asyncio.create_task(file.rows(ENDLESS)) for _ in range(6)]
        await asyncio.sleep(0)
        for one in reversed(tasks):
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(PATIENCE):
            answers = await asyncio.gather(*(file.rows("SELECT 1") for _ in range(8)))
        assert answers == [[(1,)]] * 8


async def test_closing_does_not_wait_for_reads(tmp_path: Path) -> None:
    """Reads that would never end, running and waiting, are refused; the file is closed soon, with
    its log taken in."""
    file = SqliteFile(tmp_path / "t.db", schema(), ManualClock(NOW), lambda: None)
    await file.open()
    await file.transaction([(ADD, [{"v": 1}])])
    reads = [asyncio.create_task(file.rows(ENDLESS)) for _ in range(5)]
    reads.append(asyncio.create_task(file.rows(ENDLESS, survey=True)))
    await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE):
        await file.close()
        outcomes = await asyncio.gather(*reads, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {Silent}
    assert not (tmp_path / "t.db-wal").exists()
    with pytest.raises(Silent, match="not open"):
        await file.rows("SELECT 1")


async def test_closing_does_not_wait_for_a_write(tmp_path: Path) -> None:
    """A statement of the writer that would never end is interrupted, and leaves nothing."""
    file = SqliteFile(tmp_path / "t.db", schema(), ManualClock(NOW), lambda: None)
    await file.open()
    endless = (f"INSERT INTO t SELECT * FROM ({ENDLESS}) WHERE :v",)
    write = asyncio.create_task(file.transaction([(ADD, [{"v": 1}]), (endless, [{"v": 1}])]))
    await asyncio.sleep(0.01)
    async with asyncio.timeout(PATIENCE):
        await file.close()
        with pytest.raises(sqlite3.OperationalError):
            await write
    with contextlib.closing(sqlite3.connect(tmp_path / "t.db", isolation_level=None)) as db:
        assert db.execute("SELECT count(*) FROM t").fetchone() == (0,)
    db.close()


@pytest.mark.parametrize("when", ["before", "between"])
async def test_a_closed_connection_refuses_nothing(tmp_path: Path, when: str) -> None:
    """What the binding says of a closed connection is no word about the data."""
    async with opened(tmp_path / "t.db", schema()) as file:
        writer = file.writer
        assert writer is not None
        if when == "before":
            await writer.close()
            rounds = iter([(ADD, [{"v": 1}])])
        else:

            def closing():  # type: ignore[no-untyped-def]
                yield ADD, [{"v": 1}]
                closed.append(asyncio.create_task(writer.close()))
                yield ADD, [{"v": 2}]

            rounds = closing()
        closed: list[asyncio.Task[None]] = []
        with pytest.raises(sqlite3.OperationalError, match="closed meanwhile"):
            await file.transaction(rounds)
        await asyncio.gather(*closed)
        await file.open()
        await file.transaction([(ADD, [{"v": 3}])])
        assert await file.rows("SELECT count(*) FROM t") == [(1,)]


async def test_a_value_that_is_refused_is_still_refused(tmp_path: Path) -> None:
    """By its own kind of error, the connection goes on."""
    async with opened(tmp_path / "t.db", schema()) as file:
        with pytest.raises(sqlite3.ProgrammingError):
            await file.transaction([(ADD, [{"w": 1}])])
        await file.transaction([(ADD, [{"v": 1}])])


async def test_a_store_whose_connection_is_closed_loses_nothing(tmp_path: Path) -> None:
    """It opens its file anew and writes what was queued."""
    store = JobStore(tmp_path / "j.db", ManualClock(NOW))
    await store.start()
    try:
        writer = store._file.writer
        assert writer is not None
        await writer.close()
        for number in range(3):
            store.put(parse(f"mv_{number}", job(f"mv_{number}")), NOW, NOW + 10, None)
        assert await store.flushed(PATIENCE)
        assert store.refused == 0
        assert len(await store.listing(None, NOW, 10)) == 3
    finally:
        await store.stop()


async def test_clean_up_and_surveys_use_their_indexes(tmp_path: Path) -> None:
    """Neither sorts all that is outlived, nor goes through the rows of active jobs."""
    store = JobStore(tmp_path / "j.db", ManualClock(NOW))
    await store.start()
    try:
        for statement, params in (
            (sql.OUTLIVED, {"before": NOW, "limit": 500}),
            (sql.WORKED_ON, {"end": 3, "end_at": "3", "earliest": 2, "start": 0, "most": 10}),
            (sql.ACTIVE, (NOW,)),
        ):
            plan = str(await store.table(f"EXPLAIN QUERY PLAN {statement}", params))
            assert "TEMP B-TREE" not in plan
            assert "SCAN jobs" not in plan.replace("SCAN jobs USING INDEX idx_jobs_unfinished", "")
    finally:
        await store.stop()


async def test_a_log_that_a_foreign_reader_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It grows while somebody reads an old state: one warning; afterwards it shrinks to its rest,
    and a second time is a second warning."""
    monkeypatch.setattr(recovery, "LARGE_LOG", 1024 * 1024)
    monkeypatch.setattr(recovery, "CHECK_EVERY", 0.0)
    caplog.set_level(logging.WARNING, "proxy.core.sqlite.recovery")
    path = tmp_path / "t.db"
    upkeep = FileRecovery(
        "test",
        path,
        schema(),
        ManualClock(NOW),
        FileEvents(suspect=lambda: None, degraded=lambda reason: None),
    )
    assert await upkeep.open()
    try:
        for warnings in (1, 2):
            reader = sqlite3.connect(path, isolation_level=None)
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM t").fetchone()
            for _ in range(20):
                await upkeep.file.transaction([(ADD, [{"v": b"x" * 100_000}])])
                await upkeep.check_replaced()
            assert upkeep.log_size > 1024 * 1024
            assert len(caplog.records) == warnings
            reader.execute("COMMIT")
            reader.close()
            deadline = time.monotonic() + PATIENCE
            while upkeep.log_size > 512 * 1024:
                assert time.monotonic() < deadline
                await upkeep.file.transaction([(ADD, [{"v": b"x" * 100_000}])])
                await upkeep.check_replaced()
    finally:
        await upkeep.file.close()
