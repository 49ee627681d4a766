"""Endpoints for the proxy as a whole: config, routes, reload, upgrade and log level."""

from __future__ import annotations

import asyncio

from aiohttp import web

from proxy.admin import problems
from proxy.admin.backend import AdminBackend
from proxy.admin.json_exchange import answer, read_object, text
from proxy.core.errors import BadRequest
from proxy.core.process.handover import HandoverFailed


class Control:
    """`/api/config`, `/api/routes`, `/api/reload`, `/api/upgrade`, `/api/log-level`."""

    def __init__(self, backend: AdminBackend) -> None:
        self._backend = backend

    def mount(self, router: web.UrlDispatcher) -> None:
        """Add the endpoints."""
        router.add_get("/api/config", self.config)
        router.add_get("/api/routes", self.routes)
        router.add_post("/api/reload", self.reload)
        router.add_post("/api/upgrade", self.upgrade)
        router.add_get("/api/log-level", self.log_level)
        router.add_post("/api/log-level", self.set_log_level)

    async def config(self, request: web.Request) -> web.Response:
        return answer(self._backend.config())

    async def routes(self, request: web.Request) -> web.Response:
        return answer({"routes": self._backend.routes()})

    async def reload(self, request: web.Request) -> web.Response:
        await read_object(request)
        result = await self._backend.reload()
        if result.stopping:
            raise problems.IsStopping(result.problems[0])
        if not result.ok:
            problem = list(result.problems)
            raise problems.ConfigRefused(
                f"The config has {len(problem)} problem{'s' * (len(problem) != 1)}; "
                "the old one stays in force",
                problems=problem,
            )
        return answer({"reloaded": True})

    async def upgrade(self, request: web.Request) -> web.Response:
        await read_object(request)
        try:
            pid = await asyncio.shield(self._backend.upgrade())
        except HandoverFailed as error:
            raise problems.UpgradeFailed(
                f"The new process did not take over; the old one continues: {error}"
            ) from None
        return answer({"upgraded": True, "pid": pid})

    async def log_level(self, request: web.Request) -> web.Response:
        return answer({"level": self._backend.log_level()})

    async def set_log_level(self, request: web.Request) -> web.Response:
        document = await read_object(request, "level")
        level = text(document, "level")
        if level is None:
            raise BadRequest("level: expected DEBUG, INFO, WARNING or ERROR", field="level")
        before = self._backend.log_level()
        try:
            self._backend.set_log_level(level.upper())
        except ValueError as error:
            raise BadRequest(f"level: {error}", field="level") from None
        return answer({"level": self._backend.log_level(), "before": before})
