"""The fast path: the common exchange, served without waking the client's coroutine.

A small, ordinary request with a small, ordinary response takes two callbacks, one for each read.
This is the general path (connection.py) without the steps that such an exchange never needs. An
exchange stays on the fast path as long as all of these hold:

 1. The request arrives in one read: a complete head of at most `_HEAD` bytes with nothing after it.
    It has no body and is not HEAD. It is HTTP/1.1 and keeps its connection alive. It has no
    `Expect`, `TE`, `Max-Forwards`, `Upgrade` or forwarding fields, and its method is not one that
    addresses the proxy itself.
 2. No stage of its route may refuse the request or must read the response before it is relayed.
    Its upstream has no bulkhead, and its breaker, if it has one, is closed.
 3. An idle connection to a target exists, and the client has read its previous responses.
 4. The response arrives in one read of at most `_ANSWER` bytes: a complete final head and a
    complete body, delimited by `Content-Length`. Its connection stays open. Its status is not a
    failure, and neither the retries nor a fallback want to see it.
 5. Nothing else happens in the meantime: the client neither sends nor leaves, no deadline passes,
    and the proxy does not drain.

Anything else wakes the coroutine, which continues from the current state. Either nothing has begun
and the bytes are in the inbox, or an exchange has begun, and a `HandOver` says how far it came. No
error is decided here: the general path parses malformed input again and rejects it.
"""

from __future__ import annotations

from typing import Protocol

from proxy.core.errors import ProxyError
from proxy.forward.attempts import HandOver
from proxy.forward.connect import any_target
from proxy.forward.exchange import Exchange, finish
from proxy.forward.messages import VIA, date_field, fast_request_frame, forwarded_for
from proxy.forward.outcome import NoOpOutcome, begin
from proxy.forward.routing.plan import FastRequest, ListenerPlan, RoutePlan, UpstreamPlan
from proxy.http1.client import ClientStream
from proxy.http1.deadlines import NEVER
from proxy.http1.fields import ProtocolError
from proxy.http1.heads import find_head_end
from proxy.http1.request_head import RequestHead
from proxy.http1.upstream.connection import MAX_FIELDS, UpstreamStream
from proxy.resilience.circuit.states import State

#: Largest request head and largest response, in bytes; above that an extra copy costs too much.
_HEAD, _ANSWER = 1024, 16 * 1024

#: Largest response head, in bytes: below every limit of the general path, so none is checked here.
_ANSWER_HEAD = 8 * 1024

#: Requests that a listener remembers; when there are more, the memo is cleared.
_MEMO = 1024

_OTHER_METHODS = frozenset({"CONNECT", "HEAD", "OPTIONS", "TRACE"})


class Serving(Protocol):
    """Whoever serves the connection: `plan` may be replaced at any time."""

    plan: ListenerPlan


class FastPath:
    """The fast-path exchanges of one client connection, one at a time. `idle_until` is the
    monotonic deadline for the client's next request."""

    __slots__ = (
        "_client",
        "_defect",
        "_exchange",
        "_forwarding",
        "_listener",
        "_outcome",
        "_service",
        "_upstream",
        "idle_until",
    )

    def __init__(self, client: ClientStream, service: Serving) -> None:
        self._client = client
        self._service = service
        self._forwarding = VIA + forwarded_for(client)
        # The exchange in progress, as in `HandOver`.
        self._exchange: Exchange | None = None
        self._listener = service.plan
        self._upstream: UpstreamStream | None = None
        self._outcome: NoOpOutcome | None = None
        self._defect: Exception | None = None
        self.idle_until = NEVER

    async def run(self, idle_until: float) -> HandOver | None:
        """Serve exchanges on the fast path until one leaves it. Returns that exchange as far as it
        came, or None when the general path has to read the client's input."""
        client = self._client
        self.idle_until = idle_until
        if client.inbox or client.eof or client.draining:
            return None
        client.taker = self._request_came
        await client.wait(idle_until)
        client.taker = None
        if self._exchange is None:
            return None
        if self._upstream is not None:
            self._upstream.taker = None
        handed = HandOver(
            self._exchange, self._listener, self._upstream, self._outcome, self._defect
        )
        self._exchange = self._upstream = self._outcome = self._defect = None
        return handed

    def _request_came(self, data: bytes) -> bool:
        """Forward the request if it qualifies (rules 1 to 3); whether it was taken."""
        client, listener = self._client, self._service.plan
        if self._exchange is not None or client.draining or client.write_paused:
            return False
        request = listener.fast_requests.get(data) or _prepare(data, listener)
        if request is None:
            return False
        plan = request.upstream
        if plan.breaker is not None and plan.breaker.state is not State.CLOSED:
            return False
        usable = None if plan.health is None else any_target(client, plan)
        upstream = plan.upstream.checkout(client, usable)
        if upstream is None:
            return False
        shares = listener.shares
        if shares is not None and not shares.take(client, client.clock.monotonic()):
            upstream.pool.release(upstream, reusable=True)
            return False  # the general path refuses it
        self._exchange = exchange = Exchange(client, listener, request.head)
        self._listener = listener
        self._upstream = upstream
        client.requests += 1
        exchange.plan = request.route
        exchange.route = request.route.name
        exchange.upstream = plan.name
        exchange.target = upstream.pool.label
        exchange.attempts = 1
        if request.parameters:
            exchange.parameters = request.parameters
        try:
            for observe in request.route.started:
                observe(exchange)
            if exchange.away is not None:  # the fallbacks are to be tried before the upstream
                exchange.target = None
                exchange.attempts = 0
                self._leave(upstream, reusable=True)
                return True
            if plan.breaker is not None or plan.health is not None:
                self._outcome = begin(exchange, plan)
            if plan.retry is not None:
                plan.retry.budget.call(client.clock.monotonic())
        except Exception as defect:
            self._leave(upstream, defect, reusable=True)
            return True
        upstream.taker = self._response_came
        parent = self._forwarding
        if exchange.span is not None:
            sent = exchange.span.begin_attempt(exchange.target, client.clock.time())
            parent += b"\r\nTraceparent: " + sent
        upstream.transport.write(
            b"".join((request.start, exchange.correlation_id.encode(), parent, request.end))
        )
        exchange.sent_at = now = client.clock.monotonic()
        client.deadline = now + plan.answer_timeout
        return True

    def _response_came(self, data: bytes) -> bool:
        """Relay the response if it qualifies (rules 4 and 5); whether it was taken."""
        exchange, client, upstream = self._exchange, self._client, self._upstream
        assert exchange is not None
        plan = exchange.plan.upstream
        assert upstream is not None
        assert plan is not None
        end = data.find(b"\r\n\r\n")
        if not 0 <= end <= _ANSWER_HEAD or len(data) > _ANSWER:
            return False
        if client.write_paused or client.draining:
            return False
        try:
            head = upstream.pool.memo.read(data, end, MAX_FIELDS)
        except ProtocolError:
            return False  # the general path parses it again and reports the error
        body = data[end + 4 :]
        if head.after_id is None or head.content_length != len(body):
            return False
        if head.status in plan.failing:
            return False
        if plan.retry is not None and not 200 <= head.status < 400:
            return False
        try:
            for fallback_source in exchange.plan.fallback_sources:
                if fallback_source.wants(exchange, head):
                    return False
        except Exception:
            return False  # the general path asks again and reports the error
        now = client.clock.monotonic()
        exchange.upstream_time = now - exchange.sent_at
        exchange.status = head.status
        exchange.response = head
        exchange.replied = True
        exchange.bytes_out = len(body)
        upstream.taker = None
        dated = b"" if head.dated else date_field(client.clock)
        client.transport.write(
            b"".join(
                (
                    head.before_id,
                    exchange.correlation_id.encode(),
                    dated,
                    exchange.added,
                    head.after_id,
                    body,
                )
            )
        )
        try:
            if exchange.tee is not None:
                exchange.tee.add([body])
                exchange.tee.end()
            if self._outcome is not None:
                self._outcome.succeeded()
                self._outcome.close()
        except Exception as defect:
            self._leave(upstream, defect, reusable=False)
            return True
        self._exchange = self._upstream = self._outcome = None
        upstream.pool.release(upstream, reusable=True)
        finish(exchange)
        self.idle_until = client.deadline = now + self._listener.idle_timeout
        return True

    def _leave(
        self, upstream: UpstreamStream, defect: Exception | None = None, *, reusable: bool
    ) -> None:
        """Leave the fast path without a connection: the general path tries the fallbacks, or
        reports `defect`."""
        upstream.pool.release(upstream, reusable=reusable)
        self._upstream, self._defect = None, defect
        self._client.notify()


def _prepare(data: bytes, listener: ListenerPlan) -> FastRequest | None:
    """The fast-path entry for a request that is not in the memo; None if it does not qualify."""
    if len(data) > _HEAD or data[-4:] != b"\r\n\r\n":
        return None
    limits = listener.limits
    try:
        end = find_head_end(data, limits.line, limits.head)
        if end != len(data) - 4:
            return None
        head = limits.memo.read(data, end, limits.fields)
        if not _head_qualifies(head):
            return None
        route, parameters = listener.table.match(head.method, head.target, head.overrides)
    except (ProtocolError, ProxyError):
        return None  # the general path parses it again and reports the error
    plan = route.upstream
    if plan is None or not _route_qualifies(route, plan):
        return None
    start, end_of_head = fast_request_frame(head, plan, traced=route.traced)
    request = FastRequest(head, route, plan, parameters, start, end_of_head)
    # A request that carries an ID of its own will not be repeated byte for byte.
    if head.correlation is None and not (route.traced and head.values(b"traceparent")):
        if len(listener.fast_requests) >= _MEMO:
            listener.fast_requests.clear()
        listener.fast_requests[data] = request
    return request


def _route_qualifies(route: RoutePlan, plan: UpstreamPlan) -> bool:
    """Rule 2, as far as the config decides it. The Host must not depend on the target either."""
    refusing = route.checks or route.filter or route.answered
    one_host = plan.preserve_host or len(plan.upstream.pools) == 1
    edited = route.request_edits or route.response_edits
    simple = not (refusing or edited or route.reads_answers)
    return one_host and simple and plan.bulkhead is None


def _head_qualifies(head: RequestHead) -> bool:
    """Rule 1, as far as the head decides it."""
    unusual = (
        head.has_body
        or head.content_length is not None
        or head.expects_continue
        or head.te_trailers
        or head.max_forwards is not None
        or head.upgrade is not None
        or head.forwarded is not None
    )
    ordinary = head.minor and head.keep_alive and head.host is not None
    return bool(ordinary) and not unusual and head.method not in _OTHER_METHODS
