"""The store on real files: durable, bounded, and never the cause of anybody's failure."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy.core.clock import ManualClock
from proxy.core.sqlite import file as sqlite_file
from proxy.jobs.answers import Known
from proxy.jobs.document import parse
from proxy.jobs.maintenance import Gone
from proxy.jobs.reads import Reads
from proxy.jobs.store import sql
from proxy.jobs.store import store as store_module
from proxy.jobs.store.migrations import MIGRATIONS
from proxy.jobs.store.records import Row, Tombstone
from proxy.jobs.store.schema import Params, StoreSilent
from proxy.jobs.store.store import JobStore
from tests.jobs_kit import PATIENCE, eventually, job, locked

NOW = 1_795_450_902.0


@asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[JobStore]:
    """A started store on a clock that stands at `NOW`."""
    store = JobStore(path, ManualClock(NOW), **options)
    await store.start()
    try:
        yield store
    finally:
        await store.stop()


def put(store: JobStore, job_id: str, raw: bytes | None = None, at: float = NOW) -> None:
    """A version of a job was seen, a day before its end."""
    store.put(parse(job_id, raw if raw is not None else job(job_id)), at, NOW + 86400, None)


def files(directory: Path) -> list[str]:
    """The names in a directory, without SQLite's companions."""
    names = (file.name for file in directory.iterdir() if file.is_file())
    return sorted(name for name in names if not name.endswith(("-wal", "-shm")))


async def test_the_table_answers_plain_sql(tmp_path: Path) -> None:
    """Columns, types, key and indexes are those that outside queries rely on; dates compare."""
    async with opened(tmp_path / "j.db") as store:
        put(store, "mv_1", job("mv_1", "processing", 40.0))
        assert await store.flushed(2.0)
    with contextlib.closing(sqlite3.connect(tmp_path / "j.db", isolation_level=None)) as db:
        columns = {row[1]: (row[2], row[5]) for row in db.execute("PRAGMA table_info(jobs)")}
        assert columns["job_id"] == ("TEXT", 1)
        assert columns["data"][0] == "TEXT"
        for name in ("created_at", "updated_at", "completed_at", "expires_at"):
            assert columns[name][0] == "TIMESTAMP"
        indexed = [
            [(c[2], c[3]) for c in db.execute(f"PRAGMA index_xinfo({row[1]})") if c[5]]
            for row in db.execute("PRAGMA index_list(jobs)")
        ]
        assert [("status", 0)] in indexed
        assert [("created_at", 1)] in indexed
        query = """SELECT job_id, progress, created_at, json_extract(data, '$.status') FROM jobs
                   WHERE status = 'processing' AND expires_at > datetime(?, 'unixepoch')
                   ORDER BY created_at DESC"""
        assert list(db.execute(query, (NOW,))) == [
            ("mv_1", 40.0, "2026-11-23 16:21:42.670528", "processing")
        ]
        assert not list(db.execute(query, (NOW + 90000,)))
    db.close()


async def test_versions_are_numbered_and_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each new value is a version, an equal one is not, and only the last few are kept."""
    monkeypatch.setattr("proxy.jobs.store.store.KEEP_VERSIONS", 3)
    async with opened(tmp_path / "j.db") as store:
        for progress in range(6):
            put(store, "mv_1", job("mv_1", "processing", float(progress)), NOW + progress)
            put(store, "mv_1", job("mv_1", "processing", float(progress)), NOW + progress + 0.5)
        assert await store.flushed(2.0)
        versions = await store.versions("mv_1")
        assert [(number, seen) for number, seen, *_ in versions] == [
            (4, NOW + 3),
            (5, NOW + 4),
            (6, NOW + 5),
        ]
        row = await store.get("mv_1")
        assert isinstance(row, Row)
        assert (row.version, row.captured_at) == (6, NOW + 5)
        assert await store.was_version("mv_1", parse("mv_1", versions[0][4]).digest)


async def test_a_held_tombstone_wins_over_every_later_write(tmp_path: Path) -> None:
    """A job deleted by a client does not come back; one deleted in Redis may be written anew."""
    async with opened(tmp_path / "j.db") as store:
        for job_id, held in (("mv_held", True), ("mv_free", False)):
            put(store, job_id)
            store.mark_deleted(job_id, "client" if held else "redis", held=held)
            put(store, job_id, job(job_id, "completed", 100.0))
        assert await store.flushed(2.0)
        assert isinstance(await store.get("mv_held"), Tombstone)
        assert isinstance(await store.get("mv_free"), Row)
        heads = await store.heads(["mv_held", "mv_free", "mv_never"])
        assert heads["mv_held"].held
        assert not heads["mv_free"].deleted
        assert heads["mv_never"].digest is None


async def test_a_client_deletion_outranks_the_one_seen_in_redis(tmp_path: Path) -> None:
    """Whichever comes first, the tombstone ends held and of the client's origin."""
    async with opened(tmp_path / "j.db") as store:
        for first, second in (("client", "redis"), ("redis", "client")):
            job_id = f"mv_{first}"
            store.mark_deleted(job_id, first, held=first == "client")
            store.mark_deleted(job_id, second, held=second == "client")
        assert await store.flushed(2.0)
        for job_id in ("mv_client", "mv_redis"):
            found = await store.get(job_id)
            assert isinstance(found, Tombstone)
            assert (found.held, found.origin) == (True, "client")


@pytest.mark.parametrize("kind", ["garbage", "torn", "foreign"])
async def test_an_unfit_file_is_set_aside(kind: str, tmp_path: Path) -> None:
    """A damaged or foreign file is kept under another name; a new store works and says so."""
    path = tmp_path / "j.db"
    if kind == "garbage":
        path.write_bytes(b"this is no database" * 1000)
    elif kind == "foreign":
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("CREATE TABLE cookies (a)")
        db.close()
    else:
        async with opened(path) as store:
            for number in range(200):
                put(store, f"mv_{number}")
            await store.flushed(2.0)
        content = bytearray(path.read_bytes())
        content[4096 : 4096 * 6] = b"\xa5" * (4096 * 5)
        path.write_bytes(content)
    before = path.read_bytes()
    gaps: list[str] = []
    async with opened(path, on_gap=gaps.append) as store:
        put(store, "mv_new")
        assert await store.flushed(2.0)
        assert isinstance(await store.get("mv_new"), Row)
        assert store.degraded is None
        await eventually(lambda: len(gaps) == 1, "gap reported")
    current, kept = files(tmp_path)
    assert current == "j.db"
    assert (tmp_path / kept).read_bytes() == before


async def test_damage_met_while_in_use_is_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that meets damage makes the writer begin a new file; readers get an answer again."""
    path = tmp_path / "j.db"
    async with opened(path) as store:
        for number in range(2000):
            put(store, f"mv_{number}")
        await store.flushed(5.0)
    content = bytearray(path.read_bytes())
    content[4096 * 20 :] = b"\xa5" * (len(content) - 4096 * 20)
    path.write_bytes(content)
    monkeypatch.setattr(sqlite_file, "CHECK_AT_START", 0)
    async with opened(path) as store:
        await eventually(lambda: bool(list(tmp_path.glob("j.db.damaged-*"))), "set aside")
        put(store, "mv_new")
        assert await store.flushed(3.0)
        assert isinstance(await store.get("mv_new"), Row)


async def test_a_store_of_a_newer_release_is_not_touched(tmp_path: Path) -> None:
    """An older release cannot know what a newer one wrote: degraded, the file as it was."""
    path = tmp_path / "j.db"
    async with opened(path) as store:
        await store.flushed(2.0)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")
    db.close()
    async with opened(path) as store:
        assert store.degraded is not None
        assert "newer" in store.degraded
    assert files(tmp_path) == ["j.db"]


async def test_a_full_disk_degrades_and_recovers(tmp_path: Path) -> None:
    """Nothing raises while SQLite has no room; what was queued is committed once it has."""
    states: list[str | None] = []
    async with opened(tmp_path / "j.db", on_degraded=states.append) as store:
        assert store._file.writer is not None
        await store._file.writer.execute("PRAGMA max_page_count=40")
        for number in range(200):
            put(store, f"mv_{number}", job(f"mv_{number}", padding="x" * 2000))
        await eventually(lambda: store.degraded is not None, "degraded")
        assert store.unwritten("mv_199") is not None
        await store._file.writer.execute("PRAGMA max_page_count=100000")
        await eventually(lambda: store.degraded is None, "recovered")
        assert await store.flushed(3.0)
        assert len(await store.listing(None, NOW, 1000)) == 200
        assert store.unwritten("mv_199") is None
    assert states[0] is None
    assert len(states) >= 3


async def test_what_is_being_written_still_waits(tmp_path: Path) -> None:
    """While another process holds the file, the backlog has what the writer holds in its hands."""
    path = tmp_path / "j.db"
    async with opened(path) as store:
        async with locked(path, "BEGIN EXCLUSIVE"):
            put(store, "mv_1")
            await eventually(lambda: not store._queue, "the writer has taken it")
            assert store.backlog == 1
        await eventually(lambda: store.backlog == 0, "committed")


async def test_an_unusable_directory_degrades_and_recovers(tmp_path: Path) -> None:
    """A place where no file can be made is no reason to fail: it is tried again."""
    blocked = tmp_path / "data"
    blocked.write_text("a file where a directory should be")
    async with opened(blocked / "j.db") as store:
        assert store.degraded is not None
        put(store, "mv_1")
        with pytest.raises(StoreSilent):
            await store.get("mv_1")
        blocked.unlink()
        await eventually(lambda: store.degraded is None, "recovered")
        assert await store.flushed(3.0)
        assert isinstance(await store.get("mv_1"), Row)


async def test_a_value_that_sqlite_refuses_goes_alone(tmp_path: Path) -> None:
    """One bad operation in a group is dropped and counted; its neighbours are committed."""
    outcomes: list[bool] = []
    async with opened(tmp_path / "j.db") as store:
        put(store, "mv_1")
        store.execute(sql.SET_META, {"name": "bad", "value": None}, outcomes.append)
        put(store, "mv_2")
        assert await store.flushed(2.0)
        assert store.refused == 1
        assert outcomes == [False]
        assert len(await store.listing(None, NOW, 10)) == 2


async def test_the_backlog_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing can be written, old versions go first, tombstones never; a gap is reported."""
    monkeypatch.setattr(store_module, "BACKLOG", 100)
    blocked = tmp_path / "data"
    blocked.write_text("")
    gaps: list[str] = []
    async with opened(blocked / "j.db", on_gap=gaps.append) as store:
        store.mark_deleted("mv_gone", "client", held=True)
        for number in range(1000):
            put(store, f"mv_{number % 300}", job(f"mv_{number % 300}", progress=float(number)))
        assert store.backlog <= 101
        blocked.unlink()
        await eventually(lambda: gaps == ["backlog overflowed"], "gap reported")
        assert isinstance(await store.get("mv_gone"), Tombstone)


async def test_killed_at_any_moment_keeps_what_was_committed(tmp_path: Path) -> None:
    """kill -9 of a writing process: every row it reported as committed is there and whole."""
    script = textwrap.dedent(
        """
        import asyncio, sys
        from pathlib import Path
        from proxy.core.clock import SystemClock
        from proxy.jobs.store.store import JobStore
        from proxy.jobs.document import parse

        async def main():
            store = JobStore(Path(sys.argv[1]), SystemClock())
            await store.start()
            for number in range(100_000):
                raw = b'{"id":"mv_%d","status":"queued"}' % number
                store.put(parse(f"mv_{number}", raw), 1.0, None,
                           lambda ok, number=number: print(number, flush=True))
                if number % 20 == 0:
                    await store.flushed(5.0)

        asyncio.run(main())
        """
    )
    path = tmp_path / "j.db"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(path), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    reported: set[int] = set()
    while len(reported) < 500:
        reported.add(int(await process.stdout.readline()))
    os.kill(process.pid, signal.SIGKILL)
    rest = await process.stdout.read()
    await process.wait()
    reported.update(int(line) for line in rest.split(b"\n")[:-1])
    async with opened(path) as store:
        assert store.degraded is None
        for number in reported:
            row = await store.get(f"mv_{number}")
            assert isinstance(row, Row)
            assert row.raw == b'{"id":"mv_%d","status":"queued"}' % number


async def test_start_and_stop_at_once_leave_nothing(tmp_path: Path) -> None:
    """A store that is stopped right after its start closes every connection."""
    for _ in range(3):
        async with opened(tmp_path / "j.db"):
            pass
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("store")]


async def by_reads(store: JobStore) -> list[str]:
    """As routes ask for one job."""
    session = SimpleNamespace(activity=SimpleNamespace(touch=lambda: None))
    gone = cast(Gone, ())
    reads = Reads(cast(Any, None), store, cast(Any, session), gone, None, ManualClock(NOW))
    found = await reads.lookup("mv_1")
    return [found.snapshot.status] if isinstance(found, Known) else []


async def by_listing(store: JobStore) -> list[str]:
    """As people ask for jobs."""
    return [row.status for row in await store.listing(None, NOW, 10)]


async def by_app_listing(store: JobStore) -> list[str]:
    """As the app's list is answered."""
    rows, _ = await store.listing_within(None, NOW, 10, 10_000)
    return [row.status for row in rows]


@pytest.mark.parametrize("old", [None, "queued"])
@pytest.mark.parametrize("ask", [by_reads, by_listing, by_app_listing])
async def test_what_is_committed_during_a_read_is_in_its_answer(
    ask: Callable[[JobStore], Awaitable[list[str]]],
    old: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is missing in the file as it was read, and waits no longer when that is over; an older
    version that was read gives way to it."""
    path = tmp_path / "j.db"
    async with opened(path) as store:
        if old is not None:
            put(store, "mv_1", job("mv_1", old), NOW - 10)
        assert await store.flushed(PATIENCE)
        read = store._rows
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as blocker:
            blocker.execute("BEGIN IMMEDIATE")
            put(store, "mv_1", job("mv_1", "processing"))

            async def late(statement: str, params: Params = ()) -> list[Any]:
                found = await read(statement, params)
                if blocker.in_transaction:
                    blocker.execute("ROLLBACK")
                    assert await store.flushed(PATIENCE)
                return found

            monkeypatch.setattr(store, "_rows", late)
            assert await ask(store) == ["processing"]
            assert not blocker.in_transaction


async def test_a_listing_has_what_is_not_written_yet(tmp_path: Path) -> None:
    """While SQLite is locked new jobs and new states show all the same; order, status and limit
    hold over both."""
    path = tmp_path / "j.db"

    def made(job_id: str, status: str, minute: int) -> bytes:
        return job(job_id, status, created_at=f"2026-11-23T13:{minute:02d}:00-03:00")

    async with opened(path) as store:

        async def ids(status: str | None, limit: int = 10) -> list[str]:
            return [row.job_id for row in await store.listing(status, NOW, limit)]

        for minute in range(4):
            put(store, f"mv_{minute}", made(f"mv_{minute}", "queued", minute))
        assert await store.flushed(2.0)
        async with locked(path):
            put(store, "mv_1", made("mv_1", "processing", 1))
            put(store, "mv_5", made("mv_5", "queued", 5))
            store.put(parse("mv_6", made("mv_6", "queued", 6)), NOW, NOW - 1, None)
            assert await ids(None) == ["mv_5", "mv_3", "mv_2", "mv_1", "mv_0"]
            assert await ids("queued") == ["mv_5", "mv_3", "mv_2", "mv_0"]
            assert await ids("processing") == ["mv_1"]
            assert await ids(None, 2) == ["mv_5", "mv_3"]
        assert await store.flushed(10.0)
        assert await ids("queued", 3) == ["mv_5", "mv_3", "mv_2"]


async def test_a_list_for_people_reads_no_large_documents(tmp_path: Path) -> None:
    """A thousand jobs of a megabyte each are not read for a list that shows none of it."""
    async with opened(tmp_path / "j.db") as store:
        put(store, "mv_small", job("mv_small"))
        put(store, "mv_large", job("mv_large", padding="x" * 70_000))
        assert await store.flushed(5.0)

        async def read(longest: int, status: str | None = None) -> dict[str, int]:
            rows = await store.listing(status, NOW, 10, longest)
            return {row.job_id: len(row.raw) for row in rows}

        small, large = len(job("mv_small")), len(job("mv_large", padding="x" * 70_000))
        assert await read(0) == await read(0, "queued") == {"mv_small": 0, "mv_large": 0}
        assert await read(70_000) == {"mv_small": small, "mv_large": 0}
        assert await read(80_000, "queued") == {"mv_small": small, "mv_large": large}
        assert [len(row.raw) for row in await store.stranded(NOW + 1, NOW + 1, 10)] == [0, 0]
        documents = await store.documents(["mv_large", "mv_small", "mv_none"], 70_000)
        assert documents == {"mv_small": job("mv_small"), "mv_large": b""}


async def test_the_versions_of_a_job_are_cut_by_their_size(tmp_path: Path) -> None:
    """The newest come whole, older ones without their value, whether they are stored small or
    large; one that is too large alone is given all the same."""
    async with opened(tmp_path / "j.db") as store:
        noise = "".join(map(chr, random.Random(1).choices(range(48, 122), k=20_000)))
        values = [job("mv_1", padding="x" * 30_000, progress=step) for step in range(6)]
        values += [job("mv_1", padding=noise, progress=10 + step) for step in range(4)]
        for value in values:
            put(store, "mv_1", value)
            assert await store.flushed(5.0)

        async def kept(size: int) -> list[bool]:
            versions = await store.versions("mv_1", size)
            assert [one[0] for one in versions] == list(range(1, 11))
            for version, value in zip(versions, values, strict=True):
                assert version[4] in (None, value)
            return [one[4] is not None for one in versions]

        assert await kept(1) == [False] * 9 + [True]
        assert await kept(45_000) == [False] * 8 + [True] * 2
        assert await kept(110_000) == [False] * 5 + [True] * 5
        assert await kept(1_000_000) == [True] * 10
        assert await store.first_version("mv_1") == ("queued", values[0])
        assert await store.first_version("mv_2") is None


async def test_a_long_list_is_cut_by_its_size(tmp_path: Path) -> None:
    """Values are read until they are as many bytes as may be; the rest is known to be missing, and
    a list that fits is whole. Its size is known before it is read, and may be refused."""
    async with opened(tmp_path / "j.db") as store:
        for number in range(200):
            put(store, f"mv_{number}", job(f"mv_{number}", padding="x" * 2_000))
        assert await store.flushed(5.0)
        one = len(job("mv_100", padding="x" * 2_000))
        rows, cut = await store.listing_within(None, NOW, 1000, 150 * one)
        assert cut
        assert 145 <= len(rows) <= 151
        assert sum(len(row.raw) for row in rows) <= 150 * one
        assert len({row.job_id for row in rows}) == len(rows)
        sizes: list[int] = []
        rows, cut = await store.listing_within("queued", NOW, 1000, 1000 * one, sizes.append)
        assert sizes == [sum(len(row.raw) for row in rows)]
        assert (len(rows), cut) == (len(await store.listing("queued", NOW, 1000)), False)
        rows, cut = await store.listing_within(None, NOW, 100, 1000 * one)
        assert (len(rows), cut) == (100, False)

        def refuse(size: int) -> None:
            raise MemoryError(size)

        with pytest.raises(MemoryError):
            await store.listing_within(None, NOW, 100, 1000 * one, refuse)
