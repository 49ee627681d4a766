"""Celery's keys, kept and put back after Redis came back empty (opt-in).

1. Bindings (`_kombu.binding.QUEUE`) are declarations: putting them back is always right. Without
   them producers drop every message in silence until some worker declares them anew.
2. A message is put back only for a job that the ledger still holds as queued and for which no
   message is there, at most once in one life of the server, whoever does it: first a claim key is
   set in Redis, and only who set it pushes.
3. kombu pushes on the left and pops on the right: the oldest message goes to the far right.
4. A message that a worker had taken (`unacked`) may still be worked on by it. It is put back only
   when its job is still queued `unacked_after` later.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from proxy.config.mirrors import Rescue as RescueConfig
from proxy.jobs import sql
from proxy.jobs.ledger import Ledger
from proxy.jobs.ledger_file import LedgerSilent
from proxy.jobs.metrics import MirrorMetrics
from proxy.jobs.model import WAITING, digest_of, valid_job_id
from proxy.jobs.records import Row
from proxy.jobs.redis_side import Command, CommandError, Link
from proxy.jobs.restore import Continuity, Life, continuity
from proxy.jobs.waiting import happened

log = logging.getLogger(__name__)

BINDING = "_kombu.binding."
CLAIM = "proxy:rescue:"
CLAIM_LIFE = 24 * 3600  # seconds
PAUSE = (0.5, 10.0)  # between two looks: at least so long, and so many times the look's duration
MAX_MESSAGE = 1024 * 1024  # bytes; longer ones are left alone
MAX_IDS = 16
MAX_NODES = 10_000  # values looked at in one message


@dataclass(frozen=True, slots=True)
class Message:
    """One Celery message. `tag` stays the same wherever it lies; `place` is the key it was found
    in, `position` 0 the next to be popped; `job_ids` what in it may be the id of a job."""

    tag: bytes
    place: str
    queue: str
    position: int
    job_ids: tuple[str, ...]
    raw: bytes


def read_message(raw: bytes) -> tuple[bytes, tuple[str, ...]]:
    """(tag, possible job ids) of a Celery message of either protocol. Never raises.

    The tag is made of the task id, as kombu rewrites the rest when it redelivers.
    """
    try:
        envelope = json.loads(raw)
        task_id = envelope.get("headers", {}).get("id")
        tag = digest_of(task_id.encode() if isinstance(task_id, str) else raw)
        encoding = envelope.get("properties", {}).get("body_encoding", "base64")
        body = envelope["body"]
        arguments = json.loads(base64.b64decode(body) if encoding == "base64" else body)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return digest_of(raw), ()
    # [args, kwargs, embed]: the last is Celery's own (callbacks, chains).
    own = arguments[:2] if isinstance(arguments, list) else arguments
    found: dict[str, None] = {}
    for text in _texts(own):
        if len(found) >= MAX_IDS:
            break
        # Words such as "queued" pass as ids: the ledger tells which of them is a job.
        if valid_job_id(text):
            found[text] = None
    return tag, tuple(found)


def _texts(value: Any) -> Iterator[str]:
    """What hangs on a key that names a job id, then every other string."""
    others: list[str] = []
    nodes = [value]
    for _ in range(MAX_NODES):
        if not nodes:
            break
        node = nodes.pop()
        if isinstance(node, str):
            others.append(node)
        elif isinstance(node, list):
            nodes.extend(node)
        elif isinstance(node, dict):
            for name, child in node.items():
                if name in ("job_id", "id") and isinstance(child, str):
                    yield child
                else:
                    nodes.append(child)
    yield from others


def unpack_unacked(field: bytes) -> tuple[bytes, str] | None:
    """(message, queue) of a value of the `unacked` hash: `[message, exchange, routing_key]`."""
    try:
        message, exchange, routing_key = json.loads(field)
    except (ValueError, TypeError, RecursionError):
        return None
    queue = routing_key or exchange
    if not isinstance(message, dict) or not isinstance(queue, str):
        return None
    return json.dumps(message).encode(), queue


def owed(
    known: Iterable[Message], present: Iterable[Message], queued: frozenset[str]
) -> list[Message]:
    """The messages to put back, in the order in which they are to be popped (rule 2).

    `queued` are the jobs that the ledger holds as queued. One message for one job; messages of
    unknown purpose are left alone.
    """
    present = list(present)
    tags = {message.tag for message in present}
    served = {job_id for message in present for job_id in message.job_ids}
    result: list[Message] = []
    for message in sorted(known, key=lambda one: (one.queue, one.position)):
        jobs = queued.intersection(message.job_ids)
        if jobs and message.tag not in tags and not served & jobs:
            served |= jobs
            result.append(message)
    return result


class BrokerRescue:
    """Follows the broker's keys while Redis lives, puts them back when it returns empty."""

    def __init__(
        self,
        settings: RescueConfig,
        ledger: Ledger,
        metrics: MirrorMetrics,
        on_lost: Callable[[Life, str], None],
    ) -> None:
        self.served: frozenset[str] = frozenset()  # jobs that have a message, at the last look
        self._settings = settings
        self._ledger = ledger
        self._metrics = metrics
        self._on_lost = on_lost
        self._news = asyncio.Event()
        self._seen: list[Message] | None = None
        self._late: tuple[float, list[Message]] | None = None

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Key prefixes to be told of; none begins with another, as CLIENT TRACKING demands."""
        chosen: list[str] = []
        for prefix in sorted({BINDING, self._settings.unacked, *self._settings.queues}):
            if not any(prefix.startswith(shorter) for shorter in chosen):
                chosen.append(prefix)
        return tuple(chosen)

    def changed(self, key: bytes) -> None:
        """A key of the broker changed."""
        self._news.set()

    async def follow(self, link: Link, life: Life) -> None:
        """Look whenever something changed, with pauses; until the link is lost (`RedisLost`)."""
        while True:
            wait = None if self._late is None else max(0.0, self._late[0] - time.monotonic())
            if await happened(self._news, wait):
                self._news.clear()
                began = time.monotonic()
                await self.look(link, life)
                await asyncio.sleep(max(PAUSE[0], PAUSE[1] * (time.monotonic() - began)))
            if self._late is not None and self._late[0] <= time.monotonic() and not life.lost:
                _, messages = self._late
                with suppress(LedgerSilent):  # the next round tries again
                    pushed = await self._push(link, life, messages)
                    self._late = None
                    log.info("broker rescued taken messages", extra={"messages": pushed})

    async def look(self, link: Link, life: Life) -> None:
        """Copy bindings and messages to the ledger. Raises `RedisLost`."""
        if life.lost:
            return
        bindings = await self._bindings(link)
        messages = await self._messages(link)
        # Before emptiness is believed: a flush is told only where tracking is granted.
        if not life.lost and continuity(life.facts, await link.facts()) is Continuity.BROKEN:
            self._on_lost(life, "flush")
        if life.lost:
            return
        for key, member in bindings:
            # Never taken out: a binding that is gone was lost, as nothing in Celery removes one.
            self._ledger.execute(sql.ADD_BINDING, {"key": key, "member": member})
        self.served = frozenset(job_id for one in messages for job_id in one.job_ids)
        if messages == self._seen:
            return
        self._seen = messages
        self._ledger.execute(sql.CLEAR_MESSAGES, {})
        for one in messages:
            self._ledger.execute(
                sql.ADD_MESSAGE,
                {
                    "tag": one.tag,
                    "place": one.place,
                    "queue": one.queue,
                    "position": one.position,
                    "job_ids": json.dumps(one.job_ids),
                    "message": one.raw,
                },
            )

    async def put_back(self, link: Link, life: Life) -> None:
        """Bindings and messages that a loss took. Raises `RedisLost` and `LedgerSilent`."""
        stored = await self._ledger.table(sql.BINDINGS)
        replies: list[Any] = []
        if stored:
            replies = await link.call(*(("SADD", key, member) for key, member in stored))
        bindings = sum(reply == 1 for reply in replies)
        known = [
            Message(tag, place, queue, position, tuple(json.loads(job_ids)), bytes(raw))
            for tag, place, queue, position, job_ids, raw in await self._ledger.table(sql.MESSAGES)
        ]
        ready = [one for one in known if one.place != self._settings.unacked]
        taken = [one for one in known if one.place == self._settings.unacked]
        pushed = await self._push(link, life, ready)
        self._late = (time.monotonic() + self._settings.unacked_after, taken) if taken else None
        self._news.set()
        self._metrics.rescued("binding", bindings)
        log.info("broker rescued", extra={"bindings": bindings, "messages": pushed})

    async def _push(self, link: Link, life: Life, messages: list[Message]) -> int:
        queued = await self._still_queued({job for one in messages for job in one.job_ids})
        lacking = owed(messages, await self._messages(link), queued)
        if not lacking:
            return 0
        run = life.facts.run_id or "unknown"
        claims: list[Command] = [
            ("SET", f"{CLAIM}{run}:{life.losses}:{one.tag.hex()}", 1, "NX", "EX", CLAIM_LIFE)
            for one in lacking
        ]
        granted = await link.call(*claims)
        mine = [one for one, reply in zip(lacking, granted, strict=True) if reply == b"OK"]
        pushed = 0
        for queue in dict.fromkeys(one.queue for one in mine):
            # The last value of an RPUSH is the rightmost, thus popped first (rule 3).
            values = [one.raw for one in reversed(mine) if one.queue == queue]
            (reply,) = await link.call(("RPUSH", queue, *values))
            if isinstance(reply, CommandError):
                log.error("broker takes no messages back", extra={"reason": reply.text[:200]})
            else:
                pushed += len(values)
        self._metrics.rescued("message", pushed)
        return pushed

    async def _still_queued(self, job_ids: set[str]) -> frozenset[str]:
        found = set()
        for job_id in job_ids:
            row = self._ledger.unwritten(job_id) or await self._ledger.get(job_id)
            if isinstance(row, Row) and row.status in WAITING:
                found.add(job_id)
        return frozenset(found)

    async def _bindings(self, link: Link) -> list[tuple[str, bytes]]:
        keys = [f"{BINDING}{queue}" for queue in self._settings.queues]
        replies = await link.call(*(("SMEMBERS", key) for key in keys))
        return [
            (key, bytes(member))
            for key, members in zip(keys, replies, strict=True)
            if not isinstance(members, CommandError)
            for member in members
        ]

    async def _messages(self, link: Link) -> list[Message]:
        """What lies in the queues and in `unacked` now, at most `max_messages` of each."""
        limit = self._settings.max_messages
        found: list[Message] = []
        for queue in self._settings.queues:
            (values,) = await link.call(("LRANGE", queue, -limit, -1))
            if isinstance(values, list):
                for position, value in enumerate(reversed(values)):
                    if len(value) <= MAX_MESSAGE:
                        raw = bytes(value)
                        found.append(Message(*_head(raw, queue, queue, position), raw))
        unacked = self._settings.unacked
        (length,) = await link.call(("HLEN", unacked))
        if isinstance(length, int) and 0 < length <= limit:
            (values,) = await link.call(("HVALS", unacked))
            for position, value in enumerate(values if isinstance(values, list) else ()):
                unpacked = unpack_unacked(bytes(value)) if len(value) <= MAX_MESSAGE else None
                if unpacked is not None and unpacked[1] in self._settings.queues:
                    raw, queue = unpacked
                    found.append(Message(*_head(raw, unacked, queue, position), raw))
        return found


def _head(
    raw: bytes, place: str, queue: str, position: int
) -> tuple[bytes, str, str, int, tuple[str, ...]]:
    tag, job_ids = read_message(raw)
    return tag, place, queue, position, job_ids
