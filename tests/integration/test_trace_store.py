"""The trace on real files: durable, bounded in every way, readable at once, nobody's harm."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from proxy.core.clock import ManualClock
from proxy.trace import sql
from proxy.trace import store as store_module
from proxy.trace.events import Severity, TraceEvent
from proxy.trace.recorder import Trace
from tests.jobs_kit import eventually
from tests.trace_kit import T0, exchange, trace


@asynccontextmanager
async def opened(
    path: Path, clock: ManualClock | None = None, **settings: Any
) -> AsyncIterator[Trace]:
    """A started trace on a clock that stands at `T0`."""
    one = trace(path, clock or ManualClock(T0), **settings)
    await one.start()
    try:
        yield one
    finally:
        await one.stop()


async def written(one: Trace) -> None:
    """Until nothing waits any more."""
    await eventually(lambda: one.store.unwritten == 0, "everything written")


def files(directory: Path, pattern: str) -> list[Path]:
    """What is there of that name."""
    return sorted(directory.glob(pattern))


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    """A metric's value."""
    found = registry.get_sample_value(name, labels)
    assert found is not None
    return found


async def test_what_is_recorded_can_be_read_at_once_and_later(tmp_path: Path) -> None:
    """By correlation ID, by job, by severity and time: from the queue, from the file, after a
    restart, always the same."""
    path = tmp_path / "t.db"
    event = exchange(0, 502, correlation_id="c", job_id="mv_1", code="upstream_reset")
    async with opened(path) as one:
        one.record(event)
        for _ in range(2):
            reading = one.store.reading()
            assert await reading.by_correlation("c", 10) == [event]
            assert await reading.by_job("mv_1", 10) == [event]
            assert (await reading.recent(Severity.ERROR, 10))[-1] == event
            assert await reading.calls("make-video", T0 - 1, T0 + 1, 10) == [event]
            assert reading.silent is None
            await written(one)
    async with opened(path, ManualClock(T0 + 0.5)) as one:
        assert await one.store.reading().by_job("mv_1", 10) == [event]
        kinds = [e.kind for e in await one.store.reading().state_changes(T0 - 1, T0 + 1, 10)]
        assert kinds == ["started", "stopped", "started"]


async def test_reading_takes_the_newest_of_too_many(tmp_path: Path) -> None:
    """With half of them in the file and half still waiting, the limit is that of both together."""
    async with opened(tmp_path / "t.db") as one:
        for number in range(20):
            one.record(exchange(number, 500))
            if number == 9:
                await written(one)
        found = await one.store.reading().by_correlation("c-1", 5)
        assert [event.at - T0 for event in found] == [15, 16, 17, 18, 19]


async def test_bounded_by_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is older than `keep_for` goes, the rest stays."""
    monkeypatch.setattr(store_module, "TIDY_EVERY", 0.01)
    clock = ManualClock(T0)
    async with opened(tmp_path / "t.db", clock, keep_for="1h") as one:
        for _ in range(5000):
            one.record(exchange(0))
        clock.advance(3000)
        one.record(exchange(3000))
        await written(one)
        clock.advance(1000)

        async def only_the_last() -> bool:
            return len(await one.store.reading().by_correlation("c-1", 9999)) == 1

        await eventually(only_the_last, "old events gone")


async def test_bounded_by_size_under_hostile_sizes(tmp_path: Path) -> None:
    """Events of the largest size, far more than fit: the file stays within its size, the newest
    are there, and what was freed is given back to the disk."""
    path = tmp_path / "t.db"
    most = 2 * 1024 * 1024
    registry = CollectorRegistry()
    one = trace(path, ManualClock(T0), registry, max_size=most)
    await one.start()
    try:
        largest = 0
        for number in range(600):
            one.record(exchange(number, 500, huge=["x" * 500] * 30))
            if number % 50 == 49:
                await written(one)
                largest = max(largest, path.stat().st_size)

        async def trimmed() -> bool:
            found = await one.store.reading().by_correlation("c-1", 1000)
            assert found[-1].at == T0 + 599
            assert len(found) > 100
            return len(found) < 140 and value(registry, "proxy_trace_bytes") <= most

        await eventually(trimmed, "as many as fit")
        assert largest <= most * 1.7
    finally:
        await one.stop()


async def test_errors_of_one_route_push_out_nothing_else(tmp_path: Path) -> None:
    """A flood of what one route refuses shrinks itself: what others recorded before it stays, and
    so do the jobs that the same route created."""
    path = tmp_path / "t.db"
    async with opened(path, max_size=1024 * 1024) as one:
        for number in range(50):
            ids = {"correlation_id": "good", "listener": "front", "padding": "x" * 400}
            one.record(exchange(number, 202, kind="creation", route="create", **ids))
            one.record(exchange(number, 503, kind="failed", route="other", **ids))
            one.proxy("reloaded")
        for number in range(8000):
            one.record(
                exchange(number, 400, kind="upload_empty", route="create", listener="front",
                         padding="x" * 400)
            )  # fmt: skip
            if number % 1000 == 999:
                await written(one)
        reading = one.store.reading()

        async def trimmed() -> bool:
            return len(await reading.by_correlation("c-1", 9000)) < 3000

        await eventually(trimmed, "the flood trimmed")
        assert len(await reading.by_correlation("good", 1000)) == 100
        assert len(await reading.state_changes(0, 2e9, 1000)) >= 50
        assert (await reading.by_correlation("c-1", 9000))[-1].at == T0 + 7999


async def test_a_flood_pushes_nothing_else_out_of_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nothing can be written, the largest lane gives first as well."""
    monkeypatch.setattr(store_module, "QUEUE", 100)
    one = trace(tmp_path / "t.db", ManualClock(T0))
    one.record(exchange(0, 202, kind="creation", correlation_id="good", route="create"))
    for number in range(500):
        one.record(exchange(number, 404, kind="no_route", route="unrouted"))
    reading = one.store.reading()
    assert len(await reading.by_correlation("good", 10)) == 1
    assert len(await reading.by_correlation("c-1", 1000)) == 99


async def test_a_file_of_the_first_schema_is_taken_over(tmp_path: Path) -> None:
    """Events from before lanes stay readable."""
    path = tmp_path / "t.db"
    with closing(sqlite3.connect(path)) as db:
        for statement in sql.SCHEMA.migrations[0]:
            db.execute(statement)
        db.execute(
            """INSERT INTO events VALUES
                (1, 1, 'exchange', 'failed', 2, 'c-1', NULL, 'app', 0.1, '{"status": 500}')"""
        )
        db.execute(f"PRAGMA application_id={sql.SCHEMA.application_id}")
        db.execute("PRAGMA user_version=1")
        db.commit()
    async with opened(path, ManualClock(1.0), keep_for="1h") as one:
        one.record(exchange(2, 500))
        await written(one)
        found = await one.store.reading().by_correlation("c-1", 10)
    assert [event.kind for event in found] == ["failed", "request"]


async def test_a_smaller_size_shrinks_an_old_file(tmp_path: Path) -> None:
    """A file that was larger under an earlier config loses its oldest events at once."""
    path = tmp_path / "t.db"
    async with opened(path) as one:
        for number in range(9000):
            one.record(exchange(number, 500, padding="x" * 400))
        await written(one)
    assert path.stat().st_size > 5_000_000
    async with opened(path, max_size=1024 * 1024) as one:
        reading = one.store.reading()

        async def smaller() -> bool:
            return len(await reading.by_correlation("c-1", 9000)) < 3000

        await eventually(smaller, "the oldest gone")
        assert (await reading.by_correlation("c-1", 9000))[-1].at == T0 + 8999
    assert path.stat().st_size < 1_100_000


@pytest.mark.parametrize("kind", ["garbage", "torn", "foreign"])
async def test_an_unfit_file_is_set_aside(kind: str, tmp_path: Path) -> None:
    """A damaged or foreign file is kept under another name, untouched; a new one works."""
    path = tmp_path / "t.db"
    if kind == "garbage":
        path.write_bytes(b"this is no database" * 1000)
    elif kind == "foreign":
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("CREATE TABLE cookies (a)")
        db.close()
    else:
        async with opened(path) as one:
            for number in range(1000):
                one.record(exchange(number))
        content = bytearray(path.read_bytes())
        content[4096 : 4096 * 20] = b"\xa5" * (4096 * 19)
        path.write_bytes(content)
    before = path.read_bytes()
    async with opened(path) as one:
        one.record(exchange(5, 500))
        await written(one)
        assert one.store.degraded is None
        assert len(await one.store.reading().by_correlation("c-1", 10)) == 1
    (kept,) = files(tmp_path, "t.db.*-*Z")
    assert kept.read_bytes() == before


async def test_damage_met_while_in_use(tmp_path: Path) -> None:
    """The file is overwritten under us: a reader notices, a new file is begun, nothing raises."""
    path = tmp_path / "t.db"
    async with opened(path) as one:
        for number in range(5000):
            one.record(exchange(number, padding="x" * 300))
        await written(one)
    async with opened(path) as one:
        await written(one)
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xa5" * (size - 4096))
        found = await one.store.reading().by_correlation("c-1", 10_000)
        assert len(found) < 5000

        async def works_again() -> bool:
            if one.store.unwritten:
                return False
            if await one.store.reading().by_correlation("new", 5):
                return True
            one.record(exchange(9999, 500, correlation_id="new"))  # perhaps again: the last one
            return False  # may have gone into the damaged file

        await eventually(works_again, "a new file")
        assert files(tmp_path, "t.db.damaged-*")


async def test_a_removed_file_is_written_anew(tmp_path: Path) -> None:
    """Somebody removes the file under us: what it had and what comes is in its place soon, without
    a word to wait for."""
    path = tmp_path / "t.db"
    async with opened(path) as one:
        one.record(exchange(0, 500))
        await written(one)
        for file in files(tmp_path, "t.db*"):
            file.unlink()
        await eventually(path.exists, "written anew")
        one.record(exchange(1, 500))
        await written(one)
        assert one.store.degraded is None
        assert len(await one.store.reading().by_correlation("c-1", 10)) == 2
    async with opened(path, ManualClock(T0 + 2)) as one:
        assert len(await one.store.reading().by_correlation("c-1", 10)) == 2


async def test_a_replaced_file_is_used(tmp_path: Path) -> None:
    """Somebody puts another trace in its place: from then on that one is read and written."""
    path, other = tmp_path / "t.db", tmp_path / "other.db"
    async with opened(other) as one:
        one.record(exchange(0, 500, correlation_id="theirs"))
    async with opened(path, ManualClock(T0 + 10)) as one:  # an event's id is its time
        one.record(exchange(1, 500))
        await written(one)
        for log in files(tmp_path, "t.db-*"):
            log.unlink()
        other.rename(path)

        async def theirs() -> bool:
            return bool(await one.store.reading().by_correlation("theirs", 5))

        await eventually(theirs, "the new file is read")
        one.record(exchange(2, 500))
        await written(one)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        rows = db.execute("SELECT correlation_id FROM events WHERE severity = 2").fetchall()
    db.close()
    assert sorted(rows) == [("c-1",), ("theirs",)]


async def test_a_file_of_a_newer_release_is_not_touched(tmp_path: Path) -> None:
    """Nothing is written to it; what happens is kept in memory and can be asked for."""
    path = tmp_path / "t.db"
    async with opened(path):
        pass
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    async with opened(path) as one:
        assert "newer" in (one.store.degraded or "")
        one.record(exchange(0, 500))
        reading = one.store.reading()
        assert len(await reading.by_correlation("c-1", 5)) == 1
        assert reading.silent is not None
    assert [file.name for file in files(tmp_path, "*")] == ["t.db"]


async def test_a_place_where_no_file_can_be_made(tmp_path: Path) -> None:
    """Degraded, logged once, and written as soon as possible."""
    blocked = tmp_path / "data"
    blocked.write_text("a file where a directory should be")
    async with opened(blocked / "t.db") as one:
        one.record(exchange(0, 500))
        kinds = [e.kind for e in await one.store.reading().recent(Severity.OK, 10)]
        assert kinds == ["trace_degraded", "started", "request"]
        blocked.unlink()
        await written(one)
        assert one.store.degraded is None
        events = await one.store.reading().recent(Severity.OK, 10)
        assert [e.kind for e in events][-1] == "trace_back"


async def test_the_queue_is_bounded_and_keeps_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nothing can be written, the oldest are pushed out, by number and by bytes, counted."""
    monkeypatch.setattr(store_module, "QUEUE", 100)
    monkeypatch.setattr(store_module, "QUEUE_BYTES", 50_000)
    blocked = tmp_path / "data"
    blocked.write_text("")
    registry = CollectorRegistry()
    one = trace(blocked / "t.db", ManualClock(T0), registry)
    await one.start()
    try:
        for number in range(1000):
            one.record(exchange(number, 500))
        assert one.store.unwritten <= 100
        one.record(exchange(2000, 500, **{f"f{n}": "x" * 500 for n in range(20)}))
        for number in range(100):
            one.record(exchange(3000 + number, 500, padding="x" * 500))
        assert one.store.unwritten < 60
        found = await one.store.reading().by_correlation("c-1", 1000)
        assert found[-1].at == T0 + 3099
        assert value(registry, "proxy_trace_dropped_total", reason="queue") > 900
        assert value(registry, "proxy_trace_degraded") == 1
    finally:
        await one.stop()


async def test_an_event_that_sqlite_refuses_goes_alone(tmp_path: Path) -> None:
    """Its neighbours are committed, and it is counted."""
    registry = CollectorRegistry()
    one = trace(tmp_path / "t.db", ManualClock(T0), registry)
    await one.start()
    try:
        one.record(exchange(0, 500))
        bad = exchange(1, 500, correlation_id="\ud800")
        one.record(bad)
        one.record(exchange(2, 500))
        await written(one)
        assert len(await one.store.reading().by_correlation("c-1", 5)) == 2
        assert value(registry, "proxy_trace_dropped_total", reason="refused") == 1
    finally:
        await one.stop()


async def test_others_may_read_the_file_meanwhile(tmp_path: Path) -> None:
    """Readers of another process, at any time, see whole events and hinder nobody."""
    path = tmp_path / "t.db"
    async with opened(path) as one:
        one.record(exchange(0))
        await written(one)
        with contextlib.closing(
            sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
        ) as other:
            other.execute("BEGIN")
            (before,) = other.execute("SELECT count(*) FROM events").fetchone()
            for number in range(2000):
                one.record(exchange(number, 500))
            await written(one)
            assert other.execute("SELECT count(*) FROM events").fetchone() == (before,)
            other.execute("COMMIT")
            (after,) = other.execute("SELECT count(*) FROM events").fetchone()
            assert after == before + 2000
        other.close()
        questions = [one.store.reading().by_correlation("c-1", 100) for _ in range(50)]
        assert [len(found) for found in await asyncio.gather(*questions)] == [100] * 50


_FULL = """
import asyncio, resource, signal, sys
from pathlib import Path
from proxy.core.clock import SystemClock
from proxy.trace.events import TraceEvent, Severity
from tests.trace_kit import trace

async def main():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    one = trace(Path(sys.argv[1]), SystemClock())
    await one.start()
    while one.store.unwritten:
        await asyncio.sleep(0.01)
    soft = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, soft[1]))
    for number in range(3000):
        facts = {"x": "y" * 400}
        at = float(number)
        one.record(TraceEvent(at, "exchange", "request", Severity.ERROR, "c", facts=facts))
    while one.store.degraded is None:
        await asyncio.sleep(0.01)
    found = await one.store.reading().by_correlation("c", 9999)
    print(one.store.degraded, len(found), flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, soft)
    while one.store.degraded is not None or one.store.unwritten:
        await asyncio.sleep(0.01)
    found = await one.store.reading().by_correlation("c", 9999)
    print("whole again", len(found), flush=True)
    await one.stop()

asyncio.run(main())
"""


def test_a_full_disk_and_room_again(tmp_path: Path) -> None:
    """A file system that takes no more (here: a limit on file sizes): all that waits can be read
    meanwhile, and is written once there is room."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_FULL), str(tmp_path / "t.db")],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.endswith(" 3000")
    assert "full" in first or "I/O" in first
    assert second == "whole again 3000"


def test_events_are_equal_by_what_they_say() -> None:
    """Two events of the same facts are the same to the tests above."""
    assert exchange() == exchange()
    assert exchange() != TraceEvent(T0, "exchange", "request")
