"""A client connection from its first byte to its last: requests in, responses out, in order.

Follow one request from top to bottom here: `_exchange` reads a head, finds the route, calls
`forward`, turns any error into a response, and hands the record to the sinks. While the requests
qualify for the fast path (fast_path.py), `_exchange` sleeps.
"""

from __future__ import annotations

import logging
import math

from proxy.core.errors import (
    BadRequest,
    ClientLeft,
    Draining,
    HeaderTooLarge,
    MethodNotAllowed,
    Overloaded,
    ProxyError,
    RequestTimeout,
    UriTooLong,
    forget_frames,
)
from proxy.forward.attempts import HandOver, forward
from proxy.forward.exchange import Exchange, finish
from proxy.forward.fallbacks import ReplyFound, find_fallback, send
from proxy.forward.messages import own_reply, problem_reply
from proxy.forward.relay.request_body import too_large
from proxy.forward.routing.plan import ListenerPlan, Reply
from proxy.forward.waiting import decided, memory_is_short
from proxy.http1.client import ClientStream
from proxy.http1.fields import ProtocolError
from proxy.http1.request_head import RequestHead
from proxy.server.fast_path import FastPath

logger = logging.getLogger(__name__)

#: Lingering close: seconds for which the rest of a request is read and discarded after an early
#: reply, in total and without a byte. Closing at once would reset the connection and lose the reply
#: (RFC 9112 §9.6). The values are nginx's.
_LINGER, _LINGER_SILENCE = 30.0, 5.0

#: Input that is not HTTP may never end. It is discarded at this many bytes per interval, so that a
#: client sending rubbish at full speed cannot keep the event loop busy.
_RUBBISH = 256 * 1024
_RUBBISH_EVERY = 0.1  # seconds

_CLIENT_ERRORS = {"syntax": BadRequest, "uri": UriTooLong, "header": HeaderTooLarge}


class InternalError(ProxyError):
    """A bug in the proxy; the log has the traceback."""

    title = "Internal error"


class Service:
    """Serves the connections of one listener; `plan` may be replaced at any time."""

    def __init__(self, plan: ListenerPlan) -> None:
        self.plan = plan

    async def __call__(self, client: ClientStream) -> None:
        """Serve `client` until either side ends the connection."""
        fast_path = FastPath(client, self)
        try:
            while await self._exchange(client, fast_path):
                if client.inbox:
                    await client.give_way()
        except Exception:
            logger.exception("connection failed", extra={"client": client.address})
            client.abort()
        finally:
            if client.shed and client.write_paused:
                client.abort()  # its unsent output is the memory that we need back
            client.close()

    def full(self) -> Overloaded:
        """The refusal for a connection above `max_connections`."""
        error = f"All {self.plan.max_connections} client connections are in use"
        return Overloaded(error, close=True, retry_after=1, reason="connections_full")

    async def turn_away(self, client: ClientStream, error: ProxyError) -> None:
        """Refuse a connection with `error` without reading its request."""
        exchange = Exchange(client, self.plan, None)
        _answer_with(exchange, error)
        finish(exchange)
        client.close()

    async def _exchange(self, client: ClientStream, fast_path: FastPath) -> bool:
        """Serve any number of requests on the fast path, then one on the general path. Returns
        whether the connection may carry another request."""
        plan = self.plan
        client.asker = None
        silence = plan.idle_timeout if client.requests else plan.header_timeout
        handed = await fast_path.run(client.clock.monotonic() + silence)
        if handed is not None:
            exchange, plan = handed.exchange, handed.listener
        else:
            plan = self.plan
            # Do not read another request from a client that does not read its responses.
            if client.write_paused and not await client.output_taken(plan.body_timeout):
                client.abort()
                return False
            try:
                head = await client.read_head(
                    plan.limits, fast_path.idle_until, plan.header_timeout
                )
            except (ProtocolError, TimeoutError) as error:
                return await self._refuse_unreadable(client, plan, error)
            if head is None:
                if client.shed and client.inbox:
                    self._refuse_for_memory(client, plan)
                return False
            exchange = Exchange(client, plan, head)
        try:
            await self._handle(exchange, plan, handed)
        except ProxyError as error:
            _answer_with(exchange, error)
            forget_frames(error)
        except Exception as error:
            logger.exception("exchange failed", extra={"correlation_id": exchange.correlation_id})
            _answer_with(
                exchange, InternalError(f"The proxy failed: {type(error).__name__}", close=True)
            )
        finally:
            finish(exchange)
        if exchange.keep_alive and (exchange.body.done or await _discard_rest(client, exchange)):
            return True
        if exchange.code is not None and exchange.ends_by_close:
            await client.reset_when_sent()
        await _linger(client, exchange)
        return False

    async def _handle(
        self, exchange: Exchange, plan: ListenerPlan, handed: HandOver | None
    ) -> None:
        """Route and forward, or go on where the fast path has stopped. Raises the `ProxyError` to
        answer with instead."""
        head = exchange.head
        assert head is not None
        if handed is not None and handed.defect is not None:
            raise handed.defect
        if handed is None:
            if plan.shares is not None:
                exchange.share = exchange.stream.asker = plan.shares.admit(
                    exchange.stream, head, exchange.started
                )
            if head.method in ("CONNECT", "TRACE", "OPTIONS") and _answered_here(
                exchange, head, plan
            ):
                return
            self._route(exchange, plan, head)
            for check in exchange.plan.checks:
                decision = check(exchange)
                if decision is not None:
                    await decided(exchange, decision)
            self._begin_body(exchange, head)
        assert exchange.plan.upstream is not None
        if exchange.away is not None and await _answered_for(exchange, exchange.away):
            return
        try:
            await forward(exchange, plan, exchange.plan.upstream, handed)
        except ReplyFound as found:
            forget_frames(found)
            send(exchange, found.reply)
        except ProxyError as error:
            better = (
                await find_fallback(exchange, error) if exchange.plan.fallback_sources else None
            )
            if not isinstance(better, Reply):
                raise
            send(exchange, better)

    def _route(self, exchange: Exchange, plan: ListenerPlan, head: RequestHead) -> None:
        """Find the route and notify its stages."""
        exchange.plan, exchange.parameters = plan.table.match(
            head.method, head.target, head.overrides
        )
        exchange.route = exchange.plan.name
        for observe in exchange.plan.started:
            observe(exchange)

    def _begin_body(self, exchange: Exchange, head: RequestHead) -> None:
        """Every check of the head has passed: create the body filter and check the body's size."""
        if exchange.plan.filter is not None:
            exchange.filter = exchange.plan.filter(exchange)
        limit, length = exchange.plan.max_body, head.content_length
        if limit is not None and length is not None and length > limit:
            raise too_large(limit, length)

    def _refuse_for_memory(self, client: ClientStream, plan: ListenerPlan) -> None:
        """Refuse a request whose head is incomplete because memory is short."""
        exchange = Exchange(client, plan, None)
        _answer_with(exchange, memory_is_short())
        finish(exchange)

    async def _refuse_unreadable(
        self, client: ClientStream, plan: ListenerPlan, error: ProtocolError | TimeoutError
    ) -> bool:
        """Answer input that could not be read as a request."""
        exchange = Exchange(client, plan, None)
        if isinstance(error, ProtocolError):
            _answer_with(
                exchange, _CLIENT_ERRORS[error.kind](f"Bad request: {error.detail}", close=True)
            )
        else:
            _answer_with(
                exchange, RequestTimeout("The request head was not received in time", close=True)
            )
        finish(exchange)
        await _linger(client, exchange)
        return False


async def _answered_for(exchange: Exchange, away: ProxyError) -> bool:
    """Try the fallbacks first while the upstream is known to be down; returns whether one replied.
    An error from a fallback is ignored here: the upstream may still have a better answer."""
    try:
        better = await find_fallback(exchange, away)
    except ProxyError:
        return False
    if not isinstance(better, Reply):
        return False
    exchange.note(rescued_from="away")
    send(exchange, better)
    return True


def _answered_here(exchange: Exchange, head: RequestHead, plan: ListenerPlan) -> bool:
    """Handle methods addressed to the proxy itself (RFC 9110 §9.3.6 to §9.3.8, §7.6.2); returns
    whether the request has been answered."""
    if head.method == "CONNECT":
        raise MethodNotAllowed("This is not a forward proxy", close=True, allow="GET, HEAD, POST")
    if head.method == "TRACE":  # would echo what intermediaries added, credentials included
        raise MethodNotAllowed("TRACE is not allowed", close=head.has_body, allow="GET, HEAD, POST")
    hops = head.max_forwards
    last = hops is not None and hops.isdigit() and int(hops[:9]) == 0
    if not last and (head.target != "*" or plan.table.takes("OPTIONS *")):
        return False
    exchange.status = 204
    exchange.replied = True
    exchange.stream.transport.write(own_reply(exchange, 204, "", b""))
    return True


def _answer_with(exchange: Exchange, error: ProxyError) -> None:
    """Record `error` and send it to the client if it is still there."""
    client = exchange.stream
    exchange.code, exchange.reason, exchange.detail = error.code, error.reason, error.detail
    if isinstance(error, ClientLeft):
        exchange.status = error.status
        exchange.gone_in = _phase(exchange)
        if exchange.silence is not None:
            exchange.note(silent_ms=round(exchange.silence * 1000, 1))
        if exchange.unfinished is not None:
            exchange.note(unfinished_ms=round(exchange.unfinished * 1000, 1))
        exchange.keep_alive = False
        client.abort()
    elif exchange.replied:
        # The response has begun, so truncate it visibly: its framing shows the cut, or else the
        # connection is reset once the client has everything. When draining, reset at once.
        exchange.keep_alive = False
        if isinstance(error, Draining):
            client.reset()
    else:
        exchange.status = error.status
        if error.close or client.draining or not exchange.body.done:
            exchange.keep_alive = False
        exchange.replied = True
        if not client.lost:
            reply = problem_reply(exchange, error)
            client.transport.write(reply)


def _phase(exchange: Exchange) -> str:
    """The phase of the exchange in which the client left."""
    if exchange.silence is not None:
        return "upstream"
    if exchange.replied:
        return "response" if exchange.unfinished is None else "unfinished"
    return "queue" if exchange.body.done else "request"


async def _discard_rest(client: ClientStream, exchange: Exchange) -> bool:
    """Discard the rest of a request that was answered early; whether its end was reached."""
    end = client.clock.monotonic() + _LINGER
    try:
        while not client.eof and client.clock.monotonic() < end:
            client.read_body(exchange.body)
            if exchange.body.done:
                return True
            await client.wait(end)
    except ProtocolError as error:
        logger.info(
            "malformed rest of a request",
            extra={"detail": error.detail, "correlation_id": exchange.correlation_id},
        )
    return False


async def _linger(client: ClientStream, exchange: Exchange) -> None:
    """Give the client time to read its answer before the connection goes (RFC 9112 §9.6)."""
    unread = not exchange.body.done or client.inbox or exchange.head is None
    if not unread or client.eof or client.transport.is_closing():
        return
    if client.transport.can_write_eof():
        client.transport.write_eof()
    rubbish = exchange.head is None
    client.drop(_RUBBISH if rubbish else math.inf)
    now = client.clock.monotonic()
    end, seen = now + _LINGER, client.discarded
    while not client.eof and now < end:
        silent_until = min(end, now + _LINGER_SILENCE)
        while not client.eof and now < silent_until:
            await client.wait(min(silent_until, now + _RUBBISH_EVERY) if rubbish else silent_until)
            now = client.clock.monotonic()
            if rubbish:
                client.drop_more(_RUBBISH)
        if client.discarded == seen:
            break
        seen = client.discarded
