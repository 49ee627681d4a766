"""Connections to the targets of one upstream: few, reused, given up early, never unbounded.

`TargetPool` decides synchronously: an idle connection at once, or a `ConnectionRequest` that is
served by the first connection that is released or dialled. Only dialling is asynchronous; a dial
belongs to the pool, not to who asked, so a caller that leaves wastes nothing. The rules:

 1. The connection used last is used first (LIFO), so that the others grow old and go.
 2. A connection idle longer than `keepalive` is not used: the app closes its side after 5 s, and a
    request that crosses that close on the wire is lost. Anything that arrives while idle, be it
    data or an end, also ends it: unsolicited bytes are not the answer to the next request.
 3. At most `max_connections` are open or being opened; at most `queue` callers wait beyond that.
 4. A failed dial is told to one waiting caller, the one at the head of the queue.
 5. Who asks for a `fresh` connection never gets one that has carried an exchange: a kept one is
    closed to make room.
 6. Routes take turns in the queue, and so do the clients of each (queue.py).
 7. No client has all connections while others are there, and slow takers of answers hold half of
    them at most while somebody waits (places.py).
 8. With `keep_abandoned`, a request whose client has left keeps its place until its answer begins:
    the upstream still works on it. It counts as one of its client's in the queue's rounds. Such
    places are half of all at most while somebody waits (places.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket
import ssl
from collections.abc import Callable, Sequence
from random import Random

from proxy.config.units import TargetAddress
from proxy.config.upstreams import Pool as PoolConfig
from proxy.core.clock import Clock
from proxy.core.errors import Overloaded
from proxy.core.memory.budget import MOST, MemoryBudget
from proxy.http1.client import ClientStream
from proxy.http1.deadlines import NEVER, Sweeper
from proxy.http1.heads import HeadMemo, ResponseHead, parse_response
from proxy.http1.stream import Stream
from proxy.http1.upstream.abandoned import Abandoned
from proxy.http1.upstream.places import FEW, HELD_UP, LATELY, LEAST, Places
from proxy.http1.upstream.queue import ConnectionQueue, ConnectionRequest, client_of
from proxy.http1.upstream.tls_dial import dial_tls

# An upstream's head may be larger than a client's: cookies and link headers are its own to bound.
_STATUS_LINE_LIMIT = 8 * 1024
_HEAD_LIMIT = 64 * 1024
MAX_FIELDS = 256

#: Errors that a peer's reset leaves: the second where we have written since.
_RESET = (errno.ECONNRESET, errno.EPIPE)


class UpstreamStream(Stream):
    """A connection that we opened to a target. `owner` is the client whose exchange uses it, or
    what stands in for one that has left."""

    __slots__ = ("_poll", "idle_until", "owner", "pool", "reused", "unwanted")

    def __init__(self, pool: TargetPool) -> None:
        super().__init__(pool.memory, pool.sweeper.turns)
        self.pool = pool
        self.owner: ClientStream | Abandoned | None = None
        self.reused = False  # it has already carried an exchange
        self.unwanted = False  # its client takes the answer slowly, and others wait
        self.idle_until = NEVER
        self._poll = select.poll()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        raw = transport.get_extra_info("socket")
        self._poll.register(raw.fileno(), select.POLLIN | select.POLLRDHUP)

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None and not isinstance(self.owner, Abandoned | None):
            self._read_last_words()
        super().connection_lost(error)
        self.taker = None
        self.pool.sweeper.discard(self)
        self.pool.forget(self)

    def _read_last_words(self) -> None:
        """Take in what the kernel still holds of a connection that a failed write has ended.

        An app that refuses an upload answers and closes without reading on, which resets the
        connection. The event loop gives up reading at the first write that meets the reset, though
        the answer has arrived before it. Over TLS it has been read by now (tls_dial.py).
        """
        if self.transport.get_extra_info("ssl_object") is not None:
            return
        descriptor = self.transport.get_extra_info("socket").fileno()
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as raw:
            while self._inbox_size <= MOST:
                data = raw.recv(MOST, socket.MSG_DONTWAIT)
                if not data:
                    break
                self.data_received(data)

    def notify(self) -> None:
        if self.owner is not None:
            self.owner.notify()
        else:
            self.pool.retire(self)

    def mark_greedy(self) -> None:
        if self.owner is not None:
            self.owner.mark_greedy()

    def on_deadline(self) -> None:
        if self.owner is None:
            self.pool.retire(self)
        elif isinstance(self.owner, Abandoned):
            self.owner.on_deadline(self.pool.now())

    def read_head(self) -> ResponseHead | None:
        """The response head, or None while it is not complete. Raises `ProtocolError`."""
        if not self.inbox:
            return None
        found = self.find_head(_STATUS_LINE_LIMIT, _HEAD_LIMIT)
        if found is None:
            return None
        data, end = found
        head = self.pool.memo.read(data, end, MAX_FIELDS)
        self.take_head(end, None)
        return head

    def saw_reset(self) -> bool:
        """Whether the peer has reset this connection; asks the kernel where the loop does not know.
        Over TLS nobody can say."""
        if isinstance(self.error, (ConnectionResetError, BrokenPipeError)):
            return True
        if self.lost:
            return False
        raw = self.transport.get_extra_info("socket")
        if raw is None or self.transport.get_extra_info("ssl_object") is not None:
            return False
        return raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in _RESET

    def has_pending_input(self) -> bool:
        """Whether the kernel already has an end, or bytes, that the event loop has yet to tell.

        Half a microsecond that decides whose answer the next bytes are: what an upstream sent
        before it was asked must never be taken for the answer.
        """
        return bool(self._poll.poll(0))


def _user(owner: ClientStream | Abandoned) -> object:
    return owner.client if isinstance(owner, Abandoned) else client_of(owner)


class TargetPool:
    """The connections to one target.

    `connect_timeout` is in seconds and includes the TLS handshake; `tls` is the context for an
    https target, `server_name` what it must prove to be. `on_connect` is told how long each
    successful dial took.
    """

    def __init__(
        self,
        address: TargetAddress,
        settings: PoolConfig,
        connect_timeout: float,
        clock: Clock,
        sweeper: Sweeper,
        memory: MemoryBudget,
        on_connect: Callable[[float], None],
        tls: ssl.SSLContext | None = None,
        server_name: str | None = None,
    ) -> None:
        self.address = address
        self.label = str(address)
        self.sweeper = sweeper
        self.memory = memory
        self.memo = HeadMemo(parse_response)
        self._settings = settings
        self._connect_timeout = connect_timeout
        self._clock = clock
        self._on_connect = on_connect
        self.tls = tls  # what a reload replaces: certificate files may have changed
        self._server_name = server_name
        self._idle: list[UpstreamStream] = []
        self._waiting = ConnectionQueue()
        most = settings.max_connections
        self._places = Places(most)
        self._few = LEAST <= most <= FEW  # the last of them is not for everybody
        self._last = most - 1
        self._recheck: asyncio.TimerHandle | None = None
        self._open: set[UpstreamStream] = set()
        self._dials: set[asyncio.Task[None]] = set()
        self._in_use = 0
        #: Those in use whose client has left, the first that left first.
        self._abandoned: dict[Abandoned, None] = {}
        self._closed = False

    @property
    def outstanding(self) -> int:
        """Exchanges that use a connection or wait for one."""
        return self._in_use + len(self._waiting)

    @property
    def active_connections(self) -> int:
        return self._in_use

    @property
    def idle_connections(self) -> int:
        return len(self._idle)

    @property
    def full(self) -> bool:
        """Whether whoever asks is refused."""
        room = self._idle or self._has_room()
        return not room and len(self._waiting) >= self._settings.queue + len(self._dials)

    def checkout(self, owner: ClientStream) -> UpstreamStream | None:
        """An idle connection for `owner`, if there is one."""
        idle = self._idle
        if self._few:
            who = client_of(owner)
            if who != self._places.seen:
                self._places.saw(who, self._clock.monotonic())
            scarce = self._in_use == self._last or self._half_matters
            if scarce and not self._may_have(owner):
                return None
        while idle:
            stream = idle.pop()
            if stream.idle_until <= self._clock.monotonic() or stream.has_pending_input():
                stream.close()
                continue
            stream.owner = owner
            stream.deadline = NEVER
            self._in_use += 1
            return stream
        return None

    def ask(
        self, owner: ClientStream, *, fresh: bool = False, route: str = ""
    ) -> ConnectionRequest:
        """A place in the queue; dials if there is room. `fresh` asks for a connection that has not
        been used before; a kept one makes room for it. Raises `Overloaded` when all is full."""
        ticket = ConnectionRequest(self, owner, fresh=fresh, route=route)
        who = client_of(owner)
        if who != self._places.seen:
            self._places.saw(who, self._clock.monotonic())
        left_behind = sum(one.client == who for one in self._abandoned)
        gives_way = self._waiting.enter(ticket, left_behind=left_behind, full=self.full)
        if gives_way is ticket:
            raise self._overloaded()
        if gives_way is not None:
            gives_way.error = self._overloaded()
            gives_way.owner.wake()
        self._dial_for_waiting()
        self.make_way()
        return ticket

    def hold_up(self, stream: UpstreamStream, taken: int) -> float:
        """The client that `stream` answers has taken `taken` bytes and takes no more now. Until
        when to wait before it is said again; `stream.unwanted` may be set then."""
        again = self._places.hold_up(stream, taken, self._clock.monotonic())
        self.make_way()
        return again if self._waiting else NEVER

    def flows(self, stream: UpstreamStream) -> None:
        """The client takes its answer again."""
        self._places.flows(stream)

    def make_way(self) -> None:
        """Who waits gets the place of who takes an answer slowly, if too many do, or of who has
        left it behind."""
        if not self._waiting or self._idle or self._has_room():
            return
        if self._served_next() <= len(self._dials):
            return  # they get those that are being opened
        now = self._clock.monotonic()
        stream = self._places.unwanted(now)
        if stream is not None and not isinstance(stream.owner, Abandoned | None):
            stream.unwanted = True
            stream.owner.wake()
        first = next(iter(self._abandoned), None) if self._few else None
        if first is not None and self._places.gives_up(
            first.left_at, len(self._abandoned) - 1, now
        ):
            self._places.give_up(first.client, first.until)
            first.end()

    def now(self) -> float:
        """The monotonic second."""
        return self._clock.monotonic()

    def _may_have(self, owner: ClientStream) -> bool:
        """Whether `owner` may have a connection that is free (places.py, rules 1 and 3)."""
        places = self._places
        last = self._in_use == self._last
        if not self._few or not (last or self._half_matters):
            return True
        who, now = client_of(owner), self._clock.monotonic()
        users = [_user(stream.owner) for stream in self._open if stream.owner is not None]
        if last and places.keeps_last_from(who, users, now):
            return False
        left = {one.client for one in self._abandoned}
        return not places.keeps_half_from(who, users, left, now)

    @property
    def _half_matters(self) -> bool:
        return self._places.half_matters(len(self._abandoned))

    def _may(self, ticket: ConnectionRequest) -> bool:
        return self._may_have(ticket.owner)

    def _served_next(self) -> int:
        """How many of those who wait may have a connection now."""
        if not self._few or not (self._in_use == self._last or self._half_matters):
            return len(self._waiting)
        may = sum(map(self._may, self._waiting))
        if may < len(self._waiting) and self._recheck is None and not self._closed:
            # Others may stay away: then the last one is for anybody again.
            later = asyncio.get_running_loop().call_later
            self._recheck = later(LATELY, self._check_again)
        return may

    def _check_again(self) -> None:
        self._recheck = None
        ticket = self._waiting.first(lambda one: not one.fresh and self._may(one))
        if ticket is not None and (stream := self.checkout(ticket.owner)) is not None:
            self._waiting.serve(ticket)
            ticket.stream = stream
            ticket.owner.wake()
        self._dial_for_waiting()

    def _overloaded(self) -> Overloaded:
        return Overloaded(
            f"all {self._settings.max_connections} connections to {self.label} are in use "
            f"and {len(self._waiting)} requests wait already",
            retry_after=1,
            reason="queue_full",
        )

    def give_up(self, ticket: ConnectionRequest) -> None:
        """The caller no longer wants what `ticket` stands for."""
        if ticket.stream is not None:
            self.release(ticket.stream, reusable=True)
        elif ticket in self._waiting:
            self._waiting.remove(ticket)

    def release(self, stream: UpstreamStream, *, reusable: bool) -> None:
        """The exchange on `stream` is over. `reusable`: both messages were complete, and the
        connection persists."""
        self._in_use -= 1
        if self._abandoned and isinstance(stream.owner, Abandoned):
            self._abandoned.pop(stream.owner, None)
            stream.deadline = NEVER
        stream.owner = None
        if self._places.held_up:
            self._places.flows(stream)
        if reusable and not (stream.eof or stream.inbox or stream.transport.is_closing()):
            stream.reused = True
            if self._waiting or self._closed:
                self._hand_over(stream)
            else:
                self._keep(stream)
        else:
            stream.drop()
            stream.abort()
            self._dial_for_waiting()

    def abandon(self, stream: UpstreamStream, client: ClientStream, until: float) -> None:
        """`client` has left after its whole request was sent on `stream`.

        Its place is free when the answer begins (rule 8), the connection ends or the monotonic
        second `until` is past; at once where such places are not kept.
        """
        if self._closed or not self._settings.keep_abandoned:
            self.release(stream, reusable=False)
            return
        now = self._clock.monotonic()
        stand_in = Abandoned(stream, client_of(client), now, until)
        self._abandoned[stand_in] = None
        stream.owner = stand_in
        stream.deadline = min(until, now + HELD_UP)
        stand_in.notify()

    def retire(self, stream: UpstreamStream) -> None:
        """An idle connection has ended, has spoken out of turn, or has been idle too long."""
        if stream in self._idle:
            self._idle.remove(stream)
        stream.drop()
        stream.close()

    def forget(self, stream: UpstreamStream) -> None:
        """It has ended."""
        self._open.discard(stream)

    def close(self) -> None:
        """Close idle and abandoned connections now, and those in use when they are released. Who
        waits already, or asks because its exchange began before, is still served."""
        self._closed = True
        if self._recheck is not None:
            self._recheck.cancel()
        for abandoned in list(self._abandoned):
            abandoned.end()
        for stream in self._idle:
            stream.close()
        self._idle.clear()

    async def wait_closed(self) -> None:
        """Cancel and await what is still being dialled."""
        dials = list(self._dials)
        for dial in dials:
            dial.cancel()
        await asyncio.gather(*dials, return_exceptions=True)

    def _has_room(self) -> bool:
        open_or_opening = self._in_use + len(self._idle) + len(self._dials)
        return open_or_opening < self._settings.max_connections

    def _dial_for_waiting(self) -> None:
        while self._served_next() > len(self._dials) and (self._has_room() or self._make_room()):
            dial = asyncio.get_running_loop().create_task(self._dial(), name=f"dial {self.label}")
            self._dials.add(dial)
            dial.add_done_callback(self._dialled)

    def _make_room(self) -> bool:
        """Close the connection that has been idle longest: who waits while there are idle ones
        cannot use them."""
        if not self._idle:
            return False
        self._idle.pop(0).close()
        return True

    def _dialled(self, dial: asyncio.Task[None]) -> None:
        self._dials.discard(dial)
        self._dial_for_waiting()

    def _hand_over(self, stream: UpstreamStream) -> None:
        """To the first who waits for such a one, else to the idle ones, of which a closed pool has
        none."""
        ticket: ConnectionRequest | None = None
        if self._waiting:
            ticket = self._next(stream)
        if ticket is not None:
            self._waiting.serve(ticket)
            ticket.stream = stream
            stream.owner = ticket.owner
            self._in_use += 1
            ticket.owner.wake()
            return
        if self._waiting and len(self._dials) < self._served_next():
            stream.abort()  # they wait for fresh ones, and this takes their room
            self._dial_for_waiting()
            return
        if self._closed:
            stream.abort()
            return
        self._keep(stream)

    def _keep(self, stream: UpstreamStream) -> None:
        """Nobody wants it now."""
        stream.owner = None
        stream.idle_until = stream.deadline = self._clock.monotonic() + self._settings.keepalive
        self._idle.append(stream)

    def _next(self, stream: UpstreamStream) -> ConnectionRequest | None:
        """Who gets `stream`: the first who may have it, unless somebody who needs a fresh one waits
        without a dial on its way, who would wait for ever while others take turns."""
        first = self._waiting.first(self._may)
        if first is None or not (stream.reused and first.fresh):
            return first
        if len(self._dials) < sum(ticket.fresh for ticket in self._waiting):
            return None
        return self._waiting.first(lambda ticket: not ticket.fresh and self._may(ticket))

    async def _dial(self) -> None:
        loop = asyncio.get_running_loop()
        started = self._clock.monotonic()
        address, tls = self.address, self.tls
        try:
            async with asyncio.timeout(self._connect_timeout):
                if address.path is not None:
                    _, stream = await loop.create_unix_connection(
                        lambda: UpstreamStream(self), address.path
                    )
                elif tls is not None:
                    name = self._server_name or address.host
                    stream = await dial_tls(
                        lambda: UpstreamStream(self), address.host, address.port, tls, name
                    )
                else:
                    _, stream = await loop.create_connection(
                        lambda: UpstreamStream(self), address.host, address.port
                    )
        except Exception as error:  # refused, unreachable, name unknown, TLS, time-out
            self._refuse(error)
            return
        self._on_connect(self._clock.monotonic() - started)
        self.adopt(stream)

    def _refuse(self, error: Exception) -> None:
        """Tell the first who waits that it gets no connection (rule 4)."""
        if (ticket := self._waiting.first()) is not None:
            self._waiting.serve(ticket)
            ticket.error = error
            ticket.owner.wake()

    def adopt(self, stream: UpstreamStream) -> None:
        """Take in a new connection."""
        if stream.lost:
            self._refuse(stream.error or ConnectionResetError("closed as soon as it was opened"))
            return
        self.sweeper.add(stream)
        self._open.add(stream)
        self._hand_over(stream)


class Upstream:
    """All targets of one upstream; chooses between them."""

    def __init__(self, name: str, pools: Sequence[TargetPool], random: Random) -> None:
        self.name = name
        self.pools = tuple(pools)
        self._random = random
        self._only = pools[0] if len(pools) == 1 else None
        self._turn: TargetPool | None = None  # chosen, and had no kept connection

    def checkout(
        self, owner: ClientStream, usable: Sequence[str] | None = None
    ) -> UpstreamStream | None:
        """A kept connection to the target that is chosen. Where that has none it is the next one to
        be asked: or else targets with connections would get more than their share."""
        if self._only is not None:
            return self._only.checkout(owner)
        pool = self.choose((), usable)
        stream = pool.checkout(owner)
        if stream is None:
            self._turn = pool
        return stream

    def choose(
        self, tried: Sequence[TargetPool] = (), usable: Sequence[str] | None = None
    ) -> TargetPool:
        """The less busy of two random targets, of those not yet `tried` if there are any left, and
        of those first whose label is in `usable`. Where that is full, the least busy of all.

        Two choices avoid the herd that the least busy of all attracts (Mitzenmacher, 2001).
        """
        if self._only is not None:
            return self._only
        turn, self._turn = self._turn, None
        if turn is not None and turn not in tried and (usable is None or turn.label in usable):
            return turn
        left = [pool for pool in self.pools if pool not in tried] or list(self.pools)
        if usable is not None:
            left = [pool for pool in left if pool.label in usable] or left
        if len(left) == 1:
            return left[0]
        one, other = self._random.sample(left, 2)
        chosen = one if one.outstanding <= other.outstanding else other
        return min(left, key=lambda pool: pool.outstanding) if chosen.full else chosen

    def close(self) -> None:
        for pool in self.pools:
            pool.close()

    async def wait_closed(self) -> None:
        for pool in self.pools:
            await pool.wait_closed()
