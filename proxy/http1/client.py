"""A client's connection, and the one place where its coroutine waits.

One coroutine serves each client connection. Every event that it can wait for (input from the
client, its upstream connection, a free connection, a deadline) wakes it through `notify`; it then
checks the current state and decides. Nothing is ever cancelled, and no wake-up is lost: one that
arrives while the coroutine runs ends its next wait at once.

The coroutine is not an asyncio task. It is resumed directly from the callback of the event, which
saves a future, a handle and a turn of the event loop each time, 4 us per exchange. The cost is that
`asyncio.current_task` does not return it, so code that needs a task (`asyncio.timeout`) must create
one (see forward/fallbacks.py). Plain futures can be awaited as usual.
"""

from __future__ import annotations

import asyncio
import fcntl
import ssl
import struct
import termios
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from proxy.core.clock import Clock
from proxy.core.futures import when_done
from proxy.core.memory.budget import MemoryBudget
from proxy.core.text import host_port
from proxy.http1.deadlines import NEVER, Sweeper
from proxy.http1.heads import HeadMemo
from proxy.http1.pace import GRACE
from proxy.http1.request_head import RequestHead, parse_request, reject_non_http
from proxy.http1.stream import Stream
from proxy.http1.turns import HEADS_PER_TURN

#: Seconds between two checks of a connection that we have closed and the client keeps open. It is
#: aborted once the client has received everything (it may never answer a TLS shutdown), or when it
#: has taken nothing for `_STALLED` seconds.
_CLOSING, _STALLED = 1.0, 30.0

#: Seconds after the start of a drain in which a request already on its way is still accepted: on a
#: connection that has been used, whose client expects that it may be closed, and on a new one,
#: whose client does not.
_UNDER_WAY, _FIRST = 0.05, 1.0

#: Bytes of a chunked body behind the head that are kept in one piece.
_CHUNKED = 64 * 1024


class Limits:
    """Limits for request heads in bytes and fields (config `limits`), and the minimum rate at which
    a head must arrive, in bytes a second."""

    __slots__ = ("fields", "head", "line", "memo", "min_rate")

    def __init__(self, line: int, head: int, fields: int, min_rate: int | None = None) -> None:
        self.min_rate = min_rate
        self.line = line
        self.head = head
        self.fields = fields
        self.memo = HeadMemo(parse_request)


class ClientStream(Stream):
    """A connection opened by a client. `serve` is the coroutine function that serves it."""

    __slots__ = (
        "_coroutine",
        "_greedy_until",
        "_heads",
        "_last_until",
        "_loop",
        "_on_gone",
        "_parked",
        "_progress",
        "_queued",
        "_serve",
        "_sweeper",
        "_unacknowledged",
        "_woken",
        "address",
        "asker",
        "clock",
        "cut",
        "draining",
        "ended",
        "eof_at",
        "excess",
        "held",
        "host_ip",
        "hurried",
        "requests",
        "secure",
        "share",
        "shed",
    )

    def __init__(
        self,
        clock: Clock,
        sweeper: Sweeper,
        memory: MemoryBudget,
        serve: Callable[[ClientStream], Coroutine[Any, Any, None]],
        on_gone: Callable[[ClientStream], None],
    ) -> None:
        super().__init__(memory, sweeper.turns)
        self.clock = clock
        self._sweeper = sweeper
        self._serve = serve
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._coroutine: Coroutine[Any, Any, None] | None = None
        self._parked = False  # the coroutine waits for `notify`
        self._woken = False  # something happened while it did not wait
        self._queued = False  # it waits for its turn
        self._heads = 0  # requests served since it was last resumed
        self._greedy_until = 0.0  # it had more than one slice of work until then
        #: Bytes held elsewhere on this connection's account (`Holding`).
        self.held = 0
        self.ended = False  # the coroutine has ended
        self._unacknowledged = NEVER  # bytes that the client had not acknowledged,
        self._progress = 0.0  # and when that number last fell
        self.eof_at = NEVER
        self.address = "unix"
        self.host_ip = ""
        self.secure = False
        self.share: Any = None  # its address's share of the listener, where clients are limited
        self.excess = False  # its client had too many when it was accepted
        self.asker: object = None  # the share that the current request counts towards
        self.requests = 0
        self._last_until = 0.0  # until when a drain waits for a last request to begin
        self.draining = False  # the exchange in progress is the last one
        self.hurried = False  # and must not wait for long
        self.cut = False  # and must end now
        self.shed = False  # to be closed to free memory

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not self.host_ip:
            self.came_from(transport.get_extra_info("peername"))
        self.secure = isinstance(transport.get_extra_info("ssl_object"), ssl.SSLObject)
        self._sweeper.add(self)
        self._coroutine = self._serve(self)
        self._step()

    def came_from(self, peer: object) -> None:
        """Set the client's address as `accept` returned it. The kernel no longer knows that of a
        connection that has been reset."""
        if isinstance(peer, tuple):
            self.host_ip = str(peer[0])
            self.address = host_port(self.host_ip, peer[1])

    @property
    def who(self) -> object:
        """The client for fairness between clients: the share of the current request, else that of
        the address, else the address itself."""
        return self.asker or self.share or self.host_ip

    def eof_received(self) -> bool:
        self.eof_at = self.clock.monotonic()
        return super().eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        ended = self.ended
        super().connection_lost(error)  # may end the coroutine, which then does the rest
        self.taker = None
        self._sweeper.discard(self)
        if ended:
            self._on_gone(self)

    def notify(self) -> None:
        """Resume the coroutine now. Only for callbacks of the event loop; others call `wake`."""
        if not self._parked:
            self._woken = True
        elif self._queued:
            return
        elif self.turns.begin():
            self._parked = False
            self._heads = 0
            self._step()
        else:
            self._queue()

    def _queue(self) -> None:
        self._queued = True
        self.turns.later(self._go_on, greedy=self.turns.before(self._greedy_until))

    def mark_greedy(self) -> None:
        self._greedy_until = self.turns.greedy_until()

    def _go_on(self) -> None:
        self._queued = False
        self._parked = False
        self._heads = 0
        self._step()

    def wake(self) -> None:
        """Resume the coroutine in the next turn of the event loop; safe to call from anywhere."""
        self._loop.call_soon(self.notify)

    def on_deadline(self) -> None:
        if self.ended:
            self._check_closing()
        else:
            self.notify()

    def close(self) -> None:
        super().close()
        if not self.lost:
            self.deadline = self.clock.monotonic() + _CLOSING

    def _check_closing(self) -> None:
        """The coroutine has ended but the connection has not: keep it only while the client still
        takes output."""
        if self._takes_within(_STALLED):
            self.deadline = self.clock.monotonic() + _CLOSING
        else:
            self.abort()

    def _takes_within(self, patience: float) -> bool:
        """Whether output is unacknowledged, and some was acknowledged in the last `patience`
        seconds."""
        now = self.clock.monotonic()
        unacknowledged = self.to_send()
        if unacknowledged < self._unacknowledged:
            self._progress = now
        self._unacknowledged = unacknowledged
        return unacknowledged > 0 and now < self._progress + patience

    async def output_taken(self, patience: float) -> bool:
        """Wait until the client has taken what was written; False if it has left, or has taken
        nothing for `patience` seconds."""
        self._unacknowledged = NEVER
        while self.write_paused and not (self.cut or self.shed):
            if not self._takes_within(patience) and self._unacknowledged:
                return False
            await self.wait(self.clock.monotonic() + min(patience, _CLOSING))
        return not (self.lost or self.shed)

    async def reset_when_sent(self) -> None:
        """Reset the connection once the client has received everything; an earlier reset would
        destroy data in flight (RFC 9112 §9.6)."""
        self._unacknowledged = NEVER
        while not self.lost and self._takes_within(_STALLED):
            await self.wait(self.clock.monotonic() + _UNDER_WAY)
        self.reset()

    def to_send(self) -> int:
        """Bytes that the client has not acknowledged, in the process and in the kernel."""
        raw = self.transport.get_extra_info("socket")
        if raw is None:
            return 0
        (queued,) = struct.unpack("i", fcntl.ioctl(raw.fileno(), termios.TIOCOUTQ, b"\0" * 4))
        return int(queued) + self.transport.get_write_buffer_size()

    def drain(self, within: float | None = None, *, hurry: bool = True) -> None:
        """Make the exchange in progress the last one, or the next if it begins `within` so many
        seconds. `hurry`: the process is about to stop, so do not wait for anything slow."""
        self.draining = True
        self.hurried = self.hurried or hurry
        wait = within or (_UNDER_WAY if self.requests else _FIRST)
        self._last_until = self.clock.monotonic() + wait
        self._loop.call_later(_UNDER_WAY, self.notify)

    def end_for_memory(self) -> None:
        """Close the connection to free memory, after a 503 if possible."""
        self.shed = True
        if self.ended:
            self.abort()
        else:
            self.wake()

    @types.coroutine
    def wait(self, deadline: float) -> Generator[None, None, None]:
        """Wait for an event or until `deadline` (monotonic). The caller then checks what
        changed."""
        if self._woken:
            self._woken = False
            return
        self.deadline = deadline
        self._parked = True
        yield

    @types.coroutine
    def give_way(self) -> Generator[None, None, None]:
        """Between two pipelined requests: yield to other connections once the slice is used up."""
        self._heads += 1
        if self._heads < HEADS_PER_TURN and not self.turns.over():
            return
        self._parked = True
        self.mark_greedy()
        self._queue()
        yield

    def _step(self, _: object = None) -> None:
        """Run the coroutine until it waits again: for `notify` or for a future."""
        assert self._coroutine is not None
        try:
            future = self._coroutine.send(None)
        except BaseException as end:
            self.ended = True
            self._coroutine = None  # which refers to us
            self.drop()
            if self.lost:
                self._on_gone(self)
            if not isinstance(end, StopIteration):
                raise
            return
        if future is not None:
            when_done(future, self._step)

    async def read_head(
        self, limits: Limits, idle_until: float, header_time: float
    ) -> RequestHead | None:
        """The next request's head; None if the client left or sent nothing.

        The first byte must arrive before `idle_until` (monotonic), the end of the head within
        `header_time` seconds after it. Raises `ProtocolError`, and `TimeoutError` if a head was
        begun but not completed.
        """
        deadline = idle_until
        begun = judged = False
        began = latest = 0.0
        while not self.lost:
            if self.inbox:
                self._forgive_empty_line()
                found = self.find_head(limits.line, limits.head) if self.inbox else None
                if found is not None:
                    data, end = found
                    head = limits.memo.read(data, end, limits.fields)
                    length = _CHUNKED if head.chunked else head.content_length
                    self.take_head(end, length or 0)
                    self.requests += 1
                    return head
                if self.inbox and not judged:
                    judged = reject_non_http(self.inbox[0], limits.line)
                if self.inbox and not begun:
                    begun = True
                    began = self.clock.monotonic()
                    deadline = latest = began + header_time
                if begun and limits.min_rate is not None:
                    deadline = min(latest, began + GRACE + self._inbox_size / limits.min_rate)
            if self.eof or self.cut or self.shed:
                return None
            if self.draining and not begun:
                deadline = min(deadline, self._last_until)
            if self.clock.monotonic() >= deadline:
                if begun:
                    raise TimeoutError
                return None
            await self.wait(deadline)
        return None

    def _forgive_empty_line(self) -> None:
        """Skip one empty line before a request (RFC 9112 §2.2)."""
        inbox = self.inbox
        if inbox[0] == b"\r" and len(inbox) > 1:
            self.join(2)
        if inbox[0][:2] == b"\r\n":
            self.take_head(-2, None)
