"""Whether a request is sent to its upstream again, and after how many seconds.

Three cases, in the order in which an attempt meets them: the connection ended without an answer
(`may_resend`), the server reports itself full (`while_full`), the attempt failed (`retry_status`,
`retry_wait`).
"""

from __future__ import annotations

from proxy.forward.connect import was_reset
from proxy.forward.exchange import Exchange
from proxy.forward.outcome import NoOpOutcome, refuses
from proxy.forward.relay.response import Response
from proxy.forward.routing.plan import UpstreamPlan
from proxy.http1.response_head import ResponseHead
from proxy.http1.upstream.connection import UpstreamStream
from proxy.resilience.retry import Ended, RetryPlan, parse_retry_after

#: How often a request that the server did not read completely is sent again: a request that crashes
#: the server must not do so for ever.
_RESENT = 2

#: Seconds before a full server is asked again: the first pause, and the longest.
_FULL_PAUSE, _FULL_LONGEST = 0.05, 1.0


async def may_resend(
    exchange: Exchange, plan: UpstreamPlan, upstream: UpstreamStream, repeatable: bool, resent: int
) -> bool:
    """Whether an unanswered request is sent again without counting as an attempt.

    Once if it was sent on a reused connection and may be repeated. With `resend_unread`, also if
    the connection was reset, which proves that the server did not read the request, or if it may be
    repeated, because such a server restarts itself."""
    if repeatable and not resent and upstream.reused:
        return True
    if not plan.resend_unread or resent >= _RESENT:
        return False
    return repeatable or await was_reset(exchange, upstream)


def can_replay(exchange: Exchange) -> bool:
    """Whether the request's body, if any, is certain to be available for a second sending."""
    assert exchange.head is not None
    if not exchange.head.has_body and exchange.filter is None:
        return True
    body, length = exchange.buffered, exchange.head.content_length
    if body is None or body.complete:
        return body is not None
    return exchange.body_whole and length is not None and body.keeps(length)


async def while_full(exchange: Exchange, plan: UpstreamPlan, response: Response) -> float | None:
    """Seconds to wait before the request is sent again to a server that reports itself full without
    having read it; None for any other response, and once the configured patience is over."""
    full, head = plan.overload, response.head
    if full is None or head.status != full.status or head.keep_alive:
        return None
    media_type = _field(head, b"content-type").partition(";")[0].strip().lower()
    if media_type != full.content_type.lower():
        return None
    exchange.response_body = await response.buffer()
    now = exchange.stream.clock.monotonic()
    exchange.full_since = exchange.full_since or now
    if exchange.response_body != full.body.encode() or not exchange.body_whole:
        return None
    # Grows by half each time.
    wait = min(_FULL_LONGEST, _FULL_PAUSE + (now - exchange.full_since) / 2)
    if now + wait > min(exchange.deadline, exchange.full_since + full.patience):
        return None
    exchange.retries += 1
    exchange.failed_attempt("overload", exchange.target)
    return wait


def retry_status(
    exchange: Exchange,
    plan: UpstreamPlan,
    retry: RetryPlan | None,
    response: ResponseHead,
    outcome: NoOpOutcome,
) -> float | None:
    """Seconds to wait before `response` is retried; None where it goes to the client."""
    failed = response.status in plan.failing
    if failed:
        outcome.failed(str(response.status))
        exchange.failed_attempt(str(response.status), exchange.target)
    if retry is None or 200 <= response.status < 400:
        return None
    ended = Ended(str(response.status), True, exchange.body_whole, _retry_after(exchange, response))
    wait = retry_wait(exchange, plan, retry, ended)
    if wait is not None and not failed:
        outcome.succeeded()
        exchange.failed_attempt(str(response.status), exchange.target)
    return wait


def retry_wait(
    exchange: Exchange, plan: UpstreamPlan, retry: RetryPlan, ended: Ended
) -> float | None:
    """Seconds to wait before another attempt; None if there is none, with the reason logged."""
    now = exchange.stream.clock.monotonic()
    breaker = plan.breaker
    if breaker is not None and refuses(breaker, now) and retry.covers(ended.kind):
        held_until = exchange.started + breaker.rules.hold
        if now >= held_until:
            exchange.note(no_retry="circuit")  # the error at hand tells more than `circuit_open`
            return None
    decision = retry.after(ended, now)
    if decision.wait is None:
        if decision.reason != "kind":
            exchange.note(no_retry=decision.reason)
        return None
    exchange.retries += 1
    if exchange.target is not None and len(plan.upstream.pools) > 1:
        exchange.avoid = (*exchange.avoid, exchange.target)
    return decision.wait


def _retry_after(exchange: Exchange, response: ResponseHead) -> float | None:
    """The response's `Retry-After`, in seconds."""
    value = _field(response, b"retry-after")
    return parse_retry_after(value, exchange.stream.clock.time()) if value else None


def _field(response: ResponseHead, wanted: bytes) -> str:
    """The value of the first field named `wanted` (lower case); empty if there is none."""
    for line in response.lines:
        name, _, value = line.partition(b":")
        if name.lower() == wanted:
            return value.strip().decode("latin-1")
    return ""
