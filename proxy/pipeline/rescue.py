"""A better answer than an error: what stages offer when the upstream has none, in their order."""

from __future__ import annotations

import logging

from proxy.errors import ClientLeft, ProxyError
from proxy.pipeline.exchange import Exchange
from proxy.pipeline.messages import made_reply
from proxy.pipeline.plan import Trouble

logger = logging.getLogger(__name__)


async def answered_instead(x: Exchange, trouble: Trouble) -> bool:
    """Whether some rescuer had an answer, which the client then has. Never raises: a rescuer that
    fails leaves things as they were."""
    if isinstance(trouble, ClientLeft) or x.replied or x.stream.lost:
        return False
    for rescuer in x.plan.rescuers:
        if not rescuer.wants(x, trouble):
            continue
        try:
            reply = await rescuer.rescue(x, trouble)
        except Exception:
            logger.exception("rescue failed", extra={"correlation_id": x.correlation_id})
            continue
        if reply is None:
            continue
        x.status = reply.status
        x.note(rescued_from=trouble.code if isinstance(trouble, ProxyError) else trouble.status)
        if x.stream.draining or not x.body.done:
            x.keep_alive = False
        x.replied = True
        x.bytes_out = len(reply.body)
        if not x.stream.lost:
            x.stream.transport.write(made_reply(x, reply))
        return True
    return False
