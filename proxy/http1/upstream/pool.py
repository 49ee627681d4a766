"""The connections to one target: few, reused, discarded early, never unbounded.

`TargetPool` decides synchronously. A caller gets an idle connection at once, or a
`ConnectionRequest` that is served by the next connection to be released or dialled. Only dialling
is asynchronous; a dial belongs to the pool, not to the caller, so nothing is wasted when a caller
leaves. The rules:

 1. The connection used last is reused first (LIFO), so that the others time out.
 2. A connection idle longer than `keepalive` is not used: the app closes its side after 5 s, and a
    request that crosses that close is lost. Anything that arrives while a connection is idle, data
    or EOF, also ends it: unsolicited bytes are not the response to the next request.
 3. At most `max_connections` are open or being opened; at most `queue` callers wait beyond that.
 4. A failed dial is reported to one waiting caller, the one at the head of the queue.
 5. A caller that asks for a `fresh` connection never gets a used one; an idle connection is closed
    to make room.
 6. Routes take turns in the queue, and so do the clients of each route (queue.py).
 7. No client gets all connections while others are active, nor do slow requests; slow readers and
    tunnels hold at most half of them while somebody waits (places.py).
 8. With `keep_abandoned`, a request whose client has left keeps its place until its response
    begins, because the upstream still works on it. It counts as its client's in the queue's
    rounds. Such requests hold at most half of the places while somebody waits (places.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proxy.config.upstreams import Pool as PoolConfig
from proxy.core.clock import Clock
from proxy.core.errors import Overloaded
from proxy.core.memory.budget import MemoryBudget
from proxy.http1.client import ClientStream
from proxy.http1.deadlines import NEVER, Sweeper
from proxy.http1.heads import HeadMemo
from proxy.http1.response_head import parse_response
from proxy.http1.upstream.abandoned import Abandoned, user_of
from proxy.http1.upstream.connection import UpstreamStream
from proxy.http1.upstream.places import FEW, HELD_UP, LATELY, LEAST, SLOW, Places
from proxy.http1.upstream.queue import ConnectionQueue, ConnectionRequest, client_of
from proxy.http1.upstream.target import Target


class TargetPool:
    """The connections to one target. `on_connect` gets the seconds that each successful dial
    took."""

    def __init__(
        self,
        target: Target,
        settings: PoolConfig,
        clock: Clock,
        sweeper: Sweeper,
        memory: MemoryBudget,
        on_connect: Callable[[float], None],
    ) -> None:
        self.target = target
        self.label = str(target.address)
        self.sweeper = sweeper
        self.memory = memory
        self.memo = HeadMemo(parse_response)
        self._settings = settings
        self._clock = clock
        self._on_connect = on_connect
        self._idle: list[UpstreamStream] = []
        self._waiting = ConnectionQueue()
        most = settings.max_connections
        self._places = Places(most)
        self._few = LEAST <= most <= FEW  # the last connection is reserved (places.py)
        self._last = most - 1
        self._recheck: asyncio.TimerHandle | None = None
        self._open: set[UpstreamStream] = set()
        self._dials: set[asyncio.Task[None]] = set()
        self._in_use = 0
        self._unwanted: set[UpstreamStream] = set()  # in use, and to make way for others
        #: Requests whose client has left, in the order in which the clients left.
        self._abandoned: dict[Abandoned, None] = {}
        self._closed = False

    @property
    def outstanding(self) -> int:
        """The number of exchanges that use a connection or wait for one."""
        return self._in_use + len(self._waiting)

    @property
    def active_connections(self) -> int:
        return self._in_use

    @property
    def idle_connections(self) -> int:
        return len(self._idle)

    @property
    def full(self) -> bool:
        """Whether a new caller would be refused."""
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
            now = self._clock.monotonic()
            if stream.idle_until <= now or stream.has_pending_input():
                stream.close()
                continue
            stream.owner = owner
            stream.since = now
            stream.deadline = NEVER
            self._in_use += 1
            return stream
        return None

    def ask(
        self, owner: ClientStream, *, fresh: bool = False, route: str = ""
    ) -> ConnectionRequest:
        """Queue for a connection, and dial if there is room. `fresh` asks for one that has not been
        used before; an idle one makes room for it. Raises `Overloaded` when the queue is full."""
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
        """Report that the client of `stream` has taken `taken` bytes and takes no more now. Returns
        when to report again; `stream.unwanted` may be set by then."""
        again = self._places.hold_up(stream, taken, self._clock.monotonic())
        self.make_way()
        return again if self._waiting else NEVER

    def hold_up_tunnel(self, stream: UpstreamStream, moved: int) -> float:
        """The same for a tunnel that has moved `moved` bytes: where connections are few, tunnels
        count as slow readers. Somebody may wait before they have for long enough."""
        if not self._few:
            return NEVER
        new = stream not in self._places.held_up
        again = self.hold_up(stream, moved)
        return self._clock.monotonic() + HELD_UP if new else again

    def flows(self, stream: UpstreamStream) -> None:
        """Report that the client of `stream` reads again."""
        self._places.flows(stream)

    def make_way(self) -> None:
        """Free a place for a waiting caller: that of a slow reader, if there are too many, or that
        of an abandoned request."""
        if not self._waiting or self._idle or self._has_room():
            return
        if self._served_next() <= len(self._dials) + len(self._unwanted):
            return  # the dials in progress will serve them, or those that have to make way
        now = self._clock.monotonic()
        stream = self._places.unwanted(now)
        if stream is not None and not isinstance(stream.owner, Abandoned | None):
            stream.unwanted = True
            self._unwanted.add(stream)
            stream.owner.wake()
        first = next(iter(self._abandoned), None) if self._few else None
        if first is not None and self._places.gives_up(
            first.left_at, len(self._abandoned) - 1, now
        ):
            self._places.give_up(first.client, first.until)
            first.end()

    def now(self) -> float:
        """The current time in monotonic seconds."""
        return self._clock.monotonic()

    def _may_have(self, owner: ClientStream) -> bool:
        """Whether `owner` may have a free connection (places.py, rules 1, 2 and 4)."""
        places = self._places
        last = self._in_use == self._last
        if not self._few or not (last or self._half_matters):
            return True
        who, now = client_of(owner), self._clock.monotonic()
        users = [(user_of(one.owner), one.since) for one in self._open if one.owner is not None]
        if last and places.keeps_last_from(who, users, now):
            return False
        left = {one.client for one in self._abandoned}
        return not places.keeps_half_from(who, [user for user, _ in users], left, now)

    @property
    def _half_matters(self) -> bool:
        return self._places.half_matters(len(self._abandoned))

    def _may(self, ticket: ConnectionRequest) -> bool:
        return self._may_have(ticket.owner)

    def _served_next(self) -> int:
        """The number of waiting callers that may have a connection now."""
        if not self._few or not (self._in_use == self._last or self._half_matters):
            return len(self._waiting)
        may = sum(map(self._may, self._waiting))
        if may < len(self._waiting) and self._recheck is None and not self._closed:
            # If other clients stay away, the last connection is free for anybody again.
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
        """The caller no longer wants the connection that it queued for."""
        if ticket.stream is not None:
            self.release(ticket.stream, reusable=True)
        elif ticket in self._waiting:
            self._waiting.remove(ticket)

    def release(self, stream: UpstreamStream, *, reusable: bool) -> None:
        """The exchange on `stream` is over. `reusable`: both messages were complete and the
        connection persists."""
        self._in_use -= 1
        if self._few and stream.owner is not None:
            now = self._clock.monotonic()
            if now - stream.since > SLOW:
                self._places.was_slow(user_of(stream.owner), now)
        if self._abandoned and isinstance(stream.owner, Abandoned):
            self._abandoned.pop(stream.owner, None)
            stream.deadline = NEVER
        stream.owner = None
        if self._places.held_up:
            self._places.flows(stream)
        self._unwanted.discard(stream)
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

        The place is freed when the response begins (rule 8), when the connection ends, or at the
        monotonic second `until`; at once without `keep_abandoned`.
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
        """Close an idle connection that has ended, has received data, or has been idle too long."""
        if stream in self._idle:
            self._idle.remove(stream)
        stream.drop()
        stream.close()

    def forget(self, stream: UpstreamStream) -> None:
        """The connection has ended."""
        self._open.discard(stream)

    def close(self) -> None:
        """Close idle and abandoned connections now, and those in use when they are released.
        Callers that wait, and exchanges in progress that ask later, are still served."""
        self._closed = True
        if self._recheck is not None:
            self._recheck.cancel()
        for abandoned in list(self._abandoned):
            abandoned.end()
        for stream in self._idle:
            stream.close()
        self._idle.clear()

    async def wait_closed(self) -> None:
        """Cancel and await the dials in progress."""
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
        """Close the connection that has been idle longest; whether there was one. A caller that
        waits although there are idle connections cannot use them."""
        if not self._idle:
            return False
        self._idle.pop(0).close()
        return True

    def _dialled(self, dial: asyncio.Task[None]) -> None:
        self._dials.discard(dial)
        self._dial_for_waiting()

    def _hand_over(self, stream: UpstreamStream) -> None:
        """Give `stream` to the first caller that can use it, else keep it idle or, in a closed
        pool, close it."""
        ticket: ConnectionRequest | None = None
        if self._waiting:
            ticket = self._next(stream)
        if ticket is not None:
            self._waiting.serve(ticket)
            ticket.stream = stream
            stream.owner = ticket.owner
            stream.since = self._clock.monotonic()
            self._in_use += 1
            ticket.owner.wake()
            return
        if self._waiting and len(self._dials) < self._served_next():
            stream.abort()  # the callers need fresh connections, and this one takes up a place
            self._dial_for_waiting()
            return
        if self._closed:
            stream.abort()
            return
        self._keep(stream)

    def _keep(self, stream: UpstreamStream) -> None:
        """Keep `stream` as an idle connection."""
        stream.owner = None
        stream.idle_until = stream.deadline = self._clock.monotonic() + self._settings.keepalive
        self._idle.append(stream)

    def _next(self, stream: UpstreamStream) -> ConnectionRequest | None:
        """The caller that gets `stream`: the first that may have it. None if a caller that needs a
        fresh connection has no dial in progress: it would starve while others take turns."""
        first = self._waiting.first(self._may)
        if first is None or not (stream.reused and first.fresh):
            return first
        if len(self._dials) < sum(ticket.fresh for ticket in self._waiting):
            return None
        return self._waiting.first(lambda ticket: not ticket.fresh and self._may(ticket))

    async def _dial(self) -> None:
        started = self._clock.monotonic()
        try:
            stream = await self.target.dial(lambda: UpstreamStream(self))
        except Exception as error:  # refused, unreachable, name unknown, TLS, time-out
            self._refuse(error)
            return
        self._on_connect(self._clock.monotonic() - started)
        self.adopt(stream)

    def _refuse(self, error: Exception) -> None:
        """Fail the first waiting caller with `error` (rule 4)."""
        if (ticket := self._waiting.first()) is not None:
            self._waiting.serve(ticket)
            ticket.error = error
            ticket.owner.wake()

    def adopt(self, stream: UpstreamStream) -> None:
        """Add a new connection to the pool."""
        if stream.lost:
            self._refuse(stream.error or ConnectionResetError("closed as soon as it was opened"))
            return
        self.sweeper.add(stream)
        self._open.add(stream)
        self._hand_over(stream)
