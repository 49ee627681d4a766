"""The Redis side of a mirror: one connection for both commands and change notifications.

1. Replies and change messages share one RESP3 connection. The server writes them in order, so "the
   key is gone" and "all was flushed" cannot overtake each other, and a reply proves that the same
   server process was still alive.
2. `CLIENT TRACKING … BCAST NOLOOP` reports every key of the family that another client changes; our
   own writes are not echoed. If tracking is forbidden, keyspace notifications serve instead if the
   operator has enabled them; otherwise nothing is pushed and the mirror scans.
3. A single task reads. Callers submit commands and get their replies in order. A server that does
   not reply within `patience` counts as hung and the connection is dropped. The limit grows with
   the measured round trips: a distant Redis is slow, not hung.
4. redis-py's exceptions stop here: `RedisLost` for the connection, `CommandError` values for
   commands that the server refused.
5. A server without `HELLO` speaks RESP2, which cannot push changes beside replies: the mirror
   scans. `CLIENT SETNAME` is cosmetic; a refusal is ignored.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from proxy.core.process.shortage import DETAILS
from proxy.core.redis.client import MasterFinder, master_finder
from proxy.core.redis.pushes import handle_pushes
from proxy.core.vitals import Vitals
from proxy.core.waiting import cancels, raise_swallowed_cancel
from proxy.jobs.redis.replies import (
    Command,
    CommandError,
    ServerInfo,
    no_hello,
    notifies,
    parse_info,
)

log = logging.getLogger(__name__)

PATIENCE = 2.0  # seconds; a Redis on loopback answers in well under a millisecond
OPEN_PATIENCE = 10.0  # seconds to connect and set up: about eight round trips
MOST_PATIENCE = 8.0  # seconds that a slow server gets in addition, at most
FEW = 8  # up to so many commands, the reply time measures the round trip, not the server's work
ROUND_TRIPS = 4.0  # slow round trips that a reply may take before the server counts as hung
SLICE = 64  # replies read before we yield to other tasks

CaptureMode = Literal["tracking", "notifications", "scanning"]
ClientFactory = Callable[[], Redis | RedisCluster]

_HANDLED = object()


class RedisLost(Exception):
    """The connection is closed, refused, or silent: the state of the keys is unknown."""


class CommandRefused(Exception):
    """Redis is up but refuses a command that we need."""


@dataclass(frozen=True, slots=True)
class RedisAccess:
    """How to reach a Redis: `factory` makes the client of one connection; `mode` is the best way
    of following changes that is tried; `key_prefix` stands before the proxy's own keys."""

    factory: ClientFactory
    mode: CaptureMode = "tracking"
    key_prefix: str = ""


@dataclass(slots=True)
class _Waiting:
    future: asyncio.Future[list[Any]]
    replies: list[Any]
    missing: int


class RedisConnection:
    """See the rules at the top of the file. `await open()`, work, `await close()`.

    `on_changed` gets the keys that changed, `on_event` one key with its keyspace event (without it,
    `on_changed` is used), `on_flushed` reports a flush. All are called from the reading task and
    must return at once.
    """

    def __init__(
        self,
        access: RedisAccess,
        prefixes: Sequence[str],
        vitals: Vitals,
        *,
        on_changed: Callable[[list[bytes]], None],
        on_flushed: Callable[[], None],
        patience: float = PATIENCE,
        on_event: Callable[[bytes, str], None] | None = None,
    ) -> None:
        self.mode: CaptureMode = access.mode
        self.lost: asyncio.Event = asyncio.Event()
        self.why_lost = ""
        self.last_read_at = time.monotonic()  #: monotonic: every change up to then has arrived
        self.round_trip = 0.0  #: seconds, pessimistic: rises at once, falls slowly
        self.refused: dict[str, str] = {}  #: missing rights, with the server's error
        self.finder: MasterFinder | None = None  #: asks the Sentinels, if there are any
        self._factory = access.factory
        self._vitals = vitals
        self._prefixes = tuple(prefixes)
        self._on_changed = on_changed
        self._on_flushed = on_flushed
        self._on_event = on_event
        self._patience = patience
        self._client: Redis | RedisCluster | None = None
        self._connection: AbstractConnection | None = None
        self._waiting: deque[_Waiting] = deque()
        self._reader: asyncio.Task[None] | None = None
        self._name: str | None = None
        self._db = 0

    @property
    def db(self) -> int:
        """The number of the database; known once it is open."""
        return self._db

    async def open(self) -> None:
        """Connect and subscribe to changes. Raises `RedisLost`."""
        try:
            async with asyncio.timeout(OPEN_PATIENCE):
                if not await self._connect(3):
                    self.refused["hello"] = "HELLO is refused: no change is pushed"
                    self.mode = "scanning"
                    await self._connect(2)
        except (RedisError, OSError, TimeoutError) as error:
            await self.close()
            ours = self._vitals.shortages.check(error, "the connection to Redis")
            reason = DETAILS[ours] if ours is not None else _describe(error)
            raise RedisLost(reason) from error
        assert self._connection is not None
        if "hello" not in self.refused:
            handle_pushes(self._connection, self._on_invalidation, self._on_keyspace_message)
        self.finder = master_finder(self._client) if self._client is not None else None
        self._reader = asyncio.create_task(self._read(), name="redis-link")
        await self._choose_capture()

    async def _connect(self, protocol: int) -> bool:
        """Connect; returns whether the server speaks this protocol. Raises redis-py's errors."""
        before = cancels()
        self._client = self._factory()
        pool: Any = getattr(self._client, "connection_pool", None)
        if pool is None:
            raise RedisError("a mirror needs one Redis or Sentinel, not a Cluster")
        options: dict[str, Any] = pool.connection_kwargs
        # Timeouts and the client name are ours: the library's timeout would end the wait for pushed
        # changes. Its other set-up commands cost round trips and need rights.
        self._name = options.pop("client_name", None)
        for extra in ("pool_handler", "config"):
            options.pop(f"maint_notifications_{extra}", None)
        options.update(protocol=protocol, socket_timeout=None, driver_info=None)
        self._db = int(options.get("db") or 0)
        self._connection = connection = pool.make_connection()
        try:
            await connection.connect()
        except (ResponseError, NoPermissionError) as error:
            # `NOAUTH HELLO must be called ...` and a wrong password do not mean HELLO is unknown.
            if protocol != 3 or not no_hello(str(error)):
                raise
            await connection.disconnect(nowait=True)
            await self._client.aclose()
            return False
        raise_swallowed_cancel(before)
        return True

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port of the connection; None for a unix socket."""
        connection: Any = self._connection
        host, port = getattr(connection, "host", None), getattr(connection, "port", None)
        return (str(host), int(port)) if host and port else None

    @property
    def patience(self) -> float:
        """Seconds within which this server should reply, going by the measured round trips."""
        return self.at_least(self._patience)

    def at_least(self, seconds: float) -> float:
        """So many seconds, plus an allowance for a distant server."""
        return seconds + min(MOST_PATIENCE, ROUND_TRIPS * self.round_trip)

    async def close(self) -> None:
        """Close the connection; pending calls raise `RedisLost`."""
        reader, self._reader = self._reader, None
        if reader is not None and reader is not asyncio.current_task():
            reader.cancel()
            with suppress(asyncio.CancelledError):
                await reader
        self._lose("closed")
        connection, self._connection = self._connection, None
        client, self._client = self._client, None
        with suppress(RedisError, OSError):
            if self.finder is not None:
                await self.finder.aclose()
            if connection is not None:
                await connection.disconnect(nowait=True)
            if client is not None:
                await client.aclose()

    async def call(self, *commands: Command, patience: float | None = None) -> list[Any]:
        """Send a pipeline of commands; returns their replies in order.

        A refused command yields a `CommandError`. Raises `RedisLost` if the connection breaks or
        stays silent for `patience` seconds (None: the connection's own limit).
        """
        connection = self._connection
        if connection is None or self.lost.is_set():
            raise RedisLost(self.why_lost or "not connected")
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(future, [], len(commands)))
        limit = self.patience if patience is None else patience
        asked = time.monotonic()
        before = cancels()
        try:
            async with asyncio.timeout(limit):
                await connection.send_packed_command(
                    connection.pack_commands(commands), check_health=False
                )
                raise_swallowed_cancel(before)
                replies = await future
        except TimeoutError:
            self._lose(f"silent for {limit:.3g} s", silent=True)
            raise RedisLost(self.why_lost) from None
        except (RedisError, OSError) as error:
            self._lose(str(error) or type(error).__name__)
            raise RedisLost(self.why_lost) from error
        if len(commands) <= FEW:
            took = time.monotonic() - asked
            self.round_trip = max(took, self.round_trip + (took - self.round_trip) / 8)
        return replies

    async def leads_to_master(self) -> bool:
        """Ask the Sentinels whether this server is still the master; the connection is dropped if
        it is not. True if there are no Sentinels or none answers."""
        if self.finder is None:
            return True
        master = await self.finder.where()
        if master is None or master == self.address:
            return True
        self._lose(f"the master moved to {master[0]}:{master[1]}")
        return False

    # --- server info -----------------------------------------------------------------------------

    async def info(self) -> ServerInfo:
        """Read five sections of INFO, one command each: only Redis 7 takes several at once."""
        replies = await self.call(
            *(
                ("INFO", section)
                for section in ("server", "stats", "commandstats", "persistence", "replication")
            )
        )
        texts = [
            reply.decode("utf-8", "replace") if isinstance(reply, bytes) else ""
            for reply in replies
        ]
        info = parse_info("\n".join(texts))
        if info.server_time is not None:
            self._vitals.skews.note("redis", info.server_time)
        return info

    async def _choose_capture(self) -> None:
        """Pick the best capture mode that this server allows."""
        if self._name:
            await self.call(("CLIENT", "SETNAME", self._name), patience=OPEN_PATIENCE)
        if self.mode == "tracking":
            prefixes = itertools.chain.from_iterable(("PREFIX", one) for one in self._prefixes)
            (reply,) = await self.call(
                ("CLIENT", "TRACKING", "ON", "BCAST", "NOLOOP", *prefixes), patience=OPEN_PATIENCE
            )
            if reply == b"OK":
                return
            self.refused["client|tracking"] = str(getattr(reply, "text", reply))[:200]
            self.mode = "notifications"
        if self.mode == "notifications":
            (reply,) = await self.call(("CONFIG", "GET", "notify-keyspace-events"))
            if notifies(reply):
                patterns = [f"__keyspace@{self._db}__:{prefix}*" for prefix in self._prefixes]
                await self._send_only(("PSUBSCRIBE", *patterns))
                return
            self.mode = "scanning"

    async def _send_only(self, command: Command) -> None:
        """Send a command that is confirmed by a push message instead of a reply."""
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
                    reply = _refusal(error)
                self.last_read_at = time.monotonic()
                if reply is not _HANDLED:
                    self._take_reply(reply)
                turns += 1
                if turns % SLICE == 0:
                    # Reading buffered replies never yields, so yield explicitly.
                    await asyncio.sleep(0)
        except (RedisError, OSError) as error:
            self._lose(str(error) or type(error).__name__)
        except Exception as odd:
            # Not the Redis protocol: the connection cannot be trusted, the session starts over.
            self._lose(f"odd reply: {odd!r}"[:200])

    def _take_reply(self, reply: Any) -> None:
        if isinstance(reply, ResponseError):
            reply = _refusal(reply)
        waiting = self._waiting[0]  # IndexError: an unexpected reply, the stream is out of step
        waiting.replies.append(reply)
        waiting.missing -= 1
        if waiting.missing == 0:
            self._waiting.popleft()
            if not waiting.future.done():
                waiting.future.set_result(waiting.replies)

    async def _on_invalidation(self, message: list[Any]) -> object:
        keys = message[1] if len(message) > 1 else None
        if keys is None:
            self._on_flushed()
        else:
            self._on_changed(keys)
        return _HANDLED

    async def _on_keyspace_message(self, message: list[Any]) -> object:
        # [pmessage, pattern, __keyspace@0__:KEY, event]; anything else confirms a subscription.
        if len(message) == 4 and message[0] == b"pmessage":
            _, _, key = bytes(message[2]).partition(b"__:")
            if self._on_event is None:
                self._on_changed([key])
            else:
                self._on_event(key, bytes(message[3])[:64].decode("ascii", "replace"))
        return _HANDLED

    def _lose(self, why: str, *, silent: bool = False) -> None:
        if not self.lost.is_set():
            self.why_lost = why
            if not silent:  # everything sent before the end has arrived
                self.last_read_at = time.monotonic()
            self.lost.set()
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.future.done():
                waiting.future.set_exception(RedisLost(why))
                # Mark as retrieved: the caller may have given up already.
                waiting.future.exception()


def _refusal(error: ResponseError) -> CommandError:
    # redis-py strips the code from errors that it has classes for.
    code, text = getattr(error, "status_code", None), str(error)
    if isinstance(code, str) and code != "ERR" and not text.startswith(code):
        text = f"{code} {text}"
    return CommandError(text, isinstance(error, NoPermissionError))


def _describe(error: Exception) -> str:
    """Why the connection failed, for an operator. Redis' reply to a `HELLO` without a password is
    long and does not mention passwords."""
    text = str(error)
    no_login = text.startswith(("NOAUTH", "HELLO must be called"))
    if no_login or isinstance(error, AuthenticationError):
        return f"it rejects our user name or password ({text.partition(',')[0]})"
    return text or type(error).__name__
