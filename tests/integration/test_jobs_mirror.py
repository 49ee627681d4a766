"""The mirror follows a real Redis, whoever writes, and gives back what Redis lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from redis.exceptions import ResponseError

from proxy.demo.redis_server import RedisServer
from proxy.jobs.answers import Expired, Known, Tombstoned
from proxy.jobs.creations import Creation
from proxy.jobs.redis.capture import MAX_VALUE
from tests.jobs_kit import (
    CREATED,
    INDEX,
    PREFIX,
    connected,
    deleted,
    eventually,
    followed,
    holds,
    job,
    recording,
    running,
    write,
)


async def restart_empty(server: RedisServer) -> None:
    """kill -9, then a new and empty server on the same port."""
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)


@pytest.mark.parametrize("name", ["success", "failures", "older-shape"])
async def test_recorded_jobs_end_in_the_store(
    name: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Every recorded command is replayed; the last version of each job is in SQLite."""
    last: dict[str, bytes] = {}
    async with connected(redis_server) as app, running(redis_server, tmp_path / "j.db") as mirror:
        await followed(mirror)
        for entry in recording(name):
            job_id = entry["key"].removeprefix(PREFIX)
            if entry["op"] == "EXPIRE":
                await app.expire(entry["key"], 86400)
                continue
            raw = json.dumps(entry["value"], separators=(",", ":")).encode()
            last[job_id] = raw
            await app.set(entry["key"], raw, ex=entry["ttl"])
            await eventually(holds(mirror, job_id, raw), "version captured")
        for job_id in last:
            await eventually(lambda job_id=job_id: has_deadline(mirror, job_id), "TTL captured")


async def has_deadline(mirror, job_id: str) -> bool:
    shown = await mirror.inspection.show(job_id)
    return shown is not None and shown["expires"] is not None


async def test_every_version_is_kept_with_its_time(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """`show` lists the versions of a job in order, numbered from 1."""
    async with connected(redis_server) as app, running(redis_server, tmp_path / "j.db") as mirror:
        await followed(mirror)
        for progress in (0.0, 10.0, 20.0):
            raw = await write(app, "mv_1", job("mv_1", "processing", progress))
            await eventually(holds(mirror, "mv_1", raw), "version captured")

        async def all_versions() -> bool:  # the newest may be on its way to the disk still
            shown = await mirror.inspection.show("mv_1")
            assert shown is not None
            versions = [(one["version"], one["progress"]) for one in shown["versions"]]
            return versions == [(1, 0.0), (2, 10.0), (3, 20.0)]

        await eventually(all_versions, "three versions in order")


async def test_empty_restart_gives_every_job_back(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """After kill -9 and an empty start, values, remaining TTLs and index scores are back."""
    registry = CollectorRegistry()
    async with running(redis_server, tmp_path / "j.db", registry=registry) as mirror:
        await followed(mirror)
        async with connected(redis_server) as app:
            raws = {f"mv_{n}": await write(app, f"mv_{n}", ttl=1000 + n) for n in range(300)}
            await eventually(lambda: count(mirror, 300), "all captured")
        since = mirror.state()["last_sync"]
        await restart_empty(redis_server)
        await followed(mirror, since)
        async with connected(redis_server) as app:
            for job_id, raw in raws.items():
                assert await app.get(PREFIX + job_id) == raw
            assert 900 < await app.ttl(PREFIX + "mv_0") <= 1000
            assert await app.zcard(INDEX) == 300
            assert await app.zscore(INDEX, "mv_7") == pytest.approx(CREATED, abs=1e-5)
    labels = {"mirror": "make_video", "cause": "restart"}
    assert registry.get_sample_value("proxy_jobs_restored_total", labels) == 300


async def count(mirror, rows: int) -> bool:
    return len(await mirror.inspection.jobs(limit=1000)) == rows


async def test_flush_is_a_loss_not_a_deletion(redis_server: RedisServer, tmp_path: Path) -> None:
    """FLUSHALL while everything is watched gives the jobs back, even right after a write."""
    async with connected(redis_server) as app, running(redis_server, tmp_path / "j.db") as mirror:
        await followed(mirror)
        raw = await write(app, "mv_1")
        await eventually(holds(mirror, "mv_1", raw), "captured")
        newer = job("mv_1", "processing", 5.0)
        async with app.pipeline(transaction=False) as pipe:
            pipe.set(PREFIX + "mv_1", newer, ex=86400)
            pipe.flushall()
            await pipe.execute()
        await eventually(lambda: exists(app, "mv_1"), "restored")
        assert isinstance(await mirror.reads.lookup("mv_1"), Known)


async def test_swapped_databases_are_a_loss(redis_server: RedisServer, tmp_path: Path) -> None:
    """SWAPDB, which tracking does not tell: the jobs come back without anybody asking for them."""
    async with connected(redis_server) as app, running(redis_server, tmp_path / "j.db") as mirror:
        await followed(mirror)
        raw = await write(app, "mv_1")
        await eventually(holds(mirror, "mv_1", raw), "captured")
        await mirror.sync()
        await app.execute_command("SWAPDB", 0, 5)
        assert not await app.exists(PREFIX + "mv_1")
        await eventually(lambda: exists(app, "mv_1"), "restored", limit=30)
        assert isinstance(await mirror.reads.lookup("mv_1"), Known)


async def exists(app, job_id: str) -> bool:
    return bool(await app.exists(PREFIX + job_id))


async def test_a_deletion_seen_is_never_undone(redis_server: RedisServer, tmp_path: Path) -> None:
    """A DEL while Redis lives is a tombstone: an empty restart does not bring the job back."""
    async with running(redis_server, tmp_path / "j.db") as mirror:
        since = await followed(mirror)
        async with connected(redis_server) as app:
            raw = await write(app, "mv_stays")
            await eventually(holds(mirror, "mv_stays", raw), "captured")
            raw = await write(app, "mv_goes")
            await eventually(holds(mirror, "mv_goes", raw), "captured")
            await app.delete(PREFIX + "mv_goes")
            await eventually(deleted(mirror, "mv_goes"), "tombstone")
        await restart_empty(redis_server)
        await followed(mirror, since)
        async with connected(redis_server) as app:
            assert await app.exists(PREFIX + "mv_stays")
            assert not await app.exists(PREFIX + "mv_goes")


async def test_a_deletion_while_we_were_away_is_found(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """The same server without the key, after our own restart: it was deleted, not lost."""
    async with connected(redis_server) as app:
        async with running(redis_server, tmp_path / "j.db") as mirror:
            raw = await write(app, "mv_1")
            await eventually(holds(mirror, "mv_1", raw), "captured")
            await mirror.sync()
        await app.delete(PREFIX + "mv_1")
        async with running(redis_server, tmp_path / "j.db") as mirror:
            await eventually(deleted(mirror, "mv_1"), "tombstone")
            assert not await app.exists(PREFIX + "mv_1")


async def test_a_deletion_between_restore_and_comparison(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """All is back after a loss, and the proxy ends before it has compared: what is deleted
    meanwhile stays deleted, and what is older in Redis is still replaced."""
    path = tmp_path / "j.db"
    newest = job("mv_2", "processing", 50.0)
    comparing = asyncio.Event()

    async def compare_for_ever(*_: object) -> None:
        comparing.set()
        await asyncio.Event().wait()

    async with running(redis_server, path) as mirror:
        since = await followed(mirror)
        async with connected(redis_server) as app:
            for job_id, raw in (("mv_1", job("mv_1")), ("mv_2", job("mv_2")), ("mv_2", newest)):
                await write(app, job_id, raw)
                await eventually(holds(mirror, job_id, raw), "captured")
        mirror._session.reconciler._compare = compare_for_ever  # type: ignore[method-assign]
        await restart_empty(redis_server)
        await eventually(comparing.is_set, "restored, and comparing")
        assert mirror.redis_whole
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            # It was on the disk before the mirror called itself whole.
            (found,) = db.execute("SELECT value FROM meta WHERE name = 'compared'").fetchall()
        assert found == ("0",)
        assert mirror.state()["last_sync"] == since
    async with connected(redis_server) as app:
        await app.delete(PREFIX + "mv_1")
        await write(app, "mv_2")
        async with running(redis_server, path) as mirror:
            await eventually(deleted(mirror, "mv_1"), "tombstone")
            assert not await app.exists(PREFIX + "mv_1")

            async def replaced() -> bool:
                return bool(await app.get(PREFIX + "mv_2") == newest)

            await eventually(replaced, "the newest version in Redis")


async def test_a_flush_while_we_were_away_is_a_loss(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """The same server, flushed while the proxy was down: the jobs come back."""
    async with connected(redis_server) as app:
        async with running(redis_server, tmp_path / "j.db") as mirror:
            raw = await write(app, "mv_1")
            await eventually(holds(mirror, "mv_1", raw), "captured")
            await mirror.sync()
        await app.flushall()
        async with running(redis_server, tmp_path / "j.db"):
            await eventually(lambda: exists(app, "mv_1"), "restored")


async def test_deleted_midway_stays_gone(redis_server: RedisServer, tmp_path: Path) -> None:
    """A worker that goes on writing a job deleted through us does not bring it back."""
    async with connected(redis_server) as app, running(redis_server, tmp_path / "j.db") as mirror:
        await followed(mirror)
        job_id = ""
        was_deleted = False
        for entry in recording("deleted-midway"):
            job_id = entry["key"].removeprefix(PREFIX)
            if entry["op"] == "DEL":
                await app.delete(entry["key"])
                assert await mirror.tombstone(job_id, app_notified=True)
                was_deleted = True
                continue
            raw = json.dumps(entry["value"]).encode()
            await app.set(entry["key"], raw, ex=entry["ttl"])
            if was_deleted:
                await eventually(lambda key=entry["key"]: missing(app, key), "removed again")
            else:
                await eventually(holds(mirror, job_id, raw), "captured")
        assert mirror.reads.is_gone(job_id)
        assert isinstance(await mirror.reads.lookup(job_id), Tombstoned)


async def missing(app, key: str) -> bool:
    return not await app.exists(key)


async def test_without_hold_a_rewritten_job_lives_again(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """`hold_deletes: false` leaves the worker's word the last one."""
    async with (
        connected(redis_server) as app,
        running(redis_server, tmp_path / "j.db", hold_deletes=False) as mirror,
    ):
        await followed(mirror)
        raw = await write(app, "mv_1")
        await eventually(holds(mirror, "mv_1", raw), "captured")
        await app.delete(PREFIX + "mv_1")
        await mirror.tombstone("mv_1", app_notified=True)
        raw = await write(app, "mv_1", job("mv_1", "completed", 100.0))
        await eventually(holds(mirror, "mv_1", raw), "lives again")


async def test_an_expired_job_is_known_as_such(redis_server: RedisServer, tmp_path: Path) -> None:
    """When Redis drops a key at its time, the job is expired: neither deleted nor restored."""
    async with running(redis_server, tmp_path / "j.db") as mirror:
        since = await followed(mirror)
        async with connected(redis_server) as app:
            await app.set(PREFIX + "mv_1", job("mv_1"), px=300)
            await eventually(lambda: expired(mirror, "mv_1"), "expired")
        await restart_empty(redis_server)
        await followed(mirror, since)
        async with connected(redis_server) as app:
            assert not await app.exists(PREFIX + "mv_1")
        assert isinstance(await mirror.reads.lookup("mv_1"), Expired)


async def expired(mirror, job_id: str) -> bool:
    return isinstance(await mirror.reads.lookup(job_id), Expired)


async def test_an_old_snapshot_is_brought_up_to_date(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """Redis returns with an older version and a deleted job: newest version wins, deleted goes."""
    async with running(redis_server, tmp_path / "j.db") as mirror:
        since = await followed(mirror)
        old = job("mv_1", "queued")
        newest = job("mv_1", "completed", 100.0, completed_at="2026-11-23T13:22:24-03:00")
        async with connected(redis_server) as app:
            await write(app, "mv_1", old)
            await eventually(holds(mirror, "mv_1", old), "captured")
            await write(app, "mv_1", newest)
            gone = await write(app, "mv_2")
            await eventually(holds(mirror, "mv_1", newest), "captured")
            await eventually(holds(mirror, "mv_2", gone), "captured")
            await app.delete(PREFIX + "mv_2")
            await eventually(deleted(mirror, "mv_2"), "tombstone")
        await asyncio.to_thread(redis_server.kill)
        snapshot = RedisServer(tmp_path / "snapshot", redis_server.port, "--save", "3600 1")
        await asyncio.to_thread(snapshot.start)
        # What the file held is written before the mirror may look: it connects to a paused server.
        try:
            async with connected(snapshot) as app:
                await app.mset({PREFIX + "mv_1": old, PREFIX + "mv_2": gone})
                await app.save()
            await asyncio.to_thread(snapshot.kill)
            await asyncio.to_thread(snapshot.start)
            await followed(mirror, since)
            async with connected(snapshot) as app:
                await eventually(lambda: equals(app, "mv_1", newest), "brought up to date")
                await eventually(lambda: missing(app, PREFIX + "mv_2"), "deleted one removed")
        finally:
            await asyncio.to_thread(snapshot.kill)


async def equals(app, job_id: str, raw: bytes) -> bool:
    return bool(await app.get(PREFIX + job_id) == raw)


async def test_two_mirrors_share_one_redis(redis_server: RedisServer, tmp_path: Path) -> None:
    """Two sidecars restore at the same time; nothing is doubled, the newest version wins."""
    async with (
        running(redis_server, tmp_path / "a.db") as one,
        running(redis_server, tmp_path / "b.db") as other,
    ):
        marks = [await followed(one), await followed(other)]
        async with connected(redis_server) as app:
            raws = {f"mv_{n}": await write(app, f"mv_{n}") for n in range(100)}
            for mirror in (one, other):
                await eventually(lambda mirror=mirror: count(mirror, 100), "captured")
        await restart_empty(redis_server)
        for mirror, mark in zip((one, other), marks, strict=True):
            await followed(mirror, mark)
        async with connected(redis_server) as app:
            for job_id, raw in raws.items():
                assert await app.get(PREFIX + job_id) == raw
            assert await app.zcard(INDEX) == 100


async def test_restarts_every_moment_lose_nothing(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """Redis is killed while it is being restored, several times; in the end every job is there."""
    async with running(redis_server, tmp_path / "j.db") as mirror:
        since = await followed(mirror)
        async with connected(redis_server) as app:
            raws = {f"mv_{n}": await write(app, f"mv_{n}") for n in range(500)}
            await eventually(lambda: count(mirror, 500), "captured")
        for _ in range(4):
            await restart_empty(redis_server)
            await eventually(lambda: mirror.state()["redis"] == "live", "reconnected")
        await followed(mirror, since)
        async with connected(redis_server) as app:
            await eventually(lambda: has_all(app, raws), "all back")


async def has_all(app, raws: dict[str, bytes]) -> bool:
    values = await app.mget([PREFIX + job_id for job_id in raws])
    return list(values) == list(raws.values())


async def test_a_hung_redis_is_noticed_and_survived(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """SIGSTOP: creation is refused, reads are served, and SIGCONT ends it."""
    async with connected(redis_server) as app, running(redis_server, tmp_path / "j.db") as mirror:
        await followed(mirror)
        raw = await write(app, "mv_1")
        await eventually(holds(mirror, "mv_1", raw), "captured")
        assert redis_server.pid is not None
        os.kill(redis_server.pid, signal.SIGSTOP)
        try:
            await eventually(lambda: mirror.creations.refusal() is not None, "noticed")
            refusal = mirror.creations.refusal()
            assert refusal is not None
            assert (refusal.code, refusal.status) == ("job_not_stored", 503)
            known = await mirror.reads.lookup("mv_1")
            assert isinstance(known, Known)
            answer = mirror.reads.app_answer(known)
            assert answer is not None
            assert json.loads(answer.body)["job_id"] == "mv_1"
            assert dict(answer.headers)["X-Job-Source"] == "sqlite"
        finally:
            os.kill(redis_server.pid, signal.SIGCONT)
        await eventually(lambda: mirror.creations.refusal() is None, "recovered")


async def test_a_created_job_is_confirmed(redis_server: RedisServer, tmp_path: Path) -> None:
    """A key in Redis is confirmed once its row is committed; no key is a lost job."""
    async with connected(redis_server) as app, running(redis_server, tmp_path / "j.db") as mirror:
        await followed(mirror)
        await write(app, "mv_1")
        assert await mirror.creations.confirm("mv_1") is Creation.CONFIRMED
        assert isinstance(await mirror.reads.lookup("mv_1"), Known)
        assert await mirror.creations.confirm("mv_never", timeout=0.1) is Creation.NOT_STORED
        late = asyncio.create_task(mirror.creations.confirm("mv_late", timeout=30.0))
        await asyncio.sleep(0)
        await write(app, "mv_late")
        assert await late is Creation.CONFIRMED


async def test_after_a_return_a_lost_job_closes_creation(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """Redis came back, but the app's breaker skips the write: creation is refused until it ends."""
    async with running(redis_server, tmp_path / "j.db", app_breaker="60s") as mirror:
        since = await followed(mirror)
        assert await mirror.creations.confirm("mv_0", timeout=0.05) is Creation.NOT_STORED
        assert mirror.creations.refusal() is None, "Redis has not been away"
        await restart_empty(redis_server)
        await followed(mirror, since)
        assert mirror.creations.refusal() is None
        assert await mirror.creations.confirm("mv_1", timeout=0.05) is Creation.NOT_STORED
        refusal = mirror.creations.refusal()
        assert refusal is not None
        assert refusal.reason == "app_breaker_open"
        assert refusal.retry_after is not None
        assert 40 < refusal.retry_after <= 60


async def test_a_killed_proxy_knows_that_redis_has_just_come_back(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """Whether this process or the one before it saw Redis return, one lost job closes creation."""
    store = tmp_path / "j.db"
    async with running(redis_server, store, app_breaker="60s") as mirror:
        since = await followed(mirror)
        await restart_empty(redis_server)
        await followed(mirror, since)
    for again in ("seen by an earlier process", "while no process ran"):
        async with running(redis_server, store, app_breaker="60s") as mirror:
            await followed(mirror)
            assert mirror.creations.refusal() is None
            assert await mirror.creations.confirm("mv_1", timeout=0.05) is Creation.NOT_STORED
            refusal = mirror.creations.refusal()
            assert refusal is not None, again
            assert refusal.reason == "app_breaker_open"
        with contextlib.closing(sqlite3.connect(store, isolation_level=None)) as direct:
            direct.execute("DELETE FROM meta WHERE name = 'redis_back_at'")
        await restart_empty(redis_server)


async def test_a_missing_job_is_revived_for_a_read(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """A job that Redis lost unnoticed is put back when somebody reads it."""
    async with connected(redis_server) as app, running(redis_server, tmp_path / "j.db") as mirror:
        await followed(mirror)
        raw = await write(app, "mv_1")
        await eventually(holds(mirror, "mv_1", raw), "captured")
        assert await mirror.reads.revive("mv_1"), "there already"
        assert not await mirror.reads.revive("mv_never")
        assert not await mirror.reads.revive("../etc")


async def test_deletes_are_passed_on_when_the_app_returns(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """Deleted while the app was away: gone for callers at once, passed on to the app later."""
    emitted: list[str] = []

    async def pass_on(job_id: str) -> bool:
        emitted.append(job_id)
        return True

    async with connected(redis_server) as app, running(redis_server, tmp_path / "j.db") as mirror:
        mirror.pass_deletions_to(pass_on)
        await followed(mirror)
        raw = await write(app, "mv_1")
        await eventually(holds(mirror, "mv_1", raw), "captured")
        assert await mirror.tombstone("mv_1", app_notified=False)
        assert mirror.reads.is_gone("mv_1")
        assert isinstance(await mirror.reads.lookup("mv_1"), Tombstoned)
        await eventually(lambda: emitted == ["mv_1"], "passed on")
        await eventually(lambda: missing(app, PREFIX + "mv_1"), "removed")


async def test_odd_values_are_counted_never_fatal(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """No JSON, no UTF-8, another type, too long, odd dates, hostile ids: the mirror lives on."""
    async with (
        connected(redis_server) as app,
        running(redis_server, tmp_path / "j.db") as mirror,
    ):
        await followed(mirror)
        await app.set(PREFIX + "not_json", b"{nope")
        await app.set(PREFIX + "not_utf8", b"\xff\xfe\x00")
        await app.set(PREFIX + "too_large", b"x" * (MAX_VALUE + 1))
        await app.set(PREFIX + "deep", b"[" * 2000)
        await app.set(PREFIX + "bad_date", job("bad_date", created_at="yesterday"))
        await app.set(PREFIX + "surrogate", b'{"id":"surrogate","status":"\\ud800"}')
        await app.set(PREFIX + "huge", b'{"id":"huge","progress":' + b"9" * 400 + b"}")
        await app.set(PREFIX + "../../etc/passwd", b"{}")
        await app.set(PREFIX + "\x00'; DROP TABLE jobs;--", b"{}")
        await app.hset(PREFIX + "a_hash", mapping={"a": "b"})
        raw = await write(app, "mv_1")
        await eventually(holds(mirror, "mv_1", raw), "captured all the same")
        oddities = mirror.state()["oddities"]
        assert {"not_json", "not_utf8", "too_large", "other_type", "bad_date"} <= set(oddities)
        shown = await mirror.inspection.show("not_json")
        assert shown is not None
        assert shown["data"] == "{nope"
        assert await mirror.inspection.show("too_large") is None
        listing = await mirror.reads.listing(None, None)
        assert listing is not None
        names = {one["id"] for one in json.loads(listing.body)["jobs"]}
        assert names == {"bad_date", "surrogate", "huge", "mv_1"}


@pytest.mark.parametrize("mode", ["notifications", "scanning"])
async def test_capture_without_tracking(
    mode: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Keyspace notifications where they are on, else scanning: changes, deletions, flushes."""
    async with connected(redis_server) as app:
        if mode == "notifications":
            await app.config_set("notify-keyspace-events", "KA")
        async with running(redis_server, tmp_path / "j.db", mode="notifications") as mirror:
            since = await followed(mirror)
            assert mirror.state()["capture"] == mode
            raw = await write(app, "mv_1")
            gone = await write(app, "mv_2")
            await eventually(holds(mirror, "mv_1", raw), "captured")
            await eventually(holds(mirror, "mv_2", gone), "captured")
            await app.delete(PREFIX + "mv_2")
            await eventually(deleted(mirror, "mv_2"), "tombstone")
            await app.flushall()
            if mode == "notifications":
                await mirror.sync()
            await eventually(lambda: exists(app, "mv_1"), "restored")
            assert await missing(app, PREFIX + "mv_2")
        assert since


async def test_forbidden_tracking_falls_back(redis_server: RedisServer, tmp_path: Path) -> None:
    """A user without the right to CLIENT TRACKING and INFO still has its jobs mirrored."""
    async with connected(redis_server) as app:
        rights = ["ACL", "SETUSER", "default", "on", "nopass", "~*", "+@all"]
        try:
            await app.execute_command(*rights, "-client|tracking")
        except ResponseError:  # before Redis 7 a subcommand can only be granted
            await app.execute_command(*rights, "-client")
        async with running(redis_server, tmp_path / "j.db") as mirror:
            await followed(mirror)
            assert mirror.state()["capture"] == "scanning"
            raw = await write(app, "mv_1")
            await eventually(holds(mirror, "mv_1", raw), "captured")


async def test_absence_seen_before_a_restore_proves_nothing_after_it(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """A job is fetched from the empty server, and the store is slow to say what it knew of it."""
    async with running(redis_server, tmp_path / "j.db") as mirror, connected(redis_server) as app:
        await followed(mirror)
        raw = await write(app, "mv_1")
        await eventually(holds(mirror, "mv_1", raw), "the job")
        store, session = mirror._store, mirror._session
        quick = store.heads

        async def slow(job_ids: list[str]) -> Any:
            if not session.whole:
                await eventually(lambda: session.whole, "the restore")
            return await quick(job_ids)

        store.heads = slow  # type: ignore[method-assign]
        since = mirror.state()["last_sync"]
        await asyncio.to_thread(redis_server.kill)
        await eventually(lambda: mirror.state()["redis"] == "down", "the loss")
        session.capture.changes.fetch_next(
            "mv_1"
        )  # fetched at once when Redis is back, before the restore
        await asyncio.to_thread(redis_server.start)
        await followed(mirror, since)
        assert mirror.state()["deleted"] == 0
        assert await holds(mirror, "mv_1", raw)()
    async with connected(redis_server) as app:
        assert await app.get(PREFIX + "mv_1") == raw


async def test_a_comparison_says_what_it_found(redis_server: RedisServer, tmp_path: Path) -> None:
    """Keys there, versions copied, jobs that are gone: what `jobs sync` prints."""
    async with connected(redis_server) as app, running(redis_server, tmp_path / "j.db") as mirror:
        for job_id in ("mv_1", "mv_2"):
            await write(app, job_id)
        await followed(mirror)
        found = await mirror.sync()
        assert found.pop("seconds") >= 0
        assert found.pop("last_sync").endswith("Z")
        assert found == {"mirror": "make_video", "keys": 2, "copied": 0, "deleted": 0, "missing": 0}
