"""Replies that need no upstream: a stage's `admit` hook may answer the request itself."""

from __future__ import annotations

from proxy.forward.exchange import Exchange
from proxy.forward.fallbacks import send
from proxy.forward.waiting import check_exchange, decided


async def answer_without_upstream(exchange: Exchange) -> bool:
    """Send the reply of the first stage that has one; whether there was one. Raises a stage's
    refusal and what `check_exchange` raises. Each stage bounds its own time."""
    for admit in exchange.plan.admissions:
        reply = await decided(exchange, admit(exchange), check_exchange)
        if reply is not None:
            exchange.drop_body()
            send(exchange, reply)
            return True
    return False
