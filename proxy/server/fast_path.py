"""The plain exchange: the commonest kind, without the client's coroutine being woken for it.

A small request that asks for nothing special, answered by a small response that says nothing
special, needs no decisions but these; so it passes in two callbacks, one for each read. It is the
general path (connection.py) with everything taken out that cannot happen here. An exchange is
plain as long as all of this holds:

 1. The request is one read: a whole head of at most `_HEAD` bytes and nothing behind it. It has no
    body and wants none (HEAD); it is HTTP/1.1 and its connection persists; it carries no `Expect`,
    `TE`, `Max-Forwards`, `Upgrade` or forwarding fields, and is none of the methods that are about
    the proxy itself.
 2. Its route has nobody who may refuse the request, or must read the answer before it is passed on.
    Its upstream has no bulkhead, and its breaker, if there is one, is closed.
 3. A kept connection to a target is idle, and the client has taken what it got before.
 4. The response is one read of at most `_ANSWER` bytes: a whole final head and, by
    `Content-Length`, a whole body. Its connection persists. Its status is no failure, and nothing
    that the retries or a rescuer would want to see.
 5. Nothing else happens in between: the client sends nothing and stays, nobody's time runs out,
    the proxy does not drain.

Whatever is not plain wakes the coroutine, which takes over from where things stand: either nothing
has begun, and the bytes lie in the inbox; or the request has been sent, and `Exchange.sent_on` says
where. Errors are never decided here. What is malformed is read again by the general path, which
then refuses it in the one place where that is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.core.errors import ProxyError
from proxy.forward.connect import any_target
from proxy.forward.exchange import Exchange, finish
from proxy.forward.messages import VIA, date_field, forwarded_for, plain_request_frame
from proxy.forward.outcome import begin
from proxy.forward.routing.plan import FastRequest, ListenerPlan, RoutePlan, UpstreamPlan
from proxy.http1.client import ClientStream
from proxy.http1.deadlines import NEVER
from proxy.http1.heads import ProtocolError, RequestHead, find_head_end
from proxy.http1.upstream.pool import MAX_FIELDS
from proxy.resilience.circuit.states import State

if TYPE_CHECKING:
    from proxy.server.connection import Service

#: Bytes of a request head and of a response; beyond them a copy more begins to matter.
_HEAD, _ANSWER = 1024, 16 * 1024

#: Bytes of a response's head: below every limit of the general path, so that none is checked here.
_ANSWER_HEAD = 8 * 1024

#: Requests that a listener remembers; when there are more, it begins anew.
_MEMO = 1024

_OTHER_METHODS = frozenset({"CONNECT", "HEAD", "OPTIONS", "TRACE"})


class FastPath:
    """The plain exchanges of one client connection, one at a time.

    `listener` is the plan that the last one began with; `idle_until` is when the client will have
    been silent for too long.
    """

    __slots__ = ("_client", "_exchange", "_forwarding", "_service", "idle_until", "listener")

    def __init__(self, client: ClientStream, service: Service) -> None:
        self._client = client
        self._service = service
        self._exchange: Exchange | None = None
        self._forwarding = VIA + forwarded_for(client)
        self.listener = service.plan
        self.idle_until = NEVER

    async def until_not_plain(self, idle_until: float) -> Exchange | None:
        """Sleep through plain exchanges. The one that is no longer plain, or None when the general
        path has to look at the client."""
        client = self._client
        self.idle_until = idle_until
        if client.inbox or client.eof or client.draining:
            return None
        client.taker = self._request_came
        await client.wait(idle_until)
        client.taker = None
        x, self._exchange = self._exchange, None
        if x is not None and x.sent_on is not None:
            x.sent_on.taker = None
        return x

    def _request_came(self, data: bytes) -> bool:
        """Send it on, if it is plain (rules 1 to 3)."""
        client, listener = self._client, self._service.plan
        if self._exchange is not None or client.draining or client.write_paused:
            return False
        request = listener.plain.get(data) or _prepare(data, listener)
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
        self._exchange = x = Exchange(client, listener, request.head)
        self.listener = listener
        client.requests += 1
        x.plan = request.route
        x.route = request.route.name
        x.upstream = plan.name
        x.target = upstream.pool.label
        x.attempts = 1
        x.sent_on = upstream
        if request.parameters:
            x.parameters = request.parameters
        try:
            for observe in request.route.started:
                observe(x)
            if x.away is not None:  # the upstream is not to be asked first, if at all
                upstream.pool.release(upstream, reusable=True)
                x.sent_on = x.target = None
                x.attempts = 0
                client.notify()
                return True
            if plan.breaker is not None or plan.health is not None:
                x.outcome = begin(x, plan)
            if plan.retry is not None:
                plan.retry.budget.call(client.clock.monotonic())
        except Exception as defect:  # the general path reports it
            upstream.pool.release(upstream, reusable=True)
            x.sent_on, x.defect = None, defect
            client.notify()
            return True
        upstream.taker = self._response_came
        parent = self._forwarding
        if x.span is not None:
            sent = x.span.begin_attempt(x.target, client.clock.time())
            parent += b"\r\nTraceparent: " + sent
        upstream.transport.write(
            b"".join((request.start, x.correlation_id.encode(), parent, request.end))
        )
        x.sent_at = now = client.clock.monotonic()
        client.deadline = now + plan.answer_timeout
        return True

    def _response_came(self, data: bytes) -> bool:
        """Pass it on, if it is plain (rules 4 and 5)."""
        x, client = self._exchange, self._client
        assert x is not None
        upstream, plan = x.sent_on, x.plan.upstream
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
            return False  # the general path reads it again, and says what is wrong with it
        body = data[end + 4 :]
        if head.after_id is None or head.content_length != len(body):
            return False
        if head.status in plan.failing:
            return False
        if plan.retry is not None and not 200 <= head.status < 400:
            return False
        try:
            for fallback_source in x.plan.fallback_sources:
                if fallback_source.wants(x, head):
                    return False
        except Exception:
            return False  # the general path asks again, and reports it
        now = client.clock.monotonic()
        x.upstream_time = now - x.sent_at
        x.status = head.status
        x.response = head
        x.replied = True
        x.bytes_out = len(body)
        upstream.taker = None
        dated = b"" if head.dated else date_field(client.clock)
        client.transport.write(
            b"".join(
                (head.before_id, x.correlation_id.encode(), dated, x.added, head.after_id, body)
            )
        )
        try:
            if x.tee is not None:
                x.tee.add([body])
                x.tee.end()
            if x.outcome is not None:
                x.outcome.succeeded()
                x.outcome.close()
        except Exception as defect:  # the general path reports it; the request must not go again
            upstream.pool.release(upstream, reusable=False)
            x.sent_on, x.defect = None, defect
            client.notify()
            return True
        self._exchange = None
        upstream.pool.release(upstream, reusable=True)
        finish(x)
        self.idle_until = client.deadline = now + self.listener.idle_timeout
        return True


def _prepare(data: bytes, listener: ListenerPlan) -> FastRequest | None:
    """What follows from a request that has not been seen before, if it is plain."""
    if len(data) > _HEAD or data[-4:] != b"\r\n\r\n":
        return None
    limits = listener.limits
    try:
        end = find_head_end(data, limits.line, limits.head)
        if end != len(data) - 4:
            return None
        head = limits.memo.read(data, end, limits.fields)
        if not _is_plain(head):
            return None
        route, parameters = listener.table.match(head.method, head.target, head.overrides)
    except (ProtocolError, ProxyError):
        return None  # the general path reads it again, and says what is wrong with it
    plan = route.upstream
    if plan is None or not _takes_plain(route, plan):
        return None
    start, end_of_head = plain_request_frame(head, plan, traced=route.traced)
    request = FastRequest(head, route, plan, parameters, start, end_of_head)
    # With an ID of its own no other one will be like it.
    if head.correlation is None and not (route.traced and head.values(b"traceparent")):
        if len(listener.plain) >= _MEMO:
            listener.plain.clear()
        listener.plain[data] = request
    return request


def _takes_plain(route: RoutePlan, plan: UpstreamPlan) -> bool:
    """Rule 2, as far as the config can say. Where targets have names of their own, there is one."""
    refusing = route.checks or route.filter or route.answered
    one_host = plan.preserve_host or len(plan.upstream.pools) == 1
    edited = route.request_edits or route.response_edits
    simple = not (refusing or edited or route.reads_answers)
    return one_host and simple and plan.bulkhead is None


def _is_plain(head: RequestHead) -> bool:
    """Rule 1, as far as the head can say."""
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
