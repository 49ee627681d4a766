"""Requests to Celery's workers over remote control, and their answers. Pure.

1. Workers subscribe to `/DB.celery.pidbox` by pattern, so `PUBSUB NUMSUB` reports 0 for them; the
   result of `PUBLISH` is their number. A request without a destination counts the workers at no
   cost to them.
2. A worker answers `active` and `reserved` with the tasks that it holds. A worker of the solo pool
   (`stats`) answers only between two tasks, so no answer proves nothing. What it then lists as
   active is left over from a broken connection.
3. All sidecars share one mailbox, a list from which nothing is removed. The ticket contains the
   time of the request, so that a late answer still shows the time for which it holds.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from proxy.jobs.document import valid_job_id
from proxy.jobs.requeue.messages import load_object

MAILBOX = "reliability-proxy"
REPLY_EXCHANGE = "reply.celery.pidbox"
REPLY_BINDING = f"_kombu.binding.{REPLY_EXCHANGE}"
REPLY_LIST = f"{MAILBOX}.{REPLY_EXCHANGE}"
REPLY_MEMBER = f"{MAILBOX}\x06\x16\x06\x16{REPLY_LIST}"
METHODS = ("active", "reserved", "stats")
MAX_NODES = 500  # workers known at a time
MIN_REPLIES = 120  # newest entries of the mailbox that are read and kept; 9 for each worker if more
MAX_REPLIES = 9 * MAX_NODES
_SOLO = "celery.concurrency.solo:TaskPool"
_NOBODY = "reliability-proxy@counts-workers"
_TICKET = re.compile(r"(active|reserved|stats)-(\d{1,16})-[a-f0-9]{1,32}")


@dataclass(frozen=True, slots=True)
class WorkerAnswer:
    """A worker's answer: the task and job ids in its hands at some time after `asked_at`. `solo`:
    its pool runs one task at a time, in the worker's own process."""

    asked_at: float
    holds: frozenset[str]
    solo: bool = False


def channel(db: int, prefix: str = "") -> str:
    """Where workers listen."""
    return f"{prefix}/{db}.celery.pidbox"


def head_count(new_id: Callable[[], str], now: float) -> bytes:
    """A request that no worker executes."""
    return _envelope({"method": "ping", "arguments": {}, "destination": [_NOBODY]}, new_id, now)


def question(method: str, new_id: Callable[[], str], now: float) -> bytes:
    """One of `METHODS`, to all workers. `now` is Unix seconds."""
    ticket = f"{method}-{int(now * 1000)}-{new_id().replace('-', '')}"
    body = {
        "method": method,
        "arguments": {},
        "destination": None,
        "pattern": None,
        "matcher": None,
        "ticket": ticket,
        "reply_to": {"exchange": REPLY_EXCHANGE, "routing_key": MAILBOX},
    }
    return _envelope(body, new_id, now)


def _envelope(body: dict[str, Any], new_id: Callable[[], str], now: float) -> bytes:
    encoded = base64.b64encode(json.dumps(body).encode()).decode()
    return json.dumps(
        {
            "body": encoded,
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {"clock": 1, "expires": now + 3600},
            "properties": {
                "delivery_mode": 2,
                "delivery_info": {"exchange": "celery.pidbox", "routing_key": ""},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": new_id(),
            },
        }
    ).encode()


def answers(replies: Iterable[bytes]) -> dict[str, WorkerAnswer]:
    """The newest whole answer (to all methods) of each worker, by its node name."""
    found: dict[str, dict[float, dict[str, frozenset[str]]]] = {}
    for raw in replies:
        envelope = load_object(raw)
        if envelope is None:
            continue
        headers = envelope.get("headers")
        ticket = headers.get("ticket") if isinstance(headers, dict) else None
        match = _TICKET.fullmatch(ticket) if isinstance(ticket, str) else None
        if match is None:
            continue
        at = int(match[2]) / 1000
        for node, content in _reply(envelope).items():
            if node in found or len(found) < MAX_NODES:
                answers = _pool(content) if match[1] == "stats" else _held(content)
                found.setdefault(node, {}).setdefault(at, {})[match[1]] = answers
    whole: dict[str, WorkerAnswer] = {}
    for node, rounds in found.items():
        times = [at for at, answers in rounds.items() if answers.keys() >= set(METHODS)]
        if times:
            newest = rounds[max(times)]
            solo = _SOLO in newest["stats"]
            active = frozenset[str]() if solo else newest["active"]
            whole[node] = WorkerAnswer(max(times), active | newest["reserved"], solo)
    return whole


def _pool(stats: Any) -> frozenset[str]:
    pool = stats.get("pool") if isinstance(stats, dict) else None
    name = pool.get("implementation") if isinstance(pool, dict) else None
    return frozenset({_SOLO}) if name == _SOLO else frozenset()


def _reply(envelope: dict[str, Any]) -> dict[str, Any]:
    body = envelope.get("body")
    try:
        decoded = base64.b64decode(body, validate=True)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        return {}
    return load_object(decoded) or {}


def _held(tasks: Any) -> frozenset[str]:
    """Task ids, and whatever in the arguments may be a job's id."""
    ids: set[str] = set()
    for task in tasks[:1000] if isinstance(tasks, list) else ():
        if not isinstance(task, dict):
            continue
        nodes: list[Any] = [task.get("id"), task.get("args"), task.get("kwargs")]
        for _ in range(1000):
            if not nodes:
                break
            node = nodes.pop()
            if isinstance(node, str):
                ids.update(re.findall(r"[A-Za-z0-9_.:-]{1,128}", node[:4096]))
            elif isinstance(node, list):
                nodes.extend(node)
            elif isinstance(node, dict):
                nodes.extend(node.values())
    return frozenset(one for one in ids if valid_job_id(one))


# --- connections and results ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Consumers:
    """Connections that wait for messages of some queue of a database: `idle` of `all` wait now."""

    all: int
    idle: int


_CLIENT = re.compile(rb"(\w[\w-]*)=(\S*)")


def consumers(listing: bytes, db: int) -> Consumers:
    """Read `CLIENT LIST`: kombu takes messages with BRPOP, on a connection kept for that alone."""
    every = idle = 0
    for line in listing.splitlines():
        fields = dict(_CLIENT.findall(line))
        if fields.get(b"cmd") == b"brpop" and fields.get(b"db") == b"%d" % db:
            every += 1
            idle += b"b" in fields.get(b"flags", b"")
    return Consumers(every, idle)


@dataclass(frozen=True, slots=True)
class Result:
    """What `celery-task-meta-ID` says: `state` as Celery writes it, and who runs it if STARTED."""

    state: str
    node: str | None = None
    pid: int | None = None

    @property
    def ended(self) -> bool:
        """Whether the task is over."""
        return self.state in ("SUCCESS", "FAILURE", "REVOKED", "REJECTED", "IGNORED")


def read_result(raw: bytes | None) -> Result | None:
    """None where there is none, or no result of Celery's."""
    document = load_object(raw)
    state = document.get("status") if document is not None else None
    if document is None or not isinstance(state, str):
        return None
    who = document.get("result")
    if state != "STARTED" or not isinstance(who, dict):
        return Result(state[:32])
    node, pid = who.get("hostname"), who.get("pid")
    return Result(
        state,
        node[:256] if isinstance(node, str) else None,
        pid if isinstance(pid, int) and not isinstance(pid, bool) else None,
    )
