"""Sends a request over an upstream connection until the head of the final response arrives.

One coroutine moves both messages. It checks each side, moves what it can without waiting, and only
then waits for the next event on either side. An early response, a client that leaves during its
upload and an upstream that dies are therefore all noticed at once. Neither side is read faster than
the other accepts. The response's half is in response.py.
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
from proxy.forward.waiting import check_exchange
from proxy.http1.bodies import chunk, last_chunk
from proxy.http1.deadlines import NEVER
from proxy.http1.fields import ProtocolError
from proxy.http1.response_head import ResponseHead
from proxy.http1.upstream.connection import UpstreamStream
from proxy.spool import BodyReader, SpooledBody, SpoolError

#: Interim responses that one exchange may have.
_MAX_INTERIM = 32

#: Pieces read back from the spool in one turn of the event loop.
PIECES_PER_TURN = 4


class UnansweredRequest(UpstreamReset):
    """The connection ended before the first byte of a response. On a reused connection, usually the
    server had closed it as idle just before the request."""


class Relay:
    """One attempt: `exchange` over `upstream`. `sent`: the upstream has the whole request. `moved`:
    monotonic, when anything last moved."""

    __slots__ = (
        "_chunked_up",
        "_client",
        "_clock",
        "_ending",
        "_exchange",
        "_plan",
        "_reader",
        "_released",
        "moved",
        "sent",
        "upstream",
    )

    def __init__(self, exchange: Exchange, upstream: UpstreamStream, plan: UpstreamPlan) -> None:
        assert exchange.head is not None
        self._exchange = exchange
        self._client = exchange.stream
        self._clock = exchange.stream.clock
        self._plan = plan
        self._chunked_up = request_length(exchange) is None
        body = exchange.buffered
        self._reader: BodyReader | None = None  # over what was buffered before this attempt
        if body is not None and (body.size or body.complete):
            self._reader = body.reader()
        self._ending: asyncio.Task[list[bytes] | SpooledBody] | None = None  # the filter's `finish`
        self._released = False
        self.sent = not exchange.head.has_body and exchange.filter is None
        self.moved = 0.0
        self.upstream = upstream

    def send(self, head: bytes) -> None:
        """Begin the request: send its head and what has been buffered of its body."""
        exchange = self._exchange
        self.upstream.transport.write(head)
        if self._reader is not None:
            self._send_buffered(self._reader)
        if exchange.head is not None and exchange.head.expects_continue:
            send_continue(exchange)
        exchange.sent_at = self._clock.monotonic()

    async def read_response_head(self) -> ResponseHead:
        """Send the request's body until the head of the final response has arrived.

        Raises `UnansweredRequest` when the connection ended without a byte of response, and other
        `ProxyError`s for other failures.
        """
        exchange, client, upstream, clock = self._exchange, self._client, self.upstream, self._clock
        interim = 0
        self.moved = sent = exchange.sent_at
        while True:
            while upstream.inbox:
                response = self._read_head()
                if response is None:
                    break
                if response.status >= 200 or response.status == 101:
                    exchange.upstream_time = clock.monotonic() - sent
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
                deadline = min(sent + self._plan.response_timeout, exchange.deadline)
                if now >= deadline:
                    raise Timeout(
                        f"Upstream {exchange.upstream} did not answer within {now - sent:.3g}s"
                        + (
                            ", and the time for all attempts is over"
                            if now >= exchange.deadline
                            else ""
                        ),
                        upstream=exchange.upstream,
                        reason="deadline" if now >= exchange.deadline else "response",
                    )
            else:
                deadline = self._body_deadline(now)
            try:
                deadline = check_exchange(exchange, deadline, now, self.moved)
            except ClientLeft:
                if self.sent:
                    exchange.silence = max(0.0, (client.eof_at if client.eof else now) - sent)
                    self._abandon(sent + self._plan.response_timeout)
                raise
            await client.wait(deadline)

    async def release(self, *, reusable: bool) -> None:
        """Return the connection to its pool and stop the filter task if it is running.
        Idempotent."""
        if self._released:
            return
        self._released = True
        self._client.read_on()
        self.upstream.pool.release(self.upstream, reusable=reusable)
        if self._ending is not None:
            await drop_ending(self._ending)

    def _abandon(self, until: float) -> None:
        """Leave the connection to the pool until the upstream has answered a client that is gone.
        The whole request has been sent, so no filter is running."""
        self._released = True
        self.upstream.pool.abandon(self.upstream, self._client, until)

    def send_body(self) -> bool:
        """Move the available part of the request's body upstream; whether anything moved."""
        moved = self._reader is not None and self._send_buffered(self._reader)
        if self.sent or self._reader is not None:
            return moved
        exchange, client, upstream = self._exchange, self._client, self.upstream
        check = exchange.filter
        if check is not None:
            asked = check.feed(b"")  # it may have decided in the meantime
            if asked:
                exchange.body_whole = False
                self._write_upstream(asked, end=False)
        if upstream.write_paused:
            return moved
        client.read_on()
        if exchange.body.done:
            return self._send_end() or moved
        if not client.inbox or (check is not None and check.blocked):
            return moved
        if check is not None:
            pieces = read_checked(exchange)
            exchange.body_whole = exchange.body_whole and not pieces
        else:
            pieces = read_body(exchange)
            self._keep(pieces)
        self._write_upstream(pieces, end=exchange.body.done and check is None)
        if exchange.body.done and check is not None:
            self._send_end()
        if upstream.unsent > LEAST and not exchange.body.done:
            client.hold_reading()  # no need to receive what the upstream does not take
        return True

    def _send_buffered(self, reader: BodyReader) -> bool:
        """Send from the spool as much as the upstream takes; whether anything moved."""
        body, upstream = self._exchange.buffered, self.upstream
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
        """Copy what is about to be sent to the spool for a later attempt, if one may follow and the
        spool has room."""
        exchange, body = self._exchange, self._exchange.buffered
        if body is None or body.full is not None or body.blocked:
            if pieces:
                exchange.body_whole = False
                exchange.drop_body()
            return
        body.append(pieces)
        if body.full is not None:
            exchange.body_whole = False
            exchange.drop_body()
        elif exchange.body.done:
            body.end()

    def _send_end(self) -> bool:
        """Ask the filter to finish and send what it held back; whether it has finished."""
        if self._ending is None:
            self._ending = start_ending(self._exchange)
        if not self._ending.done():
            return False
        self._write_end(self._ending.result())
        return True

    def _write_end(self, rest: list[bytes] | SpooledBody) -> None:
        assert isinstance(rest, list), "the beginning of the body has been sent"
        self._write_upstream(rest, end=True)

    async def await_filter(self) -> None:
        """Wait for the filter when the upstream has answered before it finished, so that its result
        is recorded. The client has been answered, so a refusal no longer has any effect."""
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
                out = [*out, last_chunk(self._exchange.body.trailers)]
        if out and not self.upstream.lost:
            self.upstream.write(out)
        self.moved = self._clock.monotonic()

    def _read_head(self) -> ResponseHead | None:
        try:
            return self.upstream.read_head()
        except ProtocolError as error:
            raise UpstreamReset(
                f"Upstream sent an invalid response: {error.detail}",
                upstream=self._exchange.upstream,
                reason="invalid_response",
            ) from error

    def _pass_on_interim(self, response: ResponseHead) -> None:
        """Relay a 1xx response, but not 100, which we send ourselves (`CONTINUE`), and nothing to
        an HTTP/1.0 client."""
        exchange = self._exchange
        assert exchange.head is not None
        if response.status != 100 and exchange.head.minor and not self._client.lost:
            self._client.transport.write(interim_head(exchange, response))

    def own_shortage(self) -> ProxyError | None:
        """The error to answer with if the connection ended because a resource of ours ran out, such
        as memory for sending."""
        upstream = self.upstream
        return own_shortage(upstream.error, self._plan, upstream.pool.label)

    def _broken_off(self) -> Exception:
        ours = self.own_shortage()
        if ours is not None:
            return ours
        upstream, name = self.upstream, self._exchange.upstream
        if not upstream.inbox:
            detail = "closed the connection without an answer"
            if upstream.reused:
                detail = "closed an idle connection as the request was sent"
            return UnansweredRequest(
                f"Upstream {name} {detail}",
                upstream=name,
                reason="stale_connection" if upstream.reused else "no_response",
            )
        return UpstreamReset(
            f"Upstream {name} closed the connection before its response was complete",
            upstream=name,
            reason="no_response",
        )

    def _body_deadline(self, now: float) -> float:
        """When the request body must have moved. Past that, raises the error of the side at fault:
        client, upstream or disk."""
        if self._ending is not None:
            return NEVER  # a filter bounds its own time
        if not self.upstream.write_paused and self._reader is None:
            return body_deadline(self._exchange, self.moved, now)
        others_turn(self._exchange, now)
        if self.upstream.write_paused:
            if self.upstream.takes():
                self.moved = now
            deadline = self.moved + self._plan.idle_timeout
            error: ProxyError = Timeout(
                f"Upstream {self._exchange.upstream} does not take the request body",
                upstream=self._exchange.upstream,
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
