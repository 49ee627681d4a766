"""Reading a request's body: its content, through the route's filter where there is one."""

from __future__ import annotations

import asyncio

from proxy.core.errors import BadRequest, BodyTooLarge, RequestTimeout
from proxy.forward.exchange import Exchange
from proxy.forward.messages import CONTINUE
from proxy.http1.heads import ProtocolError
from proxy.http1.pace import Pace
from proxy.spool import SpooledBody

#: Pieces of a body that are joined before a filter sees them: small chunks come by the thousand.
_MANY = 8


def send_continue(exchange: Exchange) -> None:
    """Tell a client that waits for our leave to send its body (RFC 9110 §10.1.1)."""
    head = exchange.head
    if head is None or not head.expects_continue or not head.minor:
        return
    if not (exchange.continue_sent or exchange.body.done or exchange.stream.inbox):
        exchange.stream.transport.write(CONTINUE)
        exchange.continue_sent = True


def read_body(exchange: Exchange) -> list[bytes]:
    """What the client has sent of its body. Raises `BadRequest` and `BodyTooLarge`."""
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
    """The refusal of a body over `limit` bytes; `length` where the client has announced it."""
    size = f"over {limit}" if length is None else f"{length}"
    error = BodyTooLarge(
        f"Request body too large: {size} bytes (max: {limit})", close=True, limit=limit
    )
    if length is not None:
        error.facts["measured"] = length
    return error


def read_checked(exchange: Exchange) -> list[bytes]:
    """The same through the filter: what may go upstream. Raises its refusal, too."""
    assert exchange.filter is not None
    pieces = read_body(exchange)
    if len(pieces) > _MANY:
        pieces = [b"".join(pieces)]
    return [out for piece in pieces for out in exchange.filter.feed(piece)]


def start_ending(exchange: Exchange) -> asyncio.Task[list[bytes] | SpooledBody]:
    """The filter's last word, asked for; the client's coroutine is woken when it has come."""
    assert exchange.filter is not None
    ending = asyncio.get_running_loop().create_task(exchange.filter.finish(), name="verdict")
    ending.add_done_callback(lambda _: exchange.stream.wake())
    return ending


async def drop_ending(ending: asyncio.Task[list[bytes] | SpooledBody]) -> None:
    """Nobody waits for it any more."""
    ending.cancel()
    await asyncio.wait([ending])
    if not ending.cancelled():
        ending.exception()  # a refusal that came too late to be the answer


def body_deadline(exchange: Exchange, moved: float, now: float) -> float:
    """Until when more of the body must come, of which the last came at `moved`. Raises
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
    """From now on it is not the client's body that is waited for."""
    if exchange.pace is not None:
        exchange.pace.rests(exchange.bytes_in, now)
