"""A final response on its way from an upstream connection to the client.

Rules
1. What has come goes to the client at once, as far as it takes it. What it does not take waits in
   the spool, where `buffering.response` is on, so that the upstream is read at its own pace;
   without that, the upstream is read no faster than the client takes its bytes.
2. The upstream connection is given back as soon as the upstream's part is over, and so is the place
   in the bulkhead, however long the client takes for the rest.
3. Streams whose end nobody knows are never read ahead: server-sent events, bodies that end by
   closing, and what says `X-Accel-Buffering: no` (as nginx reads it).
4. A response that breaks off reaches the client as far as it came, and then ends in a way that
   cannot be taken for its end (RFC 9112 §8). One that is malformed from its first bytes has not
   begun for the client: that is a 502.
"""

from __future__ import annotations

from proxy.core.errors import ClientLeft, Overloaded, ProxyError, UpstreamFailure, UpstreamReset
from proxy.core.errors import UpstreamTimeout as Timeout
from proxy.core.memory.budget import Holding
from proxy.forward.exchange import Exchange
from proxy.forward.messages import response_head
from proxy.forward.outcome import Unwatched
from proxy.forward.relay.buffering import DISK_PATIENCE
from proxy.forward.relay.request import PIECES_PER_TURN, Relay
from proxy.forward.routing.plan import UpstreamPlan
from proxy.forward.waiting import until_left
from proxy.http1.bodies import (
    ChunkedBody,
    Decoder,
    LengthBody,
    NoBody,
    UntilClose,
    chunk,
    last_chunk,
)
from proxy.http1.deadlines import NEVER
from proxy.http1.heads import ProtocolError, ResponseHead
from proxy.http1.pace import Pace
from proxy.http1.upstream.pool import UpstreamStream
from proxy.spool import SpooledQueue, SpoolError


class Response:
    """The response `head` to what `relay` sent."""

    __slots__ = (
        "_begun",
        "_body",
        "_chunked",
        "_client",
        "_clock",
        "_cut",
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
        "_x",
        "head",
    )

    def __init__(
        self, exchange: Exchange, relay: Relay, plan: UpstreamPlan, head: ResponseHead
    ) -> None:
        self._x = exchange
        self._client = exchange.stream
        self._clock = exchange.stream.clock
        self._relay = relay
        self._plan = plan
        self.head = head
        self._body, self._framing, self._chunked = _framing(exchange, head)
        self._held: list[bytes] = []  # content that was read before the head was passed on
        self._queue: SpooledQueue | None = None  # what the client has not taken
        self._read_ahead: bool | None = None  # whether there may be such a queue
        self._cut: ProxyError | None = None  # why there will be no more of it
        self._finished = False  # the upstream's part is over
        self._pace: Pace | None = None  # how fast the client takes it, where there is a minimum
        self._unsent = 0  # bytes that it had not taken when last looked at
        self._taken = 0.0  # monotonic: when the client last took something
        self._begun = 0.0  # monotonic: when its head was passed on

    @property
    def upstream(self) -> UpstreamStream:
        """The connection that it comes from."""
        return self._relay.upstream

    async def hold(self, limit: int) -> bytes | None:
        """The body, before anything of it is passed on; None where it is over `limit` bytes.
        `pass_on` sends it all the same. Raises `UpstreamFailure`."""
        size = sum(map(len, self._held))
        memory = self._x.holding
        if memory is None:
            client = self._x.stream
            memory = Holding(client.memory.account("held_answers"), client)
            self._x.holding = memory
        self._relay.moved = self._clock.monotonic()
        while not self._body.done and size <= limit:
            pieces = self._read()
            if self._cut is not None:
                raise self._cut
            self._held += pieces
            size += sum(map(len, pieces))
            memory.set(size)
            if not self._body.done and not pieces:
                if not self._relay.sent:
                    self._relay.send_body()  # the upstream may wait for the rest before it goes on
                await self._wait()
                if self._cut is not None:
                    raise self._cut
        if self._body.done and self._relay.sent:
            await self._relay.release(reusable=self._reusable)
        return b"".join(self._held) if size <= limit else None

    async def pass_on(self, outcome: Unwatched) -> None:
        """Send the response to the client. `outcome` is told when the upstream has done its part.

        Raises what cut it: before anything was sent (`x.replied` is False), or after all that had
        come has been.
        """
        x = self._x
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
                x.bytes_out = max(0, x.bytes_out - self._queue.size)
                self._queue.close()
        if self._cut is not None:
            raise self._cut

    # --- from the upstream ----------------------------------------------------------------------

    def _read(self) -> list[bytes]:
        """What the upstream has sent of the body, if there is room for it; sets `_cut`."""
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

    async def _finish(self, outcome: Unwatched) -> None:
        """The upstream's part is over: whatever it held is free for others (rule 2)."""
        x, relay = self._x, self._relay
        self._finished = True
        if self._cut is None:
            if x.tee is not None:
                x.tee.end()
            await relay.hear_out()
            outcome.succeeded()
        elif isinstance(self._cut, UpstreamFailure):
            outcome.failed(self._cut.kind)
        await relay.release(reusable=self._reusable)
        if x.place is not None and self._plan.bulkhead is not None:
            self._plan.bulkhead.leave(x.place)
        x.drop_body()

    def _discard_request(self) -> None:
        """The upstream has answered without the rest of the request: many clients read nothing
        before they have sent it."""
        x = self._x
        if x.body.done or not self._client.inbox:
            return
        try:
            self._client.read_body(x.body)
        except ProtocolError:
            x.keep_alive = False  # where it ends is not known, and nobody needs it

    @property
    def _reusable(self) -> bool:
        """Whether the connection can carry another exchange: both messages are complete on it."""
        whole = self._body.done and self._relay.sent and not isinstance(self._body, UntilClose)
        return whole and self.head.keep_alive

    # --- to the client --------------------------------------------------------------------------

    @property
    def _waiting(self) -> int:
        """Bytes that the client has not taken."""
        return self._queue.size if self._queue is not None else 0

    def _begin(self) -> bytes:
        """The head for the client: from here on the response has begun."""
        x, client, head = self._x, self._client, self.head
        assert x.head is not None
        if not x.body.done and x.head.expects_continue and not x.continue_sent:
            x.keep_alive = False  # the body may or may not come (RFC 9110 §10.1.1)
        if client.draining:
            x.keep_alive = False
        if not self._chunked and isinstance(self._body, UntilClose | ChunkedBody):
            x.keep_alive = False
            x.ends_by_close = True
        x.status = head.status
        x.response = head
        x.replied = True
        if head.content_length is None and _is_event_stream(head):
            x.head_after = self._clock.monotonic() - x.started
        if self._relay.sent:
            x.drop_body()
        self._relay.moved = self._taken = self._begun = now = self._clock.monotonic()
        if head.dated and self._plan.vitals.skews.wants(self._plan.name, now):
            self._plan.vitals.skews.note_date(self._plan.name, _date(head))
        return response_head(x, head, self._framing)

    def _give(self, out: list[bytes], pieces: list[bytes]) -> None:
        """Put `pieces` into our framing, and all of it into the queue if there is one."""
        x = self._x
        if pieces:
            x.bytes_out += sum(map(len, pieces))
            if x.tee is not None:
                x.tee.add(pieces)
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
        """Give the client what waits for it, as far as it takes it."""
        queue, client = self._queue, self._client
        if queue is None or not queue.size or client.write_paused:
            return
        if self._relay.upstream.inbox and not self._finished:
            client.wake()  # there will be room for it, and nothing else to say so
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
            self._pace.rests(self._x.bytes_out - self._waiting - client.to_send(), now)

    def _may_read(self) -> bool:
        """Whether there is room for more of the body (rules 1 and 3)."""
        if self._queue is not None:
            return not self._queue.blocked
        if not self._client.write_paused or not self._x.replied:
            return True
        if self._read_ahead is None:
            self._read_ahead = self._plan.buffer_response and _has_an_end(self.head, self._body)
        if self._read_ahead:
            self._queue = self._plan.spool.queue(self._client.wake, owner=self._client)
        return self._read_ahead

    # --- waiting --------------------------------------------------------------------------------

    async def _wait(self) -> None:
        """Until something happens on either side. Sets `_cut` when the upstream takes too long;
        raises when the client does, or the disk."""
        now, relay = self._clock.monotonic(), self._relay
        deadline = NEVER
        if self._client.write_paused and self._x.replied:
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
                relay.moved = now  # it waits for us
                deadline = min(deadline, self._held_up())
        moved = max(relay.moved, self._taken)
        try:
            deadline = until_left(self._x, deadline, now, moved)
        except ClientLeft:
            self._note_unfinished(now)
            raise
        await self._client.wait(deadline)

    def _note_unfinished(self, now: float) -> None:
        """The client leaves. Where all that came has gone to the kernel, it was the upstream that
        the client waited for; streams without an end are left by all their clients."""
        x, client = self._x, self._client
        sending = x.replied and not self._finished and x.head_after is None
        if sending and not self._waiting and not client.transport.get_write_buffer_size():
            x.unfinished = max(0.0, (client.eof_at if client.eof else now) - self._begun)

    def _held_up(self) -> float:
        """Until when the upstream's connection may be held up, as the client does not take what
        has come. Raises `ClientLeft` where others wait for it and take theirs faster."""
        upstream = self._relay.upstream
        if upstream.unwanted:
            raise ClientLeft(
                "Client takes its response slowly, and others wait for the connection",
                reason="client_slow",
            )
        taken = self._x.bytes_out - self._waiting - self._client.to_send()
        return upstream.pool.hold_up(upstream, taken)

    def _taking_deadline(self, now: float) -> float:
        """Until when the client must take more. Raises `ClientLeft`."""
        x, unsent = self._x, self._client.to_send()
        if unsent < self._unsent:
            self._taken = now
        self._unsent = unsent
        deadline = self._taken + x.plan.body_timeout
        if x.plan.min_rate is not None:
            if self._pace is None:
                self._pace = Pace(x.plan.min_rate)
            taken = x.bytes_out - self._waiting - unsent
            deadline = min(deadline, self._pace.waits(taken, now))
        if now >= deadline:
            raise ClientLeft(
                "Client does not take its response, or too slowly", reason="client_stalled"
            )
        return deadline


def _framing(exchange: Exchange, head: ResponseHead) -> tuple[Decoder, bytes, bool]:
    """How the response's body ends: (its decoder, our framing fields, whether we chunk).

    RFC 9112 §6.3, in its order.
    """
    assert exchange.head is not None
    length = head.content_length
    if exchange.method == "HEAD" or head.status in (204, 304):
        shown = length is not None and head.status != 204  # RFC 9110 §8.6
        return (
            NoBody(),
            b"\r\nContent-Length: %d" % length if shown and length is not None else b"",
            False,
        )
    if length is not None:
        return LengthBody(length), b"\r\nContent-Length: %d" % length, False
    body: Decoder = ChunkedBody() if head.chunked else UntilClose()
    if exchange.head.minor:
        return body, b"\r\nTransfer-Encoding: chunked", True
    return body, b"", False


def _date(head: ResponseHead) -> str:
    """The value of `Date`."""
    for line in head.lines:
        name, _, value = line.partition(b":")
        if name.lower() == b"date":
            return value.strip().decode("latin-1")
    return ""


def _is_event_stream(head: ResponseHead) -> bool:
    """Whether the response lasts as long as somebody listens."""
    return head.media_type == "text/event-stream"


def _has_an_end(head: ResponseHead, body: Decoder) -> bool:
    """Whether the response may be read faster than the client takes it (rule 3)."""
    if isinstance(body, UntilClose) or _is_event_stream(head):
        return False
    for line in head.lines:
        name, _, value = line.partition(b":")
        name = name.lower()
        if name == b"x-accel-buffering" and value.strip().lower() == b"no":
            return False
    return True
