"""Creating a job: an accepted job is confirmed before the client gets the response.

Creations are refused at once while Redis cannot store a job. An accepting response is sent only
after the job's key was seen in Redis and its row committed; otherwise it becomes 503
`job_not_stored`.
"""

from __future__ import annotations

import json

from proxy.core.errors import ProxyError
from proxy.forward.exchange import Exchange
from proxy.forward.routing.plan import Reply, Trouble
from proxy.jobs.creations import Creation
from proxy.jobs.mirror import Mirror
from proxy.uploads.check import UploadCheck

#: Methods that create nothing, if the route accepts them as well (RFC 9110 §9.2.1).
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class CreatesJob:
    """Refuses creations that would be lost, and confirms those that the app accepts."""

    needs_body = True

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror

    def refuse(self, exchange: Exchange) -> None:
        if exchange.method in _SAFE:
            return
        refusal = self._mirror.creations.refusal()
        if refusal is not None:
            if (problem := self._mirror.store_problem) is not None:
                exchange.note(store_problem=problem)
            raise refusal

    def wants(self, exchange: Exchange, trouble: Trouble) -> bool:
        if isinstance(trouble, ProxyError) or exchange.method in _SAFE:
            return False
        return 200 <= trouble.status < 300

    async def fallback(self, exchange: Exchange, trouble: Trouble) -> Reply | None:
        """Confirm the job before its acceptance is sent; never a reply in its place. Raises
        `JobNotStored`."""
        job_id = _job_id(exchange.response_body)
        if job_id is None:
            # Not a creation, or an unrecognised response, which an operator has to know about.
            exchange.note(job_stored="unknown")
            self._mirror.creations.unreadable()
            return None
        exchange.note(job_id=job_id)
        result = await self._mirror.creations.confirm(job_id)
        exchange.note(job_stored=result.value)
        self._mirror.active.created(job_id, exchange.correlation_id)
        if result is Creation.NOT_STORED:
            raise self._mirror.creations.not_stored()
        exchange.added = self._mirror.reads.forecast(job_id)
        seconds = (
            exchange.filter.facts.get("duration")
            if isinstance(exchange.filter, UploadCheck)
            else None
        )
        if seconds is not None:
            self._mirror.input_measured(job_id, seconds)
        return None


def _job_id(body: bytes | None) -> str | None:
    """The job ID in an accepting response, from either version of the app."""
    try:
        document = json.loads(body or b"")
    except (ValueError, RecursionError):  # the latter from deep nesting
        return None
    if not isinstance(document, dict):
        return None
    job_id = document.get("job_id") or document.get("id")
    return job_id if isinstance(job_id, str) and job_id else None
