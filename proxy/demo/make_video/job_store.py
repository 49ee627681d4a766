"""The make-video service's use of Redis: job keys, their index, and a Celery queue.

1. Keys and commands are those of the real service, in its order: SETEX, ZADD, then the message.
2. The client is synchronous on purpose: on an event loop, a hung Redis freezes the app, a fault
   that the stand-in must reproduce.
3. `JobStore` guards reads and key writes, but not the index, with the service's own breaker. While
   the breaker is open, writes are silently skipped and reads find nothing.
"""

from __future__ import annotations

import base64
import json
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from proxy.core.clock import Clock, SystemClock
from proxy.demo.make_video.faults import Faults
from proxy.demo.make_video.shapes import Document

QUEUE = "make_video_queue"
INDEX = "make_video:jobs:list"
LIFETIME = 86_400
TASKS = {
    "make_video": "app.infrastructure.celery_tasks.process_make_video",
    "download_shorts": "app.infrastructure.celery_tasks.process_download_pipeline",
}
_BINDING = f"_kombu.binding.{QUEUE}"
_SEPARATOR = "\x06\x16"  # kombu: routing key, pattern, queue
_UNACKED, _UNACKED_INDEX, _RESULT = "unacked", "unacked_index", "celery-task-meta-"
_CONTROL = "/0.celery.pidbox"
NODE = "celery@demo"
_SOLO = {"pool": {"implementation": "celery.concurrency.solo:TaskPool"}}

StoreError = redis.RedisError


def job_key(job_id: str) -> str:
    """The Redis key of a job."""
    return f"make_video:job:{job_id}"


def connect(url: str, timeout: float) -> Any:
    """A client that tries each call once and gives up after `timeout` seconds.

    `Any`, because redis-py annotates every command with the asynchronous variant as well.
    """
    return redis.Redis.from_url(
        url,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
    )


class JobStore:
    """Job documents in Redis, behind the service's own breaker."""

    def __init__(self, url: str, faults: Faults, clock: Clock | None = None) -> None:
        self._redis = connect(url, faults.redis_timeout)
        self._faults = faults
        self._clock = clock or SystemClock()
        self._failures = 0
        self._open_until = 0.0

    def close(self) -> None:
        self._redis.close()

    def load(self, job_id: str) -> Document | None:
        """The job, or None, also after a Redis failure or for a corrupt value. Without
        `redis_down_is_404`, a Redis failure is raised."""
        try:
            text = self._guarded(2, lambda: self._redis.get(job_key(job_id)))
            return None if text is None else dict(json.loads(text))
        except StoreError:
            if not self._faults.redis_down_is_404:
                raise
            return None
        except ValueError:
            return None

    def save(self, job: Document) -> None:
        """Write the key. Raises `StoreError`, or skips the write while the breaker is open."""
        key = job_key(job["id"])
        text = json.dumps(job, ensure_ascii=False, separators=(",", ":"))
        # As a raw command: redis-py deprecates `setex`, but the real service sends SETEX.
        self._guarded(3, lambda: self._redis.execute_command("SETEX", key, LIFETIME, text))

    def add_to_index(self, job: Document, created_at: float) -> None:
        """Add the job to the index, which has no TTL."""
        self._redis.zadd(INDEX, {job["id"]: created_at})

    def exists(self, job_id: str) -> bool:
        return bool(self._redis.exists(job_key(job_id)))

    def delete(self, job_id: str) -> None:
        """Remove key and index entry; a queued message stays."""
        self._guarded(2, lambda: self._redis.delete(job_key(job_id)))
        self._redis.zrem(INDEX, job_id)

    def newest(self, status: str | None, limit: int) -> list[Document]:
        """Up to `limit` jobs, newest first. Index entries of expired jobs are skipped."""
        found = []
        for job_id in self._redis.zrevrange(INDEX, 0, -1):
            job = self.load(job_id)
            if job is not None and status in (None, job["status"]):
                found.append(job)
            if len(found) == limit:
                break
        return found

    def _guarded(self, tries: int, call: Callable[[], Any]) -> Any:
        """Run `call` and count failures; while the breaker is open, return None instead."""
        if self._clock.monotonic() < self._open_until:
            return None
        for remaining in reversed(range(tries)):
            try:
                answer = call()
            except redis.TimeoutError:
                if remaining:
                    continue
                self._count_failure()
                raise
            except StoreError:
                self._count_failure()
                raise
            self._failures = 0
            return answer
        raise AssertionError("at least one try")

    def _count_failure(self) -> None:
        self._failures += 1
        if self._faults.lying_breaker and self._failures >= self._faults.breaker_failures:
            self._failures = 0
            self._open_until = self._clock.monotonic() + self._faults.breaker_open_for


class Producer:
    """The app's end of the Celery queue."""

    def __init__(self, url: str, faults: Faults) -> None:
        self._redis = connect(url, faults.redis_timeout)
        self._redeclare = not faults.deaf_queue
        self._declared = False

    def close(self) -> None:
        self._redis.close()

    def send(self, job_id: str, task: str) -> None:
        """Push a message to every queue bound; to none of them when the binding set is gone.

        kombu declares an entity once per process and remembers it: that is the deafness.
        """
        if self._redeclare or not self._declared:
            _declare(self._redis)
            self._declared = True
        message = json.dumps(_message(job_id, task))
        for binding in self._redis.smembers(_BINDING):
            self._redis.lpush(binding.split(_SEPARATOR)[-1], message)


@dataclass(frozen=True, slots=True)
class Taken:
    """A message that a worker has taken: its delivery tag, its id, and the task."""

    tag: str
    task_id: str
    job_id: str
    task: str


class Consumer:
    """The worker's end: one message at a time, in `unacked` while it is processed."""

    def __init__(self, url: str, clock: Clock | None = None) -> None:
        self._redis = connect(url, 5.0)
        self._clock = clock or SystemClock()
        self._control: Any = None

    def close(self) -> None:
        if self._control is not None:
            self._control.close()
        self._redis.close()

    def declare(self) -> None:
        """Bind the queue, and the two that Celery's remote control uses; listen to the latter."""
        _declare(self._redis)
        if self._control is not None:
            self._control.close()
        self._control = self._redis.pubsub(ignore_subscribe_messages=True)
        self._control.psubscribe(_CONTROL)  # by pattern, as kombu does
        self._redis.sadd(
            "_kombu.binding.celery.pidbox", f"{_SEPARATOR}{_SEPARATOR}{NODE}.celery.pidbox"
        )
        self._redis.sadd(
            "_kombu.binding.celeryev", f"worker.#{_SEPARATOR}{_SEPARATOR}celeryev.demo"
        )

    def answer_control(self) -> None:
        """Answer remote control requests: this worker is idle now."""
        while (message := self._control.get_message()) is not None:
            asked = json.loads(base64.b64decode(json.loads(message["data"])["body"]))
            if asked.get("destination") or "reply_to" not in asked:
                continue
            content: Any = _SOLO if asked["method"] == "stats" else []
            reply = {
                "body": base64.b64encode(json.dumps({NODE: content}).encode()).decode(),
                "headers": {"ticket": asked["ticket"]},
                "properties": {"body_encoding": "base64", "delivery_tag": str(uuid.uuid4())},
            }
            exchange = asked["reply_to"]["exchange"]
            for binding in self._redis.smembers(f"_kombu.binding.{exchange}"):
                self._redis.lpush(binding.split(_SEPARATOR)[-1], json.dumps(reply))

    def take(self, timeout: float) -> Taken | None:
        """Wait up to `timeout` seconds for the next message."""
        popped = self._redis.brpop([QUEUE], timeout)
        if popped is None:
            return None
        message = json.loads(popped[1])
        tag = str(message["properties"]["delivery_tag"])
        task_id = str(message["headers"]["id"])
        started = {"status": "STARTED", "result": {"pid": os.getpid(), "hostname": NODE}}
        with self._redis.pipeline() as pipe:
            pipe.zadd(_UNACKED_INDEX, {tag: self._clock.time()})
            pipe.hset(_UNACKED, tag, json.dumps([message, "", QUEUE]))
            pipe.set(_RESULT + task_id, json.dumps(started), ex=LIFETIME)
            pipe.execute()
        arguments = json.loads(base64.b64decode(message["body"]))[1]
        return Taken(tag, task_id, str(arguments["job_id"]), str(message["headers"]["task"]))

    def acknowledge(self, taken: Taken) -> None:
        """Acknowledge the message, and record that the task has succeeded, as it always does."""
        self._remove(taken.tag)
        result = json.dumps({"status": "SUCCESS", "result": None})
        self._redis.set(_RESULT + taken.task_id, result, ex=LIFETIME)

    def _remove(self, tag: str) -> None:
        with self._redis.pipeline() as pipe:
            pipe.zrem(_UNACKED_INDEX, tag)
            pipe.hdel(_UNACKED, tag)
            pipe.execute()

    def recover(self) -> int:
        """Put every unacknowledged message back into the queue; how many there were.

        The real service never does this in time (visibility time-out of an hour).
        """
        taken = self._redis.hgetall(_UNACKED)
        for tag, entry in taken.items():
            self._redis.rpush(QUEUE, json.dumps(json.loads(entry)[0]))
            self._remove(tag)
        return len(taken)


def _declare(client: Any) -> None:
    client.sadd(_BINDING, f"{QUEUE}{_SEPARATOR}{_SEPARATOR}{QUEUE}")


def _message(job_id: str, task: str) -> Document:
    """A Celery message, protocol 2. The task id is random: it is not the job id."""
    task_id = str(uuid.uuid4())
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    body = json.dumps([[], {"job_id": job_id}, embed]).encode()
    return {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": TASKS[task],
            "id": task_id,
            "shadow": None,
            "eta": None,
            "expires": None,
            "group": None,
            "group_index": None,
            "retries": 0,
            "timelimit": [None, None],
            "root_id": task_id,
            "parent_id": None,
            "argsrepr": "()",
            "kwargsrepr": repr({"job_id": job_id}),
            "origin": "gen1@demo",
        },
        "properties": {
            "correlation_id": task_id,
            "reply_to": str(uuid.uuid4()),
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": QUEUE},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }
