"""From a request to its upstream's response: which target, how many attempts, and when to stop.

The order of the steps matters:

1. Buffer the body, where it is buffered or checked: until some of it may go upstream, the request
   needs neither a bulkhead place nor a connection.
2. Answer without the upstream where a stage can (`Hooks.admit`).
3. Enter the bulkhead. A request that waits there has cost the upstream nothing yet. None queues
   while the circuit is open.
4. Make attempts. Retries are outside the breaker, so the breaker sees single attempts. When the
   circuit opens, retrying ends, unless the circuit holds calls: then the next attempt waits for it.

`exchange.deadline` bounds all of it. A server that reports itself full without having read the
request is asked again (`while_full`). Within an attempt, two failures are repeated without being
counted, because the upstream never saw the request: a connection that could not be opened (next
target, then `connect_patience`), and a reused connection that closed before the first byte of a
response, if the request may be repeated (RFC 9110 §9.2.2, RFC 9112 §9.3.1).
"""

from __future__ import annotations

from dataclasses import dataclass

from proxy.core.errors import ClientLeft, ProxyError, UpstreamFailure, UpstreamReset
from proxy.core.headers import IDEMPOTENT
from proxy.forward.admission import enter, permitted, until_not_open
from proxy.forward.connect import connection, idle_connection
from proxy.forward.exchange import Exchange
from proxy.forward.fallbacks import find_fallback, needs_body, send
from proxy.forward.known_answer import answer_without_upstream
from proxy.forward.messages import request_head, upgrade_head, wants_websocket
from proxy.forward.outcome import NoOpOutcome, begin
from proxy.forward.relay.buffering import buffer_request, wants_buffering
from proxy.forward.relay.request import Relay, UnansweredRequest
from proxy.forward.relay.response import Response
from proxy.forward.routing.plan import AskAgain, ListenerPlan, Reply, UpstreamPlan
from proxy.forward.send_again import can_replay, may_resend, retry_status, retry_wait, while_full
from proxy.forward.waiting import pause
from proxy.http1.response_head import ResponseHead
from proxy.http1.tunnel import tunnel
from proxy.http1.upstream.connection import UpstreamStream
from proxy.resilience.circuit.permits import ProbePermit
from proxy.resilience.circuit.states import State
from proxy.resilience.retry import Ended, RetryPlan


@dataclass(slots=True)
class HandOver:
    """An exchange that leaves the fast path, and how far it came.

    `listener` is the plan that it began with. `upstream` is the connection on which the first
    attempt has been sent, `outcome` that attempt's; both are None if it has to be made yet.
    `defect` is the exception that stopped the exchange.
    """

    exchange: Exchange
    listener: ListenerPlan
    upstream: UpstreamStream | None = None
    outcome: NoOpOutcome | None = None
    defect: Exception | None = None


async def forward(
    exchange: Exchange, listener: ListenerPlan, plan: UpstreamPlan, handed: HandOver | None = None
) -> None:
    """Carry `exchange` to its upstream and the response back, from where the fast path has `handed`
    it over. Raises `ProxyError`."""
    begun = handed if handed is not None and handed.upstream is not None else None
    exchange.upstream = plan.name
    if wants_buffering(exchange, plan):
        await until_not_open(exchange, plan)
        await buffer_request(exchange, plan)
    if exchange.plan.admissions and await answer_without_upstream(exchange):
        return
    if plan.unbuffered is None or exchange.body.done:
        await _with_place(exchange, listener, plan, begun)
        return
    # The spool does not take this body. Such requests share half of the connections: slow senders
    # must not block the service when the spool is full.
    place = await enter(exchange, plan.unbuffered)
    try:
        await _with_place(exchange, listener, plan, begun)
    finally:
        plan.unbuffered.leave(place)


async def _with_place(
    exchange: Exchange, listener: ListenerPlan, plan: UpstreamPlan, begun: HandOver | None
) -> None:
    """Make the attempts, with a place in the bulkhead if there is one."""
    if plan.bulkhead is None:
        if plan.retry is None and plan.overload is None and not exchange.plan.fallback_sources:
            # Nothing here asks for a second one.
            await _attempt(exchange, listener, plan, None, begun)
        else:
            await _attempts(exchange, listener, plan, begun)
        return
    await until_not_open(exchange, plan)  # do not queue only to be refused
    exchange.place = await enter(exchange, plan.bulkhead)
    try:
        await _attempts(exchange, listener, plan, begun)
    finally:
        plan.bulkhead.leave(exchange.place)


async def _attempts(
    exchange: Exchange, listener: ListenerPlan, plan: UpstreamPlan, begun: HandOver | None
) -> None:
    """Make attempts until one has answered the client. Raises the last one's error."""
    retry: RetryPlan | None = None
    if plan.retry is not None:
        assert exchange.head is not None
        retry = plan.retry.begin(
            exchange.method,
            exchange.stream.clock.monotonic() if begun is None else exchange.sent_at,
            idempotency_key=bool(exchange.head.values(b"idempotency-key")),
            counted=begun is not None,  # by the fast path
            repeatable=exchange.plan.repeatable,
        )
        exchange.deadline = retry.deadline
    unread = not exchange.body.done and exchange.filter is None and exchange.buffered is None
    if unread and (retry is not None or plan.overload is not None):
        exchange.buffered = plan.spool.body(
            exchange.stream.wake, owner=exchange.stream, limit=plan.replay_limit
        )
    while (wait := await _attempt(exchange, listener, plan, retry, begun)) is not None:
        begun = None
        await pause(exchange, exchange.stream.clock.monotonic() + wait)


async def _attempt(
    exchange: Exchange,
    listener: ListenerPlan,
    plan: UpstreamPlan,
    retry: RetryPlan | None,
    begun: HandOver | None,
) -> float | None:
    """One attempt. None once the client has been answered, else seconds to wait before the next."""
    if begun is not None and begun.outcome is not None:
        # The request has been sent: it needs no permit, even if the circuit has opened since.
        outcome = begun.outcome
    else:
        outcome = await _begin(exchange, plan, retry)
    relay: Relay | None = None
    exchange.response_body = None  # an earlier attempt's
    try:
        relay, head = await _response(
            exchange, listener, plan, None if begun is None else begun.upstream
        )
        response = Response(exchange, relay, plan, head)
        wait = await while_full(exchange, plan, response)
        if wait is None:
            wait = retry_status(exchange, plan, retry, head, outcome)
        if wait is None:
            wait = await _answer(exchange, plan, response, outcome)
        return wait
    except UpstreamFailure as error:
        if error.reason != "deadline" or retry is None or not retry.retries:
            outcome.failed(error.kind)  # an attempt cut short by the deadline proves nothing
        if error.kind != "connect":  # connect failures are recorded where they happen
            exchange.failed_attempt(error.kind, exchange.target)
        if exchange.replied or retry is None:
            raise
        ended = Ended(error.kind, error.kind != "connect", exchange.body_whole)
        wait = retry_wait(exchange, plan, retry, ended)
        if wait is None:
            raise
        return wait
    except ClientLeft:
        limit = plan.abandoned_after
        if limit is not None and exchange.silence is not None and exchange.silence >= limit:
            outcome.failed("abandoned")
        raise
    finally:
        outcome.close()
        if relay is not None:
            await relay.release(reusable=False)  # no effect if the response has released it


async def _begin(exchange: Exchange, plan: UpstreamPlan, retry: RetryPlan | None) -> NoOpOutcome:
    """Get the breaker's permit for an attempt, and the object that records its outcome. Raises
    `CircuitOpen`."""
    if plan.breaker is None or plan.breaker.state is State.CLOSED:
        return begin(exchange, plan)
    permit = await permitted(exchange, plan.breaker)
    if retry is not None and isinstance(permit, ProbePermit):
        retry.held += 1
    return begin(exchange, plan, permit)


async def _response(
    exchange: Exchange, listener: ListenerPlan, plan: UpstreamPlan, upstream: UpstreamStream | None
) -> tuple[Relay, ResponseHead]:
    """Send the request, unless it has been sent on `upstream` already, and return the response's
    head, with the relay that carries the exchange."""
    assert exchange.head is not None
    repeatable = exchange.method in IDEMPOTENT or exchange.plan.repeatable
    fresh = not plan.reuse_for_all and not (repeatable and can_replay(exchange))
    resent = 0
    while True:
        sent = upstream is not None  # by the fast path, which has counted the attempt
        if upstream is None:
            upstream = None if fresh else idle_connection(exchange, plan)
            if upstream is None:
                upstream = await connection(exchange, plan, fresh=fresh)
            exchange.attempts += not resent
            exchange.target = upstream.pool.label
        relay = Relay(exchange, upstream, plan)
        try:
            if not sent:
                relay.send(request_head(exchange, listener, plan, upstream.pool))
            return relay, await relay.read_response_head()
        except UnansweredRequest:
            try:
                again = exchange.body_whole and await may_resend(
                    exchange, plan, upstream, repeatable, resent
                )
            finally:
                await relay.release(reusable=False)
            if not again:
                raise
            upstream, fresh = None, True
            resent += 1
            exchange.retries += 1
        except BaseException:
            await relay.release(reusable=False)
            raise


async def _answer(
    exchange: Exchange, plan: UpstreamPlan, response: Response, outcome: NoOpOutcome
) -> float | None:
    """Answer the client with `response` or a fallback. Returns seconds to wait if a fallback wants
    the upstream asked again."""
    head = response.head
    better: Reply | AskAgain | None = None
    if exchange.plan.fallback_sources:
        if exchange.response_body is None and needs_body(exchange, head):
            exchange.response_body = await response.buffer()
        try:
            better = await find_fallback(exchange, head)
        except ProxyError:
            # The fallback answers with an error of its own; for the breaker the call succeeded.
            outcome.succeeded()
            raise
    if isinstance(better, Reply):
        send(exchange, better)
    elif better is not None and not exchange.asked_again and exchange.body_whole:
        exchange.asked_again = True
        if exchange.span is not None:
            exchange.span.end_attempt(exchange.stream.clock.time(), str(head.status))
        exchange.added = b"".join(b"\r\n" + line for line in better.lines)
        outcome.succeeded()
        return 0.0
    elif exchange.plan.answered and (refusal := _check_response(exchange, head)) is not None:
        outcome.succeeded()  # the upstream did nothing wrong
        raise refusal
    elif head.status == 101:
        await _tunnel(exchange, response.upstream, plan, head, outcome)
    else:
        outcome.flows()
        await response.send_to_client(outcome)
    outcome.succeeded()
    return None


def _check_response(exchange: Exchange, head: ResponseHead) -> ProxyError | None:
    """The refusal of a stage that checks response heads, if any."""
    try:
        for observe in exchange.plan.answered:
            observe(exchange, head)
    except ProxyError as refusal:
        return refusal
    return None


async def _tunnel(
    exchange: Exchange,
    upstream: UpstreamStream,
    plan: UpstreamPlan,
    response: ResponseHead,
    outcome: NoOpOutcome,
) -> None:
    """Switch protocols: from here on bytes pass both ways uninspected."""
    assert exchange.head is not None
    if not wants_websocket(exchange.head) or response.upgrade != b"websocket":
        raise UpstreamReset(
            f"Upstream {plan.name} switched protocols unasked",
            upstream=plan.name,
            reason="unasked_upgrade",
        )
    outcome.succeeded()
    exchange.head_after = exchange.stream.clock.monotonic() - exchange.started
    exchange.status = 101
    exchange.replied = True
    exchange.keep_alive = False
    exchange.stream.transport.write(upgrade_head(exchange, response))
    exchange.bytes_in, exchange.bytes_out = await tunnel(
        exchange.stream, upstream, plan.tunnel_timeout
    )
    if upstream.unwanted:
        exchange.note(gave_way=True)
