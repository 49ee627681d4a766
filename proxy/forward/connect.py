"""An open connection to one of an upstream's targets.

Targets that refuse are skipped, then tried again for `connect_patience`. This is not an attempt,
because the upstream never saw the request.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxy.core.errors import Overloaded, UpstreamUnreachable
from proxy.forward.exchange import Exchange
from proxy.forward.outcome import own_shortage
from proxy.forward.routing.plan import UpstreamPlan
from proxy.forward.waiting import check_exchange, pause
from proxy.http1.client import ClientStream
from proxy.http1.upstream.connection import UpstreamStream
from proxy.http1.upstream.pool import TargetPool

#: Seconds to wait for a reset after the connection has ended, and between two checks.
_RESET_PATIENCE, _RESET_TICK = 0.2, 0.02

#: Seconds between two rounds over refusing targets, while `connect_patience` lasts.
_REFUSED_PAUSE = 0.1


def idle_connection(exchange: Exchange, plan: UpstreamPlan) -> UpstreamStream | None:
    """The usual case, without waiting: an idle connection to the chosen target."""
    return plan.upstream.checkout(exchange.stream, _usable(exchange, plan))


def _usable(exchange: Exchange, plan: UpstreamPlan) -> Sequence[str] | None:
    """The targets to prefer, None for all: the healthy ones, and among them those that have not
    failed this request."""
    usable = any_target(exchange.stream, plan)
    if exchange.avoid:
        labels = usable if usable is not None else [pool.label for pool in plan.upstream.pools]
        usable = [label for label in labels if label not in exchange.avoid] or usable
    return usable


def any_target(client: ClientStream, plan: UpstreamPlan) -> Sequence[str] | None:
    """The healthy targets, None for all."""
    return plan.health.usable(client.clock.monotonic()) if plan.health is not None else None


async def connection(exchange: Exchange, plan: UpstreamPlan, *, fresh: bool) -> UpstreamStream:
    """An open connection: an idle one at once, else one from the first target that gives one.

    Unreachable targets are skipped; once all have failed, they are tried again until
    `connect_patience` is over. `fresh` asks for a connection that has not been used before. On a
    shortage of our own there is no waiting: another target may have an idle connection, else the
    answer is 503.
    """
    client = exchange.stream
    tried: list[TargetPool] = []
    short: Overloaded | None = None
    began = client.clock.monotonic()
    patient_until = began + plan.connect_patience
    while True:
        pool = plan.upstream.choose(tried, _usable(exchange, plan))
        if not fresh:
            idle = pool.checkout(client)
            if idle is not None:
                return idle
        try:
            answer = await _ask(exchange, plan, pool, fresh=fresh)
        except Overloaded:
            # No time is left to queue, but refused connections used it up: report those.
            if exchange.unreachable is None or client.clock.monotonic() < exchange.deadline:
                raise
            raise exchange.unreachable from None
        if isinstance(answer, UpstreamStream):
            exchange.unreachable = None
            exchange.connect_time = client.clock.monotonic() - began
            return answer
        ours = own_shortage(answer, plan, pool.label)
        if ours is not None:
            short = ours
        else:
            if plan.health is not None:
                plan.health.failure(pool.label, client.clock.monotonic())
            exchange.failed_attempt("connect", pool.label)
            exchange.unreachable = UpstreamUnreachable(
                f"Upstream {plan.name} cannot be reached at {pool.label}: {_why(answer)}",
                upstream=plan.name,
                reason=type(answer).__name__,
            )
        tried.append(pool)
        if len(tried) < len(plan.upstream.pools):
            continue
        if short is not None:
            raise short
        if client.clock.monotonic() >= min(patient_until, exchange.deadline):
            exchange.target = pool.label
            exchange.attempts += 1
            assert exchange.unreachable is not None  # a shortage of our own was raised above
            raise exchange.unreachable
        if exchange.on_refused is not None:
            exchange.on_refused(exchange)
        tried.clear()
        await pause(exchange, client.clock.monotonic() + _REFUSED_PAUSE)


async def _ask(
    exchange: Exchange, plan: UpstreamPlan, pool: TargetPool, *, fresh: bool
) -> UpstreamStream | Exception:
    """A connection from `pool`, or the error why there is none."""
    client = exchange.stream
    began = client.clock.monotonic()
    deadline = min(began + plan.queue_timeout, exchange.deadline)
    ticket = pool.ask(client, fresh=fresh, route=exchange.route)
    try:
        while ticket.pending:
            now = client.clock.monotonic()
            if now >= deadline:
                within = (
                    "before the request's deadline"
                    if deadline == exchange.deadline
                    else f"within {now - began:.3g}s"
                )
                raise Overloaded(
                    f"No connection to {plan.name} became free {within}",
                    upstream=plan.name,
                    retry_after=plan.queue_timeout,
                    reason="queue_timeout",
                )
            await client.wait(check_exchange(exchange, deadline, now))
    except BaseException:
        pool.give_up(ticket)
        raise
    if ticket.stream is not None:
        return ticket.stream
    assert ticket.error is not None
    if isinstance(ticket.error, Overloaded):  # it lost its place to another client
        raise ticket.error
    return ticket.error


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "connecting timed out"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


async def was_reset(exchange: Exchange, upstream: UpstreamStream) -> bool:
    """Whether a connection that has ended was reset.

    A server that closes a socket with unread bytes in it, or that receives bytes after closing it,
    resets the connection (RFC 9293 §3.6.1). One that has read the whole request ends it normally.
    The reset may arrive a round trip after the end, so this waits briefly.
    """
    until = exchange.stream.clock.monotonic() + _RESET_PATIENCE
    while not upstream.saw_reset():
        now = exchange.stream.clock.monotonic()
        if now >= until:
            return False
        await exchange.stream.wait(check_exchange(exchange, min(until, now + _RESET_TICK), now))
    return True
