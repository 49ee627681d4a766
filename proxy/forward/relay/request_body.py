"""Reading a request's body: its content, through the route's filter where there is one."""

from __future__ import annotations

import asyncio

from proxy.core.errors import BadRequest, BodyTooLarge, RequestTimeout
from proxy.forward.exchange import Exchange
from proxy.forward.messages import CONTINUE
from proxy.http1.fields import ProtocolError
from proxy.http1.pace import Pace
from proxy.spool import SpooledBody

#: Pieces of a body that are joined before a filter sees them: small chunks come by the thousand.
_MANY = 8


def send_continue(exchange: Exchange) -> None:
    """Send 100 Continue to a client that waits for it (RFC 9110 §10.1.1)."""
    head = exchange.head
    if head is None or not head.expects_continue or not head.minor:
        return
    if not (exchange.continue_sent or exchange.body.done or exchange.stream.inbox):
        exchange.stream.transport.write(CONTINUE)
        exchange.continue_sent = True


def read_body(exchange: Exchange) -> list[bytes]:
    """The body bytes that have arrived. Raises `BadRequest` and `BodyTooLarge`."""
    try:
        pieces = exchange.stream.read_body(exchange.body)
    except ProtocolError as error:
        raise BadRequest(f"Malformed request body: {error.detail}", close=True) from error
    exchange.bytes_in += sum(map(len, pieces))
    limit = exchange.plan.max_body
    if limit is not None and exchange.bytes_in > limit:
        raise too_large(limit, None)
    return pieces


def too_large(limit: int, length: int | None) -> BodyTooLarge:
    """The refusal for a body over `limit` bytes; `length` is what the client announced, if it
    did."""
    size = f"over {limit}" if length is None else f"{length}"
    error = BodyTooLarge(
        f"Request body too large: {size} bytes (max: {limit})", close=True, limit=limit
    )
    if length is not None:
        error.facts["measured"] = length
    return error


def read_checked(exchange: Exchange) -> list[bytes]:
    """Like `read_body`, through the filter: the bytes that may go upstream. Also raises the
    filter's refusal."""
    assert exchange.filter is not None
    pieces = read_body(exchange)
    if len(pieces) > _MANY:
        pieces = [b"".join(pieces)]
    return [out for piece in pieces for out in exchange.filter.feed(piece)]


def start_ending(exchange: Exchange) -> asyncio.Task[list[bytes] | SpooledBody]:
    """Start the filter's `finish`; the client's coroutine is woken when it is done."""
    assert exchange.filter is not None
    ending = asyncio.get_running_loop().create_task(exchange.filter.finish(), name="body filter")
    ending.add_done_callback(lambda _: exchange.stream.wake())
    return ending


async def drop_ending(ending: asyncio.Task[list[bytes] | SpooledBody]) -> None:
    """Cancel a filter's `finish` and wait until it has ended."""
    ending.cancel()
    await asyncio.wait([ending])
    if not ending.cancelled():
        ending.exception()  # a refusal that came too late to be sent


def body_deadline(exchange: Exchange, moved: float, now: float) -> float:
    """When more of the body must have arrived; the last part arrived at `moved`. Raises
    `RequestTimeout`."""
    deadline = moved + exchange.plan.body_timeout
    if exchange.plan.min_rate is not None:
        if exchange.pace is None:
            exchange.pace = Pace(exchange.plan.min_rate)
        deadline = min(deadline, exchange.pace.waits(exchange.bytes_in, now))
    if now >= deadline:
        raise RequestTimeout(
            "The request body did not come in time, or not fast enough", close=True
        )
    return deadline


def others_turn(exchange: Exchange, now: float) -> None:
    """Stop measuring the client's sending rate: the wait is for somebody else."""
    if exchange.pace is not None:
        exchange.pace.rests(exchange.bytes_in, now)
