"""Replies that need no upstream: a stage's `admit` hook may answer the request itself."""

from __future__ import annotations

import asyncio

from proxy.forward.exchange import Exchange
from proxy.forward.fallbacks import send
from proxy.forward.routing.plan import Reply
from proxy.forward.waiting import check_exchange
from proxy.http1.deadlines import NEVER


async def answer_without_upstream(exchange: Exchange) -> bool:
    """Send the reply of the first stage that has one; whether there was one. Raises a stage's
    refusal and what `check_exchange` raises. Each stage bounds its own time."""
    for admit in exchange.plan.admissions:
        asked = asyncio.ensure_future(admit(exchange))
        asked.add_done_callback(lambda _: exchange.stream.wake())
        try:
            while not asked.done():
                await exchange.stream.wait(
                    check_exchange(exchange, NEVER, exchange.stream.clock.monotonic())
                )
        finally:
            if not asked.done():
                asked.cancel()
                await asyncio.wait([asked])
        reply: Reply | None = asked.result()
        if reply is not None:
            exchange.drop_body()
            send(exchange, reply)
            return True
    return False
