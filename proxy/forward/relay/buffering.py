"""A request's body, read before its upstream is asked for anything (nginx's request buffering).

Rules
1. Where the upstream's `buffering.request` is on, or a stage wants to know the whole request before
   the upstream does (`Hooks.admit`), all of the body is read first, into the spool: a slow sender
   holds none of the upstream's connections, and the upstream gets a `Content-Length`. Of a body
   that is refused on the way it sees nothing.
2. Where it is off, but a filter checks the body, as much is read as the filter wants to see before
   it gives anything.
3. A body that the spool cannot take (its bound, the disk) is a stream from there on: what was read
   goes first, the rest follows as it comes.
4. What is in `x.buffered` stays there until nobody may ask for it again, so a retry begins with it.
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
from proxy.forward.waiting import until_left
from proxy.http1.deadlines import NEVER
from proxy.spool import SpooledBody

#: Seconds for which the spool's disk may take nothing before a request is given up.
DISK_PATIENCE = 10.0


def wants_buffering(x: Exchange, plan: UpstreamPlan) -> bool:
    """Whether something of the body is to be read first (rules 1 to 3)."""
    if x.filter is not None:
        return True
    if x.body.done or not (plan.buffer_request or x.plan.admissions):
        return False
    assert x.head is not None
    return x.head.content_length is None or plan.spool.admits(x.head.content_length, x.stream)


async def buffer_request(x: Exchange, plan: UpstreamPlan) -> None:
    """Read the body into `x.buffered`, as far as the rules say. Raises the filter's refusal, what
    `read_body` and `until_left` raise, and `Overloaded` when the disk does not answer."""
    client = x.stream
    send_continue(x)
    whole = plan.buffer_request or bool(x.plan.admissions)
    body = x.buffered = plan.spool.body(client.wake, owner=client, sha256=bool(x.plan.admissions))
    ending: asyncio.Task[list[bytes] | SpooledBody] | None = None
    moved = client.clock.monotonic()
    try:
        while True:
            before = x.bytes_in
            if ending is None:
                _read(x, body)
            now = client.clock.monotonic()
            if x.bytes_in != before:
                moved = now
            if x.body.done and x.filter is None:
                body.end()
                return
            if body.full is not None or (body.size and not whole):
                return
            deadline = NEVER  # a filter bounds its own time
            if not x.body.done:
                deadline = _deadline(x, body, moved, now)
            elif ending is None:
                ending = start_ending(x)
            elif ending.done():
                _end(x, body, ending.result())
                return
            await client.wait(until_left(x, deadline, now, moved))
    finally:
        if ending is not None:
            await drop_ending(ending)


def _read(x: Exchange, body: SpooledBody) -> None:
    """Take what the client has sent, as far as filter and disk take it."""
    check = x.filter
    if check is not None:
        body.append(check.feed(b""))  # it may have made up its mind since
        if x.stream.inbox and not check.blocked and not body.blocked:
            body.append(read_checked(x))
    elif x.stream.inbox and not body.blocked:
        body.append(read_body(x))


def _end(x: Exchange, body: SpooledBody, rest: list[bytes] | SpooledBody) -> None:
    """The filter's last word is that the body may pass."""
    if isinstance(rest, SpooledBody):  # it has kept the body itself
        body.close()
        x.buffered = rest
        if x.filter is not None and x.filter.content_type is not None and x.body.trailers:
            stale = x.filter.stale
            x.body.trailers = [
                line for line in x.body.trailers if line.partition(b":")[0].lower() not in stale
            ]
    else:
        body.append(rest)
        body.end()


def _deadline(x: Exchange, body: SpooledBody, moved: float, now: float) -> float:
    """Until when something must move, and whose fault it is if nothing does."""
    if body.blocked or (x.filter is not None and x.filter.blocked):
        others_turn(x, now)
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
    if x.filter is not None and x.filter.blocked:
        deadline = moved + x.plan.body_timeout
        if now >= deadline:
            raise RequestTimeout("The request body did not come in time", close=True)
        return deadline
    return body_deadline(x, moved, now)
