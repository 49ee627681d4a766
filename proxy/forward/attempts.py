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
from proxy.forward.relay.request import Relay, Unanswered
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


async def forward(x: Exchange, listener: ListenerPlan, plan: UpstreamPlan) -> None:
    """Carry `x` to its upstream and the response back. Raises `ProxyError`."""
    x.upstream = plan.name
    if wants_buffering(x, plan):
        await until_not_open(x, plan)
        await buffer_request(x, plan)
    if x.plan.admissions and await answered_already(x):
        return
    if plan.unbuffered is None or x.body.done:
        await _placed(x, listener, plan)
        return
    # The spool does not take this body. Such requests share half of the connections: a client that
    # sends slowly must not shut the service, whoever has filled the spool.
    place = await enter(x, plan.unbuffered)
    try:
        await _placed(x, listener, plan)
    finally:
        plan.unbuffered.leave(place)


async def _placed(x: Exchange, listener: ListenerPlan, plan: UpstreamPlan) -> None:
    """The same once there is a place in the bulkhead."""
    if plan.bulkhead is None:
        if plan.retry is None and plan.overload is None and not x.plan.rescuers:
            await _attempt(x, listener, plan, None)  # nothing here would ask for another
        else:
            await _attempts(x, listener, plan)
        return
    await until_not_open(x, plan)  # nobody queues for a refusal
    x.place = await enter(x, plan.bulkhead)
    try:
        await _attempts(x, listener, plan)
    finally:
        plan.bulkhead.leave(x.place)


async def _attempts(x: Exchange, listener: ListenerPlan, plan: UpstreamPlan) -> None:
    """Attempts until one has answered the client. Raises what the last one failed with."""
    retry: RetryPlan | None = None
    if plan.retry is not None:
        assert x.head is not None
        sent = x.sent_on is not None  # by the plain path, which has counted it
        retry = plan.retry.begin(
            x.method,
            x.sent_at if sent else x.stream.clock.monotonic(),
            idempotency_key=bool(x.head.values(b"idempotency-key")),
            counted=sent,
            repeatable=x.plan.repeatable,
        )
        x.deadline = retry.deadline
    unread = not x.body.done and x.filter is None and x.buffered is None
    if unread and (retry is not None or plan.overload is not None):
        x.buffered = plan.spool.body(x.stream.wake, owner=x.stream, limit=plan.replay_limit)
    while (wait := await _attempt(x, listener, plan, retry)) is not None:
        await pause(x, x.stream.clock.monotonic() + wait)


async def _attempt(
    x: Exchange, listener: ListenerPlan, plan: UpstreamPlan, retry: RetryPlan | None
) -> float | None:
    """One attempt: None when the client has its answer, else seconds to wait before the next."""
    outcome = await _begin(x, plan, retry)
    relay: Relay | None = None
    x.held = None  # an earlier attempt's
    try:
        relay, head = await _response(x, listener, plan)
        response = Response(x, relay, plan, head)
        wait = await _while_full(x, plan, response)
        if wait is None:
            wait = _another(x, plan, retry, head, outcome)
        if wait is None:
            wait = await _answer(x, plan, response, outcome)
        return wait
    except UpstreamFailure as error:
        if error.reason != "deadline" or retry is None or not retry.retries:
            outcome.failed(error.kind)  # an attempt that the deadline cut short proves nothing
        if error.kind != "connect":  # those are told where they happen
            x.failed_attempt(error.kind, x.target)
        if x.replied or retry is None:
            raise
        ended = Ended(error.kind, error.kind != "connect", x.body_whole)
        wait = _again(x, plan, retry, ended)
        if wait is None:
            raise
        return wait
    except ClientLeft:
        limit = plan.abandoned_after
        if limit is not None and x.silence is not None and x.silence >= limit:
            outcome.failed("abandoned")
        raise
    finally:
        outcome.close()
        if relay is not None:
            await relay.release(reusable=False)  # unless its response has done that


async def _begin(x: Exchange, plan: UpstreamPlan, retry: RetryPlan | None) -> Unwatched:
    """Leave for an attempt, and who is told its end. Raises `CircuitOpen`."""
    if x.outcome is not None:
        # What the fast path has sent needs no permit, whatever has become of the circuit since.
        outcome, x.outcome = x.outcome, None
        return outcome
    if plan.breaker is None or plan.breaker.state is State.CLOSED:
        return begin(x, plan)
    permit = await permitted(x, plan.breaker)
    if retry is not None and isinstance(permit, ProbePermit):
        retry.held += 1
    return begin(x, plan, permit)


async def _while_full(x: Exchange, plan: UpstreamPlan, response: Response) -> float | None:
    """Seconds to wait before the request is sent again to a server that says it is full and has not
    looked at it; None for any other answer, and when its patience is over."""
    full, head = plan.overload, response.head
    if full is None or head.status != full.status or head.keep_alive:
        return None
    media_type = _field(head, b"content-type").partition(";")[0].strip().lower()
    if media_type != full.content_type.lower():
        return None
    x.held = await response.hold(_HELD)
    now = x.stream.clock.monotonic()
    x.waited_at = x.waited_at or now
    if x.held != full.body.encode() or not x.body_whole:
        return None
    wait = min(_FULL_LONGEST, _FULL_PAUSE + (now - x.waited_at) / 2)  # grows by half each time
    if now + wait > min(x.deadline, x.waited_at + full.patience):
        return None
    x.retries += 1
    x.failed_attempt("overload", x.target)
    return wait


def _another(
    x: Exchange,
    plan: UpstreamPlan,
    retry: RetryPlan | None,
    response: ResponseHead,
    outcome: Unwatched,
) -> float | None:
    """Seconds to wait before the attempt that `response` calls for; None where it is the answer."""
    failed = response.status in plan.failing
    if failed:
        outcome.failed(str(response.status))
        x.failed_attempt(str(response.status), x.target)
    if retry is None or 200 <= response.status < 400:
        return None
    ended = Ended(str(response.status), True, x.body_whole, _retry_after(x, response))
    wait = _again(x, plan, retry, ended)
    if wait is not None and not failed:
        outcome.succeeded()
        x.failed_attempt(str(response.status), x.target)
    return wait


async def _answer(
    x: Exchange, plan: UpstreamPlan, response: Response, outcome: Unwatched
) -> float | None:
    """Give the client `response`, or what a rescuer has instead. Seconds to wait where the upstream
    is to be asked again after all."""
    head = response.head
    better: Reply | AskAgain | None = None
    if x.plan.rescuers:
        if x.held is None and needs_body(x, head):
            x.held = await response.hold(_HELD)
        try:
            better = await rescue(x, head)
        except ProxyError:
            # A rescuer has an error of its own to tell; the upstream's answer counts as it is.
            outcome.succeeded()
            raise
    if isinstance(better, Reply):
        send(x, better)
    elif better is not None and not x.asked_again and x.body_whole:
        x.asked_again = True
        if x.span is not None:
            x.span.end_attempt(x.stream.clock.time(), str(head.status))
        x.added = b"".join(b"\r\n" + line for line in better.lines)
        outcome.succeeded()
        return 0.0
    elif x.plan.answered and (refusal := _looked_at(x, head)) is not None:
        outcome.succeeded()  # the upstream has done its part
        raise refusal
    elif head.status == 101:
        await _tunnel(x, response.upstream, plan, head, outcome)
    else:
        outcome.flows()
        await response.pass_on(outcome)
    outcome.succeeded()
    return None


def _looked_at(x: Exchange, head: ResponseHead) -> ProxyError | None:
    """What a stage that looks at answers has against this one."""
    try:
        for observe in x.plan.answered:
            observe(x, head)
    except ProxyError as refusal:
        return refusal
    return None


async def _response(
    x: Exchange, listener: ListenerPlan, plan: UpstreamPlan
) -> tuple[Relay, ResponseHead]:
    """The head of a response, and the relay that will pass it on."""
    assert x.head is not None
    repeatable = x.method in IDEMPOTENT or x.plan.repeatable
    fresh = not plan.reuse_for_all and not (repeatable and _can_replay(x))
    resent = 0
    while True:
        upstream, x.sent_on = x.sent_on, None
        sent = upstream is not None  # by the plain path, as the attempt that it has counted
        if upstream is None:
            upstream = None if fresh else idle_connection(x, plan)
            if upstream is None:
                upstream = await connection(x, plan, fresh=fresh)
            x.attempts += not resent
            x.target = upstream.pool.label
        relay = Relay(x, upstream, plan)
        try:
            if not sent:
                relay.send(request_head(x, listener, plan, upstream.pool))
            return relay, await relay.converse()
        except Unanswered:
            try:
                again = x.body_whole and await _goes_again(x, plan, upstream, repeatable, resent)
            finally:
                await relay.release(reusable=False)
            if not again:
                raise
            fresh = True
            resent += 1
            x.retries += 1
        except BaseException:
            await relay.release(reusable=False)
            raise


async def _goes_again(
    x: Exchange, plan: UpstreamPlan, upstream: UpstreamStream, repeatable: bool, resent: int
) -> bool:
    """Whether a request without an answer is sent again as if nothing had been sent: once after a
    kept connection, if it may be repeated; after a reset, where `resend_unread` says what one
    proves, and there also if it may be repeated, since such a server restarts itself."""
    if repeatable and not resent and upstream.reused:
        return True
    if not plan.resend_unread or resent >= _RESENT:
        return False
    return repeatable or await was_reset(x, upstream)


def _again(x: Exchange, plan: UpstreamPlan, retry: RetryPlan, ended: Ended) -> float | None:
    """Seconds to wait before another attempt; None if there is none, and the log says why."""
    now = x.stream.clock.monotonic()
    breaker = plan.breaker
    if breaker is not None and refuses(breaker, now) and retry.covers(ended.kind):
        held_until = x.started + breaker.rules.hold
        if now >= held_until:
            x.note(no_retry="circuit")  # the answer at hand says more than `circuit_open` would
            return None
    verdict = retry.after(ended, now)
    if verdict.wait is None:
        if verdict.reason != "kind":
            x.note(no_retry=verdict.reason)
        return None
    x.retries += 1
    if x.target is not None and len(plan.upstream.pools) > 1:
        x.avoid = (*x.avoid, x.target)
    return verdict.wait


def _can_replay(x: Exchange) -> bool:
    """Whether the request's body, if there is one, can be sent a second time whatever happens."""
    assert x.head is not None
    if not x.head.has_body and x.filter is None:
        return True
    body, length = x.buffered, x.head.content_length
    if body is None or body.complete:
        return body is not None
    return x.body_whole and length is not None and body.keeps(length)


def _retry_after(x: Exchange, response: ResponseHead) -> float | None:
    """What the upstream asks for, in seconds."""
    value = _field(response, b"retry-after")
    return parse_retry_after(value, x.stream.clock.time()) if value else None


def _field(response: ResponseHead, wanted: bytes) -> str:
    """The value of the response's first field of that name, in small letters; empty without one."""
    for line in response.lines:
        name, _, value = line.partition(b":")
        if name.lower() == wanted:
            return value.strip().decode("latin-1")
    return ""


async def _tunnel(
    x: Exchange,
    upstream: UpstreamStream,
    plan: UpstreamPlan,
    response: ResponseHead,
    outcome: Unwatched,
) -> None:
    """Switch protocols: from here on bytes go both ways unread."""
    assert x.head is not None
    if not wants_websocket(x.head) or response.upgrade != b"websocket":
        raise UpstreamReset(
            f"Upstream {plan.name} switched protocols unasked",
            upstream=plan.name,
            reason="unasked_upgrade",
        )
    outcome.succeeded()
    x.head_after = x.stream.clock.monotonic() - x.started
    x.status = 101
    x.replied = True
    x.keep_alive = False
    x.stream.transport.write(upgrade_head(x, response))
    x.bytes_in, x.bytes_out = await tunnel(x.stream, upstream, plan.tunnel_timeout)
