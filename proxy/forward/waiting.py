"""How long the client's coroutine may wait, and what ends the wait early."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from proxy.core.errors import ClientLeft, Draining, Overloaded
from proxy.forward.exchange import Exchange
from proxy.http1.deadlines import NEVER

#: Seconds for which a client that has closed its sending half is still served while nothing moves.
#: Most clients that half-close are leaving; a few old ones end a request that way.
HALF_CLOSE_GRACE = 0.2

_T = TypeVar("_T")


def memory_is_short() -> Overloaded:
    """The refusal for a connection that held more memory than others when it ran short."""
    return Overloaded(
        "The proxy is short of memory, and this connection held more of it than others",
        close=True,
        retry_after=1,
        reason="memory",
    )


def check_exchange(exchange: Exchange, deadline: float, now: float, moved: float = 0.0) -> float:
    """Like `check_client`, while waiting for the upstream. Also raises what somebody has
    interrupted the exchange with."""
    if exchange.interruption is not None and not exchange.replied:
        raise exchange.interruption
    return check_client(exchange, deadline, now, moved)


def check_client(exchange: Exchange, deadline: float, now: float, moved: float = 0.0) -> float:
    """`deadline`, or an earlier one when the client has half-closed (see `HALF_CLOSE_GRACE`).

    `moved` is when anything last moved. Raises `ClientLeft` when the client is gone or must be
    taken as gone, `Draining` when the proxy is stopping, and `Overloaded` when memory is short.
    """
    client = exchange.stream
    if client.cut:
        raise Draining("The proxy is stopping", retry_after=1)
    if client.shed:
        raise memory_is_short()
    if not client.eof or exchange.see_through:
        return deadline
    # TLS has no half-closed state here: anything sent now would be discarded.
    gone = client.lost or client.secure
    unfinished = not (exchange.body.done or client.inbox)
    grace = max(client.eof_at, moved) + HALF_CLOSE_GRACE
    if gone or unfinished or (now >= grace and not client.write_paused):
        raise ClientLeft("Client left")
    return deadline if client.write_paused else min(deadline, grace)


async def decided(
    exchange: Exchange,
    decision: Awaitable[_T],
    check: Callable[[Exchange, float, float], float] = check_client,
) -> _T:
    """Wait for a decision about the request; it is cancelled when the client leaves. Raises the
    decision's refusal and what `check` raises: with `check_client`, nothing else may interrupt the
    exchange before the decision."""
    asked = asyncio.ensure_future(decision)  # a task, so that it can use asyncio.timeout
    asked.add_done_callback(lambda _: exchange.stream.wake())
    try:
        while not asked.done():
            await exchange.stream.wait(check(exchange, NEVER, exchange.stream.clock.monotonic()))
    finally:
        if not asked.done():
            asked.cancel()
            await asyncio.wait([asked])
    return asked.result()


async def pause(exchange: Exchange, until: float) -> None:
    """Wait until the monotonic second `until`. Raises what `check_exchange` raises."""
    while (now := exchange.stream.clock.monotonic()) < until:
        await exchange.stream.wait(check_exchange(exchange, until, now))
