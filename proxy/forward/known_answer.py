"""Answers that are known before the upstream is asked: what stages admit a request by."""

from __future__ import annotations

import asyncio

from proxy.forward.exchange import Exchange
from proxy.forward.fallbacks import send
from proxy.forward.routing.plan import Reply
from proxy.forward.waiting import until_left
from proxy.http1.deadlines import NEVER


async def answered_already(exchange: Exchange) -> bool:
    """Whether a stage had the answer, which has been sent then. Raises what refuses the request,
    and what `until_left` raises. A stage bounds its own time."""
    for admit in exchange.plan.admissions:
        asked = asyncio.ensure_future(admit(exchange))
        asked.add_done_callback(lambda _: exchange.stream.wake())
        try:
            while not asked.done():
                await exchange.stream.wait(
                    until_left(exchange, NEVER, exchange.stream.clock.monotonic())
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
