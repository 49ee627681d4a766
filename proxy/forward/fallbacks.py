"""Fallback replies: what stages offer, in order, when the upstream has no good answer."""

from __future__ import annotations

import asyncio
import logging

from proxy.core.errors import ClientLeft, Overloaded, ProxyError
from proxy.core.memory.budget import Holding
from proxy.forward.exchange import Exchange
from proxy.forward.messages import made_reply
from proxy.forward.routing.plan import AskAgain, Reply, Trouble

logger = logging.getLogger(__name__)

#: Replies up to this many bytes are sent however full the memory budget is.
_SMALL = 64 * 1024


class ReplyFound(Exception):
    """Interrupts an exchange: a stage has found a reply while the upstream was being asked."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self.reply = reply


async def find_fallback(exchange: Exchange, trouble: Trouble) -> Reply | AskAgain | None:
    """The first fallback that a stage offers. Raises the `ProxyError` that a stage answers with;
    any other exception in a stage is logged, and the next one is asked."""
    client = exchange.stream
    gone = client.shed or (client.lost and not exchange.see_through)
    if isinstance(trouble, ClientLeft) or exchange.replied or gone:
        return None
    for fallback_source in exchange.plan.fallback_sources:
        if not fallback_source.wants(exchange, trouble):
            continue
        try:
            # A task of its own, because stages use asyncio.timeout.
            better = await asyncio.ensure_future(fallback_source.fallback(exchange, trouble))
        except ProxyError:
            raise
        except Exception:
            logger.exception("fallback failed", extra={"correlation_id": exchange.correlation_id})
            continue
        if better is not None:
            exchange.note(
                rescued_from=trouble.code if isinstance(trouble, ProxyError) else trouble.status
            )
            return better
    return None


def needs_body(exchange: Exchange, trouble: Trouble) -> bool:
    """Whether a fallback must read the response before it is relayed."""
    return any(r.needs_body and r.wants(exchange, trouble) for r in exchange.plan.fallback_sources)


def reserve(exchange: Exchange, size: int) -> None:
    """Reserve memory for a reply of `size` bytes before it is built. Raises `Overloaded` when the
    budget has no room."""
    holding = exchange.holding
    if holding is None:
        holding = exchange.holding = Holding(
            exchange.stream.memory.account("own_answers"), exchange.stream
        )
    if size > _SMALL and not holding.try_grow(size):
        raise Overloaded(
            "The proxy is short of memory for its answer", retry_after=1, reason="memory"
        )


def send(exchange: Exchange, reply: Reply) -> None:
    """Answer the client with `reply`. Raises `Overloaded` when the memory budget has no room."""
    if exchange.holding is not None:
        exchange.holding.clear()  # the memory that the reply was built from
    if len(reply.body) > _SMALL:
        reserve(exchange, len(reply.body))
    exchange.status = reply.status
    if exchange.stream.draining or not exchange.body.done:
        exchange.keep_alive = False
    exchange.replied = True
    exchange.bytes_out = len(reply.body)
    if exchange.holding is not None:
        exchange.holding.clear()  # from here on the connection's output buffer counts it
    if not exchange.stream.lost:
        exchange.stream.write(made_reply(exchange, reply))
