"""A client connection from its first byte to its last: requests in, responses out, in order.

This is where one request can be followed from top to bottom: `_exchange` reads a head, finds the
route, lets `forward` do the work, turns whatever went wrong into an answer, and hands the record to
the sinks. Before that it sleeps for as long as the requests are of the plain kind (fast_path.py).
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
from proxy.forward.attempts import forward
from proxy.forward.exchange import Exchange, finish
from proxy.forward.fallbacks import rescue, send
from proxy.forward.messages import own_reply, problem_reply
from proxy.forward.relay.request_body import too_large
from proxy.forward.routing.plan import ListenerPlan, Reply
from proxy.forward.waiting import AnsweredMeanwhile, decided, memory_is_short
from proxy.http1.client import ClientStream
from proxy.http1.heads import ProtocolError, RequestHead
from proxy.server.fast_path import FastPath

logger = logging.getLogger(__name__)

#: How long, in seconds, what a client still sends is read and thrown away after a reply that came
#: before the end of its request: closing at once would reset the connection and the reply with it
#: (RFC 9112 §9.6). In all, and without a byte; the figures are nginx's.
_LINGER, _LINGER_SILENCE = 30.0, 5.0

#: What was no request may have no end: so many bytes of what follows are read at once, and then so
#: many in every such time, or one who sends rubbish at full speed would keep the loop reading it.
_RUBBISH = 256 * 1024
_RUBBISH_EVERY = 0.1  # seconds

_CLIENT_ERRORS = {"syntax": BadRequest, "uri": UriTooLong, "header": HeaderTooLarge}


class InternalError(ProxyError):
    """A defect of ours; the log has the traceback."""

    title = "Internal error"


class Service:
    """What serves the connections of one listener; `plan` may be exchanged at any time."""

    def __init__(self, plan: ListenerPlan) -> None:
        self.plan = plan

    async def __call__(self, client: ClientStream) -> None:
        """Serve `client` until it leaves or must go."""
        plain = FastPath(client, self)
        try:
            while await self._exchange(client, plain):
                if client.inbox:
                    await client.give_way()
        except Exception:
            logger.exception("connection failed", extra={"client": client.address})
            client.abort()
        finally:
            if client.shed and client.write_paused:
                client.abort()  # what it does not take is what memory is short of
            client.close()

    def full(self) -> Overloaded:
        """What the connection that is one too many for all gets."""
        error = f"All {self.plan.max_connections} client connections are in use"
        return Overloaded(error, close=True, retry_after=1, reason="connections_full")

    async def turn_away(self, client: ClientStream, error: ProxyError) -> None:
        """Answer a connection that is one too many, without waiting for what it would ask."""
        x = Exchange(client, self.plan, None)
        _answer_with(x, error)
        finish(x)
        client.close()

    async def _exchange(self, client: ClientStream, plain: FastPath) -> bool:
        """Any number of plain exchanges, and one request and its response that are not; whether the
        connection may carry another."""
        plan = self.plan
        client.asker = None
        silence = plan.idle_timeout if client.requests else plan.header_timeout
        x = await plain.until_not_plain(client.clock.monotonic() + silence)
        if x is not None:
            plan = plain.listener
        else:
            plan = self.plan
            # Nothing more is read from a client that does not take its answers.
            if client.write_paused and not await client.output_taken(plan.body_timeout):
                client.abort()
                return False
            try:
                head = await client.read_head(plan.limits, plain.idle_until, plan.header_timeout)
            except (ProtocolError, TimeoutError) as error:
                return await self._refuse_unread(client, plan, error)
            if head is None:
                if client.shed and client.inbox:
                    self._refuse_shed(client, plan)
                return False
            x = Exchange(client, plan, head)
        try:
            await self._answer(x, plan)
        except ProxyError as error:
            _answer_with(x, error)
            forget_frames(error)
        except Exception as error:
            logger.exception("exchange failed", extra={"correlation_id": x.correlation_id})
            _answer_with(x, InternalError(f"The proxy failed: {type(error).__name__}", close=True))
        finally:
            finish(x)
        if x.keep_alive and (x.body.done or await _discard_rest(client, x)):
            return True
        if x.code is not None and x.ends_by_close:
            await client.reset_when_sent()
        await _linger(client, x)
        return False

    async def _answer(self, exchange: Exchange, plan: ListenerPlan) -> None:
        """Route and forward; raises the `ProxyError` that is to be the answer instead."""
        head = exchange.head
        assert head is not None
        if exchange.defect is not None:
            raise exchange.defect
        if exchange.sent_on is None and exchange.away is None:
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
            await forward(exchange, plan, exchange.plan.upstream)
        except AnsweredMeanwhile:
            assert exchange.instead is not None
            send(exchange, exchange.instead)
        except ProxyError as error:
            better = await rescue(exchange, error) if exchange.plan.fallback_sources else None
            if not isinstance(better, Reply):
                raise
            send(exchange, better)

    def _route(self, exchange: Exchange, plan: ListenerPlan, head: RequestHead) -> None:
        """Find the route, and let its stages know."""
        exchange.plan, exchange.parameters = plan.table.match(
            head.method, head.target, head.overrides
        )
        exchange.route = exchange.plan.name
        for observe in exchange.plan.started:
            observe(exchange)

    def _begin_body(self, exchange: Exchange, head: RequestHead) -> None:
        """Nobody refuses the request for what its head says: see whether its body may come."""
        if exchange.plan.filter is not None:
            exchange.filter = exchange.plan.filter(exchange)
        limit, length = exchange.plan.max_body, head.content_length
        if limit is not None and length is not None and length > limit:
            raise too_large(limit, length)

    def _refuse_shed(self, client: ClientStream, plan: ListenerPlan) -> None:
        """Answer a head that has not come to its end, as memory is short."""
        x = Exchange(client, plan, None)
        _answer_with(x, memory_is_short())
        finish(x)

    async def _refuse_unread(
        self, client: ClientStream, plan: ListenerPlan, error: ProtocolError | TimeoutError
    ) -> bool:
        """Answer what could not be read as a request."""
        x = Exchange(client, plan, None)
        if isinstance(error, ProtocolError):
            _answer_with(x, _CLIENT_ERRORS[error.kind](f"Bad request: {error.detail}", close=True))
        else:
            _answer_with(x, RequestTimeout("The request head did not come in time", close=True))
        finish(x)
        await _linger(client, x)
        return False


async def _answered_for(exchange: Exchange, away: ProxyError) -> bool:
    """Whether a rescuer had the answer of an upstream that is known to be away. An error of the
    rescuer's is not worth more than what the upstream may still say."""
    try:
        better = await rescue(exchange, away)
    except ProxyError:
        return False
    if not isinstance(better, Reply):
        return False
    exchange.note(rescued_from="away")
    send(exchange, better)
    return True


def _answered_here(exchange: Exchange, head: RequestHead, plan: ListenerPlan) -> bool:
    """Methods that are about the proxy itself (RFC 9110 §9.3.6 to §9.3.8, §7.6.2)."""
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
    """Put `error` on record and, if there is still someone to tell, on the wire."""
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
        # The response has begun: cut it, in a way that cannot be taken for its end. Its framing
        # shows that, or `_cut` does; only a proxy that must stop does not wait for the client.
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
    """What was under way when the client left."""
    if exchange.silence is not None:
        return "upstream"
    if exchange.replied:
        return "response" if exchange.unfinished is None else "unfinished"
    return "queue" if exchange.body.done else "request"


async def _discard_rest(client: ClientStream, exchange: Exchange) -> bool:
    """Read over what is left of a request that was answered early; whether it came to its end."""
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
