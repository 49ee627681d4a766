"""What machines ask: metrics, liveness, readiness."""

from __future__ import annotations

import asyncio

from aiohttp import web

from proxy.admin.answers import ANSWERS, METRICS_FREE
from proxy.admin.exchange import answer
from proxy.admin.operated import Operated


class Probes:
    """`/metrics`, `/livez` and `/readyz`."""

    def __init__(self, operated: Operated) -> None:
        self._operated = operated
        self._pages: dict[str, asyncio.Future[tuple[bytes, str]]] = {}  # that are not yet begun
        self._writing = asyncio.Lock()

    def mount(self, router: web.UrlDispatcher) -> None:
        """Add the endpoints."""
        router.add_get("/metrics", self.metrics)
        router.add_get("/livez", self.livez)
        router.add_get("/readyz", self.readyz)

    async def metrics(self, request: web.Request) -> web.Response:
        accept = ",".join(request.headers.getall("Accept", ()))
        body, content_type = await self._page(accept)
        # Many who take nothing of it wait for memory like others; see answers.py.
        answers = request.app[ANSWERS]
        answers.admit(len(body), holding := answers.holding(), METRICS_FREE)
        holding.clear()  # from here on the connection counts it
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _page(self, accept: str) -> tuple[bytes, str]:
        """The metrics at some moment after now: whoever asks while one page is written out gets
        the next one, which is written once for all of them."""
        page = self._pages.get(accept)
        if page is None:
            page = self._pages[accept] = asyncio.ensure_future(self._next(accept))
        return await asyncio.shield(page)

    async def _next(self, accept: str) -> tuple[bytes, str]:
        try:
            await self._writing.acquire()
        finally:
            del self._pages[accept]
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            # Thousands of samples take tens of milliseconds: not on the loop that forwards
            # requests, and at half of its speed at most.
            return await asyncio.to_thread(self._operated.metrics.exposition, accept)
        finally:
            loop.call_later(loop.time() - began, self._writing.release)

    async def livez(self, request: web.Request) -> web.Response:
        live = self._operated.live()
        return answer({"live": live}, 200 if live else 503)

    async def readyz(self, request: web.Request) -> web.Response:
        readiness = self._operated.readiness()
        document = {
            "ready": readiness.ready,
            "checks": {
                name: {"ok": check.ok, "detail": check.detail}
                for name, check in readiness.checks.items()
            },
        }
        return answer(document, 200 if readiness.ready else 503)
