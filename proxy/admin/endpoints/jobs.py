"""The mirrors' jobs, and what operators can do for them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from proxy.admin import problems
from proxy.admin.job_backend import JobBackend
from proxy.admin.json_exchange import answer, flag, number, read_object, read_query, text
from proxy.admin.large_answers import ANSWERS
from proxy.core.errors import BadRequest

DEFAULT_LIMIT = 100
HIGHEST_LIMIT = 1_000

#: Bytes of a line of the list, and the most that a job with its versions may take.
LINE, JOB = 1024, 2 * 1024 * 1024


class JobControl:
    """`/api/jobs` and what is below it."""

    def __init__(self, jobs: JobBackend) -> None:
        self._jobs = jobs

    def mount(self, router: web.UrlDispatcher) -> None:
        """Add the endpoints."""
        router.add_get("/api/jobs", self.list)
        router.add_get("/api/jobs/{mirror}/{job_id}", self.show)
        router.add_post("/api/jobs/{mirror}/{job_id}/requeue", self.requeue)
        router.add_post("/api/jobs/sync", self.sync)
        router.add_post("/api/jobs/restore", self.restore)

    async def list(self, request: web.Request) -> web.StreamResponse:
        query = read_query(request, "mirror", "status", "limit", "stranded")
        mirror = query.get("mirror") or None
        limit = number(query, "limit", DEFAULT_LIMIT, HIGHEST_LIMIT)
        stranded = flag(query, "stranded")

        async def read() -> dict[str, Any]:
            try:
                states = self._jobs.states(mirror)
                jobs = await self._jobs.list(mirror, query.get("status") or None, limit, stranded)
            except KeyError:
                raise problems.NotFound("No mirror of that name") from None
            return {"mirrors": states, "jobs": jobs}

        return await request.app[ANSWERS].send(request, read, limit * LINE)

    async def show(self, request: web.Request) -> web.StreamResponse:
        async def read() -> dict[str, Any]:
            asked = request.match_info
            try:
                job = await self._jobs.show(asked["mirror"], asked["job_id"])
            except KeyError:
                raise problems.NotFound("No mirror of that name") from None
            if job is None:
                raise problems.NotFound("No job of that ID is known")
            return job

        return await request.app[ANSWERS].send(request, read, JOB)

    async def requeue(self, request: web.Request) -> web.Response:
        document = await read_object(request, "reason", "force")
        force = document.get("force", False)
        if not isinstance(force, bool):
            raise BadRequest("force: expected true or false")
        reason = text(document, "reason")
        if not reason:
            raise BadRequest("reason: expected a few words for the log")
        try:
            done = await self._jobs.requeue(
                request.match_info["mirror"], request.match_info["job_id"], reason[:200], force
            )
        except KeyError:
            raise problems.NotFound("No mirror of that name") from None
        if done is None:
            raise problems.NotFound("No job of that ID is known")
        return answer(done)

    async def sync(self, request: web.Request) -> web.Response:
        return await self._change(request, self._jobs.sync)

    async def restore(self, request: web.Request) -> web.Response:
        return await self._change(request, self._jobs.restore)

    async def _change(
        self, request: web.Request, change: Callable[[str | None], Awaitable[dict[str, Any]]]
    ) -> web.Response:
        document = await read_object(request, "mirror")
        try:
            return answer(await change(text(document, "mirror")))
        except KeyError:
            raise problems.NotFound("No mirror of that name") from None
