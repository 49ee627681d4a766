"""Creations of jobs: refuse those that would be lost, confirm those that the app accepted."""

from __future__ import annotations

import logging
import time
from enum import StrEnum

from proxy.core.errors import JobNotStored
from proxy.core.waiting import settled
from proxy.jobs.context import MirrorContext
from proxy.jobs.document import valid_job_id
from proxy.jobs.redis.session import RedisSession

log = logging.getLogger(__name__)

COMMIT_PATIENCE = 0.25  # seconds that a creation may wait for the SQLite commit
LOOK_AGAIN = 0.05  # seconds between two checks for a created job's key
DOWN_RETRY_AFTER = 5.0  # seconds


class Creation(StrEnum):
    """The outcome of a creation that the app accepted."""

    CONFIRMED = "confirmed"  # in Redis, and committed in SQLite
    NOT_STORED = "not_stored"  # not in Redis, or Redis is down: lost, although the app accepted it
    UNCONFIRMED = "unconfirmed"  # Redis is up but too slow to answer: we trust the app's answer
    DEGRADED = "degraded"  # in Redis; SQLite could not confirm it in time


class Creations:
    """The creations of one mirror's jobs. Redis or SQLite trouble raises nothing here."""

    def __init__(
        self,
        context: MirrorContext,
        session: RedisSession,
    ) -> None:
        self._name = context.name
        self._settings = context.settings
        self._session = session
        self._metrics = context.metrics
        self._clock = context.clock
        self._refuse_until = float("-inf")  # monotonic: until the app uses Redis again

    def refusal(self) -> JobNotStored | None:
        """Why no job can be accepted now; None when one can. No I/O."""
        session = self._session
        session.activity.touch()
        if session.state != "live":
            self._metrics.creation("refused")
            return JobNotStored(
                "The job store is not reachable, so the job would be lost; try again",
                retry_after=DOWN_RETRY_AFTER,
                reason="redis_down",
            )
        if session.refusing is not None:
            self._metrics.creation("refused")
            return JobNotStored(
                "The job store is not accepting writes "
                f"({session.refusing.partition(' ')[0]}), so the job would be lost; try again",
                retry_after=DOWN_RETRY_AFTER,
                reason="redis_refuses_writes",
            )
        left = self._refuse_until - self._clock.monotonic()
        if left > 0:
            self._metrics.creation("refused")
            return JobNotStored(
                "The job store is back, but the service is not using it again yet; try again",
                retry_after=left,
                reason="app_breaker_open",
            )
        return None

    def app_is_down(self) -> None:
        """The app refuses connections. Its next process will start with a closed breaker."""
        self._refuse_until = float("-inf")

    def not_stored(self) -> JobNotStored:
        """The error that replaces an acceptance which proved wrong or cannot be trusted."""
        if self._session.state != "live":
            return JobNotStored(
                "The job store became unreachable before the job was seen in it; try again",
                retry_after=DOWN_RETRY_AFTER,
                reason="redis_down",
            )
        left = self._refuse_until - self._clock.monotonic()
        return JobNotStored(
            "The service accepted the job but did not store it; try again",
            retry_after=left if left > 0 else DOWN_RETRY_AFTER,
            reason="key_missing",
        )

    def unreadable(self) -> None:
        """Count an acceptance whose body has no readable job ID, so nothing could be confirmed."""
        self._metrics.creation("unreadable")

    async def confirm(self, job_id: str, timeout: float = 0.5) -> Creation:  # noqa: ASYNC109
        """Wait until an accepted job is in Redis and committed to SQLite (for up to 0.25 s).

        A key that is still missing `timeout` seconds from now was not stored. If Redis does not
        answer at all, we wait for `confirm_within` seconds in total.
        """
        result = await self._confirm(job_id, timeout)
        self._metrics.creation(result)
        if result is Creation.NOT_STORED:
            back_at = self._session.back_at
            if back_at is not None:
                # The app's breaker opened no later than Redis came back.
                until = back_at + self._settings.app_breaker
                if until > self._clock.monotonic():
                    self._refuse_until = until
        if result is not Creation.CONFIRMED:
            log.error(
                "accepted job not confirmed",
                extra={
                    "mirror": self._name,
                    "job_id": job_id[:128],
                    "result": result,
                    "key": self._settings.key,
                },
            )
        return result

    def _stopped(self) -> bool:
        """Whether the session ended because a successor has taken over the store."""
        return self._session.state == "stopped"

    async def _confirm(self, job_id: str, within: float) -> Creation:
        if not valid_job_id(job_id):
            return Creation.DEGRADED  # the mirror cannot store such an ID
        if self._stopped():
            return Creation.UNCONFIRMED
        capture = self._session.capture
        began = time.monotonic()
        sighting = capture.changes.watch(job_id)
        try:
            while not await settled(sighting.seen, LOOK_AGAIN):
                if self._stopped():
                    return Creation.UNCONFIRMED
                missing = sighting.missing
                if missing is not None and missing >= began + within:
                    if await self._session.leads_to_master():
                        return Creation.NOT_STORED
                    sighting.missing = None  # that server is no longer the master
                if time.monotonic() >= began + max(within, self._settings.confirm_within):
                    silent = self._session.state == "live" and sighting.missing is None
                    return Creation.UNCONFIRMED if silent else Creation.NOT_STORED
                capture.changes.fetch_next(job_id)
            if not await settled(sighting.kept, COMMIT_PATIENCE):
                return Creation.DEGRADED
            return Creation.CONFIRMED if sighting.kept.result() else Creation.DEGRADED
        finally:
            capture.changes.unwatch(job_id, sighting)
