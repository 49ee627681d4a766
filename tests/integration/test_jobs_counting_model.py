"""Whatever is replayed, in whatever order, whoever crashes when: the fleet's counts are the same.

Two sidecars with real stores and a real Redis, but with hands for a clock and for the capture: the
versions of recorded and made-up jobs reach each of them in any order, any number of times, between
rounds of counting, crashes of either (also between claim and commit), and pauses in which leases
end. When at last both have seen everything, the sum of what they show is what the versions tell.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from proxy.config.mirrors import JobFields
from proxy.core.clock import ManualClock
from proxy.demo.redis_server import RedisServer
from proxy.jobs.context import MirrorContext
from proxy.jobs.document import JobDocument, parse
from proxy.jobs.metrics import JobMetrics, MirrorMetrics
from proxy.jobs.store import sql
from proxy.jobs.store.store import JobStore
from proxy.jobs.video_metrics.counting import BETTER_WORD, EventCounting
from proxy.jobs.video_metrics.lease import LEASE
from proxy.jobs.video_metrics.metrics import PipelineMetrics
from tests import jobs_kit
from tests.counting_kit import all_versions, distinct, recorded, stage

BEGAN = 1_795_450_000.0  # before everything in the recordings


def retried() -> list[JobDocument]:
    """A job whose stage fails, waits, fails again and completes at the third attempt."""
    attempts = [
        stage("failed", BEGAN + 10, BEGAN + 11, error_message="[TRY_1] a"),
        stage("waiting_retry", BEGAN + 10, BEGAN + 11, error_message="[TRY_1] a"),
        stage("processing", BEGAN + 20),
        stage("failed", BEGAN + 20, BEGAN + 21, error_message="[TRY_2] b"),
        stage("completed", BEGAN + 30, BEGAN + 35),
    ]
    return [
        parse("mv_r", jobs_kit.job("mv_r", "processing", stages={"trim_video": one}))
        for one in attempts
    ]


VERSIONS: list[JobDocument] = [
    *recorded("success")[::3],
    recorded("success")[-1],
    *recorded("failures"),
    *recorded("older-shape"),
    *retried(),
    *(parse("mv_w", raw) for raw in all_versions("mv_w", BEGAN + 100)),
]


class Crash(Exception):
    """The process ends here."""


class Connection:
    """As `Link.call`, on a client; `crash_after`: replies of the next call are never seen."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self.crash_after_claim = False

    async def call(self, *commands: tuple[Any, ...], patience: float | None = None) -> list[Any]:
        replies = [await self._client.execute_command(*command) for command in commands]
        if self.crash_after_claim and "HSET" in str(commands[0][1]):
            self.crash_after_claim = False
            raise Crash
        return replies


class Sidecar:
    """One process: a store and what is counted from it."""

    def __init__(self, path: Path, client: Redis, clock: ManualClock) -> None:
        self._path = path
        self._clock = clock
        self.link = Connection(client)

    async def start(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = PipelineMetrics(self.registry)
        self.store = JobStore(self._path, self._clock)
        await self.store.start()
        self.counting = EventCounting(
            MirrorContext(
                "m",
                jobs_kit.settings(self._path),
                self._clock,
                MirrorMetrics(JobMetrics(CollectorRegistry()), "m"),
            ),
            JobFields(),
            self.store,
            lambda: self.link,  # type: ignore[arg-type, return-value]
            self.metrics,
        )
        await self.counting.load()

    async def stop(self) -> None:
        await self.store.stop()

    async def crash(self) -> None:
        """What is queued is lost."""
        self.store._queue.clear()
        await self.store.stop()
        await self.start()

    def see(self, snapshot: JobDocument) -> None:
        """As the capture does it."""
        now = self._clock.time()
        new = self.counting.new_events(snapshot, now)

        def done(ok: bool) -> None:
            if ok and new is not None:
                self.counting.kept(new)

        self.store.put(snapshot, now, now + 86400, done, new.text if new else "[]")

    async def round(self) -> None:
        """One round of counting; a crash in it is a crash of the process."""
        try:
            await self.counting._round()
        except Crash:
            await self.crash()

    def totals(self) -> dict[tuple[str, tuple[str, ...]], tuple[float, int]]:
        """Value (sum, for a histogram) and number of observations of each series."""
        return {
            key: (total.value, sum(total.counts))
            for key, total in self.counting._totals.series.items()
        }


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["see"] * 3 + ["round"] * 2 + ["crash", "claim-crash", "pause"]),
        st.integers(0, 1),
        st.integers(0, len(VERSIONS) - 1),
    ),
    max_size=40,
)


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink takes minutes
)
@given(steps=STEPS, order=st.integers(0, 2**32 - 1))
@example(
    steps=[
        ("see", 0, -1),
        ("round", 0, 0),
        ("crash", 0, 0),
        ("see", 0, 3),
        ("claim-crash", 0, 0),
        ("round", 0, 0),
        ("see", 1, -1),
        ("pause", 0, 0),
        ("round", 1, 0),
        ("pause", 0, 0),
        ("round", 1, 0),
    ],
    order=1,
)
def test_any_order_and_any_crash_give_the_same_counts(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory, steps: Any, order: int
) -> None:
    """Sums over the fleet, compared with what all versions tell together."""
    asyncio.run(run_example(redis_server, tmp_path_factory.mktemp("fleet"), steps, order))


async def run_example(server: RedisServer, home: Path, steps: Any, order: int) -> None:
    clock = ManualClock(BEGAN)
    async with jobs_kit.connected(server) as client:
        await client.flushall()
        fleet = [Sidecar(home / f"{name}.db", client, clock) for name in "ab"]
        for sidecar in fleet:
            await sidecar.start()
        try:
            clock.advance(30_000)  # the recordings lie before now, and after the stores' beginning
            for step, who, which in steps:
                if step == "pause":
                    await lease_ends(client, clock)
                else:
                    await one_step(fleet[who], step, VERSIONS[which])
            await everything_to_everybody(fleet, client, clock, random.Random(order))
            compare(fleet)
        finally:
            for sidecar in fleet:
                await sidecar.stop()


async def lease_ends(client: Redis, clock: ManualClock) -> None:
    """Redis has a clock of its own, which we cannot move."""
    clock.advance(LEASE + 1)
    for key in await client.keys("pipeline:*:counting"):
        await client.delete(key)


async def one_step(sidecar: Sidecar, step: str, version: JobDocument) -> None:
    if step == "see":
        sidecar.see(version)
        # Or the version might be lost in a crash, and nobody could tell.
        assert await sidecar.store.flushed(5)
    elif step == "round":
        await sidecar.round()
    elif step == "crash":
        await sidecar.crash()
    elif step == "claim-crash":
        sidecar.link.crash_after_claim = True


async def everything_to_everybody(
    fleet: list[Sidecar], client: Redis, clock: ManualClock, chance: random.Random
) -> None:
    """In an order of its own for each, while leases come and go; then rounds until all waits are
    over, in which either may hold the lease, and both do in turn."""
    unseen = [(sidecar, version) for sidecar in fleet for version in VERSIONS]
    chance.shuffle(unseen)
    for number, (sidecar, version) in enumerate(unseen):
        sidecar.see(version)
        if number % 25 == 0:
            assert await sidecar.store.flushed(5)
            await chance.choice(fleet).round()
            if chance.random() < 0.5:
                await lease_ends(client, clock)
            if chance.random() < 0.3:
                victim = chance.choice(fleet)
                assert await victim.store.flushed(5)
                await victim.crash()
    for sidecar in fleet:
        assert await sidecar.store.flushed(5)
    for alone in (*fleet, *reversed(fleet)):
        await lease_ends(client, clock)
        for _ in range(4):
            clock.advance(max(LEASE, BETTER_WORD) / 2 + 0.1)
            await alone.round()
        assert alone.counting.counts
        assert await alone.store.column(sql.PENDING_COUNT) == [0]


def compare(fleet: Iterable[Sidecar]) -> None:
    """Type and code of an error may have come too late for it; its stage never does."""
    wanted: Counter[Any] = Counter()
    sums: Counter[Any] = Counter()
    for event in distinct(VERSIONS).values():
        key = (event.family, event.labels[:1])
        wanted[key] += 1
        sums[key] += event.value
    seen: Counter[Any] = Counter()
    values: Counter[Any] = Counter()
    for sidecar in fleet:
        for (family, labels), (value, observed) in sidecar.totals().items():
            key = (family, labels[:1])
            values[key] += value
            seen[key] += observed
    assert {key: round(value, 6) for key, value in values.items() if value} == {
        key: round(value, 6) for key, value in sums.items() if value
    }
    for key, number in seen.items():
        if number:
            assert number == wanted[key], key
