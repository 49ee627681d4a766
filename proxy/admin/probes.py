"""What machines ask: metrics, liveness, readiness."""

from __future__ import annotations

import asyncio

from aiohttp import web

from proxy.admin.exchange import answer
from proxy.admin.operated import Operated


class Probes:
    """`/metrics`, `/livez` and `/readyz`."""

    def __init__(self, operated: Operated) -> None:
        self._operated = operated

    def mount(self, router: web.UrlDispatcher) -> None:
        """Add the endpoints."""
        router.add_get("/metrics", self.metrics)
        router.add_get("/livez", self.livez)
        router.add_get("/readyz", self.readyz)

    async def metrics(self, request: web.Request) -> web.Response:
        accept = ",".join(request.headers.getall("Accept", ()))
        # Thousands of samples take tens of milliseconds: not on the loop that forwards requests.
        body, content_type = await asyncio.to_thread(self._operated.metrics.exposition, accept)
        return web.Response(body=body, headers={"Content-Type": content_type})

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
