"""The task that a real Celery worker runs in the tests: `process_make_video` in small.

1. Settings of Celery and the task are those of the service: JSON, `acks_late`, pool solo, results
   in Redis, `task_track_started`, remote control on.
2. The store has the service's breaker: 5 failed writes in a row open it; while it is open a read
   finds nothing and a write is skipped. A job that is "not found" ends the task as succeeded.
3. The worker keeps its own copy of the job and writes it at every step. Steps and pauses come from
   the environment; with a path in `HOLD`, a job waits for that file before its first step. Each
   run is noted in a file, so that a test can see what ran twice.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import celery
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

URL = os.environ["REDIS_URL"]
RUNS = Path(os.environ["RUNS"])
STEPS = int(os.environ.get("STEPS", "3"))
HOLD = os.environ.get("HOLD")
STEP = float(os.environ.get("STEP", "0.2"))
OPEN_FOR = float(os.environ.get("BREAKER_OPEN_FOR", "60"))
FAILURES = 5
LIFETIME = 86_400

app = celery.Celery("make-video", broker=URL, backend=URL)
app.conf.update(
    task_serializer="json",
    accept_content=["json"],
    result_serializer="json",
    task_track_started=True,
    worker_prefetch_multiplier=1,
    broker_transport_options={
        "visibility_timeout": 3600,
        "fanout_prefix": True,
        "fanout_patterns": True,
        "global_keyprefix": os.environ.get("GLOBAL_KEYPREFIX", ""),
    },
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    task_default_queue="make_video_queue",
    task_default_exchange="make_video_queue",
    task_default_routing_key="make_video_queue",
)


class Store:
    """Job documents behind the service's own breaker."""

    def __init__(self) -> None:
        self._redis: Any = redis.Redis.from_url(
            URL, socket_timeout=1, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0)
        )
        self._failures = 0
        self._open_until = 0.0

    def get(self, job_id: str) -> dict[str, Any] | None:
        raw = self._guarded(lambda: self._redis.get(f"make_video:job:{job_id}"))
        return None if raw is None else dict(json.loads(raw))

    def save(self, job: dict[str, Any]) -> None:
        raw = json.dumps(job)
        key = f"make_video:job:{job['id']}"
        self._guarded(lambda: self._redis.set(key, raw, ex=LIFETIME))

    def _guarded(self, call: Any) -> Any:
        if time.monotonic() < self._open_until:
            return None
        try:
            result = call()
        except redis.RedisError:
            self._failures += 1
            if self._failures >= FAILURES:
                self._failures = 0
                self._open_until = time.monotonic() + OPEN_FOR
            return None
        self._failures = 0
        return result


_store: Store | None = None


def note(what: str, job_id: str) -> None:
    """One line in one write, whoever else writes."""
    line = f"{what} {job_id} {os.getpid()} {time.time():.3f}\n"
    with RUNS.open("a") as file:
        file.write(line)


@app.task(
    name="app.infrastructure.celery_tasks.process_download_pipeline",
    acks_late=True,
    reject_on_worker_lost=True,
)
def process_download_pipeline(job_id: str) -> None:
    """Here as good as the other."""
    process_make_video(job_id)


@app.task(
    name="app.infrastructure.celery_tasks.process_make_video",
    acks_late=True,
    reject_on_worker_lost=True,
)
def process_make_video(job_id: str) -> None:
    """Work on a job; whatever happened to it, the task succeeds."""
    global _store
    _store = _store or Store()
    job = _store.get(job_id)
    if job is None:
        note("missed", job_id)
        return
    note("begins", job_id)
    job["status"] = "processing"
    _store.save(job)
    while HOLD and not Path(HOLD).exists():
        time.sleep(0.02)
    for number in range(STEPS):
        time.sleep(STEP)
        job["stages"][f"step{number}"] = {"status": "completed", "completed_at": time.time()}
        _store.save(job)
    job.update(status="completed", progress=100.0, completed_at=time.time())
    note("ends", job_id)
    _store.save(job)
