"""The Redis side of a mirror: one connection that both asks and is told of changes.

1. Questions and change messages share one RESP3 connection. The server writes them in order, so
   "the key is gone" and "all was flushed" cannot overtake each other, and a reply proves that the
   same server process lived on until then.
2. `CLIENT TRACKING … BCAST NOLOOP` names every key of the family that anyone else changes; what
   this connection writes itself is not echoed. Where that is forbidden, keyspace notifications do
   if the operator has them on; else nothing is told and the mirror scans.
3. One task reads. Callers hand in commands and get the replies in order. A server that does not
   reply within `patience` is hung: the connection is given up, as nothing else can be known. How
   long that is follows from the round trips measured so far: a distant Redis is slow, not hung.
4. redis-py's exceptions stop here: `RedisLost` for the connection, `CommandError` values for
   commands that the server refused.
5. A server without `HELLO` speaks RESP2, on which no change can be pushed beside replies: the
   mirror scans. `CLIENT SETNAME` is cosmetic, its refusal means nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import re
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
from proxy.core.vitals import Vitals

log = logging.getLogger(__name__)

PATIENCE = 2.0  # seconds; a Redis on loopback answers in well under a millisecond
OPEN_PATIENCE = 10.0  # seconds to connect and agree on everything: about eight round trips
MOST_PATIENCE = 8.0  # seconds; what slower servers get beyond it, at most
FEW = 8  # commands whose replies take a round trip, and not the time of their work
ROUND_TRIPS = 4.0  # round trips of the slow kind that a reply may take before the server is hung
SLICE = 64  # replies read before other tasks get a turn

CaptureMode = Literal["tracking", "notifications", "scanning"]
Command = tuple[Any, ...]
ClientFactory = Callable[[], Redis | RedisCluster]

_TOLD = object()


class RedisLost(Exception):
    """The connection is gone, refused, or silent: nothing is known about the keys any more."""


class CommandRefused(Exception):
    """Redis is there but does not let us do what is needed."""


@dataclass(frozen=True, slots=True)
class CommandError:
    """The server's refusal of one command, in the place of its reply. `right_missing`: the access
    list of our user forbids it."""

    text: str
    right_missing: bool = False


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What tells one life of a server's data from another. None where the server keeps silent.

    `flushes` counts FLUSHALL, FLUSHDB and SWAPDB since the server (or its statistics) began.
    `replication` names the history of the data: it changes when a replica becomes the master.
    `commands` counts all commands; it moves backwards when the statistics were reset.
    `server_time` is the server's clock, in Unix seconds.
    """

    run_id: str | None
    flushes: int | None
    evicted: int | None
    loading: bool
    replication: str | None = None
    replica: bool = False
    commands: int | None = None
    server_time: float | None = None


@dataclass(slots=True)
class _Waiting:
    future: asyncio.Future[list[Any]]
    replies: list[Any]
    missing: int


class RedisConnection:
    """See the rules at the top of the file. `await open()`, work, `await close()`.

    `on_changed` gets the keys that changed, `on_event` one key with the name of its keyspace event
    (`on_changed` when None), `on_flushed` is called when all of them are gone. They are called from
    the reading task and must return at once.
    """

    def __init__(
        self,
        factory: ClientFactory,
        prefixes: Sequence[str],
        vitals: Vitals,
        *,
        on_changed: Callable[[list[bytes]], None],
        on_flushed: Callable[[], None],
        patience: float = PATIENCE,
        mode: CaptureMode = "tracking",
        on_event: Callable[[bytes, str], None] | None = None,
    ) -> None:
        self.mode: CaptureMode = mode
        self.lost: asyncio.Event = asyncio.Event()
        self.why_lost = ""
        self.heard_at = time.monotonic()  #: monotonic: up to when all that happened is known
        self.round_trip = 0.0  #: seconds, the slow kind: rises at once, falls slowly
        self.refused: dict[str, str] = {}  #: rights that are missing, with the server's words
        self.finder: MasterFinder | None = None  #: where there are Sentinels to ask
        self._factory = factory
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
        """Connect and begin to be told of changes. Raises `RedisLost`."""
        try:
            async with asyncio.timeout(OPEN_PATIENCE):
                if not await self._connect(3):
                    self.refused["hello"] = "HELLO is refused: no change is pushed"
                    self.mode = "scanning"
                    await self._connect(2)
        except (RedisError, OSError, TimeoutError) as error:
            await self.close()
            ours = self._vitals.shortages.check(error, "the connection to Redis")
            reason = DETAILS[ours] if ours is not None else _in_words(error)
            raise RedisLost(reason) from error
        parser: Any = getattr(self._connection, "_parser", None)
        if "hello" not in self.refused:
            parser.set_invalidation_push_handler(self._told_of_keys)
            parser.set_pubsub_push_handler(self._told_of_event)
        self.finder = master_finder(self._client) if self._client is not None else None
        self._reader = asyncio.create_task(self._read(), name="redis-link")
        await self._choose_capture()

    async def _connect(self, protocol: int) -> bool:
        """Whether the server speaks this protocol. Raises what redis-py does."""
        cancels = _cancels()
        self._client = self._factory()
        pool: Any = getattr(self._client, "connection_pool", None)
        if pool is None:
            raise RedisError("a mirror needs one Redis or Sentinel, not a Cluster")
        options: dict[str, Any] = pool.connection_kwargs
        # Time limits are ours: the library's would break off a wait for news. So is the name. What
        # else the library asks for by itself costs round trips, and rights.
        self._name = options.pop("client_name", None)
        for extra in ("pool_handler", "config"):
            options.pop(f"maint_notifications_{extra}", None)
        options.update(protocol=protocol, socket_timeout=None, driver_info=None)
        self._db = int(options.get("db") or 0)
        self._connection = connection = pool.make_connection()
        try:
            await connection.connect()
        except (ResponseError, NoPermissionError) as error:
            # `NOAUTH HELLO must be called ...` and a wrong password are not about the command.
            if protocol != 3 or not _no_hello(str(error)):
                raise
            await connection.disconnect(nowait=True)
            await self._client.aclose()
            return False
        _honour(cancels)
        return True

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port that the connection goes to; None for a unix socket."""
        connection: Any = self._connection
        host, port = getattr(connection, "host", None), getattr(connection, "port", None)
        return (str(host), int(port)) if host and port else None

    @property
    def patience(self) -> float:
        """Seconds within which this server replies to anything, as far as it is known."""
        return self.at_least(self._patience)

    def at_least(self, seconds: float) -> float:
        """So many seconds, and what a distant server needs beyond them."""
        return seconds + min(MOST_PATIENCE, ROUND_TRIPS * self.round_trip)

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
            if self.finder is not None:
                await self.finder.aclose()
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
        limit = self.patience if patience is None else patience
        asked = time.monotonic()
        cancels = _cancels()
        try:
            async with asyncio.timeout(limit):
                await connection.send_packed_command(
                    connection.pack_commands(commands), check_health=False
                )
                _honour(cancels)
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
        """Whether the Sentinels, asked anew, still name this server; the connection is given up
        where they name another. True where nobody can be asked."""
        if self.finder is None:
            return True
        master = await self.finder.where()
        if master is None or master == self.address:
            return True
        self._lose(f"the master moved to {master[0]}:{master[1]}")
        return False

    # --- what the server is ----------------------------------------------------------------------

    async def facts(self) -> ServerInfo:
        """Five sections of INFO (one each: several in one call came with Redis 7)."""
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
        facts = parse_facts("\n".join(texts))
        if facts.server_time is not None:
            self._vitals.skews.note("redis", facts.server_time)
        return facts

    async def _choose_capture(self) -> None:
        """The best way to be told of changes that this server grants."""
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
                    reply = _refusal(error)
                self.heard_at = time.monotonic()
                if reply is not _TOLD:
                    self._answered(reply)
                turns += 1
                if turns % SLICE == 0:
                    # Replies that are already in the buffer come without a pause; others wait.
                    await asyncio.sleep(0)
        except (RedisError, OSError) as error:
            self._lose(str(error) or type(error).__name__)
        except Exception as odd:
            # Not what a Redis sends. The connection cannot be trusted, the mirror begins anew.
            self._lose(f"odd reply: {odd!r}"[:200])

    def _answered(self, reply: Any) -> None:
        if isinstance(reply, ResponseError):
            reply = _refusal(reply)
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
            if self._on_event is None:
                self._on_changed([key])
            else:
                self._on_event(key, bytes(message[3])[:64].decode("ascii", "replace"))
        return _TOLD

    def _lose(self, why: str, *, silent: bool = False) -> None:
        if not self.lost.is_set():
            self.why_lost = why
            if not silent:  # all that was sent before the end has arrived
                self.heard_at = time.monotonic()
            self.lost.set()
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.future.done():
                waiting.future.set_exception(RedisLost(why))
                # The caller may have given up already; then nobody else asks for it.
                waiting.future.exception()


def _refusal(error: ResponseError) -> CommandError:
    # redis-py cuts the code off the errors that it has classes for.
    code, text = getattr(error, "status_code", None), str(error)
    if isinstance(code, str) and code != "ERR" and not text.startswith(code):
        text = f"{code} {text}"
    return CommandError(text, isinstance(error, NoPermissionError))


def _cancels() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


def _honour(cancels: int) -> None:
    """Raise a cancellation that redis-py swallowed: it uses `asyncio.wait_for` (see `waiting`)."""
    if _cancels() > cancels:
        raise asyncio.CancelledError


# --- pure -----------------------------------------------------------------------------------------

_FLUSH = re.compile(
    r"^cmdstat_(?:flushall|flushdb|swapdb):calls=([0-9]{1,18})(?![0-9])", re.MULTILINE
)
_NUMBER = re.compile(r"[0-9]{1,18}")


def _in_words(error: Exception) -> str:
    """Why there is no connection, for an operator. Redis answers `HELLO` without a password at
    length, and says nothing of passwords."""
    text = str(error)
    no_login = text.startswith(("NOAUTH", "HELLO must be called"))
    if no_login or isinstance(error, AuthenticationError):
        return f"it refuses our user name or password ({text.partition(',')[0]})"
    return text or type(error).__name__


def _no_hello(text: str) -> bool:
    """Whether this refusal of a connection's first command is about HELLO itself."""
    text = text.lower()
    return "hello" in text and ("unknown command" in text or "no permissions" in text)


def no_permission(reply: object) -> bool:
    """Whether a command was refused by the server's access lists."""
    return isinstance(reply, CommandError) and reply.right_missing


_REFUSES_ALL = ("OOM", "MISCONF", "READONLY", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN")


def refuses_writes(reply: object) -> str | None:
    """Why the server takes writes from nobody now; None when it does, or when the refusal is about
    this command or our user alone."""
    if isinstance(reply, CommandError) and reply.text.startswith(_REFUSES_ALL):
        return reply.text[:200]
    return None


def parse_facts(info: str) -> ServerInfo:
    """Read the text of INFO. A section that was refused leaves its facts None."""
    fields = dict(line.strip().split(":", 1) for line in info.splitlines() if ":" in line)
    statistics = "cmdstat_" in info
    micros = _number(fields.get("server_time_usec"))
    return ServerInfo(
        run_id=fields.get("run_id"),
        flushes=sum(int(count) for count in _FLUSH.findall(info)) if statistics else None,
        evicted=_number(fields.get("evicted_keys")),
        loading=fields.get("loading", "0") != "0",
        replication=fields.get("master_replid"),
        replica=fields.get("role") == "slave",
        commands=_number(fields.get("total_commands_processed")),
        server_time=None if micros is None else micros / 1e6,
    )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and _NUMBER.fullmatch(text) else None


def notifies(reply: Any) -> bool:
    """Whether CONFIG GET says that keyspace events of strings and of removals are published."""
    pairs = reply.items() if isinstance(reply, dict) else []
    flags = b"".join(bytes(value) for _, value in pairs)
    if b"K" not in flags:
        return False
    return b"A" in flags or all(flag in flags for flag in (b"g", b"$", b"x"))
