"""Fetches the app's metrics page on a schedule, bounded in time and size.

Each fetch uses a new connection and closes it at once, because the app accepts only nine, idle ones
included. Redirects are not followed and nothing is decompressed: a redirect is a wrong status, and
a compressed response, which was not requested, is malformed.
"""

from __future__ import annotations

import asyncio
import logging
import time

import aiohttp
from prometheus_client.metrics_core import Metric

from proxy import __version__
from proxy.app_telemetry.scrape.external_metrics import ExternalMetrics, Fetched
from proxy.app_telemetry.scrape.page import BadPage, TooMany, read_page
from proxy.config.telemetry import AppMetrics
from proxy.core.process.shortage import DETAILS
from proxy.core.tasks import Supervised
from proxy.core.vitals import Vitals

_log = logging.getLogger(__name__)

LARGEST = 1024 * 1024  # bytes of a page: ten times what the service has
MOST_SAMPLES = 2000  # of a page
_CHUNK = 64 * 1024
_PAUSE = 0.0001  # seconds in which the parsing thread lets the event loop run

_HEADERS = {
    "Accept": "text/plain;version=0.0.4",
    "Accept-Encoding": "identity",
    "User-Agent": f"reliability-proxy/{__version__}",
}


class _Failed(Exception):
    """A fetch that failed."""

    def __init__(self, result: Fetched, why: str) -> None:
        super().__init__(why)
        self.result = result


class AppScrape:
    """Fetches the page into `external` from `start` to `stop`."""

    def __init__(self, config: AppMetrics, external: ExternalMetrics, vitals: Vitals) -> None:
        self._config = config
        self._external = external
        self._shortages = vitals.shortages
        ours = {
            name: value.get_secret_value()
            for name, value in config.headers.items()
            if value is not None
        }
        self._headers = {**_HEADERS, **ours}
        self._fetching = Supervised("app-metrics", self._keep_fetching, vitals.tasks)
        self._logged: Fetched | None = None

    def start(self) -> None:
        """Start fetching; needs a running loop."""
        self._fetching.start()

    async def stop(self) -> None:
        """Stop fetching, and wait for the end."""
        await self._fetching.stop()

    async def _keep_fetching(self) -> None:
        while True:
            await self.fetch()
            await asyncio.sleep(self._config.every)

    async def fetch(self) -> Fetched:
        """Fetch once and record the result."""
        began = asyncio.get_running_loop().time()
        families: list[Metric] = []
        unsound: list[str] = []
        why = ""
        try:
            body = await self._body()
            families, unsound = await asyncio.to_thread(
                read_page,
                body,
                MOST_SAMPLES,
                self._config.prefix,
                lambda: time.sleep(_PAUSE),
            )
            result = Fetched.OK if families or unsound else Fetched.EMPTY
        except _Failed as error:
            result, why = error.result, str(error)
        except TooMany as error:
            result, why = Fetched.TOO_MANY_SERIES, str(error)
        except BadPage as error:
            result, why = Fetched.MALFORMED, str(error)
        except Exception:
            # A bug of ours must not end the fetching for good.
            _log.exception("app metrics fault", extra={"url": self._config.url})
            result = Fetched.FAULT
        took = asyncio.get_running_loop().time() - began
        self._external.fetched(result, took, families, unsound)
        self._log_change(result, why)
        return result

    def _log_change(self, result: Fetched, why: str) -> None:
        """Log the outcome if it has changed."""
        if result is self._logged:
            return
        facts = {"url": self._config.url, "result": result.value}
        if result in (Fetched.OK, Fetched.EMPTY):
            _log.info("app metrics fetched", extra=facts)
        elif result is not Fetched.FAULT:
            _log.warning("app metrics not fetched", extra={**facts, "reason": why[:200]})
        self._logged = result

    async def _body(self) -> bytes:
        """Raises `_Failed`."""
        config = self._config
        timeout = aiohttp.ClientTimeout(total=config.timeout)
        connector = aiohttp.TCPConnector(limit=1, force_close=True)
        try:
            async with (
                aiohttp.ClientSession(
                    connector=connector,
                    timeout=timeout,
                    cookie_jar=aiohttp.DummyCookieJar(),
                    auto_decompress=False,
                    read_bufsize=_CHUNK,
                ) as http,
                http.get(config.url, headers=self._headers, allow_redirects=False) as answer,
            ):
                if answer.status != 200:
                    raise _Failed(Fetched.STATUS, f"status {answer.status}")
                if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
                    raise _Failed(Fetched.MALFORMED, "compressed, which was not requested")
                body = bytearray()
                async for chunk in answer.content.iter_chunked(_CHUNK):
                    body += chunk
                    if len(body) > LARGEST:
                        raise _Failed(Fetched.TOO_LARGE, f"more than {LARGEST} bytes")
                return bytes(body)
        except TimeoutError as error:
            raise _Failed(
                Fetched.TIMEOUT, f"no complete response within {config.timeout:g} s"
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            ours = self._shortages.check(error, "fetching the app's metrics")
            why = DETAILS[ours] if ours is not None else f"{type(error).__name__}: {error}"
            raise _Failed(Fetched.UNREACHABLE, why) from error
