"""One operation per key, on a real Redis and real SQLite files, with two sidecars."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from proxy.core.clock import SystemClock
from proxy.core.errors import IdempotencyInProgress, IdempotencyMismatch
from proxy.demo.redis_server import RedisServer
from proxy.idempotency.coordinator import Claim, Coordinator
from proxy.idempotency.record import StoredAnswer
from proxy.jobs.mirror import Mirror
from tests.jobs_kit import connected, eventually, followed, holds, job, running, write

KEY, PRINT, DAY = "k" * 40, "f" * 64, 86400.0
ANSWER = StoredAnswer(202, (b"Content-Type: application/json",), b'{"job_id":"mv_1"}')


@asynccontextmanager
async def sidecar(
    server: RedisServer, path: Path, *, wait: float = 30.0
) -> AsyncIterator[tuple[Coordinator, Mirror, list[str]]]:
    """A coordinator over a mirror of its own, and what it has counted."""
    counted: list[str] = []
    async with running(server, path) as mirror:
        await followed(mirror)
        one = Coordinator(
            mirror.answers,
            SystemClock(),
            str(path),
            counted.append,
            wait=wait,
            appear_within=0.05,
        )
        yield one, mirror, counted
        await one.stop()


async def first(one: Coordinator, key: str = KEY, **fields: str) -> Claim:
    """A claim that must be granted."""
    digests = {name: hashlib.sha256(value.encode()).digest() for name, value in fields.items()}
    claim = await one.begin(key, PRINT, DAY, digests)
    assert isinstance(claim, Claim)
    return claim


def created(**more: object) -> bytes:
    """A job document of this moment."""
    return job("x", created_at=datetime.now(UTC).isoformat(), **more)


async def test_an_answer_is_repeated_everywhere_and_later(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """The same sidecar, another one, and the first one after a loss of Redis repeat the answer."""
    async with sidecar(redis_server, tmp_path / "a.db") as (one, _, counted):
        assert await one.keep(await first(one), ANSWER)
        assert await one.begin(KEY, PRINT, DAY, {}) == ANSWER
        assert counted == ["first", "replayed"]
        async with sidecar(redis_server, tmp_path / "b.db") as (other, _, _):
            assert await other.begin(KEY, PRINT, DAY, {}) == ANSWER
    redis_server.kill()
    redis_server.start()
    async with sidecar(redis_server, tmp_path / "a.db") as (again, _, _):
        assert await again.begin(KEY, PRINT, DAY, {}) == ANSWER


async def test_another_request_under_a_key_is_refused(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """A key belongs to its first request, while that is under way and afterwards."""
    async with sidecar(redis_server, tmp_path / "a.db") as (one, _, counted):
        claim = await first(one)
        with pytest.raises(IdempotencyMismatch):
            await one.begin(KEY, "0" * 64, DAY, {})
        await one.keep(claim, ANSWER)
        with pytest.raises(IdempotencyMismatch):
            await one.begin(KEY, "0" * 64, DAY, {})
        assert counted == ["first", "mismatch", "mismatch"]


async def test_repetitions_wait_for_the_first(redis_server: RedisServer, tmp_path: Path) -> None:
    """Nine that come meanwhile, on two sidecars, get the first one's answer."""
    async with (
        sidecar(redis_server, tmp_path / "a.db") as (one, _, counted),
        sidecar(redis_server, tmp_path / "b.db") as (other, _, _),
    ):
        claim = await first(one)
        waiting = [
            asyncio.ensure_future(who.begin(KEY, PRINT, DAY, {})) for who in (one, other, one) * 3
        ]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        await one.keep(claim, ANSWER)
        assert await asyncio.gather(*waiting) == [ANSWER] * 9
        assert counted.count("first") == 1


async def test_who_waits_too_long_is_sent_back(redis_server: RedisServer, tmp_path: Path) -> None:
    """A repetition of a request that does not end gets 409 with a time to come back."""
    async with sidecar(redis_server, tmp_path / "a.db", wait=0.1) as (one, _, _):
        await first(one)
        with pytest.raises(IdempotencyInProgress) as caught:
            await one.begin(KEY, PRINT, DAY, {})
        assert caught.value.retry_after is not None


async def test_a_failure_before_the_app_frees_the_key(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """A released key is free at once, here and on other sidecars."""
    async with (
        sidecar(redis_server, tmp_path / "a.db") as (one, _, _),
        sidecar(redis_server, tmp_path / "b.db") as (other, _, _),
    ):
        await one.release(await first(one))
        await other.release(await first(other))
        assert isinstance(await one.begin(KEY, "0" * 64, DAY, {}), Claim)


async def test_a_lost_answer_is_found_by_its_job(redis_server: RedisServer, tmp_path: Path) -> None:
    """The one job that appeared, and that no answer named, is the answer from then on."""
    async with (
        sidecar(redis_server, tmp_path / "a.db") as (one, mirror, counted),
        connected(redis_server) as app,
    ):
        claim = await first(one, max_shorts="10", burn_subtitles="true")
        await write(app, "mv_told", created(max_shorts=10))
        await write(app, "mv_other", created(max_shorts=20))
        raw = await write(app, "mv_lost", created(max_shorts=10, burn_subtitles=True))
        await eventually(holds(mirror, "mv_lost", raw), "the job in the mirror")
        await one.answered("mv_told")
        answer = await one.settle(claim)
        assert answer is not None
        assert json.loads(answer.body)["job_id"] == "mv_lost"
        assert await one.begin(KEY, PRINT, DAY, {}) == answer
        assert counted == ["first", "adopted", "replayed"]


async def test_a_lost_answer_is_looked_for_among_so_many_bytes(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """Large documents are read a few at a time; from more than a bound nothing is concluded."""
    filling = "x" * 500_000
    async with (
        sidecar(redis_server, tmp_path / "a.db") as (_, mirror, _),
        connected(redis_server) as app,
    ):
        raw = b""
        for number in range(8):
            raw = await write(app, f"mv_{number}", created(max_shorts=number, note=filling))
            await eventually(holds(mirror, f"mv_{number}", raw), "the job in the mirror")
        found = await mirror.answers.jobs_created(0.0)
        assert found is not None
        assert {job_id: document["max_shorts"] for job_id, document in found} == {
            f"mv_{number}": number for number in range(8)
        }
        raw = await write(app, "mv_8", created(max_shorts=8, note=filling))
        await eventually(holds(mirror, "mv_8", raw), "one more")
        assert await mirror.answers.jobs_created(0.0) is None


async def test_no_job_means_that_nothing_was_done(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """A request that left no job behind is free to be sent again."""
    async with sidecar(redis_server, tmp_path / "a.db") as (one, _, _):
        assert await one.settle(await first(one)) is None
        await first(one)


async def test_in_doubt_nothing_is_sent_again(redis_server: RedisServer, tmp_path: Path) -> None:
    """Two jobs that may both be the answer, or a Redis that is away, keep the key taken."""
    async with (
        sidecar(redis_server, tmp_path / "a.db", wait=0.1) as (one, mirror, _),
        connected(redis_server) as app,
    ):
        claim = await first(one)
        for job_id in ("mv_a", "mv_b"):
            raw = await write(app, job_id, created())
            await eventually(holds(mirror, job_id, raw), "the job in the mirror")
        assert await one.settle(claim) is None
        with pytest.raises(IdempotencyInProgress):
            await one.begin(KEY, PRINT, DAY, {})
        lost = await first(one, "l" * 40)
        redis_server.kill()
        await eventually(lambda: not mirror.redis_up, "a mirror that misses Redis")
        assert await one.settle(lost) is None
        with pytest.raises(IdempotencyInProgress):
            await one.begin("l" * 40, PRINT, DAY, {})


async def test_a_killed_sidecar_leaves_an_open_question(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """The next life of a sidecar finds what the last one had sent, and settles it by evidence."""
    async with sidecar(redis_server, tmp_path / "a.db") as (one, mirror, _):
        await first(one)
        async with connected(redis_server) as app:
            raw = await write(app, "mv_orphan", created())
            await eventually(holds(mirror, "mv_orphan", raw), "the job in the mirror")
            await app.delete(f"idempotency:make_video:job:{KEY}")  # its lease has ended
    async with sidecar(redis_server, tmp_path / "a.db") as (again, _, _):
        answer = await again.begin(KEY, PRINT, DAY, {})
        assert isinstance(answer, StoredAnswer)
        assert json.loads(answer.body)["job_id"] == "mv_orphan"


async def test_without_redis_sqlite_decides(redis_server: RedisServer, tmp_path: Path) -> None:
    """While Redis is away keys are claimed, kept and repeated by this sidecar alone."""
    async with sidecar(redis_server, tmp_path / "a.db") as (one, mirror, _):
        redis_server.kill()
        await eventually(lambda: not mirror.redis_up, "a mirror that misses Redis")
        assert await one.keep(await first(one), ANSWER)
        assert await one.begin(KEY, PRINT, DAY, {}) == ANSWER


async def test_a_forged_record_is_nobodys_answer(redis_server: RedisServer, tmp_path: Path) -> None:
    """Rubbish under a key in Redis is treated as somebody at work, never as an answer."""
    async with (
        sidecar(redis_server, tmp_path / "a.db", wait=0.1) as (one, _, _),
        connected(redis_server) as app,
    ):
        await app.set(f"idempotency:make_video:job:{KEY}", b"\xff{", px=60_000)
        with pytest.raises(IdempotencyInProgress):
            await one.begin(KEY, PRINT, DAY, {})


@pytest.mark.parametrize("when", ["renewed", "asked twice"])
async def test_a_claim_of_ours_is_not_somebody_elses(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Leases are renewed while a slow SQLite is asked, or a command is carried out twice: what is
    there already is this request's own claim, and it goes on."""
    async with sidecar(redis_server, tmp_path / "a.db", wait=0.3) as (one, mirror, counted):
        read, claim = mirror.answers.read, mirror.answers.claim

        async def slow(record_id: str) -> bytes | None:
            await one.renew()
            return await read(record_id)

        async def twice(record_id: str, data: bytes, lease: float) -> bytes | None:
            await claim(record_id, data, lease)
            return await claim(record_id, data, lease)

        if when == "renewed":
            monkeypatch.setattr(mirror.answers, "read", slow)
        else:
            monkeypatch.setattr(mirror.answers, "claim", twice)
        assert await one.keep(await first(one), ANSWER)
        assert counted == ["first"]


async def test_claims_are_renewed(redis_server: RedisServer, tmp_path: Path) -> None:
    """A claim lives as long as its sidecar works on it, also over an empty restart of Redis."""
    async with (
        sidecar(redis_server, tmp_path / "a.db") as (one, mirror, _),
        connected(redis_server) as app,
    ):
        claim = await first(one)
        await app.flushall()
        await followed(mirror, None)
        await one.renew()
        assert await app.pttl(f"idempotency:make_video:job:{KEY}") > 0
        await one.release(claim)
        assert not await app.exists(f"idempotency:make_video:job:{KEY}")
