"""What happened: the story of one ID, and the latest events."""

from __future__ import annotations

import re
from typing import Any, Protocol

from aiohttp import web

from proxy.admin import problems
from proxy.admin.json_exchange import number, read_query
from proxy.admin.large_answers import ANSWERS
from proxy.core.errors import BadRequest

DEFAULT_LIMIT = 50
HIGHEST_LIMIT = 500

#: Bytes that an event of the list takes, and that a story with what is read for it may take.
EVENT, STORY = 4 * 1024, 2 * 1024 * 1024

SEVERITIES = ("ok", "warning", "error")

#: What a job ID or a correlation ID can look like.
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Stories(Protocol):
    """What the proxy has recorded."""

    async def story(self, wanted: str) -> dict[str, Any] | None:
        """All that is known of a job ID or correlation ID, as JSON; None: nothing."""
        ...

    async def recent(self, severity: str, limit: int) -> list[dict[str, Any]]:
        """The newest events of at least that severity, the newest first, as JSON."""
        ...

    def hint(self) -> str:
        """Why nothing may be known of an ID."""
        ...


class TraceControl:
    """`/api/trace` and what is below it."""

    def __init__(self, stories: Stories) -> None:
        self._stories = stories

    def mount(self, router: web.UrlDispatcher) -> None:
        """Add the endpoints."""
        router.add_get("/api/trace", self.recent)
        router.add_get("/api/trace/{id}", self.story)

    async def recent(self, request: web.Request) -> web.StreamResponse:
        query = read_query(request, "severity", "limit")
        severity = query.get("severity") or "ok"
        if severity not in SEVERITIES:
            raise BadRequest(f"severity: expected one of {', '.join(SEVERITIES)}", field="severity")
        limit = number(query, "limit", DEFAULT_LIMIT, HIGHEST_LIMIT)

        async def read() -> dict[str, Any]:
            return {"events": await self._stories.recent(severity, limit)}

        return await request.app[ANSWERS].send(request, read, limit * EVENT)

    async def story(self, request: web.Request) -> web.StreamResponse:
        async def read() -> dict[str, Any]:
            wanted = request.match_info["id"]
            story = await self._stories.story(wanted) if _ID.fullmatch(wanted) else None
            if story is None:
                raise problems.NotFound(f"Nothing is known of this ID. {self._stories.hint()}")
            return story

        return await request.app[ANSWERS].send(request, read, STORY)
