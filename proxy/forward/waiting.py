"""How long the client's coroutine may wait, whatever it waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from proxy.core.errors import ClientLeft, Draining, Overloaded
from proxy.forward.exchange import Exchange
from proxy.http1.deadlines import NEVER

#: Seconds for which a client that has closed its sending half is still served while nothing moves.
#: A closed half is how most clients leave, and how a few old ones end a request.
HALF_CLOSE_GRACE = 0.2


class AnsweredMeanwhile(Exception):
    """`x.instead` has an answer, and the upstream still has none."""


def memory_is_short() -> Overloaded:
    """The refusal of a connection that held more than others when memory ran short."""
    return Overloaded(
        "The proxy is short of memory, and this connection held more of it than others",
        close=True,
        retry_after=1,
        reason="memory",
    )


def until_left(exchange: Exchange, deadline: float, now: float, moved: float = 0.0) -> float:
    """As `while_here`, for who waits for the upstream. Also raises `AnsweredMeanwhile`."""
    if exchange.instead is not None and not exchange.replied:
        raise AnsweredMeanwhile
    return while_here(exchange, deadline, now, moved)


def while_here(exchange: Exchange, deadline: float, now: float, moved: float = 0.0) -> float:
    """`deadline`, or earlier when the client has closed its half (see `HALF_CLOSE_GRACE`).

    `moved` is when anything last moved. Raises `ClientLeft` when the client is gone, or as good as,
    `Draining` when the proxy can wait no longer, and `Overloaded` when it has no memory for it.
    """
    client = exchange.stream
    if client.cut:
        raise Draining("The proxy is stopping", retry_after=1)
    if client.shed:
        raise memory_is_short()
    if not client.eof or exchange.see_through:
        return deadline
    # Over TLS there is no closed half: whatever would be sent is thrown away.
    gone = client.lost or client.secure
    unfinished = not (exchange.body.done or client.inbox)
    grace = max(client.eof_at, moved) + HALF_CLOSE_GRACE
    if gone or unfinished or (now >= grace and not client.write_paused):
        raise ClientLeft("Client left")
    return deadline if client.write_paused else min(deadline, grace)


async def decided(exchange: Exchange, decision: Coroutine[Any, Any, None]) -> None:
    """Wait for what decides about the request. It is ended when the client leaves. Raises what
    refuses the request, and what `while_here` raises: no answer is good before the decision."""
    asked = asyncio.ensure_future(decision)  # a task of its own, since it may limit its time
    asked.add_done_callback(lambda _: exchange.stream.wake())
    try:
        while not asked.done():
            await exchange.stream.wait(
                while_here(exchange, NEVER, exchange.stream.clock.monotonic())
            )
    finally:
        if not asked.done():
            asked.cancel()
            await asyncio.wait([asked])
    asked.result()


async def pause(exchange: Exchange, until: float) -> None:
    """Wait until the monotonic second `until`. Raises what `until_left` raises."""
    while (now := exchange.stream.clock.monotonic()) < until:
        await exchange.stream.wait(until_left(exchange, until, now))
