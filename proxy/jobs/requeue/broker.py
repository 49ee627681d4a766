"""Reads the broker: bindings, queues, unacknowledged messages, results, connections.

1. An error reply never counts as "empty": the whole look fails with `BrokerRefused`.
2. Every read is bounded. If a bound cut something off, the view is not `readable`, and a missing
   message proves nothing.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from proxy.config.mirrors import Requeue as RequeueConfig
from proxy.jobs.redis.connection import RedisConnection
from proxy.jobs.redis.replies import Command, CommandError
from proxy.jobs.requeue import pidbox, scripts
from proxy.jobs.requeue.messages import (
    PRIORITY_STEPS,
    Message,
    list_of,
    read_message,
    unpack_unacked,
)

log = logging.getLogger(__name__)

BINDING = "_kombu.binding."
RESULT = "celery-task-meta-"
PARSED_AT_ONCE = 200  # messages between two turns for others
REPLY_WAIT = (0.05, 0.1, 0.2, 0.4, 0.8)  # seconds between looks for answers, 1.55 s in all
MAILBOX_LIFE = 60  # seconds
MAX_RESULTS = 1000
MAX_MESSAGES = 10_000  # of a list; a longer one takes too long to read and parse at each look


class BrokerRefused(Exception):
    """Redis refused a command; the text has the command and its error, for the log."""

    def __init__(self, command: str, error: str) -> None:
        super().__init__(f"{command}: {error[:200]}")
        self.command = command


@dataclass(frozen=True, slots=True)
class Taken:
    """An unacknowledged message. `score` is when a worker took it, by the worker's clock."""

    message: Message
    field: bytes
    score: float


@dataclass(slots=True)
class View:
    """The result of one look. `readable`: all messages were read and parsed."""

    queued: list[Message] = field(default_factory=list)
    taken: dict[str, Taken] = field(default_factory=dict)
    readable: bool = True
    results: dict[str, pidbox.Result] = field(default_factory=dict)


def new_id() -> str:
    """A random ID in Celery's format."""
    return str(uuid.uuid4())


class Broker:
    """The broker of one mirror. `key_prefix` is for the proxy's own keys.

    `waited`: total seconds spent waiting for workers' answers, which cause no load.
    """

    def __init__(self, settings: RequeueConfig, *, key_prefix: str, family: str) -> None:
        prefix = settings.global_keyprefix or ""
        self.settings = settings
        self.queues = tuple(f"{prefix}{queue}" for queue in settings.queues)
        self.unacked = f"{prefix}unacked"  # the names that kombu's Redis transport gives them
        self.index = f"{prefix}unacked_index"
        self._prefix = prefix
        self._own = f"{key_prefix}requeue:{{{family}}}:"
        self._parsed: dict[bytes, Message] = {}
        self._refused: dict[str, str] = {}
        self._replies = pidbox.MIN_REPLIES
        self.waited = 0.0

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Key prefixes to be notified of; none begins with another, as CLIENT TRACKING demands."""
        chosen: list[str] = []
        bindings = [f"{self._prefix}{BINDING}{queue}" for queue in self.settings.queues]
        for prefix in sorted({*bindings, self.unacked, *self.queues}):
            if not any(prefix.startswith(shorter) for shorter in chosen):
                chosen.append(prefix)
        return tuple(chosen)

    def claim_key(self, job_id: str) -> str:
        """The key that counts and locks the attempts for one job."""
        return f"{self._own}{job_id}"

    def plain(self, key: str) -> str:
        """A queue's name without kombu's global prefix."""
        return key.removeprefix(self._prefix)

    def destination(self, queue: str, raw: bytes) -> str:
        """The list into which a message of a queue belongs."""
        return list_of(f"{self._prefix}{queue}", raw)

    # --- bindings --------------------------------------------------------------------------------

    async def bindings(self, link: RedisConnection) -> list[tuple[str, bytes]]:
        """The members of the queues' binding sets. Raises `RedisLost`, `BrokerRefused`."""
        keys = [f"{self._prefix}{BINDING}{queue}" for queue in self.settings.queues]
        replies = await self.call(link, *(("SMEMBERS", key) for key in keys))
        return [
            (key, bytes(member))
            for key, members in zip(keys, replies, strict=True)
            for member in members
        ]

    # --- messages --------------------------------------------------------------------------------

    async def look(self, link: RedisConnection) -> View:
        """All messages, `MAX_MESSAGES` of a list at most. Raises `RedisLost`, `BrokerRefused`."""
        view = View()
        places = [(queue, queue + step) for queue in self.queues for step in PRIORITY_STEPS]
        lengths = await self.call(
            link, *(("LLEN", place) for _, place in places), ("HLEN", self.unacked)
        )
        if any(length > MAX_MESSAGES for length in lengths):
            view.readable = False
        parsed: dict[bytes, Message] = {}
        for (queue, place), length in zip(places, lengths, strict=False):
            if length:
                (values,) = await self.call(link, ("LRANGE", place, -MAX_MESSAGES, -1))
                await self._read(values, place, self.plain(queue), parsed, view)
        if 0 < lengths[-1] <= MAX_MESSAGES:
            await self._read_taken(link, parsed, view)
        self._parsed = parsed
        return view

    async def _read(
        self,
        values: list[bytes],
        place: str,
        queue: str,
        parsed: dict[bytes, Message],
        view: View,
    ) -> None:
        for number, value in enumerate(reversed(values), 1):
            message = self._message(bytes(value), place, queue, parsed)
            view.queued.append(message)
            view.readable = view.readable and not message.opaque
            if number % PARSED_AT_ONCE == 0:
                await asyncio.sleep(0)

    async def _read_taken(
        self, link: RedisConnection, parsed: dict[bytes, Message], view: View
    ) -> None:
        fields, scores = await self.call(
            link, ("HGETALL", self.unacked), ("ZRANGE", self.index, 0, -1, "WITHSCORES")
        )
        at = _scores(scores)
        for number, (tag, value) in enumerate(_pairs(fields), 1):
            unpacked = unpack_unacked(value)
            if unpacked is None:
                view.readable = False
                continue
            raw, queue = unpacked
            if self.plain(queue) not in self.settings.queues:
                continue
            name = tag.decode("utf-8", "surrogateescape")
            message = self._message(raw, self.unacked, self.plain(queue), parsed)
            view.readable = view.readable and not message.opaque
            view.taken[name] = Taken(message, value, at.get(tag, 0.0))
            if number % PARSED_AT_ONCE == 0:
                await asyncio.sleep(0)

    def _message(self, raw: bytes, place: str, queue: str, parsed: dict[bytes, Message]) -> Message:
        """Parse a message; cached, as most are still there at the next look."""
        message = self._parsed.get(raw)
        if message is None or (message.place, message.queue) != (place, queue):
            message = read_message(raw, place, queue)
        parsed[raw] = message
        return message

    async def results(
        self, link: RedisConnection, task_ids: Iterable[str]
    ) -> dict[str, pidbox.Result]:
        """The tasks' results, if the result backend is this Redis and we may read it."""
        wanted = [one for one in dict.fromkeys(task_ids) if one][:MAX_RESULTS]
        if not wanted:
            return {}
        keys = [f"{self._prefix}{RESULT}{one}" for one in wanted]
        values = await self._allowed(link, *(("GETRANGE", key, 0, 65536) for key in keys))
        found: dict[str, pidbox.Result] = {}
        for task_id, value in zip(wanted, values or (), strict=False):
            result = pidbox.read_result(value) if isinstance(value, bytes) else None
            if result is not None:
                found[task_id] = result
        return found

    # --- workers ---------------------------------------------------------------------------------

    async def count_workers(self, link: RedisConnection, now: float) -> int | None:
        """How many workers listen to remote control; None where we may not publish."""
        request = pidbox.head_count(new_id, now)
        channel = pidbox.channel(link.db, self._prefix)
        command = scripts.count_workers(f"{self._own}!workers", channel, request)
        replies = await self._allowed(link, command)
        return int(replies[0]) if replies is not None else None

    async def consumers(self, link: RedisConnection) -> pidbox.Consumers | None:
        """Connections that take messages; None where `CLIENT LIST` is not allowed."""
        replies = await self._allowed(link, ("CLIENT", "LIST"))
        if replies is None or not isinstance(replies[0], bytes):
            return None
        return pidbox.consumers(replies[0], link.db)

    async def ask(
        self, link: RedisConnection, now: float
    ) -> tuple[int, dict[str, pidbox.WorkerAnswer]] | None:
        """Ask all workers what they work on; returns how many received the question, and the
        answers that came within 1.6 s, including late ones to earlier questions. None if we may
        not ask."""
        channel = pidbox.channel(link.db, self._prefix)
        binding, mailbox = (
            f"{self._prefix}{one}" for one in (pidbox.REPLY_BINDING, pidbox.REPLY_LIST)
        )
        questions = [pidbox.question(method, new_id, now) for method in pidbox.METHODS]
        replies = await self._allowed(
            link,
            ("SADD", binding, pidbox.REPLY_MEMBER),
            *(("PUBLISH", channel, question) for question in questions),
        )
        if replies is None:
            return None
        receivers = int(replies[1])
        self._replies = min(pidbox.MAX_REPLIES, max(pidbox.MIN_REPLIES, 9 * receivers))
        found: dict[str, pidbox.WorkerAnswer] = {}
        for pause in REPLY_WAIT if receivers else ():
            await asyncio.sleep(pause)
            self.waited += pause
            values = await self._allowed(link, ("LRANGE", mailbox, 0, self._replies - 1))
            if values is None:
                return None
            found = pidbox.answers(bytes(value) for value in values[0])
            if sum(one.asked_at >= now - 0.01 for one in found.values()) >= receivers:
                break
        await self._allowed(
            link,
            ("LTRIM", mailbox, 0, self._replies - 1),
            ("EXPIRE", mailbox, MAILBOX_LIFE),
        )
        return receivers, found

    async def late_answers(self, link: RedisConnection) -> dict[str, pidbox.WorkerAnswer]:
        """Answers that have arrived since, to questions of any sidecar."""
        mailbox = f"{self._prefix}{pidbox.REPLY_LIST}"
        values = await self._allowed(link, ("LRANGE", mailbox, 0, self._replies - 1))
        return pidbox.answers(bytes(value) for value in values[0]) if values is not None else {}

    async def close_mailbox(self, link: RedisConnection) -> None:
        """Stop collecting answers."""
        binding, mailbox = (
            f"{self._prefix}{one}" for one in (pidbox.REPLY_BINDING, pidbox.REPLY_LIST)
        )
        await self._allowed(link, ("SREM", binding, pidbox.REPLY_MEMBER), ("DEL", mailbox))

    # --- calling ---------------------------------------------------------------------------------

    async def call(self, link: RedisConnection, *commands: Command) -> list[Any]:
        """Replies in order. Raises `RedisLost`; `BrokerRefused` for an error reply."""
        replies = await link.call(*commands)
        for command, reply in zip(commands, replies, strict=True):
            if isinstance(reply, CommandError):
                raise BrokerRefused(_named(command), reply.text)
        return replies

    async def _allowed(self, link: RedisConnection, *commands: Command) -> list[Any] | None:
        """Like `call`; None if a command is refused, which is logged once per command."""
        try:
            replies = await self.call(link, *commands)
        except BrokerRefused as refused:
            kind = refused.command.split(" ", 1)[0]
            if self._refused.get(kind) != str(refused):
                self._refused[kind] = str(refused)
                log.error("broker evidence refused", extra={"reason": str(refused)})
            return None
        for command in commands:
            if self._refused.pop(str(command[0]), None) is not None:
                log.info("broker evidence granted again", extra={"command": str(command[0])})
        return replies

    @property
    def refused(self) -> tuple[str, ...]:
        """The evidence that the server refuses us, for `/readyz`."""
        return tuple(self._refused.values())


def _named(command: Command) -> str:
    """The command and its first key, for a log line."""
    if command[0] == "EVAL":
        return f"EVAL {command[3]}"
    return " ".join(str(part)[:100] for part in command[:2])


def _pairs(reply: Any) -> list[tuple[bytes, bytes]]:
    """HGETALL in RESP3 (a map) or RESP2 (a list)."""
    if isinstance(reply, dict):
        return [(bytes(name), bytes(value)) for name, value in reply.items()]
    return [
        (bytes(name), bytes(value)) for name, value in zip(reply[::2], reply[1::2], strict=False)
    ]


def _scores(reply: list[Any]) -> dict[bytes, float]:
    """ZRANGE WITHSCORES in RESP3 (pairs) or RESP2 (flat)."""
    flat = [part for one in reply for part in (one if isinstance(one, list) else [one])]
    return {bytes(name): float(at) for name, at in zip(flat[::2], flat[1::2], strict=False)}
