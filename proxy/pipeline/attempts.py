"""From a request to an answering upstream connection: which target, how often, and when not.

What is repeated here was never acted upon: a connection that could not be opened, or a kept one
that was closed under us before a byte of response, and then only for a method that may be repeated
(RFC 9110 §9.2.2, RFC 9112 §9.3.1).
"""

from __future__ import annotations

from proxy.errors import Overloaded, UpstreamReset, UpstreamUnreachable
from proxy.headers import IDEMPOTENT
from proxy.pipeline.exchange import Exchange
from proxy.pipeline.messages import request_head, upgrade_head, wants_websocket
from proxy.pipeline.plan import ListenerPlan, UpstreamPlan
from proxy.pipeline.relay import Relay, StaleConnection, until_left
from proxy.wire.codec import ResponseHead
from proxy.wire.pool import TargetPool, UpstreamStream
from proxy.wire.tunnel import tunnel

#: Seconds between two rounds over targets that refuse, while `connect_patience` lasts.
_REFUSED_PAUSE = 0.1


async def forward(x: Exchange, listener: ListenerPlan, plan: UpstreamPlan) -> None:
    """Carry `x` to its upstream and the response back. Raises `ProxyError`."""
    assert x.head is not None
    x.upstream = plan.name
    repeatable = x.method in IDEMPOTENT and not x.head.has_body
    stale = False
    while True:
        upstream = await _connection(x, plan, fresh=stale)
        x.attempts += 1
        x.target = upstream.pool.label
        relay = Relay(x, upstream, plan, listener)
        reusable = False
        try:
            head = request_head(x, listener, plan, upstream.pool)
            response = await relay.converse(head)
            if response.status == 101:
                await _tunnel(x, upstream, plan, response)
            else:
                reusable = await relay.pass_on(response)
            return
        except StaleConnection:
            if not repeatable or stale:
                raise UpstreamReset(
                    f"Upstream {plan.name} closed a kept connection as the request was sent",
                    upstream=plan.name,
                    reason="stale_connection",
                ) from None
            stale = True
        finally:
            upstream.pool.release(upstream, reusable=reusable)
            await relay.close()


async def _connection(x: Exchange, plan: UpstreamPlan, *, fresh: bool) -> UpstreamStream:
    """An open connection: an idle one at once, else from the first target that has one to give.

    Targets that cannot be reached are passed over; when none is left, all are tried again until
    `connect_patience` is over. `fresh` asks for a connection that has not been used before.
    """
    client = x.stream
    tried: list[TargetPool] = []
    patient_until: float | None = None
    while True:
        pool = plan.upstream.choose(tried)
        if not fresh:
            idle = pool.checkout(client)
            if idle is not None:
                return idle
        began = client.clock.monotonic()
        patient_until = patient_until or began + plan.connect_patience
        answer = await _ask(x, plan, pool)
        if isinstance(answer, UpstreamStream):
            x.connect_time = client.clock.monotonic() - began
            return answer
        tried.append(pool)
        if len(tried) < len(plan.upstream.pools):
            continue
        if client.clock.monotonic() >= patient_until:
            raise UpstreamUnreachable(
                f"Upstream {plan.name} cannot be reached at {pool.label}: {_why(answer)}",
                upstream=plan.name,
                reason=type(answer).__name__,
            )
        tried.clear()
        await _pause(x, client.clock.monotonic() + _REFUSED_PAUSE)


async def _ask(x: Exchange, plan: UpstreamPlan, pool: TargetPool) -> UpstreamStream | Exception:
    """What `pool` gives: a connection, or why there is none."""
    client = x.stream
    deadline = client.clock.monotonic() + plan.queue_timeout
    ticket = pool.ask(client)
    try:
        while ticket.pending:
            now = client.clock.monotonic()
            if now >= deadline:
                raise Overloaded(
                    f"No connection to {plan.name} became free within {plan.queue_timeout:g}s",
                    upstream=plan.name,
                    retry_after=plan.queue_timeout,
                    reason="queue_timeout",
                )
            await client.wait(until_left(x, deadline, now))
    except BaseException:
        pool.give_up(ticket)
        raise
    if ticket.stream is not None:
        return ticket.stream
    assert ticket.error is not None
    return ticket.error


async def _pause(x: Exchange, until: float) -> None:
    while (now := x.stream.clock.monotonic()) < until:
        await x.stream.wait(until_left(x, until, now))


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "connecting timed out"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


async def _tunnel(
    x: Exchange, upstream: UpstreamStream, plan: UpstreamPlan, response: ResponseHead
) -> None:
    """Switch protocols: from here on bytes go both ways unread."""
    assert x.head is not None
    if not wants_websocket(x.head) or response.upgrade != b"websocket":
        raise UpstreamReset(
            f"Upstream {plan.name} switched protocols unasked",
            upstream=plan.name,
            reason="unasked_upgrade",
        )
    x.status = 101
    x.replied = True
    x.keep_alive = False
    x.stream.transport.write(upgrade_head(x, response))
    x.bytes_in, x.bytes_out = await tunnel(x.stream, upstream, plan.tunnel_timeout)
