"""Reads a request's body before the upstream is contacted (nginx calls this request buffering).

Rules
1. With the upstream's `buffering.request`, or where a stage needs the whole request first
   (`Hooks.admit`), the whole body is read into the spool. A slow sender then holds no upstream
   connection, the upstream gets a `Content-Length`, and it sees nothing of a body that is refused.
2. Without it, a body with a filter is read until the filter releases its first bytes.
3. A body that the spool cannot hold (its limit is reached, the disk fails) is streamed from there
   on: first what was read, then the rest as it arrives.
4. `exchange.buffered` is kept until no attempt can need it again, so that a retry starts from it.
"""

from __future__ import annotations

import asyncio

from proxy.core.errors import Overloaded, RequestTimeout
from proxy.forward.exchange import Exchange
from proxy.forward.relay.request_body import (
    body_deadline,
    drop_ending,
    others_turn,
    read_body,
    read_checked,
    send_continue,
    start_ending,
)
from proxy.forward.routing.plan import UpstreamPlan
from proxy.forward.waiting import check_exchange
from proxy.http1.deadlines import NEVER
from proxy.spool import SpooledBody

#: Seconds without progress on the spool's disk after which a request fails.
DISK_PATIENCE = 10.0


def wants_buffering(exchange: Exchange, plan: UpstreamPlan) -> bool:
    """Whether the body, or its beginning, is to be read first (rules 1 to 3)."""
    if exchange.filter is not None:
        return True
    if exchange.body.done or not (plan.buffer_request or exchange.plan.admissions):
        return False
    assert exchange.head is not None
    return exchange.head.content_length is None or plan.spool.admits(
        exchange.head.content_length, exchange.stream
    )


async def buffer_request(exchange: Exchange, plan: UpstreamPlan) -> None:
    """Read the body into `exchange.buffered`, as far as the rules ask. Raises the filter's refusal,
    what `read_body` and `check_exchange` raise, and `Overloaded` when the disk does not respond."""
    client = exchange.stream
    send_continue(exchange)
    whole = plan.buffer_request or bool(exchange.plan.admissions)
    body = exchange.buffered = plan.spool.body(
        client.wake, owner=client, sha256=bool(exchange.plan.admissions)
    )
    ending: asyncio.Task[list[bytes] | SpooledBody] | None = None
    moved = client.clock.monotonic()
    try:
        while True:
            before = exchange.bytes_in
            if ending is None:
                _read(exchange, body)
            now = client.clock.monotonic()
            if exchange.bytes_in != before:
                moved = now
            if exchange.body.done and exchange.filter is None:
                body.end()
                return
            if body.full is not None or (body.size and not whole):
                return
            deadline = NEVER  # a filter bounds its own time
            if not exchange.body.done:
                deadline = _deadline(exchange, body, moved, now)
            elif ending is None:
                ending = start_ending(exchange)
            elif ending.done():
                _end(exchange, body, ending.result())
                return
            await client.wait(check_exchange(exchange, deadline, now, moved))
    finally:
        if ending is not None:
            await drop_ending(ending)


def _read(exchange: Exchange, body: SpooledBody) -> None:
    """Read what the client has sent, as far as the filter and the disk accept it."""
    check = exchange.filter
    if check is not None:
        body.append(check.feed(b""))  # it may have decided in the meantime
        if exchange.stream.inbox and not check.blocked and not body.blocked:
            body.append(read_checked(exchange))
    elif exchange.stream.inbox and not body.blocked:
        body.append(read_body(exchange))


def _end(exchange: Exchange, body: SpooledBody, rest: list[bytes] | SpooledBody) -> None:
    """The filter has finished and lets the body pass."""
    if isinstance(rest, SpooledBody):  # the filter has kept the body itself
        body.close()
        exchange.buffered = rest
        if (
            exchange.filter is not None
            and exchange.filter.content_type is not None
            and exchange.body.trailers
        ):
            stale = exchange.filter.stale
            exchange.body.trailers = [
                line
                for line in exchange.body.trailers
                if line.partition(b":")[0].lower() not in stale
            ]
    else:
        body.append(rest)
        body.end()


def _deadline(exchange: Exchange, body: SpooledBody, moved: float, now: float) -> float:
    """When something must have moved. Past that, raises the error of the side at fault."""
    if body.blocked or (exchange.filter is not None and exchange.filter.blocked):
        others_turn(exchange, now)
    if body.blocked:
        deadline = moved + DISK_PATIENCE
        if now >= deadline:
            raise Overloaded(
                "The disk that request bodies wait on does not answer",
                close=True,
                retry_after=DISK_PATIENCE,
                reason="spool_stalled",
            )
        return deadline
    if exchange.filter is not None and exchange.filter.blocked:
        deadline = moved + exchange.plan.body_timeout
        if now >= deadline:
            raise RequestTimeout("The request body did not come in time", close=True)
        return deadline
    return body_deadline(exchange, moved, now)
