"""How events lie in the store: once, with their version, and as long as their job is known."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.core.clock import ManualClock
from proxy.jobs.document import parse
from proxy.jobs.store import sql
from proxy.jobs.store import store as store_module
from proxy.jobs.store.store import JobStore
from proxy.jobs.video_metrics.events import MOST_EVENTS
from tests.jobs_kit import job

NOW = 1_000_000.0
ALL = "SELECT job_id, event, labels, sure, due, outcome FROM pipeline_events ORDER BY 1, 2"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[JobStore]:
    """A started store."""
    one = JobStore(tmp_path / "jobs.db", ManualClock(NOW))
    await one.start()
    yield one
    await one.stop()


def event(*names: str, sure: bool = True, label: str = "a", due: float = NOW) -> str:
    """Events as `EventCounting.new_events` writes them."""
    labels = json.dumps([label])
    return json.dumps([[name, "pipeline_jobs", labels, 1.0, NOW, due, int(sure)] for name in names])


def put(store: JobStore, events: str, *, progress: float = 0.0, job_id: str = "mv_1") -> None:
    """A version with its events."""
    raw = job(job_id, "processing", progress)
    store.put(parse(job_id, raw), NOW, NOW + 10, None, events)


async def kept(store: JobStore) -> list[tuple[object, ...]]:
    """Every event, once all is committed."""
    assert await store.flushed(5)
    return await store.table(ALL)


async def test_an_event_is_there_once(store: JobStore) -> None:
    """Told again by another version, or by the same one, it stays as it was."""
    put(store, event("x", "y"))
    put(store, event("x"), progress=1)
    put(store, event("x"), progress=1)
    assert [row[1] for row in await kept(store)] == ["x", "y"]


async def test_a_sure_word_replaces_an_unsure_one_while_pending(store: JobStore) -> None:
    """It is due at once then; after it was settled nothing changes it, nor does a less sure one."""
    put(store, event("x", sure=False, label="unknown", due=NOW + 5))
    put(store, event("x", label="Boom"), progress=1)
    put(store, event("x", sure=False, label="unknown"), progress=2)
    assert await kept(store) == [("mv_1", "x", '["Boom"]', 1, NOW, 0)]
    put(store, event("y", sure=False, label="unknown"), progress=3)
    settled = json.dumps([("mv_1", "y", 1)])
    store.execute(sql.SETTLE, {"settled": settled, "totals": "[]"})
    put(store, event("y", label="Late"), progress=4)
    assert (await kept(store))[1] == ("mv_1", "y", '["unknown"]', 0, NOW, 1)


async def test_a_version_that_is_not_taken_has_no_events(store: JobStore) -> None:
    """A job that was deleted for good has no more events."""
    put(store, event("x"))
    store.mark_deleted("mv_1", "client", held=True)
    put(store, event("y"), progress=1)
    assert [row[1] for row in await kept(store)] == ["x"]


async def test_a_job_deleted_and_written_again_repeats_nothing(store: JobStore) -> None:
    """Its events outlive a tombstone that does not hold."""
    put(store, event("x"))
    store.execute(sql.SETTLE, {"settled": json.dumps([("mv_1", "x", 1)]), "totals": "[]"})
    store.mark_deleted("mv_1", "redis", held=False)
    put(store, event("x", "y"), progress=1)
    assert [(row[1], row[5]) for row in await kept(store)] == [("x", 1), ("y", 0)]


async def test_events_of_a_job_are_bounded(store: JobStore) -> None:
    """However many versions tell of new ones."""
    for progress in range(4):
        put(store, event(*(f"{progress}:{n}" for n in range(100))), progress=progress)
    assert len(await kept(store)) <= MOST_EVENTS + 100
    put(store, event("more"), progress=50)
    assert "more" not in [row[1] for row in await kept(store)]


async def test_events_are_forgotten_with_their_job(store: JobStore) -> None:
    """And only with theirs."""
    put(store, event("x"))
    put(store, event("x"), job_id="mv_2")
    store.execute(sql.FORGET, {"job_id": "mv_1", "before": NOW + 100}, key="mv_1")
    assert [row[0] for row in await kept(store)] == ["mv_2"]


async def test_versions_that_are_given_up_take_their_events_along(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While SQLite takes nothing, only the newest version of a job waits, with all that it tells;
    what is told of the older ones is that they were not kept."""
    monkeypatch.setattr(store_module, "BACKLOG", 10)
    outcomes: list[bool] = []
    for progress in range(20):
        raw = job("mv_1", "processing", progress)
        store.put(parse("mv_1", raw), NOW, NOW + 10, outcomes.append, event(f"e{progress}"))
    assert store.backlog < 20
    names = [row[1] for row in await kept(store)]
    assert "e19" in names
    assert len(names) == outcomes.count(True)
    assert outcomes.count(False) == 20 - len(names)


async def test_active_jobs(store: JobStore) -> None:
    """Unfinished and not expired ones are counted, from the index of unfinished jobs alone."""
    for job_id, status in (("a", "queued"), ("b", "processing"), ("c", "completed")):
        store.put(parse(job_id, job(job_id, status)), NOW, NOW + 10, None)
    store.put(parse("d", job("d")), NOW, None, None)
    assert await store.flushed(5)
    assert await store.column(sql.ACTIVE, (NOW,)) == [3]
    assert await store.column(sql.ACTIVE, (NOW + 11,)) == [1]
    plan = await store.table(f"EXPLAIN QUERY PLAN {sql.ACTIVE}", (NOW,))
    assert str(plan).count("COVERING INDEX idx_jobs_active") == 2
