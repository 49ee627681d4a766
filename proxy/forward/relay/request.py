"""A request on its way to an upstream connection, until the head of the final response is there.

One coroutine moves both messages. It looks at each side, moves what can be moved without waiting,
and only then waits for the next event on either; so an early response, a client that leaves in the
middle of its upload and an upstream that dies are all seen at once, wherever the other message
stands. Neither side is read faster than the other takes it. The response's half is in response.py.
"""

from __future__ import annotations

import asyncio

from proxy.core.errors import ClientLeft, Overloaded, ProxyError, UpstreamReset
from proxy.core.errors import UpstreamTimeout as Timeout
from proxy.core.memory.budget import LEAST
from proxy.forward.exchange import Exchange
from proxy.forward.messages import interim_head, request_length
from proxy.forward.outcome import own_shortage
from proxy.forward.relay.buffering import DISK_PATIENCE
from proxy.forward.relay.request_body import (
    body_deadline,
    drop_ending,
    others_turn,
    read_body,
    read_checked,
    send_continue,
    start_ending,
)
from proxy.forward.routing.plan import UpstreamPlan
from proxy.forward.waiting import until_left
from proxy.http1.bodies import chunk, last_chunk
from proxy.http1.deadlines import NEVER
from proxy.http1.heads import ProtocolError, ResponseHead
from proxy.http1.upstream.pool import UpstreamStream
from proxy.spool import BodyReader, SpooledBody, SpoolError

#: Interim responses that one exchange may have.
_MAX_INTERIM = 32

#: Pieces that are read back from the spool before others get their turn.
PIECES_PER_TURN = 4


class UnansweredRequest(UpstreamReset):
    """The connection ended before a byte of a response. On a kept one that mostly means that it had
    been closed under us."""


class Relay:
    """One attempt: `x` over `upstream`. `sent`: the upstream has the whole request. `moved`:
    monotonic, when anything last moved."""

    __slots__ = (
        "_chunked_up",
        "_client",
        "_clock",
        "_ending",
        "_plan",
        "_reader",
        "_released",
        "_x",
        "moved",
        "sent",
        "upstream",
    )

    def __init__(self, exchange: Exchange, upstream: UpstreamStream, plan: UpstreamPlan) -> None:
        assert exchange.head is not None
        self._x = exchange
        self._client = exchange.stream
        self._clock = exchange.stream.clock
        self._plan = plan
        self._chunked_up = request_length(exchange) is None
        body = exchange.buffered
        self._reader: BodyReader | None = None  # what was read of the body before this attempt
        if body is not None and (body.size or body.complete):
            self._reader = body.reader()
        self._ending: asyncio.Task[list[bytes] | SpooledBody] | None = None  # filter's last word
        self._released = False
        self.sent = not exchange.head.has_body and exchange.filter is None
        self.moved = 0.0
        self.upstream = upstream

    def send(self, head: bytes) -> None:
        """Begin the request: its head, and what has been read of its body already."""
        x = self._x
        self.upstream.transport.write(head)
        if self._reader is not None:
            self._send_buffered(self._reader)
        if x.head is not None and x.head.expects_continue:
            send_continue(x)
        x.sent_at = self._clock.monotonic()

    async def converse(self) -> ResponseHead:
        """Send the request's body until the head of the final response has come.

        Raises `UnansweredRequest` when the connection ended without a byte of response, else
        the `ProxyError` that tells what went wrong.
        """
        x, client, upstream, clock = self._x, self._client, self.upstream, self._clock
        interim = 0
        self.moved = sent = x.sent_at
        while True:
            while upstream.inbox:
                response = self._read_head()
                if response is None:
                    break
                if response.status >= 200 or response.status == 101:
                    x.upstream_time = clock.monotonic() - sent
                    return response
                interim += 1
                if interim > _MAX_INTERIM:
                    raise UpstreamReset(
                        "Upstream sent too many interim responses", reason="interim_flood"
                    )
                self._pass_on_interim(response)
            if upstream.eof:
                raise self._broken_off()
            if not self.sent and self.send_body():
                sent = self.moved
            now = clock.monotonic()
            if self.sent:
                deadline = min(sent + self._plan.response_timeout, x.deadline)
                if now >= deadline:
                    raise Timeout(
                        f"Upstream {x.upstream} did not answer within {now - sent:.3g}s"
                        + (", and the time for all attempts is over" if now >= x.deadline else ""),
                        upstream=x.upstream,
                        reason="deadline" if now >= x.deadline else "response",
                    )
            else:
                deadline = self._body_deadline(now)
            try:
                deadline = until_left(x, deadline, now, self.moved)
            except ClientLeft:
                if self.sent:
                    x.silence = max(0.0, (client.eof_at if client.eof else now) - sent)
                    self._abandon(sent + self._plan.response_timeout)
                raise
            await client.wait(deadline)

    async def release(self, *, reusable: bool) -> None:
        """Give the connection back and end what the attempt may have left running. May be called
        again."""
        if self._released:
            return
        self._released = True
        self._client.read_on()
        self.upstream.pool.release(self.upstream, reusable=reusable)
        if self._ending is not None:
            await drop_ending(self._ending)

    def _abandon(self, until: float) -> None:
        """Nobody waits for the answer any more, though the upstream may still work on it. All has
        been sent, so nothing else is running."""
        self._released = True
        self.upstream.pool.abandon(self.upstream, self._client, until)

    def send_body(self) -> bool:
        """Move what there is of the request's body to the upstream; whether anything moved."""
        moved = self._reader is not None and self._send_buffered(self._reader)
        if self.sent or self._reader is not None:
            return moved
        x, client, upstream = self._x, self._client, self.upstream
        check = x.filter
        if check is not None:
            asked = check.feed(b"")  # it may have made up its mind since
            if asked:
                x.body_whole = False
                self._write_upstream(asked, end=False)
        if upstream.write_paused:
            return moved
        client.read_on()
        if x.body.done:
            return self._send_end() or moved
        if not client.inbox or (check is not None and check.blocked):
            return moved
        if check is not None:
            pieces = read_checked(x)
            x.body_whole = x.body_whole and not pieces
        else:
            pieces = read_body(x)
            self._keep(pieces)
        self._write_upstream(pieces, end=x.body.done and check is None)
        if x.body.done and check is not None:
            self._send_end()
        if upstream.unsent > LEAST and not x.body.done:
            client.hold_reading()  # what the upstream does not take need not come yet
        return True

    def _send_buffered(self, reader: BodyReader) -> bool:
        """Send what is in the spool, as far as the upstream takes it; whether anything moved."""
        body, upstream = self._x.buffered, self.upstream
        assert body is not None
        moved = 0
        while not (upstream.write_paused or upstream.lost or reader.caught_up):
            if moved == PIECES_PER_TURN:
                self._client.wake()
                return True
            try:
                pieces = reader.take()
            except SpoolError as error:
                raise Overloaded(
                    f"The request body was lost: {error}", retry_after=1, reason="spool_lost"
                ) from error
            if not pieces:
                return moved > 0  # the disk will wake us
            moved += 1
            self._write_upstream(pieces, end=reader.done)
        if reader.caught_up:
            self._reader = None  # the rest comes from the client
            if reader.done and not self.sent:  # an empty body
                self._write_upstream([], end=True)
        return moved > 0

    def _keep(self, pieces: list[bytes]) -> None:
        """Put what is about to be sent into the spool, for another attempt, if it is wanted there
        and there is room."""
        x, body = self._x, self._x.buffered
        if body is None or body.full is not None or body.blocked:
            if pieces:
                x.body_whole = False
                x.drop_body()
            return
        body.append(pieces)
        if body.full is not None:
            x.body_whole = False
            x.drop_body()
        elif x.body.done:
            body.end()

    def _send_end(self) -> bool:
        """What a filter held back until its verdict; whether it has come."""
        if self._ending is None:
            self._ending = start_ending(self._x)
        if not self._ending.done():
            return False
        self._write_end(self._ending.result())
        return True

    def _write_end(self, rest: list[bytes] | SpooledBody) -> None:
        assert isinstance(rest, list), "the beginning of the body has been sent"
        self._write_upstream(rest, end=True)

    async def hear_out(self) -> None:
        """The upstream had all it wanted before the filter's last word: wait for that, so that it
        is on record. The client has its answer already, so a refusal changes nothing any more."""
        ending = self._ending
        if ending is None or self.sent:
            return
        while not ending.done() and not self._client.cut:
            await self._client.wait(NEVER)  # a filter bounds its own time
        if ending.done() and ending.exception() is None:
            self._write_end(ending.result())

    def _write_upstream(self, pieces: list[bytes], *, end: bool) -> None:
        out = chunk(pieces) if self._chunked_up else pieces
        if end:
            self.sent = True
            if self._chunked_up:
                out = [*out, last_chunk(self._x.body.trailers)]
        if out and not self.upstream.lost:
            self.upstream.write(out)
        self.moved = self._clock.monotonic()

    def _read_head(self) -> ResponseHead | None:
        try:
            return self.upstream.read_head()
        except ProtocolError as error:
            raise UpstreamReset(
                f"Upstream sent an invalid response: {error.detail}",
                upstream=self._x.upstream,
                reason="invalid_response",
            ) from error

    def _pass_on_interim(self, response: ResponseHead) -> None:
        """100 is ours to send (`CONTINUE`); HTTP/1.0 has no interim responses at all."""
        x = self._x
        assert x.head is not None
        if response.status != 100 and x.head.minor and not self._client.lost:
            self._client.transport.write(interim_head(x, response))

    def own_shortage(self) -> ProxyError | None:
        """The error to answer with where the connection has ended for want of something of ours:
        memory to send with, say."""
        upstream = self.upstream
        return own_shortage(upstream.error, self._plan, upstream.pool.label)

    def _broken_off(self) -> Exception:
        ours = self.own_shortage()
        if ours is not None:
            return ours
        upstream = self.upstream
        if not upstream.inbox:
            detail = "closed the connection without an answer"
            if upstream.reused:
                detail = "closed a kept connection as the request was sent"
            return UnansweredRequest(
                f"Upstream {self._x.upstream} {detail}",
                upstream=self._x.upstream,
                reason="stale_connection" if upstream.reused else "no_response",
            )
        return UpstreamReset(
            f"Upstream {self._x.upstream} closed the connection before its response was complete",
            upstream=self._x.upstream,
            reason="no_response",
        )

    def _body_deadline(self, now: float) -> float:
        """Until when the request body must move on, and whose fault it is if it does not."""
        if self._ending is not None:
            return NEVER  # a filter bounds its own time
        if not self.upstream.write_paused and self._reader is None:
            return body_deadline(self._x, self.moved, now)
        others_turn(self._x, now)
        if self.upstream.write_paused:
            if self.upstream.takes():
                self.moved = now
            deadline = self.moved + self._plan.idle_timeout
            error: ProxyError = Timeout(
                f"Upstream {self._x.upstream} does not take the request body",
                upstream=self._x.upstream,
                reason="write_stalled",
            )
        else:
            deadline = self.moved + DISK_PATIENCE
            error = Overloaded(
                "The disk that the request body waits on does not answer",
                retry_after=DISK_PATIENCE,
                reason="spool_stalled",
            )
        if now >= deadline:
            raise error
        return deadline
