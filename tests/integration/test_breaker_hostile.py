"""Shared breakers beside a Redis in which others write, whose clock steps, or that lacks rights."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis as blocking

from proxy.core.errors import CircuitOpen
from proxy.demo.redis_server import RedisServer, free_port
from proxy.resilience.circuit.states import State
from tests.breaker_kit import Sidecar, all_in, fleet, lines, now, polls_under_way, until
from tests.http1 import PATIENCE

HOUR = 3600_000


async def test_a_forged_message_is_a_hint_and_no_more(redis_server: RedisServer) -> None:
    """Whoever may publish can make sidecars look; nothing that he says is believed, and what an
    operator does afterwards counts."""
    absurd = {"gen": 4_000_000_000_000_000, "state": "open", "now": 0, "since": 0, "failures": 5}
    forged = [
        json.dumps({**absurd, "name": "svc", "until": 1e15, "by": "x", "log": [], "recent": []}),
        json.dumps({"name": "svc", "gen": 1e300, "by": "x"}),
        json.dumps({"name": "svc", "gen": float("inf"), "by": "x"}),
        json.dumps({"name": ["svc"], "gen": {}, "by": "x"}),
        "[" * 3000,
        "x" * 100_000,
        "",
    ]
    async with fleet(redis_server.url) as sidecars:
        await until(lambda: all(s.breaker.shared for s in sidecars))
        with blocking.Redis.from_url(redis_server.url) as redis:
            for text in forged * 20:
                redis.publish("cb:events", text)
        sidecars[0].fail(5)  # the channel still works
        await all_in(sidecars, State.OPEN)
        row = await sidecars[1].breakers.force("svc", "reset", "")
        assert (row["state"], row["shared"]) == ("closed", True)
        await all_in(sidecars, State.CLOSED)
        assert all(s.breaker.generation < 4e15 for s in sidecars)


async def test_reset_wins_over_what_was_written_into_the_keys(redis_server: RedisServer) -> None:
    """A generation and times from the far future, written into Redis itself: no sidecar is open
    for longer than `open_for`, and `reset` closes all of them."""
    async with fleet(redis_server.url, open_for="60s") as sidecars:
        sidecars[0].fail(5)
        await all_in(sidecars, State.OPEN)
        with blocking.Redis.from_url(redis_server.url) as redis:
            redis.hset("cb:{svc}:meta", mapping={"gen": 3_900_000_000_000_000, "until": 4e15})
            redis.publish("cb:events", json.dumps({"name": "svc", "gen": 3.9e15, "by": "x"}))
        await until(lambda: all(s.breaker.generation > 3e15 for s in sidecars))
        assert all(s.breaker.until - now() <= 66.0 for s in sidecars)
        await sidecars[1].breakers.force("svc", "reset", "")
        await all_in(sidecars, State.CLOSED)


@pytest.mark.parametrize("garbage", ["", "nan", "-1", "1e308", "inf", "x"])
async def test_garbage_in_the_keys_harms_nobody(redis_server: RedisServer, garbage: str) -> None:
    """A field that no script of ours wrote is read as zero; the next trip puts it right."""
    with blocking.Redis.from_url(redis_server.url) as redis:
        fields = ("gen", "failures", "successes", "opens", "since", "until")
        redis.hset("cb:{svc}:meta", mapping=dict.fromkeys(fields, garbage) | {"state": "closed"})
    async with fleet(redis_server.url) as sidecars:
        sidecars[0].fail(5)
        await all_in(sidecars, State.OPEN)
        await sidecars[1].breakers.force("svc", "reset", "")
        await all_in(sidecars, State.CLOSED)


async def test_a_clock_that_steps_back_does_not_keep_it_open(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The opening lies an hour ahead by Redis' clock: it opens for `open_for` from when that is
    seen, here and in Redis."""
    monkeypatch.setattr("proxy.resilience.circuit.fleet.sync.POLL_TROUBLED", 0.05)
    async with fleet(redis_server.url, open_for="1s") as sidecars:
        sidecars[0].fail(5)
        await all_in(sidecars, State.OPEN)
        with blocking.Redis.from_url(redis_server.url) as redis:
            for field in ("since", "until"):
                redis.hincrby("cb:{svc}:meta", field, HOUR)

            def rebased() -> bool:
                seconds, micro = redis.time()
                return float(redis.hget("cb:{svc}:meta", "since")) <= seconds * 1000 + micro / 1000

            await until(rebased)
        assert all(s.breaker.until - now() <= 1.1 for s in sidecars)
        await until(lambda: sidecars[0].breaker.try_admit(now()) is not None or _ask(sidecars[0]))


def _ask(sidecar: Sidecar) -> bool:
    with suppress(CircuitOpen):
        sidecar.breaker.admit(now())
    return False


async def test_probe_leases_of_another_clock_are_free(redis_server: RedisServer) -> None:
    """Leases that run out in an hour, by a clock that has stepped back, block nobody."""
    async with fleet(redis_server.url, 1, open_for="50ms") as (one,):
        one.fail(5)
        with blocking.Redis.from_url(redis_server.url) as redis:
            await until(lambda: redis.get("cb:{svc}:state") == b"open")
            for lease in "abc":
                redis.zadd("cb:{svc}:probes", {lease: now_ms(redis) + HOUR})

            def probing() -> bool:
                _ask(one)
                return one.breaker.state is State.HALF_OPEN and one.breaker.leases.granted > 0

            await until(probing)


def now_ms(redis: Any) -> int:
    """Redis' own clock."""
    seconds, micro = redis.time()
    return int(seconds) * 1000 + int(micro) // 1000


async def test_a_lone_client_that_calls_back_to_back_is_never_refused(
    redis_server: RedisServer,
) -> None:
    """Its own successes are about to close the circuit: it waits the moment that this takes."""
    chance = random.Random(7)
    async with fleet(redis_server.url, 1, open_for="20ms") as (one,):
        for _ in range(40):
            one.fail(5)
            await until(
                lambda: one.breaker.reports.provisional is None and now() > one.breaker.until
            )
            while one.breaker.state is not State.CLOSED:
                permit = await waiting_call(one)
                await asyncio.sleep(chance.choice((0, 0, 0.0005, 0.002)))
                permit.success(now(), 0.001)


async def waiting_call(sidecar: Sidecar) -> Any:
    """What a request does: wait for the fleet's word, then ask. Patience as wide as the tests'."""
    answered = asyncio.Event()
    caller = sidecar.breaker.ask(now(), answered.set)
    if caller is not None:
        async with asyncio.timeout(PATIENCE):
            await answered.wait()
        sidecar.breaker.callers.leave(caller)
    return sidecar.breaker.admit(now())


def documented() -> list[str]:
    """The rights of an ACL user for breakers, as docs/reference/redis-rights.md has them."""
    page = Path(__file__).parents[2] / "docs" / "reference" / "redis-rights.md"
    text = page.read_text(encoding="utf-8")
    line = re.search(r"^ACL SETUSER proxy-breakers on >PASSWORD (.+)$", text, re.MULTILINE)
    assert line is not None
    return line[1].split()


@asynccontextmanager
async def restricted(folder: Path, rights: list[str]) -> AsyncIterator[str]:
    """The URL of a Redis whose only user with a password has these rights."""
    port = free_port()
    server = RedisServer(folder / "redis", port, "--user", "proxy", "on", ">secret", *rights)
    await asyncio.to_thread(server.start)
    try:
        yield f"redis://proxy:secret@127.0.0.1:{port}/0"
    finally:
        await asyncio.to_thread(server.kill)


@pytest.mark.parametrize(
    ("lacking", "missing"),
    [
        ([], []),
        (["+client|setname"], ["CLIENT"]),
        (["&cb:events"], ["PUBLISH", "SUBSCRIBE"]),
        (["+publish"], ["PUBLISH"]),
        (["+subscribe"], ["SUBSCRIBE"]),
    ],
    ids=["none", "client", "channel", "publish", "subscribe"],
)
async def test_a_missing_right_is_one_warning_and_breakers_are_shared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lacking: list[str], missing: list[str]
) -> None:
    """The documented rights are enough. Names in CLIENT LIST are cosmetic; without the channel the
    poll carries transitions."""
    rights = documented()
    assert set(lacking) <= set(rights)
    kept = [right for right in rights if right not in lacking]
    async with restricted(tmp_path, kept) as url, fleet(url) as sidecars:
        await until(lambda: all(s.breaker.shared for s in sidecars))
        sidecars[0].fail(5)
        await all_in(sidecars, State.OPEN)
        await sidecars[1].breakers.force("svc", "reset", "")
        await all_in(sidecars, State.CLOSED)

        def named() -> bool:
            found = {text.split()[0] for s in sidecars for text in s.breakers.missing_rights}
            return found == set(missing)

        await until(named)
        warned = lines(caplog, "breaker_rights")
        assert len(warned) == sum(len(s.breakers.missing_rights) for s in sidecars)
        assert not [record for record in lines(caplog, "breaker_redis") if not record.reachable]


async def test_an_idle_sidecar_hardly_asks(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the channel is known to work, nothing is sent but a poll for all breakers together and
    a heartbeat now and then; when it is not, the poll is quick again."""
    monkeypatch.setattr("proxy.resilience.circuit.fleet.sync.POLL_QUIET", 3600.0)
    monkeypatch.setattr("proxy.resilience.circuit.fleet.channel.BEAT", 3600.0)
    polling = polls_under_way(monkeypatch)
    async with fleet(redis_server.url) as sidecars:
        await until(lambda: all(s.breaker.shared for s in sidecars))
        with blocking.Redis.from_url(redis_server.url) as redis:

            def asked() -> int:
                stats = redis.info("commandstats")
                return sum(
                    stats.get(f"cmdstat_{name}", {}).get("calls", 0)
                    for name in ("evalsha", "eval", "publish", "ping")
                )

            syncs = [s.breakers._sync for s in sidecars]
            await until(lambda: all(sync and sync._channel._subscribed for sync in syncs))
            redis.publish("cb:events", json.dumps({"by": "somebody"}))
            await until(lambda: all(sync and sync._poll_at > now() + 100 for sync in syncs))
            await until(lambda: not polling)
            before = asked()
            await asyncio.sleep(2.5)
            assert asked() == before
            redis.client_kill_filter(_type="pubsub")
            await until(lambda: asked() > before)
            sidecars[0].fail(5)
            await all_in(sidecars, State.OPEN)


async def test_heartbeats_prove_the_channel_for_all(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sidecar that has received nothing for a while sends one, and all receive it."""
    monkeypatch.setattr("proxy.resilience.circuit.fleet.channel.BEAT", 0.05)
    async with fleet(redis_server.url) as sidecars:
        syncs = [s.breakers._sync for s in sidecars]
        first = [sync._channel._alive_until for sync in syncs if sync]
        await until(
            lambda: all(
                sync is not None and sync._channel._alive_until > alive + 0.2
                for sync, alive in zip(syncs, first, strict=True)
            )
        )
