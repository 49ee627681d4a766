"""Relays a final response from an upstream connection to the client.

Rules
1. Received bytes go to the client at once, as far as it accepts them. With `buffering.response`,
   the rest waits in the spool and the upstream is read at its own pace; without it, the upstream is
   read no faster than the client reads.
2. The upstream connection and the bulkhead place are released as soon as the upstream has sent
   everything, however long the client takes to read the rest.
3. Streams of unknown length are never read ahead: server-sent events, bodies that end with the
   connection, and responses with `X-Accel-Buffering: no` (as in nginx).
4. A truncated response reaches the client as far as it came, and then ends in a way that the client
   can tell from a complete one (RFC 9112 §8). If its body is malformed from the first bytes,
   nothing has been sent yet and the client gets a 502.
"""

from __future__ import annotations

from proxy.core.errors import ClientLeft, Overloaded, ProxyError, UpstreamFailure, UpstreamReset
from proxy.core.errors import UpstreamTimeout as Timeout
from proxy.core.memory.budget import Holding
from proxy.forward.exchange import Exchange
from proxy.forward.messages import response_head
from proxy.forward.outcome import NoOpOutcome
from proxy.forward.relay.buffering import DISK_PATIENCE
from proxy.forward.relay.framing import date_of, framing, has_an_end, is_event_stream
from proxy.forward.relay.request import PIECES_PER_TURN, Relay
from proxy.forward.routing.plan import UpstreamPlan
from proxy.forward.waiting import check_exchange
from proxy.http1.bodies import (
    ChunkedBody,
    UntilClose,
    chunk,
    last_chunk,
)
from proxy.http1.deadlines import NEVER
from proxy.http1.fields import ProtocolError
from proxy.http1.pace import Pace
from proxy.http1.response_head import ResponseHead
from proxy.http1.upstream.connection import UpstreamStream
from proxy.spool import SpooledQueue, SpoolError

#: Bytes of a response that may be buffered before it is relayed.
_BUFFER_LIMIT = 1024 * 1024


class Response:
    """The response `head` to what `relay` sent."""

    __slots__ = (
        "_begun",
        "_body",
        "_chunked",
        "_client",
        "_clock",
        "_cut",
        "_exchange",
        "_finished",
        "_framing",
        "_held",
        "_pace",
        "_plan",
        "_queue",
        "_read_ahead",
        "_relay",
        "_taken",
        "_unsent",
        "head",
    )

    def __init__(
        self, exchange: Exchange, relay: Relay, plan: UpstreamPlan, head: ResponseHead
    ) -> None:
        self._exchange = exchange
        self._client = exchange.stream
        self._clock = exchange.stream.clock
        self._relay = relay
        self._plan = plan
        self.head = head
        self._body, self._framing, self._chunked = framing(exchange, head)
        self._held: list[bytes] = []  # content that was read before the head was sent
        self._queue: SpooledQueue | None = None  # what the client has not accepted yet
        self._read_ahead: bool | None = None  # whether such a queue is allowed
        self._cut: ProxyError | None = None  # why the body was cut short
        self._finished = False  # the upstream has sent everything, or failed
        self._pace: Pace | None = None  # the client's reading rate, where a minimum is set
        self._unsent = 0  # bytes that the client had not taken at the last check
        self._taken = 0.0  # monotonic: when the client last took something
        self._begun = 0.0  # monotonic: when the head was sent

    @property
    def upstream(self) -> UpstreamStream:
        """The connection that the response arrives on."""
        return self._relay.upstream

    async def buffer(self) -> bytes | None:
        """Read the body before any of it is relayed; None if it is over 1 MiB. What was read is
        kept for `send_to_client`. Raises `UpstreamFailure`."""
        size = sum(map(len, self._held))
        memory = self._exchange.holding
        if memory is None:
            client = self._exchange.stream
            memory = Holding(client.memory.account("held_answers"), client)
            self._exchange.holding = memory
        self._relay.moved = self._clock.monotonic()
        while not self._body.done and size <= _BUFFER_LIMIT:
            pieces = self._read()
            if self._cut is not None:
                raise self._cut
            self._held += pieces
            size += sum(map(len, pieces))
            memory.set(size)
            if not self._body.done and not pieces:
                if not self._relay.sent:
                    self._relay.send_body()  # the upstream may be waiting for the rest
                await self._wait()
                if self._cut is not None:
                    raise self._cut
        if self._body.done and self._relay.sent:
            await self._relay.release(reusable=self._reusable)
        return b"".join(self._held) if size <= _BUFFER_LIMIT else None

    async def send_to_client(self, outcome: NoOpOutcome) -> None:
        """Send the response to the client. `outcome` is recorded once the upstream has finished.

        Raises the error that cut the response short: either before anything was sent
        (`exchange.replied` is False), or after everything received has been sent.
        """
        exchange = self._exchange
        pieces, self._held = self._held, []
        if not pieces:
            pieces = self._read()
            if isinstance(self._cut, UpstreamReset) and self._cut.reason == "malformed_body":
                raise self._cut
        out = [self._begin()]
        try:
            while True:
                self._give(out, pieces)
                self._flush()
                if not self._finished and (self._body.done or self._cut is not None):
                    await self._finish(outcome)
                if self._finished and not self._waiting:
                    break
                if not self._finished and not self._relay.sent:
                    self._relay.send_body()
                elif self._finished:
                    self._discard_request()
                await self._wait()
                out, pieces = [], self._read()
        finally:
            if self._queue is not None:
                exchange.bytes_out = max(0, exchange.bytes_out - self._queue.size)
                self._queue.close()
        if self._cut is not None:
            raise self._cut

    # --- from the upstream ----------------------------------------------------------------------

    def _read(self) -> list[bytes]:
        """The body bytes that have arrived, if there is room for them; may set `_cut`."""
        upstream, body = self._relay.upstream, self._body
        if self._finished or body.done or self._cut is not None or not self._may_read():
            return []
        pieces: list[bytes] = []
        if upstream.inbox:
            try:
                pieces = upstream.read_body(body)
            except ProtocolError as error:
                self._cut = UpstreamReset(
                    f"Upstream sent a malformed body: {error.detail}", reason="malformed_body"
                )
                return []
            self._relay.moved = self._clock.monotonic()
        if upstream.eof and not upstream.inbox and not body.done:
            if upstream.error is not None and (ours := self._relay.own_shortage()) is not None:
                self._cut = ours
            elif not isinstance(body, UntilClose):
                self._cut = UpstreamReset(
                    "Upstream broke off in the middle of its response", reason="truncated"
                )
            elif upstream.error is not None:
                self._cut = UpstreamReset("Upstream broke off", reason="reset")
            else:
                body.done = True
        return pieces

    async def _finish(self, outcome: NoOpOutcome) -> None:
        """The upstream has finished: release what the exchange holds of it (rule 2)."""
        exchange, relay = self._exchange, self._relay
        self._finished = True
        if self._cut is None:
            if exchange.tee is not None:
                exchange.tee.end()
            await relay.await_filter()
            outcome.succeeded()
        elif isinstance(self._cut, UpstreamFailure):
            outcome.failed(self._cut.kind)
        await relay.release(reusable=self._reusable)
        if exchange.place is not None and self._plan.bulkhead is not None:
            self._plan.bulkhead.leave(exchange.place)
        exchange.drop_body()

    def _discard_request(self) -> None:
        """Discard the rest of a request whose upstream did not need it: many clients read nothing
        until they have sent it all."""
        exchange = self._exchange
        if exchange.body.done or not self._client.inbox:
            return
        try:
            self._client.read_body(exchange.body)
        except ProtocolError:
            exchange.keep_alive = False  # its end cannot be found, and nobody needs it

    @property
    def _reusable(self) -> bool:
        """Whether the connection can carry another exchange: both messages are complete."""
        whole = self._body.done and self._relay.sent and not isinstance(self._body, UntilClose)
        return whole and self.head.keep_alive

    # --- to the client --------------------------------------------------------------------------

    @property
    def _waiting(self) -> int:
        """Bytes queued for the client."""
        return self._queue.size if self._queue is not None else 0

    def _begin(self) -> bytes:
        """The head for the client. From here on the response has begun."""
        exchange, client, head = self._exchange, self._client, self.head
        assert exchange.head is not None
        if not exchange.body.done and exchange.head.expects_continue and not exchange.continue_sent:
            exchange.keep_alive = False  # the body may or may not come (RFC 9110 §10.1.1)
        if client.draining:
            exchange.keep_alive = False
        if not self._chunked and isinstance(self._body, UntilClose | ChunkedBody):
            exchange.keep_alive = False
            exchange.ends_by_close = True
        exchange.status = head.status
        exchange.response = head
        exchange.replied = True
        if head.content_length is None and is_event_stream(head):
            exchange.head_after = self._clock.monotonic() - exchange.started
        if self._relay.sent:
            exchange.drop_body()
        self._relay.moved = self._taken = self._begun = now = self._clock.monotonic()
        if head.dated and self._plan.vitals.skews.wants(self._plan.name, now):
            self._plan.vitals.skews.note_date(self._plan.name, date_of(head))
        return response_head(exchange, head, self._framing)

    def _give(self, out: list[bytes], pieces: list[bytes]) -> None:
        """Frame `pieces`, then write everything or append it to the queue."""
        exchange = self._exchange
        if pieces:
            exchange.bytes_out += sum(map(len, pieces))
            if exchange.tee is not None:
                exchange.tee.add(pieces)
            out += chunk(pieces) if self._chunked else pieces
        if self._chunked and self._body.done and not self._finished:
            out.append(last_chunk(self._body.trailers))
        if not out:
            return
        if self._queue is not None and (self._queue.size or self._client.write_paused):
            self._queue.put(out)
        else:
            self._write(out)

    def _flush(self) -> None:
        """Write from the queue as much as the client accepts."""
        queue, client = self._queue, self._client
        if queue is None or not queue.size or client.write_paused:
            return
        if self._relay.upstream.inbox and not self._finished:
            client.wake()  # room is about to appear for it, and no event will announce that
        for _ in range(PIECES_PER_TURN):
            if client.write_paused or not queue.size:
                return
            try:
                pieces = queue.take()
            except SpoolError as error:
                raise Overloaded(f"The response was lost: {error}", reason="spool_lost") from error
            if not pieces:
                return  # the disk will wake us
            self._write(pieces)
        client.wake()

    def _write(self, out: list[bytes]) -> None:
        client = self._client
        if client.transport.is_closing() or (client.eof and (client.lost or client.secure)):
            raise ClientLeft("Client left before its response could be sent")
        client.write(out)
        self._taken = now = self._clock.monotonic()
        self._unsent = 0
        if self._pace is not None:
            self._pace.rests(self._exchange.bytes_out - self._waiting - client.to_send(), now)

    def _may_read(self) -> bool:
        """Whether more of the body may be read (rules 1 and 3)."""
        if self._queue is not None:
            return not self._queue.blocked
        if not self._client.write_paused or not self._exchange.replied:
            return True
        if self._read_ahead is None:
            self._read_ahead = self._plan.buffer_response and has_an_end(self.head, self._body)
        if self._read_ahead:
            self._queue = self._plan.spool.queue(self._client.wake, owner=self._client)
        return self._read_ahead

    # --- waiting --------------------------------------------------------------------------------

    async def _wait(self) -> None:
        """Wait for an event on either side. Sets `_cut` when the upstream takes too long; raises
        when the client or the disk does."""
        now, relay = self._clock.monotonic(), self._relay
        deadline = NEVER
        if self._client.write_paused and self._exchange.replied:
            deadline = self._taking_deadline(now)
        elif self._waiting:
            deadline = self._taken + DISK_PATIENCE
            if now >= deadline:
                raise Overloaded(
                    "The disk that the response waits on does not answer", reason="spool_stalled"
                )
        if not self._finished:
            if self._may_read():
                relay.upstream.pool.flows(relay.upstream)
                idle = relay.moved + self._plan.idle_timeout
                if now >= idle:
                    self._cut = Timeout(
                        "Upstream stalled in the middle of its response", reason="idle"
                    )
                    return
                deadline = min(deadline, idle)
            else:
                relay.moved = now  # the upstream waits for us
                deadline = min(deadline, self._held_up())
        moved = max(relay.moved, self._taken)
        try:
            deadline = check_exchange(self._exchange, deadline, now, moved)
        except ClientLeft:
            self._note_unfinished(now)
            raise
        await self._client.wait(deadline)

    def _note_unfinished(self, now: float) -> None:
        """Record how long the client had been waiting for the upstream when it left: only if all
        that was received had been handed to the kernel. Endless streams are left out, because every
        client leaves those."""
        exchange, client = self._exchange, self._client
        sending = exchange.replied and not self._finished and exchange.head_after is None
        if sending and not self._waiting and not client.transport.get_write_buffer_size():
            exchange.unfinished = max(0.0, (client.eof_at if client.eof else now) - self._begun)

    def _held_up(self) -> float:
        """How long a client that does not read may hold the upstream's connection. Raises
        `ClientLeft` if the pool wants the connection for requests that wait."""
        upstream = self._relay.upstream
        if upstream.unwanted:
            raise ClientLeft(
                "Client takes its response slowly, and others wait for the connection",
                reason="client_slow",
            )
        taken = self._exchange.bytes_out - self._waiting - self._client.to_send()
        return upstream.pool.hold_up(upstream, taken)

    def _taking_deadline(self, now: float) -> float:
        """When the client must have taken more. Raises `ClientLeft` if it is too slow."""
        exchange, unsent = self._exchange, self._client.to_send()
        if unsent < self._unsent:
            self._taken = now
        self._unsent = unsent
        deadline = self._taken + exchange.plan.body_timeout
        if exchange.plan.min_rate is not None:
            if self._pace is None:
                self._pace = Pace(exchange.plan.min_rate)
            taken = exchange.bytes_out - self._waiting - unsent
            deadline = min(deadline, self._pace.waits(taken, now))
        if now >= deadline:
            raise ClientLeft(
                "Client does not take its response, or too slowly", reason="client_stalled"
            )
        return deadline
