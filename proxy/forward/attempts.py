"""From a request to an answer of its upstream: which target, how often, and when not.

Each step stands where it does for a reason. A body that is buffered or checked is read first: as
long as nothing of it may pass, it needs neither place nor connection. What is known without the
upstream is answered next (`Hooks.admit`). Then comes the bulkhead: who
waits there has cost the upstream nothing yet (nobody queues for an open circuit, though). Retries
stand outside the breaker, so that the breaker sees single attempts. A circuit that opens ends the
retrying, unless it holds its calls: then the next attempt waits for it. All of it together is over
at `x.deadline`. A server that says that it is full, and has looked at nothing, is asked again
(`_while_full`). Inside an attempt two things are repeated without being counted, because the
upstream never saw them: a connection that could not be opened (next target, then
`connect_patience`), and a kept one that was closed under us before a byte of response, for a
request that may be repeated (RFC 9110 §9.2.2, RFC 9112 §9.3.1).
"""

from __future__ import annotations

from proxy.core.errors import ClientLeft, ProxyError, UpstreamFailure, UpstreamReset
from proxy.core.headers import IDEMPOTENT
from proxy.forward.admission import enter, permitted, until_not_open
from proxy.forward.connect import connection, idle_connection, was_reset
from proxy.forward.exchange import Exchange
from proxy.forward.fallbacks import needs_body, rescue, send
from proxy.forward.known_answer import answered_already
from proxy.forward.messages import request_head, upgrade_head, wants_websocket
from proxy.forward.outcome import Unwatched, begin, refuses
from proxy.forward.relay.buffering import buffer_request, wants_buffering
from proxy.forward.relay.request import Relay, UnansweredRequest
from proxy.forward.relay.response import Response
from proxy.forward.routing.plan import AskAgain, ListenerPlan, Reply, UpstreamPlan
from proxy.forward.waiting import pause
from proxy.http1.heads import ResponseHead
from proxy.http1.tunnel import tunnel
from proxy.http1.upstream.pool import UpstreamStream
from proxy.resilience.circuit.permits import ProbePermit
from proxy.resilience.circuit.states import State
from proxy.resilience.retry import Ended, RetryPlan, parse_retry_after

#: Bytes of an answer that may be read before it is passed on.
_HELD = 1024 * 1024

#: How often a request goes again that a server has not read to its end: what kills a server each
#: time must not do so for ever.
_RESENT = 2

#: Seconds before a server that is full is asked again: the first time, and at most.
_FULL_PAUSE, _FULL_LONGEST = 0.05, 1.0


async def forward(exchange: Exchange, listener: ListenerPlan, plan: UpstreamPlan) -> None:
    """Carry `x` to its upstream and the response back. Raises `ProxyError`."""
    exchange.upstream = plan.name
    if wants_buffering(exchange, plan):
        await until_not_open(exchange, plan)
        await buffer_request(exchange, plan)
    if exchange.plan.admissions and await answered_already(exchange):
        return
    if plan.unbuffered is None or exchange.body.done:
        await _placed(exchange, listener, plan)
        return
    # The spool does not take this body. Such requests share half of the connections: a client that
    # sends slowly must not shut the service, whoever has filled the spool.
    place = await enter(exchange, plan.unbuffered)
    try:
        await _placed(exchange, listener, plan)
    finally:
        plan.unbuffered.leave(place)


async def _placed(exchange: Exchange, listener: ListenerPlan, plan: UpstreamPlan) -> None:
    """The same once there is a place in the bulkhead."""
    if plan.bulkhead is None:
        if plan.retry is None and plan.overload is None and not exchange.plan.fallback_sources:
            await _attempt(exchange, listener, plan, None)  # nothing here would ask for another
        else:
            await _attempts(exchange, listener, plan)
        return
    await until_not_open(exchange, plan)  # nobody queues for a refusal
    exchange.place = await enter(exchange, plan.bulkhead)
    try:
        await _attempts(exchange, listener, plan)
    finally:
        plan.bulkhead.leave(exchange.place)


async def _attempts(exchange: Exchange, listener: ListenerPlan, plan: UpstreamPlan) -> None:
    """Attempts until one has answered the client. Raises what the last one failed with."""
    retry: RetryPlan | None = None
    if plan.retry is not None:
        assert exchange.head is not None
        sent = exchange.sent_on is not None  # by the plain path, which has counted it
        retry = plan.retry.begin(
            exchange.method,
            exchange.sent_at if sent else exchange.stream.clock.monotonic(),
            idempotency_key=bool(exchange.head.values(b"idempotency-key")),
            counted=sent,
            repeatable=exchange.plan.repeatable,
        )
        exchange.deadline = retry.deadline
    unread = not exchange.body.done and exchange.filter is None and exchange.buffered is None
    if unread and (retry is not None or plan.overload is not None):
        exchange.buffered = plan.spool.body(
            exchange.stream.wake, owner=exchange.stream, limit=plan.replay_limit
        )
    while (wait := await _attempt(exchange, listener, plan, retry)) is not None:
        await pause(exchange, exchange.stream.clock.monotonic() + wait)


async def _attempt(
    exchange: Exchange, listener: ListenerPlan, plan: UpstreamPlan, retry: RetryPlan | None
) -> float | None:
    """One attempt: None when the client has its answer, else seconds to wait before the next."""
    outcome = await _begin(exchange, plan, retry)
    relay: Relay | None = None
    exchange.held = None  # an earlier attempt's
    try:
        relay, head = await _response(exchange, listener, plan)
        response = Response(exchange, relay, plan, head)
        wait = await _while_full(exchange, plan, response)
        if wait is None:
            wait = _another(exchange, plan, retry, head, outcome)
        if wait is None:
            wait = await _answer(exchange, plan, response, outcome)
        return wait
    except UpstreamFailure as error:
        if error.reason != "deadline" or retry is None or not retry.retries:
            outcome.failed(error.kind)  # an attempt that the deadline cut short proves nothing
        if error.kind != "connect":  # those are told where they happen
            exchange.failed_attempt(error.kind, exchange.target)
        if exchange.replied or retry is None:
            raise
        ended = Ended(error.kind, error.kind != "connect", exchange.body_whole)
        wait = _again(exchange, plan, retry, ended)
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
            await relay.release(reusable=False)  # unless its response has done that


async def _begin(exchange: Exchange, plan: UpstreamPlan, retry: RetryPlan | None) -> Unwatched:
    """Leave for an attempt, and who is told its end. Raises `CircuitOpen`."""
    if exchange.outcome is not None:
        # What the fast path has sent needs no permit, whatever has become of the circuit since.
        outcome, exchange.outcome = exchange.outcome, None
        return outcome
    if plan.breaker is None or plan.breaker.state is State.CLOSED:
        return begin(exchange, plan)
    permit = await permitted(exchange, plan.breaker)
    if retry is not None and isinstance(permit, ProbePermit):
        retry.held += 1
    return begin(exchange, plan, permit)


async def _while_full(exchange: Exchange, plan: UpstreamPlan, response: Response) -> float | None:
    """Seconds to wait before the request is sent again to a server that says it is full and has not
    looked at it; None for any other answer, and when its patience is over."""
    full, head = plan.overload, response.head
    if full is None or head.status != full.status or head.keep_alive:
        return None
    media_type = _field(head, b"content-type").partition(";")[0].strip().lower()
    if media_type != full.content_type.lower():
        return None
    exchange.held = await response.hold(_HELD)
    now = exchange.stream.clock.monotonic()
    exchange.waited_at = exchange.waited_at or now
    if exchange.held != full.body.encode() or not exchange.body_whole:
        return None
    wait = min(
        _FULL_LONGEST, _FULL_PAUSE + (now - exchange.waited_at) / 2
    )  # grows by half each time
    if now + wait > min(exchange.deadline, exchange.waited_at + full.patience):
        return None
    exchange.retries += 1
    exchange.failed_attempt("overload", exchange.target)
    return wait


def _another(
    exchange: Exchange,
    plan: UpstreamPlan,
    retry: RetryPlan | None,
    response: ResponseHead,
    outcome: Unwatched,
) -> float | None:
    """Seconds to wait before the attempt that `response` calls for; None where it is the answer."""
    failed = response.status in plan.failing
    if failed:
        outcome.failed(str(response.status))
        exchange.failed_attempt(str(response.status), exchange.target)
    if retry is None or 200 <= response.status < 400:
        return None
    ended = Ended(str(response.status), True, exchange.body_whole, _retry_after(exchange, response))
    wait = _again(exchange, plan, retry, ended)
    if wait is not None and not failed:
        outcome.succeeded()
        exchange.failed_attempt(str(response.status), exchange.target)
    return wait


async def _answer(
    exchange: Exchange, plan: UpstreamPlan, response: Response, outcome: Unwatched
) -> float | None:
    """Give the client `response`, or what a rescuer has instead. Seconds to wait where the upstream
    is to be asked again after all."""
    head = response.head
    better: Reply | AskAgain | None = None
    if exchange.plan.fallback_sources:
        if exchange.held is None and needs_body(exchange, head):
            exchange.held = await response.hold(_HELD)
        try:
            better = await rescue(exchange, head)
        except ProxyError:
            # A rescuer has an error of its own to tell; the upstream's answer counts as it is.
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
    elif exchange.plan.answered and (refusal := _looked_at(exchange, head)) is not None:
        outcome.succeeded()  # the upstream has done its part
        raise refusal
    elif head.status == 101:
        await _tunnel(exchange, response.upstream, plan, head, outcome)
    else:
        outcome.flows()
        await response.pass_on(outcome)
    outcome.succeeded()
    return None


def _looked_at(exchange: Exchange, head: ResponseHead) -> ProxyError | None:
    """What a stage that looks at answers has against this one."""
    try:
        for observe in exchange.plan.answered:
            observe(exchange, head)
    except ProxyError as refusal:
        return refusal
    return None


async def _response(
    exchange: Exchange, listener: ListenerPlan, plan: UpstreamPlan
) -> tuple[Relay, ResponseHead]:
    """The head of a response, and the relay that will pass it on."""
    assert exchange.head is not None
    repeatable = exchange.method in IDEMPOTENT or exchange.plan.repeatable
    fresh = not plan.reuse_for_all and not (repeatable and _can_replay(exchange))
    resent = 0
    while True:
        upstream, exchange.sent_on = exchange.sent_on, None
        sent = upstream is not None  # by the plain path, as the attempt that it has counted
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
            return relay, await relay.converse()
        except UnansweredRequest:
            try:
                again = exchange.body_whole and await _goes_again(
                    exchange, plan, upstream, repeatable, resent
                )
            finally:
                await relay.release(reusable=False)
            if not again:
                raise
            fresh = True
            resent += 1
            exchange.retries += 1
        except BaseException:
            await relay.release(reusable=False)
            raise


async def _goes_again(
    exchange: Exchange, plan: UpstreamPlan, upstream: UpstreamStream, repeatable: bool, resent: int
) -> bool:
    """Whether a request without an answer is sent again as if nothing had been sent: once after a
    kept connection, if it may be repeated; after a reset, where `resend_unread` says what one
    proves, and there also if it may be repeated, since such a server restarts itself."""
    if repeatable and not resent and upstream.reused:
        return True
    if not plan.resend_unread or resent >= _RESENT:
        return False
    return repeatable or await was_reset(exchange, upstream)


def _again(exchange: Exchange, plan: UpstreamPlan, retry: RetryPlan, ended: Ended) -> float | None:
    """Seconds to wait before another attempt; None if there is none, and the log says why."""
    now = exchange.stream.clock.monotonic()
    breaker = plan.breaker
    if breaker is not None and refuses(breaker, now) and retry.covers(ended.kind):
        held_until = exchange.started + breaker.rules.hold
        if now >= held_until:
            exchange.note(
                no_retry="circuit"
            )  # the answer at hand says more than `circuit_open` would
            return None
    verdict = retry.after(ended, now)
    if verdict.wait is None:
        if verdict.reason != "kind":
            exchange.note(no_retry=verdict.reason)
        return None
    exchange.retries += 1
    if exchange.target is not None and len(plan.upstream.pools) > 1:
        exchange.avoid = (*exchange.avoid, exchange.target)
    return verdict.wait


def _can_replay(exchange: Exchange) -> bool:
    """Whether the request's body, if there is one, can be sent a second time whatever happens."""
    assert exchange.head is not None
    if not exchange.head.has_body and exchange.filter is None:
        return True
    body, length = exchange.buffered, exchange.head.content_length
    if body is None or body.complete:
        return body is not None
    return exchange.body_whole and length is not None and body.keeps(length)


def _retry_after(exchange: Exchange, response: ResponseHead) -> float | None:
    """What the upstream asks for, in seconds."""
    value = _field(response, b"retry-after")
    return parse_retry_after(value, exchange.stream.clock.time()) if value else None


def _field(response: ResponseHead, wanted: bytes) -> str:
    """The value of the response's first field of that name, in small letters; empty without one."""
    for line in response.lines:
        name, _, value = line.partition(b":")
        if name.lower() == wanted:
            return value.strip().decode("latin-1")
    return ""


async def _tunnel(
    exchange: Exchange,
    upstream: UpstreamStream,
    plan: UpstreamPlan,
    response: ResponseHead,
    outcome: Unwatched,
) -> None:
    """Switch protocols: from here on bytes go both ways unread."""
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
