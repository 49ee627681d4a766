"""Deletions that the app missed because it was away, told to it when it is back."""

from __future__ import annotations

import logging
import ssl

import aiohttp

from proxy.config.units import TargetAddress
from proxy.headers import new_correlation_id
from proxy.shortage import SHORTAGES

logger = logging.getLogger(__name__)

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
    ) -> None:
        self._target = target
        self._tls = tls
        self._path = path
        self._placeholder = "{" + parameter + "}"
        self._fields = {} if api_key is None else {"X-API-Key": api_key}

    async def __call__(self, job_id: str) -> bool:
        """Whether the app has been told. Its 404 will do; so will a refusal, which no repetition
        would change: the job's key is kept out of Redis in any case. Raises nothing."""
        path = self._path.replace(self._placeholder, job_id)  # an ID of the mirror is path-safe
        unix = self._target.path is not None
        url = ("http://localhost" if unix else str(self._target)) + path
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
            SHORTAGES.check(error, "a late deletion")
            return False
        if status < 500:
            logger.info(
                "late deletion passed on",
                extra={"job_id": job_id, "status": status, "correlation_id": correlation_id},
            )
        return status < 500
