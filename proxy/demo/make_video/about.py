"""The informational endpoints of the stand-in service: `/`, `/health`, `/metrics` and others."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

from aiohttp import web

from proxy.core.clock import Clock
from proxy.demo.make_video.job_store import StoreError
from proxy.demo.make_video.shapes import Document
from proxy.demo.serving import json_response

NAME, VERSION = "make-video-clip", "2.0.0"
PATHS_WITHOUT_KEY = frozenset({"/", "/health", "/docs", "/openapi.json"})


class About:
    """Handlers that need no job. `jobs` lists all jobs, or raises `StoreError`; `approved`: the
    folder of downloaded videos."""

    def __init__(
        self,
        clock: Clock,
        approved: Path,
        jobs: Callable[[], Awaitable[list[Document]]],
    ) -> None:
        self._clock = clock
        self._approved = approved
        self._jobs = jobs

    def routes(self) -> list[web.RouteDef]:
        """For `Application.add_routes`."""
        handlers = {
            "/": self._root,
            "/health": self._health,
            "/metrics": self._metrics,
            "/cache/stats": self._cache_stats,
            "/openapi.json": self._openapi,
            "/docs": self._docs,
        }
        return [web.get(path, handler, allow_head=False) for path, handler in handlers.items()]

    async def _root(self, request: web.Request) -> web.Response:
        description = "Orquestra criação de vídeos a partir de áudio + shorts + legendas"
        return json_response(
            {
                "service": NAME,
                "version": VERSION,
                "description": description,
                "endpoints": _operations(request.app),
            }
        )

    async def _health(self, request: web.Request) -> web.Response:
        # Healthy even without Redis.
        zone = timezone(timedelta(hours=-3))
        moment = datetime.fromtimestamp(self._clock.time(), zone).isoformat()
        return json_response({"status": "healthy", "service": NAME, "timestamp": moment})

    async def _metrics(self, request: web.Request) -> web.Response:
        try:
            jobs = await self._jobs()
        except StoreError as error:
            return web.Response(text=f"# Error generating metrics: {error}")
        lines = ["# HELP makevideo_jobs_total Total jobs", "# TYPE makevideo_jobs_total counter"]
        for status in ("queued", "processing", "completed", "failed"):
            count = sum(job["status"] == status for job in jobs)
            lines.append(f"makevideo_jobs_{status} {count}")
        disk = shutil.disk_usage(self._approved)
        path = '{path="/tmp/make-video-temp"}'  # always this one, as recorded
        lines += [
            "",
            "# HELP makevideo_disk_free_gb Free disk space in GB",
            "# TYPE makevideo_disk_free_gb gauge",
            f"makevideo_disk_free_gb {path} {disk.free / 1e9:.2f}",
            "",
            "# HELP makevideo_disk_used_percent Disk usage percentage",
            "# TYPE makevideo_disk_used_percent gauge",
            f"makevideo_disk_used_percent {path} {100 * disk.used / disk.total:.2f}",
        ]
        return web.Response(text="\n".join(lines) + "\n")

    async def _cache_stats(self, request: web.Request) -> web.Response:
        sizes = [path.stat().st_size for path in self._approved.glob("*.mp4")]
        return json_response(
            {
                "total_shorts": len(sizes),
                "total_size_mb": round(sum(sizes) / 1e6, 2),
                "approved_videos": len(sizes),
            }
        )

    async def _openapi(self, request: web.Request) -> web.Response:
        paths: dict[str, Document] = {}
        for operation in _operations(request.app):
            method, path = operation.split(" ")
            paths.setdefault(path, {})[method.lower()] = {"responses": {"200": {}}}
        info = {"title": NAME, "version": VERSION}
        return json_response({"openapi": "3.1.0", "info": info, "paths": paths})

    async def _docs(self, request: web.Request) -> web.Response:
        page = f"<!DOCTYPE html><title>{NAME}</title><a href=openapi.json>API</a>"
        return web.Response(text=page, content_type="text/html")


def _operations(app: web.Application) -> list[str]:
    """Every `METHOD /path` that the application serves, sorted."""
    return sorted(
        f"{route.method} {route.resource.canonical}"
        for route in app.router.routes()
        if route.resource is not None
    )
