"""A Redis that lives but is short of memory, slow, full, odd, or strict about rights."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from proxy.demo.redis_server import RedisServer, free_port
from proxy.jobs.answers import Known, Tombstoned
from proxy.jobs.creations import Creation
from tests.jobs_kit import (
    PREFIX,
    connected,
    deleted,
    eventually,
    followed,
    holds,
    job,
    running,
    write,
)

#: As the docs have it.
MIRROR_ACL = Path(__file__).parents[2] / "docs" / "reference" / "redis-rights.md"


#: In Redis; whether SQLite said so in time is a matter of the machine.
STORED = {Creation.CONFIRMED, Creation.DEGRADED}


@pytest.fixture
def small_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that has to drop keys after a few hundred jobs."""
    server = RedisServer(
        tmp_path / "small", None, "--maxmemory", "6mb", "--maxmemory-policy", "allkeys-lru"
    )
    server.start()
    yield server
    server.kill()


def lines(caplog: pytest.LogCaptureFixture, message: str) -> list[logging.LogRecord]:
    """What was logged with this message."""
    return [record for record in caplog.records if record.message == message]


# --- evictions ------------------------------------------------------------------------------------


async def test_evicted_jobs_stay_known(
    small_redis: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Hundreds of jobs dropped in bursts are no deletions; a real one among the quiet is."""
    padding = "x" * 16_000
    async with connected(small_redis) as app, running(small_redis, tmp_path / "j.db") as mirror:
        await followed(mirror)
        raws: dict[str, bytes] = {}
        for burst in range(8):
            writes = []
            for number in range(60):
                job_id = f"mv_{burst}_{number}"
                raws[job_id] = job(job_id, padding=padding)
                writes.append(app.set(PREFIX + job_id, raws[job_id], ex=86400))
            await asyncio.gather(*writes)
            # Each was there when it was looked at: what is dropped before is unknown, not evicted.
            await eventually(lambda: seen_all(mirror, raws), "every write was looked at")
        await app.config_set("maxmemory", 0)  # no reply of ours evicts more
        there = await app.mget([PREFIX + job_id for job_id in raws])
        missing = [job_id for job_id, raw in zip(raws, there, strict=True) if raw is None]
        assert len(missing) > 50, "the server was to evict"
        await mirror.sync()
        found = {job_id: await mirror.reads.lookup(job_id) for job_id in raws}
        assert not [one for one, what in found.items() if isinstance(what, Tombstoned)]
        state = mirror.state()
        assert state["deleted"] == 0
        assert state["evicted"] > 50
        captured = [one for one in missing if isinstance(found[one], Known)]
        assert captured, "most evicted jobs had been captured"
        # With proof for the very key, a deletion is one on such a server too.
        survivor = next(one for one in reversed(raws) if one not in missing)
        evicted = (await app.info("stats"))["evicted_keys"]

        def marked() -> bool:
            mark = mirror._session._epoch.mark  # type: ignore[union-attr]
            return mark is not None and mark.info.evicted == evicted

        await eventually(marked, "the burst is over")
        assert await app.delete(PREFIX + survivor) == 1
        await eventually(deleted(mirror, survivor), "the deletion was noticed")
        assert await mirror.reads.revive(captured[0])
        assert await app.get(PREFIX + captured[0]) == raws[captured[0]]
        mirror._session.capture.absences.evictions.report(float("inf"))
    assert len(lines(caplog, "jobs evicted from Redis")) <= 2, "a burst is one line"


async def seen_all(mirror: Any, raws: dict[str, bytes]) -> bool:
    named = mirror._session.capture.changes
    return not named._urgent and not named._bulk and mirror.state()["backlog"] == 0


async def test_evictions_while_the_proxy_was_away(small_redis: RedisServer, tmp_path: Path) -> None:
    """What a server dropped meanwhile is evicted for every later process, too."""
    async with running(small_redis, tmp_path / "j.db") as mirror, connected(small_redis) as app:
        await followed(mirror)
        raw = await write(app, "mv_first")
        await eventually(holds(mirror, "mv_first", raw), "captured")
        await mirror.sync()
    async with connected(small_redis) as app:
        filling = 0
        while await app.exists(PREFIX + "mv_first"):
            filling += 1
            await app.set(f"other:{filling}", "x" * 30_000)
        await app.delete(*[f"other:{number}" for number in range(1, filling + 1)])
    for _ in range(2):
        async with running(small_redis, tmp_path / "j.db") as mirror:
            await followed(mirror)
            assert isinstance(await mirror.reads.lookup("mv_first"), Known)


async def test_a_keyspace_event_is_proof(small_redis: RedisServer, tmp_path: Path) -> None:
    """Where the server says what happened to a key, a deletion counts amid evictions."""
    async with connected(small_redis) as app:
        await app.config_set("notify-keyspace-events", "KA")
        async with running(small_redis, tmp_path / "j.db", mode="notifications") as mirror:
            await followed(mirror)
            for number in range(500):
                await app.set(PREFIX + f"mv_{number}", job(f"mv_{number}", pad="x" * 16_000))
            assert int((await app.info("stats"))["evicted_keys"]) > 0
            await app.config_set("maxmemory", 0)
            raw = await write(app, "mv_mine")
            await eventually(holds(mirror, "mv_mine", raw), "captured")
            assert await app.delete(PREFIX + "mv_mine") == 1
            await eventually(deleted(mirror, "mv_mine"), "the deletion counts")
            assert mirror.state()["deleted"] == 1


# --- latency --------------------------------------------------------------------------------------


class Distance:
    """A TCP relay that delays every piece by `seconds` in each direction, in order."""

    def __init__(self, port: int, seconds: float) -> None:
        self.target = port
        self.seconds = seconds
        self.port = free_port()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[RedisServer]:
        tasks: set[asyncio.Task[None]] = set()
        writers: list[asyncio.StreamWriter] = []

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            far, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
            writers.extend((writer, far_writer))
            for one in (self._carry(reader, far_writer), self._carry(far, writer)):
                task = asyncio.create_task(one)
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(accept, "127.0.0.1", self.port)
        try:
            yield RedisServer(Path("/nowhere"), self.port)
        finally:
            server.close()
            for task in list(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for writer in writers:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                loop.call_later(self.seconds / 2, self._deliver, writer, data)
        loop.call_later(self.seconds / 2, writer.close)

    def _deliver(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            writer.write(data)


@pytest.mark.parametrize("seconds", [0.3, 0.5, 0.9])
async def test_a_slow_redis_confirms_late(
    seconds: float, redis_server: RedisServer, tmp_path: Path
) -> None:
    """With a distant Redis, jobs that the app stored are confirmed; one that it did not is not."""
    distance = Distance(redis_server.port, seconds)
    async with (
        distance.open() as far,
        connected(redis_server) as app,
        running(far, tmp_path / "j.db", confirm_within="30s") as mirror,
    ):
        await followed(mirror)

        async def create(job_id: str) -> Creation:
            await write(app, job_id)
            return await mirror.creations.confirm(job_id)

        outcomes = await asyncio.gather(*(create(f"mv_{number}") for number in range(20)))
        assert set(outcomes) <= STORED
        assert await mirror.creations.confirm("mv_never") is Creation.NOT_STORED
        assert mirror.state()["redis"] == "live"


async def test_no_answer_is_not_a_missing_key(redis_server: RedisServer, tmp_path: Path) -> None:
    """Where Redis lives and is too slow to say, the app's acceptance stands and is counted."""
    distance = Distance(redis_server.port, 0.01)
    async with (
        distance.open() as far,
        connected(redis_server) as app,
        running(far, tmp_path / "j.db", confirm_within="0.5s") as mirror,
    ):
        await followed(mirror)
        mirror._session.link.round_trip = 3.0  # type: ignore[union-attr]
        distance.seconds = 2.5
        await asyncio.sleep(0)
        await write(app, "mv_slow")
        assert await mirror.creations.confirm("mv_slow") is Creation.UNCONFIRMED
        assert mirror.creations.refusal() is None


async def test_a_redis_that_went_away_confirms_nothing(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """Gone is not slow: a job that was not seen before Redis went away may be lost."""
    async with (
        connected(redis_server) as app,
        running(redis_server, tmp_path / "j.db", confirm_within="1s") as mirror,
    ):
        await followed(mirror)
        waiting = asyncio.create_task(mirror.creations.confirm("mv_late"))
        await asyncio.to_thread(redis_server.kill)
        assert await waiting is Creation.NOT_STORED
        assert mirror.creations.not_stored().reason == "redis_down"
        await app.aclose()


# --- writes that are refused ----------------------------------------------------------------------


async def refuses(mirror: Any, reason: str) -> None:
    """Wait until creations are refused before the upload, for this reason."""

    def refused() -> bool:
        refusal = mirror.creations.refusal()
        return refusal is not None and refusal.reason == reason

    await eventually(refused, f"creations are refused: {reason}")


async def test_a_full_redis_is_known_before_the_upload(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """OOM under noeviction: the job could be read, but none can be made."""
    registry = CollectorRegistry()
    async with (
        connected(redis_server) as app,
        running(redis_server, tmp_path / "j.db", registry=registry) as mirror,
    ):
        await followed(mirror)
        await app.config_set("maxmemory", "100kb")
        await refuses(mirror, "redis_refuses_writes")
        labels = {"mirror": "make_video", "part": "redis"}
        assert registry.get_sample_value("proxy_mirror_degraded", labels) == 1
        state = mirror.state()
        assert state["redis"] == "live"
        assert state["writes"].startswith("OOM")
        await app.config_set("maxmemory", 0)
        await eventually(lambda: mirror.creations.refusal() is None, "creations are taken again")
        assert mirror.state()["writes"] == "ok"
        assert registry.get_sample_value("proxy_mirror_degraded", labels) == 0


async def test_a_redis_that_cannot_save_is_known(redis_server: RedisServer, tmp_path: Path) -> None:
    """MISCONF: a failed background save makes a careful server refuse all writes."""
    async with connected(redis_server) as app, running(redis_server, tmp_path / "j.db") as mirror:
        await followed(mirror)
        (tmp_path / "redis" / "dump.rdb").mkdir()
        (tmp_path / "redis" / "dump.rdb" / "in-the-way").touch()
        await app.config_set("save", "900 1")
        with contextlib.suppress(ResponseError):
            await app.bgsave()
        await refuses(mirror, "redis_refuses_writes")
        assert mirror.state()["writes"].startswith("MISCONF")


async def test_too_few_replicas_are_known(redis_server: RedisServer, tmp_path: Path) -> None:
    """NOREPLICAS is a refusal of all writes as well."""
    async with connected(redis_server) as app, running(redis_server, tmp_path / "j.db") as mirror:
        await followed(mirror)
        await app.config_set("min-replicas-to-write", 1)
        await refuses(mirror, "redis_refuses_writes")
        await app.config_set("min-replicas-to-write", 0)
        await eventually(lambda: mirror.creations.refusal() is None, "creations are taken again")


async def test_a_demoted_master_is_no_store(
    redis_server: RedisServer, small_redis: RedisServer, tmp_path: Path
) -> None:
    """A server that becomes a replica takes no jobs, and what vanishes with that is not deleted."""
    async with connected(redis_server) as app, running(redis_server, tmp_path / "j.db") as mirror:
        await followed(mirror)
        raw = await write(app, "mv_1")
        await eventually(holds(mirror, "mv_1", raw), "captured")
        await app.execute_command("REPLICAOF", "127.0.0.1", small_redis.port)
        await eventually(lambda: mirror.creations.refusal() is not None, "creations are refused")
        await eventually(lambda: mirror.state()["redis"] == "down", "no store")
        assert "replica" in mirror.state()["reason"]
        await app.execute_command("REPLICAOF", "NO", "ONE")
        await eventually(lambda: there(app, "mv_1", raw), "the job is put back")
        assert isinstance(await mirror.reads.lookup("mv_1"), Known)


async def there(app: Any, job_id: str, raw: bytes) -> bool:
    with contextlib.suppress(RedisError):
        return bool(await app.get(PREFIX + job_id) == raw)
    return False


# --- odd values -----------------------------------------------------------------------------------


async def test_odd_keys_and_lifetimes_are_counted_lines(
    redis_server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An absurd time to live, ids that are none, other types: the session goes on all the same."""
    async with connected(redis_server) as app, running(redis_server, tmp_path / "j.db") as mirror:
        await followed(mirror)
        since = mirror.state()["since"]
        for number, lifetime in enumerate((999_999_999_999_999, 9_000_000_000_000_000_000 // 10)):
            await app.set(PREFIX + f"mv_long{number}", job(f"mv_long{number}"), px=lifetime)
            assert await mirror.creations.confirm(f"mv_long{number}") in STORED
        await app.set(PREFIX + "a b", "{}")
        await app.set(PREFIX.encode() + b"\xff/\x00", "{}")
        await app.set(PREFIX + "x" * 300, "{}")
        await app.xadd(PREFIX + "stream", {"a": "b"})
        raw = await write(app, "mv_ok")
        await eventually(holds(mirror, "mv_ok", raw), "the mirror goes on")
        await mirror.sync()
        state = mirror.state()
        assert state["since"] == since, "one session throughout"
        assert state["oddities"]["bad_ttl"] >= 2
        assert state["oddities"]["bad_id"] >= 3
        assert state["oddities"]["other_type"] >= 1
        kinds = [getattr(line, "kind", "") for line in lines(caplog, "odd job value")]
        assert len(kinds) == len(set(kinds)), "one line for each kind"
        # What is absurd is given back with a life that is only long.
        await asyncio.to_thread(redis_server.kill)
        await asyncio.to_thread(redis_server.start)
        await eventually(lambda: there(app, "mv_long0", job("mv_long0")), "restored")
        assert await app.pttl(PREFIX + "mv_long0") > 0


async def test_a_value_that_defeats_us_costs_one_line(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake of ours with one value is no reason to stop mirroring the others."""
    async with connected(redis_server) as app, running(redis_server, tmp_path / "j.db") as mirror:
        await followed(mirror)
        capture = mirror._session.capture
        honest = capture._note

        def fails(snapshot: Any) -> None:
            if snapshot.job_id == "mv_bad":
                raise OverflowError("date value out of range")
            honest(snapshot)

        monkeypatch.setattr(capture, "_note", fails)
        await write(app, "mv_bad")
        raw = await write(app, "mv_good")
        await eventually(holds(mirror, "mv_good", raw), "the others go on")
        assert mirror.state()["oddities"]["unmanageable"] == 1
        assert mirror.state()["redis"] == "live"


async def test_an_unseen_old_version_of_a_deleted_job_stays_away(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """Redis comes back with a version that the mirror never saw, of a job that was deleted."""
    async with running(redis_server, tmp_path / "j.db") as mirror:
        await followed(mirror)
        async with connected(redis_server) as app:
            raw = await write(app, "mv_1")
            await eventually(holds(mirror, "mv_1", raw), "captured")
            await app.delete(PREFIX + "mv_1")
            await eventually(deleted(mirror, "mv_1"), "deleted past the proxy")
        since = mirror.state()["last_sync"]
        await asyncio.to_thread(redis_server.kill)
        await asyncio.to_thread(redis_server.start)
        async with connected(redis_server) as app:
            await followed(mirror, since)
            # As from a snapshot: before the mirror is through with its comparison it is all the
            # same; here the gap is held open for it.
            mirror._session._epoch.old_data = True  # type: ignore[union-attr]
            await write(app, "mv_1", job("mv_1", "processing", progress=3.0))
            await eventually(lambda: gone(app, "mv_1"), "the old version is removed")
            assert isinstance(await mirror.reads.lookup("mv_1"), Tombstoned)
            mirror._session._epoch.old_data = True  # type: ignore[union-attr]
            newer = job("mv_1", "queued", started_at="2199-01-01T00:00:00+00:00")
            await write(app, "mv_1", newer)
            await eventually(holds(mirror, "mv_1", newer), "a later one is a new job")


async def gone(app: Any, job_id: str) -> bool:
    return not await app.exists(PREFIX + job_id)


async def test_a_manual_restore_brings_back_no_deletion(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """What was deleted and not noticed yet, as where changes are scanned for, stays deleted."""
    async with (
        connected(redis_server) as app,
        running(redis_server, tmp_path / "j.db", mode="scanning") as mirror,
    ):
        await followed(mirror)
        raw = await write(app, "mv_1")
        await mirror.sync()
        assert holds(mirror, "mv_1", raw)
        await app.delete(PREFIX + "mv_1")
        await mirror.restore()
        assert not await app.exists(PREFIX + "mv_1")
        assert isinstance(await mirror.reads.lookup("mv_1"), Tombstoned)


async def test_a_renamed_or_copied_job(redis_server: RedisServer, tmp_path: Path) -> None:
    """RENAME takes a job from its name, COPY makes another; both are what a client asked for."""
    async with connected(redis_server) as app, running(redis_server, tmp_path / "j.db") as mirror:
        await followed(mirror)
        raw = await write(app, "mv_1")
        await eventually(holds(mirror, "mv_1", raw), "captured")
        await app.copy(PREFIX + "mv_1", PREFIX + "mv_2")
        await eventually(holds(mirror, "mv_2", raw), "the copy is known")
        await app.rename(PREFIX + "mv_1", PREFIX + "mv_3")
        await eventually(deleted(mirror, "mv_1"), "the old name is gone")
        await eventually(holds(mirror, "mv_3", raw), "the new one is known")
        await app.rename(PREFIX + "mv_3", PREFIX + "mv_1")
        await eventually(holds(mirror, "mv_1", raw), "and back again")


async def test_a_list_is_as_old_as_the_last_word_of_redis(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """`X-Job-As-Of` of a list is when Redis was lost, not when both sides were last compared."""
    async with connected(redis_server) as app, running(redis_server, tmp_path / "j.db") as mirror:
        await followed(mirror)
        raw = await write(app, "mv_1")
        await eventually(holds(mirror, "mv_1", raw), "captured")
        await asyncio.to_thread(redis_server.kill)
        await eventually(lambda: mirror.state()["redis"] == "down", "lost")
        answer = await mirror.reads.listing(None, 10)
        assert answer is not None
        as_of = dict(answer.headers)["X-Job-As-Of"]
        assert as_of >= mirror.state()["last_sync"]
        assert as_of[:19] <= mirror.state()["since"][:19]
        assert mirror._session.known_until == pytest.approx(mirror._session.since, abs=2)
        assert json.loads(answer.body)["total"] == 1


# --- rights ---------------------------------------------------------------------------------------


@asynccontextmanager
async def as_user(server: RedisServer, *rules: str) -> AsyncIterator[RedisServer]:
    """The server as a user with these rights sees it."""
    async with connected(server) as admin:
        await admin.execute_command("ACL", "SETUSER", "mirror", "reset", "on", ">secret", *rules)

    class AsMirror(RedisServer):
        @property
        def url(self) -> str:
            return f"redis://mirror:secret@127.0.0.1:{self.port}/0"

    yield AsMirror(server.directory, server.port)


EVERYTHING = ("~*", "&*", "+@all")


@pytest.mark.parametrize(
    ("without", "right"),
    [
        ("info", "info"),
        ("client", "client|tracking"),
        ("set", "set"),
        ("del", "del"),
        ("eval", "eval"),
        ("zadd", "zadd"),
        ("scan", "scan"),
    ],
)
async def test_a_missing_right_is_one_warning(
    without: str,
    right: str,
    redis_server: RedisServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever the access list withholds is named once in the log, and in the state."""
    async with (
        as_user(redis_server, *EVERYTHING, f"-{without}") as server,
        connected(redis_server) as app,
        running(server, tmp_path / "j.db") as mirror,
    ):
        await eventually(lambda: mirror.state()["redis"] == "live", "the mirror works as it can")
        assert [one.split(" ")[0] for one in mirror.state()["missing_rights"]] == [right]
        if without != "scan":
            raw = await write(app, "mv_1")
            await eventually(holds(mirror, "mv_1", raw), "captured all the same")
    warned = lines(caplog, "redis right missing")
    assert [getattr(line, "right", None) for line in warned] == [right]


async def test_without_info_nothing_is_taken_for_deleted(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """An absence that may be an eviction leaves no tombstone; a deletion through us does."""
    async with (
        as_user(redis_server, *EVERYTHING, "-info") as server,
        connected(redis_server) as app,
        running(server, tmp_path / "j.db") as mirror,
    ):
        await followed(mirror)
        for job_id in ("mv_1", "mv_2"):
            raw = await write(app, job_id)
            await eventually(holds(mirror, job_id, raw), "captured")
        await mirror.tombstone("mv_2", app_notified=True)
        await app.delete(PREFIX + "mv_1", PREFIX + "mv_2")
        await mirror.sync()
        assert isinstance(await mirror.reads.lookup("mv_1"), Known)
        assert isinstance(await mirror.reads.lookup("mv_2"), Tombstoned)
        assert not await app.exists(PREFIX + "mv_2")


async def test_without_info_and_tracking_a_flush_is_still_made_good(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """The scan finds everything gone, and nothing but a flush does that at once."""
    async with (
        as_user(redis_server, *EVERYTHING, "-info", "-client") as server,
        connected(redis_server) as app,
        running(server, tmp_path / "j.db") as mirror,
    ):
        for number in range(10):
            await write(app, f"mv_{number}")
        await followed(mirror)
        await mirror.sync()
        assert mirror.state()["capture"] == "scanning"
        await app.flushall()
        await mirror.sync()
        await eventually(lambda: there(app, "mv_3", job("mv_3")), "restored")


async def test_read_only_rights_claim_no_removal(
    redis_server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What the server did not let us remove is not logged as removed."""
    async with (
        as_user(redis_server, *EVERYTHING, "-@write", "-@scripting") as server,
        connected(redis_server) as app,
        running(server, tmp_path / "j.db") as mirror,
    ):
        await eventually(lambda: mirror.state()["redis"] == "live", "the mirror reads")
        raw = await write(app, "mv_1")
        await eventually(holds(mirror, "mv_1", raw), "captured")
        await mirror.tombstone("mv_1", app_notified=True)
        await write(app, "mv_1", job("mv_1", "processing"))
        await eventually(
            lambda: bool(lines(caplog, "deleted job reappeared and cannot be removed")), "logged"
        )
        assert not lines(caplog, "deleted job reappeared and was removed")
        assert isinstance(await mirror.reads.lookup("mv_1"), Tombstoned)


async def test_a_server_without_hello(tmp_path: Path) -> None:
    """Without RESP3 nothing is pushed; the mirror scans, and creations are confirmed."""
    server = RedisServer(tmp_path / "redis", None, "--rename-command", "HELLO", "")
    server.start()
    try:
        async with (
            contextlib.aclosing(Redis.from_url(server.url, protocol=2)) as app,
            running(server, tmp_path / "j.db") as mirror,
        ):
            await followed(mirror)
            assert mirror.state()["capture"] == "scanning"
            assert mirror.state()["missing_rights"][0].startswith("hello")
            await app.set(PREFIX + "mv_1", job("mv_1"), ex=86400)
            assert await mirror.creations.confirm("mv_1") in STORED
    finally:
        server.kill()


def documented_acl(user: str) -> list[list[str]]:
    """The rules of the ACL lines for this user that the docs tell operators to copy, but for the
    password."""
    text = MIRROR_ACL.read_text(encoding="utf-8")
    lines = [one for one in text.splitlines() if one.startswith(f"ACL SETUSER {user} ")]
    return [[rule for rule in line.split()[3:] if not rule.startswith(">")] for line in lines]


@pytest.mark.parametrize("breakers", [False, True])
async def test_the_documented_rights_are_enough(
    breakers: bool, redis_server: RedisServer, tmp_path: Path
) -> None:
    """The ACL line of the docs: nothing is missing, everything that a mirror does is allowed; and
    what breakers need can be added to it."""
    alone, added = documented_acl("proxy-mirror")
    rules = [*alone, *added] if breakers else alone
    async with (
        as_user(redis_server, *rules) as server,
        connected(redis_server) as app,
        running(server, tmp_path / "j.db") as mirror,
    ):
        await followed(mirror)
        state = mirror.state()
        assert state["missing_rights"] == []
        assert state["capture"] == "tracking"
        raw = await write(app, "mv_1")
        assert await mirror.creations.confirm("mv_1") in STORED
        await eventually(lambda: bool(mirror.state()["counting"]), "the pipeline is counted")
        await app.flushall()
        await eventually(lambda: there(app, "mv_1", raw), "restored")
        await mirror.tombstone("mv_1", app_notified=True)
        await app.delete(PREFIX + "mv_1")
        await write(app, "mv_1", job("mv_1", "processing"))
        await eventually(lambda: gone(app, "mv_1"), "the deleted job is removed again")
        denied = await app.execute_command("ACL", "LOG")
        assert not denied, "nothing was asked for that is not granted"
