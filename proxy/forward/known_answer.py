"""Answers that are known before the upstream is asked: what stages admit a request by."""

from __future__ import annotations

import asyncio

from proxy.forward.exchange import Exchange
from proxy.forward.fallbacks import send
from proxy.forward.routing.plan import Reply
from proxy.forward.waiting import until_left
from proxy.http1.deadlines import NEVER


async def answered_already(x: Exchange) -> bool:
    """Whether a stage had the answer, which has been sent then. Raises what refuses the request,
    and what `until_left` raises. A stage bounds its own time."""
    for admit in x.plan.admissions:
        asked = asyncio.ensure_future(admit(x))
        asked.add_done_callback(lambda _: x.stream.wake())
        try:
            while not asked.done():
                await x.stream.wait(until_left(x, NEVER, x.stream.clock.monotonic()))
        finally:
            if not asked.done():
                asked.cancel()
                await asyncio.wait([asked])
        reply: Reply | None = asked.result()
        if reply is not None:
            x.drop_body()
            send(x, reply)
            return True
    return False
