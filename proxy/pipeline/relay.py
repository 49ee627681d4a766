"""Two messages in motion between a client and an upstream connection.

One coroutine moves both. It looks at each side, moves what can be moved without waiting, and only
then waits for the next event on either; so an early response, a client that leaves in the middle
of its upload and an upstream that dies are all seen at once, wherever the other message stands.
Neither side is read faster than the other takes it.
"""

from __future__ import annotations

import asyncio

from proxy.errors import ClientLeft, ProxyError, RequestTimeout, UpstreamReset
from proxy.errors import UpstreamTimeout as Timeout
from proxy.pipeline.exchange import Exchange
from proxy.pipeline.gather import (
    drop_ending,
    read_body,
    read_checked,
    send_continue,
    start_ending,
)
from proxy.pipeline.messages import goes_chunked, interim_head, response_head
from proxy.pipeline.outcome import own_shortage
from proxy.pipeline.plan import ListenerPlan, UpstreamPlan
from proxy.pipeline.waiting import until_left
from proxy.wire.bodies import (
    ChunkedBody,
    Decoder,
    LengthBody,
    NoBody,
    UntilClose,
    chunk,
    last_chunk,
)
from proxy.wire.codec import ProtocolError, ResponseHead
from proxy.wire.deadlines import NEVER
from proxy.wire.pool import UpstreamStream

#: Interim responses that one exchange may have.
_MAX_INTERIM = 32


class StaleConnection(Exception):
    """A kept connection ended before the response began: it had been closed under us."""


class Relay:
    """One attempt: `x` over `upstream`."""

    __slots__ = (
        "_chunked_up",
        "_client",
        "_clock",
        "_ending",
        "_held",
        "_moved",
        "_plan",
        "_sent",
        "_times",
        "_x",
        "upstream",
    )

    def __init__(
        self, x: Exchange, upstream: UpstreamStream, plan: UpstreamPlan, times: ListenerPlan
    ) -> None:
        assert x.head is not None
        self._x = x
        self._client = x.stream
        self._clock = x.stream.clock
        self._plan = plan
        self._times = times
        self._chunked_up = goes_chunked(x)
        # Whether the upstream has the whole request.
        self._sent = not x.head.has_body and x.filter is None
        self._ending: asyncio.Task[list[bytes]] | None = None  # the filter's last word
        self._held: tuple[Decoder, list[bytes]] | None = None
        self._moved = 0.0  # when anything last moved
        self.upstream = upstream

    def send(self, head: bytes) -> None:
        """Begin the request: its head, and what has been read of its body already."""
        x = self._x
        self.upstream.transport.write(head)
        if x.replay is not None and (x.bytes_in or x.body.done):
            self._write_upstream(list(x.replay.replay()), end=x.body.done)
        if x.gathered is not None:
            gathered, x.gathered = x.gathered, None
            self._write_upstream(gathered.pieces, end=gathered.complete)
        if x.head is not None and x.head.expects_continue:
            send_continue(x)
        x.sent_at = self._clock.monotonic()

    async def converse(self) -> ResponseHead:
        """Send the request's body until the head of the final response has come.

        Raises `StaleConnection` when a reused connection ended without a byte of response, else
        the `ProxyError` that tells what went wrong.
        """
        x, client, upstream, clock = self._x, self._client, self.upstream, self._clock
        interim = 0
        self._moved = sent = x.sent_at
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
            if not self._sent and self._send_body():
                sent = self._moved
            now = clock.monotonic()
            if self._sent:
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
            await client.wait(until_left(x, deadline, now, self._moved))

    async def pass_on(self, head: ResponseHead) -> bool:
        """Send the final response `head` and its body to the client.

        True when the upstream connection can carry another exchange. A response that cannot be
        completed is cut so that the client sees it, and the reason is left in the record.
        """
        x, client, upstream = self._x, self._client, self.upstream
        assert x.head is not None
        if not x.body.done and x.head.expects_continue and not x.continue_sent:
            x.keep_alive = False  # the body may or may not come (RFC 9110 §10.1.1)
        if client.draining:
            x.keep_alive = False
        body, framing, chunked = self._framing(head)
        pieces: list[bytes] = []
        if self._held is not None:
            body, pieces = self._held
        x.status = head.status
        x.response = head
        tee = x.tee
        out = [response_head(x, head, framing)]
        x.replied = True
        self._moved = self._clock.monotonic()
        while True:
            if upstream.inbox and not body.done and not client.write_paused:
                pieces += self._read_body(body)
            if pieces:
                x.bytes_out += sum(map(len, pieces))
                if tee is not None:
                    tee.add(pieces)
            if upstream.eof and isinstance(body, UntilClose) and not upstream.inbox:
                if upstream.error is not None:
                    self._raise_own_shortage()
                    raise UpstreamReset("Upstream broke off", reason="reset")
                body.done = True
            out += chunk(pieces) if chunked else pieces
            if chunked and body.done:
                out.append(last_chunk(body.trailers))
            if out:
                self._write_to_client(out)
                out = []
            pieces = []
            if body.done:
                break
            if upstream.eof and not upstream.inbox:
                self._raise_own_shortage()
                raise UpstreamReset(
                    "Upstream broke off in the middle of its response", reason="truncated"
                )
            if not self._sent:
                self._send_body()
            await self._wait_for_body()
        if tee is not None:
            tee.end()
        if self._ending is not None and not self._sent:
            await self._hear_out(self._ending)
        return self._sent and head.keep_alive and not isinstance(body, UntilClose)

    async def hold(self, head: ResponseHead, limit: int) -> bytes | None:
        """The body of the response `head`, before anything of it is passed on; None where it is
        over `limit` bytes. `pass_on` sends it all the same. Raises `UpstreamFailure`."""
        body, _, _ = self._framing(head)
        held: list[bytes] = []
        size = 0
        self._held = (body, held)
        self._moved = self._clock.monotonic()
        while not body.done:
            if self.upstream.inbox:
                pieces = self._read_body(body)
                held += pieces
                size += sum(map(len, pieces))
                self._moved = self._clock.monotonic()
                if size > limit:
                    return None
            elif self.upstream.eof:
                if not isinstance(body, UntilClose) or self.upstream.error is not None:
                    self._raise_own_shortage()
                    raise UpstreamReset(
                        "Upstream broke off in the middle of its response", reason="truncated"
                    )
                body.done = True
            else:
                if not self._sent:
                    self._send_body()  # the upstream may wait for the rest before it ends its own
                await self._wait_for_body()
        return b"".join(held)

    def _read_body(self, body: Decoder) -> list[bytes]:
        try:
            return self.upstream.read_body(body)
        except ProtocolError as error:
            raise UpstreamReset(
                f"Upstream sent a malformed body: {error.detail}", reason="malformed_body"
            ) from error

    async def release(self, *, reusable: bool) -> None:
        """Give the connection back and end what the attempt may have left running."""
        self.upstream.pool.release(self.upstream, reusable=reusable)
        if self._ending is not None:
            await drop_ending(self._ending)

    def _send_body(self) -> bool:
        """Move what the client has sent of its body to the upstream; whether anything moved."""
        x, client, upstream = self._x, self._client, self.upstream
        check = x.filter
        if check is not None:
            asked = check.feed(b"")  # it may have made up its mind since
            if asked:
                self._write_upstream(asked, end=False)
        if upstream.write_paused:
            return False
        if x.body.done:
            return self._send_end()
        if not client.inbox or (check is not None and check.blocked):
            return False
        if check is not None:
            pieces = read_checked(x)
        else:
            pieces = read_body(x)
            if x.replay is not None:
                for piece in pieces:
                    x.replay.keep(piece)
        self._write_upstream(pieces, end=x.body.done and check is None)
        if x.body.done and check is not None:
            self._send_end()
        return True

    def _send_end(self) -> bool:
        """What a filter held back until its verdict; whether it has come."""
        x = self._x
        assert x.filter is not None
        if self._ending is None:
            self._ending = start_ending(x)
        if not self._ending.done():
            return False
        self._write_upstream(self._ending.result(), end=True)
        return True

    async def _hear_out(self, ending: asyncio.Task[list[bytes]]) -> None:
        """The upstream had all it wanted before the filter's last word: wait for that, so that it
        is on record. The client has its answer already, so a refusal changes nothing any more."""
        while not ending.done() and not self._client.cut:
            await self._client.wait(NEVER)  # a filter bounds its own time
        if ending.done() and ending.exception() is None:
            self._write_upstream(ending.result(), end=True)

    def _write_upstream(self, pieces: list[bytes], *, end: bool) -> None:
        out = chunk(pieces) if self._chunked_up else pieces
        if end:
            self._sent = True
            if self._chunked_up:
                out = [*out, last_chunk(self._x.body.trailers)]
        if out and not self.upstream.lost:
            self.upstream.write(out)
        self._moved = self._clock.monotonic()

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

    def _raise_own_shortage(self) -> None:
        """The connection may have ended for want of memory to send with."""
        upstream = self.upstream
        ours = own_shortage(upstream.error, self._plan.name, upstream.pool.label)
        if ours is not None:
            raise ours

    def _broken_off(self) -> Exception:
        self._raise_own_shortage()
        upstream = self.upstream
        if upstream.reused and not upstream.inbox:
            return StaleConnection()
        return UpstreamReset(
            f"Upstream {self._x.upstream} closed the connection before its response was complete",
            upstream=self._x.upstream,
            reason="no_response",
        )

    def _framing(self, head: ResponseHead) -> tuple[Decoder, bytes, bool]:
        """How the response's body ends: (its decoder, our framing fields, whether we chunk).

        RFC 9112 §6.3, in its order.
        """
        x = self._x
        assert x.head is not None
        length = head.content_length
        if x.method == "HEAD" or head.status in (204, 304):
            shown = length is not None and head.status != 204  # RFC 9110 §8.6
            return (
                NoBody(),
                b"\r\nContent-Length: %d" % length if shown and length is not None else b"",
                False,
            )
        if length is not None:
            return LengthBody(length), b"\r\nContent-Length: %d" % length, False
        body: Decoder = ChunkedBody() if head.chunked else UntilClose()
        if x.head.minor:
            return body, b"\r\nTransfer-Encoding: chunked", True
        x.keep_alive = False
        return body, b"", False

    def _write_to_client(self, out: list[bytes]) -> None:
        client = self._client
        if client.eof and (client.lost or client.secure):
            raise ClientLeft("Client left before its response could be sent")
        client.write(out)
        self._moved = self._clock.monotonic()

    def _body_deadline(self, now: float) -> float:
        """Until when the request body must move on, and whose fault it is if it does not."""
        if self._ending is not None:
            return NEVER  # a filter bounds its own time
        if self.upstream.write_paused:
            deadline = self._moved + self._plan.idle_timeout
            error: ProxyError = Timeout(
                f"Upstream {self._x.upstream} does not take the request body",
                upstream=self._x.upstream,
                reason="write_stalled",
            )
        else:
            deadline = self._moved + self._times.body_timeout
            error = RequestTimeout("The request body did not come in time", close=True)
        if now >= deadline:
            raise error
        return deadline

    async def _wait_for_body(self) -> None:
        now = self._clock.monotonic()
        if self._client.write_paused:
            deadline = self._moved + self._times.body_timeout
            if now >= deadline:
                raise ClientLeft("Client does not take its response", reason="client_stalled")
        else:
            deadline = self._moved + self._plan.idle_timeout
            if now >= deadline:
                raise Timeout("Upstream stalled in the middle of its response", reason="idle")
        await self._client.wait(until_left(self._x, deadline, now, self._moved))
