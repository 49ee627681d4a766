"""A better answer than an error: what stages offer when the upstream has none, in their order."""

from __future__ import annotations

import asyncio
import logging

from proxy.core.errors import ClientLeft, Overloaded, ProxyError
from proxy.core.memory.budget import Holding
from proxy.forward.exchange import Exchange
from proxy.forward.messages import made_reply
from proxy.forward.routing.plan import AskAgain, Reply, Trouble

logger = logging.getLogger(__name__)

#: Bytes of an answer that are sent however full the memory budget is.
_SMALL = 64 * 1024


async def rescue(x: Exchange, trouble: Trouble) -> Reply | AskAgain | None:
    """The first better answer. Raises the `ProxyError` that a rescuer wants to be the answer; any
    other failure of a rescuer leaves things as they were."""
    client = x.stream
    gone = client.shed or (client.lost and not x.see_through)
    if isinstance(trouble, ClientLeft) or x.replied or gone:
        return None
    for rescuer in x.plan.rescuers:
        if not rescuer.wants(x, trouble):
            continue
        try:
            # A task of its own: rescuers limit their time, and only tasks can be.
            better = await asyncio.ensure_future(rescuer.rescue(x, trouble))
        except ProxyError:
            raise
        except Exception:
            logger.exception("rescue failed", extra={"correlation_id": x.correlation_id})
            continue
        if better is not None:
            x.note(rescued_from=trouble.code if isinstance(trouble, ProxyError) else trouble.status)
            return better
    return None


def needs_body(x: Exchange, trouble: Trouble) -> bool:
    """Whether a rescuer must read the response before it is passed on."""
    return any(r.needs_body and r.wants(x, trouble) for r in x.plan.rescuers)


def reserve(x: Exchange, size: int) -> None:
    """Count an answer of `size` bytes, before it is there. Raises `Overloaded` where there is no
    memory for it."""
    holding = x.holding
    if holding is None:
        holding = x.holding = Holding(x.stream.memory.account("own_answers"), x.stream)
    if size > _SMALL and not holding.try_grow(size):
        raise Overloaded(
            "The proxy is short of memory for its answer", retry_after=1, reason="memory"
        )


def send(x: Exchange, reply: Reply) -> None:
    """Answer the client with `reply`. Raises `Overloaded` where there is no memory for it."""
    if x.holding is not None:
        x.holding.clear()  # of what the reply was made from
    if len(reply.body) > _SMALL:
        reserve(x, len(reply.body))
    x.status = reply.status
    if x.stream.draining or not x.body.done:
        x.keep_alive = False
    x.replied = True
    x.bytes_out = len(reply.body)
    if x.holding is not None:
        x.holding.clear()  # from here on it is counted where it is written
    if not x.stream.lost:
        x.stream.write(made_reply(x, reply))
