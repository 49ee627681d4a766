"""The trace: the timeline of one ID, and the latest events."""

from __future__ import annotations

import re
from typing import Any

from aiohttp import web

from proxy.admin import problems
from proxy.admin.json_exchange import number, read_query
from proxy.admin.large_answers import ANSWERS
from proxy.admin.trace_backend import TraceBackend
from proxy.core.errors import BadRequest

DEFAULT_LIMIT = 50
HIGHEST_LIMIT = 500

#: Bytes of an event of the list, and the most that a timeline with its sources may take.
EVENT, TIMELINE = 4 * 1024, 2 * 1024 * 1024

SEVERITIES = ("ok", "warning", "error")

#: The syntax of job IDs and correlation IDs.
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class TraceControl:
    """`/api/trace` and what is below it."""

    def __init__(self, timelines: TraceBackend) -> None:
        self._timelines = timelines

    def mount(self, router: web.UrlDispatcher) -> None:
        """Add the endpoints."""
        router.add_get("/api/trace", self.recent)
        router.add_get("/api/trace/{id}", self.timeline)

    async def recent(self, request: web.Request) -> web.StreamResponse:
        query = read_query(request, "severity", "limit")
        severity = query.get("severity") or "ok"
        if severity not in SEVERITIES:
            raise BadRequest(f"severity: expected one of {', '.join(SEVERITIES)}", field="severity")
        limit = number(query, "limit", DEFAULT_LIMIT, HIGHEST_LIMIT)

        async def read() -> dict[str, Any]:
            return {"events": await self._timelines.recent(severity, limit)}

        return await request.app[ANSWERS].send(request, read, limit * EVENT)

    async def timeline(self, request: web.Request) -> web.StreamResponse:
        async def read() -> dict[str, Any]:
            wanted = request.match_info["id"]
            timeline = await self._timelines.timeline(wanted) if _ID.fullmatch(wanted) else None
            if timeline is None:
                raise problems.NotFound(f"Nothing is known of this ID. {self._timelines.hint()}")
            return timeline

        return await request.app[ANSWERS].send(request, read, TIMELINE)
