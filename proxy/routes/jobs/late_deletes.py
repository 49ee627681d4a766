"""Sends deletions to the app that it missed while it was down."""

from __future__ import annotations

import logging
import ssl
from urllib.parse import quote

import aiohttp
from yarl import URL

from proxy.config.units import TargetAddress
from proxy.core.headers import new_correlation_id
from proxy.core.process.shortage import Shortages
from proxy.jobs.document import valid_job_id

logger = logging.getLogger(__name__)

#: Characters of a path that need no escape (RFC 3986 §3.3).
_PLAIN = "/:@!$&'()*+,;=~"

_TIMEOUT = aiohttp.ClientTimeout(total=10)


class LateDeletes:
    """Sends `DELETE` for the jobs of one route. `path` has `{parameter}` where the job ID goes."""

    def __init__(
        self,
        target: TargetAddress,
        tls: ssl.SSLContext | None,
        path: str,
        parameter: str,
        api_key: str | None,
        shortages: Shortages,
    ) -> None:
        self._shortages = shortages
        self._target = target
        self._tls = tls
        before, _, after = path.partition("{" + parameter + "}")
        self._before, self._after = quote(before, _PLAIN), quote(after, _PLAIN)
        self._fields = {} if api_key is None else {"X-API-Key": api_key}

    async def __call__(self, job_id: str) -> bool:
        """Whether the app has been notified. A 404 is enough, and so is a refusal, which would only
        repeat itself: the job's key is kept out of Redis in any case. Raises nothing."""
        if not valid_job_id(job_id):
            return True  # not an ID of the app: the stored value is not trusted
        unix = self._target.path is not None
        path = f"{self._before}{quote(job_id, '')}{self._after}"
        url = URL(("http://localhost" if unix else str(self._target)) + path, encoded=True)
        correlation_id = new_correlation_id()
        fields = {"X-Correlation-ID": correlation_id, **self._fields}
        connector = (
            aiohttp.UnixConnector(self._target.path)
            if self._target.path
            else aiohttp.TCPConnector()
        )
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT) as session,
                session.delete(url, ssl=self._tls or True, headers=fields) as response,
            ):
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._shortages.check(error, "a late deletion")
            return False
        if status < 500:
            logger.info(
                "late deletion sent",
                extra={"job_id": job_id, "status": status, "correlation_id": correlation_id},
            )
        return status < 500
