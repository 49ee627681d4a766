"""Metrics, liveness and readiness."""

from __future__ import annotations

import asyncio
import gzip
import re

from aiohttp import web

from proxy.admin.backend import AdminBackend
from proxy.admin.json_exchange import answer
from proxy.admin.large_answers import ANSWERS, METRICS_FREE


class Probes:
    """`/metrics`, `/livez` and `/readyz`."""

    def __init__(self, backend: AdminBackend) -> None:
        self._backend = backend
        #: Pages that have been requested but not begun.
        self._pages: dict[tuple[str, bool], asyncio.Future[tuple[bytes, str]]] = {}
        self._writing = asyncio.Lock()

    def mount(self, router: web.UrlDispatcher) -> None:
        """Add the endpoints."""
        router.add_get("/metrics", self.metrics)
        router.add_get("/livez", self.livez)
        router.add_get("/readyz", self.readyz)

    async def metrics(self, request: web.Request) -> web.Response:
        accept = ",".join(request.headers.getall("Accept", ()))
        packed = _takes_gzip(",".join(request.headers.getall("Accept-Encoding", ())))
        body, content_type = await self._page(accept, packed)
        # Clients that receive nothing count in the memory budget; see admin/large_answers.py.
        answers = request.app[ANSWERS]
        answers.admit(len(body), holding := answers.holding(), METRICS_FREE)
        holding.clear()  # from here on the connection counts it
        headers = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
        if packed:
            headers["Content-Encoding"] = "gzip"
        return web.Response(body=body, headers=headers)

    def _exposition(self, accept: str, packed: bool) -> tuple[bytes, str]:
        body, content_type = self._backend.metrics.exposition(accept)
        # Level 3: names and labels repeat, so a megabyte shrinks to a few per cent in 6 ms.
        return gzip.compress(body, 3, mtime=0) if packed else body, content_type

    async def _page(self, accept: str, packed: bool) -> tuple[bytes, str]:
        """The metrics at some moment after now. Requests that arrive while one page is written
        share the next one."""
        page = self._pages.get((accept, packed))
        if page is None:
            page = asyncio.ensure_future(self._next(accept, packed))
            self._pages[accept, packed] = page
        return await asyncio.shield(page)

    async def _next(self, accept: str, packed: bool) -> tuple[bytes, str]:
        try:
            await self._writing.acquire()
        finally:
            del self._pages[accept, packed]
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            # Thousands of samples take tens of milliseconds: not on the loop that forwards
            # requests, and at half of its speed at most.
            return await asyncio.to_thread(self._exposition, accept, packed)
        finally:
            loop.call_later(loop.time() - began, self._writing.release)

    async def livez(self, request: web.Request) -> web.Response:
        live = self._backend.live()
        return answer({"live": live}, 200 if live else 503)

    async def readyz(self, request: web.Request) -> web.Response:
        readiness = self._backend.readiness()
        document = {
            "ready": readiness.ready,
            "checks": {
                name: {"ok": check.ok, "detail": check.detail}
                for name, check in readiness.checks.items()
            },
        }
        return answer(document, 200 if readiness.ready else 503)


def _takes_gzip(accept: str) -> bool:
    """Whether an `Accept-Encoding` names gzip, and not with a weight of 0 (RFC 9110 §12.5.3)."""
    for one in accept.lower().split(","):
        coding, *parameters = (part.strip() for part in one.split(";"))
        if coding in ("gzip", "x-gzip"):
            return not any(re.fullmatch(r"q\s*=\s*0(\.0*)?", one) for one in parameters)
    return False
