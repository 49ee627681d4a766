"""Placeholder until the admin lands."""

from __future__ import annotations
import asyncio
from typing import Any
from aiohttp import web


class AdminServers:
    def __init__(self, proxy: Any) -> None:
        self.p = proxy
        self.r: list[web.AppRunner] = []

    async def start(self, config: Any) -> None:
        app = web.Application()

        async def readyz(q: web.Request) -> web.Response:
            r = self.p.readiness()
            return web.json_response({"ready": r.ready}, status=200 if r.ready else 503)

        async def livez(q: web.Request) -> web.Response:
            return web.json_response({"live": True})

        async def metrics(q: web.Request) -> web.Response:
            b, c = await asyncio.to_thread(self.p.metrics.exposition, q.headers.get("Accept", ""))
            return web.Response(body=b, headers={"Content-Type": c})

        async def reload(q: web.Request) -> web.Response:
            r = await self.p.reload()
            return web.json_response(
                {"ok": r.ok, "problems": list(r.problems)}, status=200 if r.ok else 422
            )

        app.router.add_get("/readyz", readyz)
        app.router.add_get("/livez", livez)
        app.router.add_get("/metrics", metrics)
        app.router.add_post("/api/reload", reload)
        run = web.AppRunner(app, access_log=None)
        await run.setup()
        self.r.append(run)
        for b in [config.admin.bind, *([config.metrics.bind] if config.metrics else [])]:
            await web.TCPSite(run, b.host or None, b.port).start()

    async def stop(self) -> None:
        for r in self.r:
            await r.cleanup()
