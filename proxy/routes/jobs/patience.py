"""`fallback_after`: the time that the app has to answer before the mirror is asked."""

from __future__ import annotations

import asyncio
import logging

from proxy.config.listeners import JobRole
from proxy.core.errors import ProxyError, StillWaiting
from proxy.forward.exchange import Exchange
from proxy.forward.fallbacks import ReplyFound
from proxy.forward.routing.plan import Reply
from proxy.jobs.answers import NoAnswer
from proxy.jobs.mirror import Mirror
from proxy.routes.jobs.app_presence import AppPresence
from proxy.routes.jobs.list import ListsJobs
from proxy.routes.jobs.read import ReadsJob

logger = logging.getLogger(__name__)


#: Seconds between two lookups if the mirror's store did not answer and the app is silent too.
_LOOK_AGAIN = 1.0


class Patience:
    """`fallback_after`: asks the mirror while the app is silent, or as soon as it refuses.

    The request to the app continues meanwhile; only an answer from the mirror ends it. A mirror
    that is too slow is asked again until the app answers or fails. While the app is known to be
    unresponsive, the mirror is asked first. The app is then asked only for what the mirror does not
    know, and by one probing request at a time.
    """

    def __init__(
        self,
        mirror: Mirror,
        fallback_source: ReadsJob | ListsJobs,
        role: JobRole,
        presence: AppPresence,
    ) -> None:
        self._mirror = mirror
        self._source = fallback_source
        self._after = role.fallback_after
        self._presence = presence
        self._running: dict[Exchange, asyncio.TimerHandle | asyncio.Task[None]] = {}

    def begin(self, exchange: Exchange) -> None:
        """Start the timer of one exchange."""
        loop = asyncio.get_running_loop()
        self._running[exchange] = loop.call_later(self._after, self._over, exchange)
        exchange.on_refused = self._refused
        if not self._presence.goes(exchange):
            away = StillWaiting("The service does not respond")
            if self._source.wants(exchange, away):
                exchange.away = away

    def end(self, exchange: Exchange) -> None:
        """The exchange is over."""
        self._presence.ended(exchange)
        running = self._running.pop(exchange, None)
        if running is not None:
            running.cancel()

    def _refused(self, exchange: Exchange) -> None:
        self._mirror.creations.app_is_down()
        self._over(exchange)

    def _over(self, exchange: Exchange) -> None:
        """There was no answer in time, or every target refused; once per exchange."""
        exchange.on_refused = None
        if isinstance(running := self._running.get(exchange), asyncio.TimerHandle):
            running.cancel()
        if not exchange.replied:
            self._presence.missed()
        waited = StillWaiting(f"No answer within {self._after:g}s")
        if exchange.replied or not self._source.wants(exchange, waited):
            return
        loop = asyncio.get_running_loop()
        self._running[exchange] = loop.create_task(
            self._ask(exchange, waited), name="mirror answers for the app"
        )

    async def _ask(self, exchange: Exchange, waited: StillWaiting) -> None:
        try:
            reply = await self._source.look(exchange, waited)
            while isinstance(reply, NoAnswer):
                await asyncio.sleep(_LOOK_AGAIN)
                reply = await self._source.look(exchange, waited)
        except ProxyError:
            return  # the job has expired, or the key is missing: wait for the app's own answer
        except Exception:
            # Nothing awaits this task; the exchange keeps waiting for the app.
            logger.exception("fallback failed", extra={"correlation_id": exchange.correlation_id})
            return
        if isinstance(reply, Reply) and not exchange.replied:
            exchange.note(rescued_from="silence")
            exchange.interrupt(ReplyFound(reply))
