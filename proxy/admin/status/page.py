"""The page and its data: `/`, `/status/…`, `/api/status` and its stream.

1. The page's static files reveal nothing about this proxy, so they need no token. All data comes
   from `/api/`, which needs it. A browser cannot send a bearer token with `EventSource`, so the
   page reads the stream with `fetch`.
2. `Content-Security-Policy` allows only this origin's files, and the page must not be shown in a
   frame (clickjacking).
3. A stream's head is sent before the guard could add its fields, so it is complete here.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from importlib.resources import files

from aiohttp import web

from proxy.admin import problems
from proxy.admin.auth import PAGE
from proxy.admin.json_exchange import number, read_query
from proxy.admin.status.sampler import StatusSampler

WRITE_LIMIT = 5.0  # seconds that a viewer has to receive a frame
TRACES = "/api/trace"
_MOST_STEPS = 1_000_000_000

_TYPES = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class StatusPage:
    """An endpoint group of the admin API."""

    def __init__(self, sampler: StatusSampler, *, write_limit: float = WRITE_LIMIT) -> None:
        self._sampler = sampler
        self._write_limit = write_limit
        self._files = load_files()

    def mount(self, router: web.UrlDispatcher) -> None:
        """Add the endpoints."""
        router.add_get("/", self.index)
        router.add_get(PAGE + "{name}", self.file)
        router.add_get("/api/status", self.snapshot)
        router.add_get("/api/status/points", self.points)
        router.add_get("/api/status/stream", self.stream, allow_head=False)

    async def index(self, request: web.Request) -> web.Response:
        return self._answer("index.html")

    async def file(self, request: web.Request) -> web.Response:
        return self._answer(request.match_info["name"])

    def _answer(self, name: str) -> web.Response:
        body = self._files.get(name)
        if body is None:
            raise problems.NotFound("No such file")
        return web.Response(
            body=body,
            content_type=_TYPES[name.rpartition(".")[2]],
            charset="utf-8",
            headers=HEADERS,
        )

    async def snapshot(self, request: web.Request) -> web.Response:
        read_query(request)
        self._sampler.has_traces(_has_traces(request.app))
        return web.Response(body=await self._sampler.snapshot(), content_type="application/json")

    async def points(self, request: web.Request) -> web.Response:
        query = read_query(request, "since")
        since = number(query, "since", 1, _MOST_STEPS) if "since" in query else 0
        return web.Response(body=self._sampler.points(since), content_type="application/json")

    async def stream(self, request: web.Request) -> web.StreamResponse:
        read_query(request)
        # Pages of other sites could not read it, but they could use up all streams.
        if request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
            raise problems.Forbidden("The stream is not open to pages of other sites")
        self._sampler.has_traces(_has_traces(request.app))
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "X-Accel-Buffering": "no",
            }
        )
        async with aclosing(self._sampler.frames()) as frames:
            frame = await anext(frames)
            await response.prepare(request)
            await self._write(request, response, frame)
            async for frame in frames:
                if not await self._write(request, response, frame):
                    break
        return response

    async def _write(
        self, request: web.Request, response: web.StreamResponse, frame: bytes
    ) -> bool:
        """Send a frame; whether the viewer is still there. A slow one is disconnected."""
        try:
            async with asyncio.timeout(self._write_limit):
                await response.write(frame)
        except ConnectionError:
            return False
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
            return False
        return True


def _has_traces(app: web.Application) -> bool:
    """Whether another group of endpoints serves traces, to which the page links."""
    return any(resource.canonical == TRACES for resource in app.router.resources())


def load_files() -> dict[str, bytes]:
    """The page's files by name, from the package: a checkout or a wheel."""
    folder = files("proxy.admin.status") / "static"
    return {
        file.name: file.read_bytes()
        for file in folder.iterdir()
        if file.name.rpartition(".")[2] in _TYPES
    }
