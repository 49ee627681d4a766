"""The Redis side of a mirror: one connection that both asks and is told of changes.

1. Questions and change messages share one RESP3 connection. The server writes them in order, so
   "the key is gone" and "all was flushed" cannot overtake each other, and a reply proves that the
   same server process lived on until then.
2. `CLIENT TRACKING … BCAST NOLOOP` names every key of the family that anyone else changes; what
   this connection writes itself is not echoed. Where that is forbidden, keyspace notifications do
   if the operator has them on; else nothing is told and the mirror scans.
3. One task reads. Callers hand in commands and get the replies in order. A server that does not
   reply within `patience` is hung: the connection is given up, as nothing else can be known.
4. redis-py's exceptions stop here: `RedisLost` for the connection, `CommandError` values for
   commands that the server refused.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import re
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from proxy.shortage import DETAILS, SHORTAGES

log = logging.getLogger(__name__)

PATIENCE = 2.0  # seconds; a Redis on loopback answers in well under a millisecond
SLICE = 64  # replies read before other tasks get a turn

CaptureMode = Literal["tracking", "notifications", "scanning"]
Command = tuple[Any, ...]
ClientFactory = Callable[[], Redis | RedisCluster]

_TOLD = object()


class RedisLost(Exception):
    """The connection is gone, refused, or silent: nothing is known about the keys any more."""


class Refused(Exception):
    """Redis is there but does not let us do what is needed."""


@dataclass(frozen=True, slots=True)
class CommandError:
    """The server's refusal of one command, in the place of its reply."""

    text: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What tells one life of a server's data from another. None where the server keeps silent.

    `flushes` counts FLUSHALL, FLUSHDB and SWAPDB since the server (or its statistics) began.
    """

    run_id: str | None
    flushes: int | None
    evicted: int | None
    loading: bool


@dataclass(slots=True)
class _Waiting:
    future: asyncio.Future[list[Any]]
    replies: list[Any]
    missing: int


class Link:
    """See the rules at the top of the file. `await open()`, work, `await close()`.

    `on_changed` gets the keys that changed, `on_flushed` is called when all of them are gone; both
    are called from the reading task and must return at once.
    """

    def __init__(
        self,
        factory: ClientFactory,
        prefixes: Sequence[str],
        *,
        on_changed: Callable[[list[bytes]], None],
        on_flushed: Callable[[], None],
        patience: float = PATIENCE,
        mode: CaptureMode = "tracking",
    ) -> None:
        self.mode: CaptureMode = mode
        self.lost: asyncio.Event = asyncio.Event()
        self.why_lost = ""
        self._factory = factory
        self._prefixes = tuple(prefixes)
        self._on_changed = on_changed
        self._on_flushed = on_flushed
        self._patience = patience
        self._client: Redis | RedisCluster | None = None
        self._connection: AbstractConnection | None = None
        self._waiting: deque[_Waiting] = deque()
        self._reader: asyncio.Task[None] | None = None
        self._db = 0

    async def open(self) -> None:
        """Connect and begin to be told of changes. Raises `RedisLost`."""
        cancels = _cancels()
        try:
            async with asyncio.timeout(self._patience):
                self._client = self._factory()
                pool: Any = getattr(self._client, "connection_pool", None)
                if pool is None:
                    raise RedisError("a mirror needs one Redis or Sentinel, not a Cluster")
                # Time limits are ours: the library's would break off a wait for news.
                pool.connection_kwargs.update(protocol=3, socket_timeout=None)
                self._db = int(pool.connection_kwargs.get("db") or 0)
                self._connection = pool.make_connection()
                await self._connection.connect()
                _honour(cancels)
        except (RedisError, OSError, TimeoutError) as error:
            await self.close()
            ours = SHORTAGES.check(error, "the connection to Redis")
            reason = DETAILS[ours] if ours is not None else str(error)
            raise RedisLost(reason or type(error).__name__) from error
        parser: Any = self._connection._parser
        parser.set_invalidation_push_handler(self._told_of_keys)
        parser.set_pubsub_push_handler(self._told_of_event)
        self._reader = asyncio.create_task(self._read(), name="redis-link")
        await self._choose_capture()

    async def close(self) -> None:
        """Let go of the connection; whoever waits for a reply gets `RedisLost`."""
        reader, self._reader = self._reader, None
        if reader is not None and reader is not asyncio.current_task():
            reader.cancel()
            with suppress(asyncio.CancelledError):
                await reader
        self._lose("closed")
        connection, self._connection = self._connection, None
        client, self._client = self._client, None
        with suppress(RedisError, OSError):
            if connection is not None:
                await connection.disconnect(nowait=True)
            if client is not None:
                await client.aclose()

    async def call(self, *commands: Command, patience: float | None = None) -> list[Any]:
        """Send commands in one piece, return their replies in order.

        A refused command has a `CommandError` in its place. Raises `RedisLost` when the connection
        breaks or stays silent for `patience` seconds (the link's own when None).
        """
        connection = self._connection
        if connection is None or self.lost.is_set():
            raise RedisLost(self.why_lost or "not connected")
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(future, [], len(commands)))
        limit = self._patience if patience is None else patience
        cancels = _cancels()
        try:
            async with asyncio.timeout(limit):
                await connection.send_packed_command(
                    connection.pack_commands(commands), check_health=False
                )
                _honour(cancels)
                return await future
        except TimeoutError:
            self._lose(f"silent for {limit:g} s")
            raise RedisLost(self.why_lost) from None
        except (RedisError, OSError) as error:
            self._lose(str(error) or type(error).__name__)
            raise RedisLost(self.why_lost) from error

    # --- what the server is ----------------------------------------------------------------------

    async def facts(self) -> Facts:
        """Three sections of INFO (one each: several in one call came with Redis 7)."""
        replies = await self.call(
            ("INFO", "server"), ("INFO", "stats"), ("INFO", "commandstats"), ("INFO", "persistence")
        )
        texts = [
            reply.decode("utf-8", "replace") if isinstance(reply, bytes) else ""
            for reply in replies
        ]
        return parse_facts("\n".join(texts))

    async def _choose_capture(self) -> None:
        """The best way to be told of changes that this server grants."""
        if self.mode == "tracking":
            prefixes = itertools.chain.from_iterable(("PREFIX", one) for one in self._prefixes)
            (reply,) = await self.call(("CLIENT", "TRACKING", "ON", "BCAST", "NOLOOP", *prefixes))
            if reply == b"OK":
                return
            log.warning("change tracking refused", extra={"reason": str(reply)})
            self.mode = "notifications"
        if self.mode == "notifications":
            (reply,) = await self.call(("CONFIG", "GET", "notify-keyspace-events"))
            if notifies(reply):
                patterns = [f"__keyspace@{self._db}__:{prefix}*" for prefix in self._prefixes]
                await self._send_only(("PSUBSCRIBE", *patterns))
                return
            self.mode = "scanning"

    async def _send_only(self, command: Command) -> None:
        """For a command whose confirmation comes as a push message."""
        assert self._connection is not None
        try:
            async with asyncio.timeout(self._patience):
                await self._connection.send_command(*command, check_health=False)
        except (RedisError, OSError, TimeoutError) as error:
            raise RedisLost(str(error)) from error

    # --- reading ---------------------------------------------------------------------------------

    async def _read(self) -> None:
        assert self._connection is not None
        read = self._connection.read_response
        turns = 0
        try:
            while True:
                try:
                    reply = await read(
                        disable_decoding=True,
                        timeout=math.inf,
                        disconnect_on_error=False,
                        push_request=True,
                    )
                except ResponseError as error:
                    reply = CommandError(str(error))
                if reply is not _TOLD:
                    self._answered(reply)
                turns += 1
                if turns % SLICE == 0:
                    # Replies that are already in the buffer come without a pause; others wait.
                    await asyncio.sleep(0)
        except (RedisError, OSError, IndexError, ValueError) as error:
            self._lose(str(error) or type(error).__name__)

    def _answered(self, reply: Any) -> None:
        if isinstance(reply, ResponseError):
            reply = CommandError(str(reply))
        waiting = self._waiting[0]  # IndexError: a reply nobody asked for, so the stream is off
        waiting.replies.append(reply)
        waiting.missing -= 1
        if waiting.missing == 0:
            self._waiting.popleft()
            if not waiting.future.done():
                waiting.future.set_result(waiting.replies)

    async def _told_of_keys(self, message: list[Any]) -> object:
        keys = message[1] if len(message) > 1 else None
        if keys is None:
            self._on_flushed()
        else:
            self._on_changed(keys)
        return _TOLD

    async def _told_of_event(self, message: list[Any]) -> object:
        # [pmessage, pattern, __keyspace@0__:KEY, event]; anything else confirms a subscription.
        if len(message) == 4 and message[0] == b"pmessage":
            _, _, key = bytes(message[2]).partition(b"__:")
            self._on_changed([key])
        return _TOLD

    def _lose(self, why: str) -> None:
        if not self.lost.is_set():
            self.why_lost = why
            self.lost.set()
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.future.done():
                waiting.future.set_exception(RedisLost(why))
                # The caller may have given up already; then nobody else asks for it.
                waiting.future.exception()


def _cancels() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


def _honour(cancels: int) -> None:
    """Raise a cancellation that redis-py swallowed: it uses `asyncio.wait_for` (see `waiting`)."""
    if _cancels() > cancels:
        raise asyncio.CancelledError


# --- pure -----------------------------------------------------------------------------------------

_FLUSH = re.compile(r"^cmdstat_(?:flushall|flushdb|swapdb):calls=(\d+)", re.MULTILINE)


def parse_facts(info: str) -> Facts:
    """Read the text of INFO. A section that was refused leaves its facts None."""
    fields = dict(line.strip().split(":", 1) for line in info.splitlines() if ":" in line)
    statistics = "cmdstat_" in info
    evicted = fields.get("evicted_keys", "")
    return Facts(
        run_id=fields.get("run_id"),
        flushes=sum(int(count) for count in _FLUSH.findall(info)) if statistics else None,
        evicted=int(evicted) if evicted.isdigit() else None,
        loading=fields.get("loading", "0") != "0",
    )


def notifies(reply: Any) -> bool:
    """Whether CONFIG GET says that keyspace events of strings and of removals are published."""
    pairs = reply.items() if isinstance(reply, dict) else []
    flags = b"".join(bytes(value) for _, value in pairs)
    if b"K" not in flags:
        return False
    return b"A" in flags or all(flag in flags for flag in (b"g", b"$", b"x"))
