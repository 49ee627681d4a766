"""Stand-ins for youtube-search, video-downloader and audio-transcriber, each its own process.

All three work alike: a POST creates a job, the caller polls it until it is done and fetches the
result. `POST /_control` makes them fail on purpose.
`python -m proxy.demo.microservices youtube-search --port 8003` runs one alone.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from proxy.core.clock import Clock, SystemClock
from proxy.demo.media import make_clip
from proxy.demo.serving import Handler, Site, json_response, stop_on_signals

CLIP_SECONDS = 6.0


@dataclass(slots=True)
class Trouble:
    """Faults to inject: the next `fail_next` requests get `status`, all wait `delay` seconds."""

    fail_next: int = 0
    status: int = 503
    delay: float = 0.0


class Microservice:
    """Base of the three. `work`: seconds that a job takes."""

    prefix: str

    def __init__(self, port: int = 0, work: float = 5.0, clock: Clock | None = None) -> None:
        self.trouble = Trouble()
        self._work = work
        self._clock = clock or SystemClock()
        self._done_at: dict[str, float] = {}
        app = web.Application(middlewares=[self._around], client_max_size=1 << 30)
        app.add_routes(
            [
                web.get("/health", self._health),
                web.post("/_control", self._control),
                web.get("/jobs/{id}", self._job),
            ]
        )
        self.add_routes(app)
        self.site = Site(app, port)

    def add_routes(self, app: web.Application) -> None:
        """Add the routes of this service alone."""
        raise NotImplementedError

    async def start(self) -> None:
        await self.site.start()

    async def stop(self) -> None:
        await self.site.stop()

    def begin(self) -> str:
        """Create a job, done after `work` seconds. Returns its id."""
        job_id = f"{self.prefix}_{secrets.token_hex(6)}"
        self._done_at[job_id] = self._clock.monotonic() + self._work
        return job_id

    def result(self) -> dict[str, Any]:
        """Further fields of a completed job."""
        return {}

    def require_done(self, request: web.Request) -> None:
        """Raise 404 for an unknown job, 409 for an unfinished one."""
        done_at = self._done_at.get(request.match_info["id"])
        if done_at is None:
            raise web.HTTPNotFound
        if self._clock.monotonic() < done_at:
            raise web.HTTPConflict

    @web.middleware
    async def _around(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in ("/health", "/_control"):
            if self.trouble.delay:
                await asyncio.sleep(self.trouble.delay)
            if self.trouble.fail_next > 0:
                self.trouble.fail_next -= 1
                return json_response({"detail": "injected failure"}, self.trouble.status)
        try:
            return await handler(request)
        except web.HTTPException as error:
            return json_response({"detail": error.reason}, error.status)

    async def _health(self, request: web.Request) -> web.Response:
        return json_response({"status": "healthy"})

    async def _control(self, request: web.Request) -> web.Response:
        """JSON body with any of `fail_next`, `status`, `delay`; the others are reset."""
        self.trouble = Trouble(**await request.json())
        return json_response({"ok": True})

    async def _job(self, request: web.Request) -> web.Response:
        job_id = request.match_info["id"]
        done_at = self._done_at.get(job_id)
        if done_at is None:
            raise web.HTTPNotFound
        if self._clock.monotonic() < done_at:
            return json_response({"id": job_id, "status": "processing", "progress": 0.5})
        done = {"id": job_id, "status": "completed", "progress": 1.0}
        return json_response({**done, **self.result()})


class YoutubeSearch(Microservice):
    """Finds three videos for any query."""

    prefix = "ys"

    def add_routes(self, app: web.Application) -> None:
        app.add_routes([web.post("/search/shorts", self._search)])

    def result(self) -> dict[str, Any]:
        ids = [f"short{number:04d}" for number in range(3)]
        base = "https://www.youtube.com/shorts/"
        found = [{"video_id": name, "url": base + name, "duration": CLIP_SECONDS} for name in ids]
        return {"result": {"results": found}}

    async def _search(self, request: web.Request) -> web.Response:
        if len(request.query.get("query", "")) < 1:
            raise web.HTTPUnprocessableEntity
        return json_response({"id": self.begin()})


class VideoDownloader(Microservice):
    """Serves a short generated video, in a new colour for each job."""

    prefix = "vd"

    def add_routes(self, app: web.Application) -> None:
        self._clips: dict[str, bytes] = {}
        app.add_routes(
            [web.post("/jobs", self._create), web.get("/jobs/{id}/download", self._video)]
        )

    async def _create(self, request: web.Request) -> web.Response:
        if "url" not in await request.json():
            raise web.HTTPUnprocessableEntity
        job_id = self.begin()
        self._clips[job_id] = await asyncio.to_thread(_clip, len(self._clips))
        return json_response({"id": job_id})

    async def _video(self, request: web.Request) -> web.Response:
        self.require_done(request)
        clip = self._clips[request.match_info["id"]]
        return web.Response(body=clip, content_type="video/mp4")


class AudioTranscriber(Microservice):
    """Transcribes everything as the same two sentences."""

    prefix = "at"

    def add_routes(self, app: web.Application) -> None:
        self.created = 0
        app.add_routes(
            [
                web.post("/jobs", self._create),
                web.get("/jobs/{id}/transcription", self._transcription),
            ]
        )

    async def _create(self, request: web.Request) -> web.Response:
        form = await request.post()
        if not isinstance(form.get("file"), web.FileField):
            raise web.HTTPUnprocessableEntity
        self.created += 1
        return json_response({"id": self.begin()})

    async def _transcription(self, request: web.Request) -> web.Response:
        self.require_done(request)
        segments = [
            {"start": 0.0, "end": 3.0, "text": "ola mundo este teste"},
            {"start": 3.0, "end": 6.0, "text": "segunda frase de teste"},
        ]
        facts = {"language_detected": "pt", "duration": 7.0, "processing_time": 1.0}
        return json_response({"segments": segments, **facts})


def _clip(seed: int) -> bytes:
    with tempfile.TemporaryDirectory(prefix="demo-clip-") as folder:
        path = Path(folder) / "clip.mp4"
        make_clip(path, CLIP_SECONDS, seed)
        return path.read_bytes()


MICROSERVICES: dict[str, type[Microservice]] = {
    "youtube-search": YoutubeSearch,
    "video-downloader": VideoDownloader,
    "audio-transcriber": AudioTranscriber,
}


async def _run(service: Microservice, name: str) -> None:
    stopped = stop_on_signals()
    await service.start()
    print(f"{name} listens on {service.site.url}", flush=True)
    await stopped.wait()
    await service.stop()


def main() -> None:
    """Run one of the three until a signal."""
    parser = argparse.ArgumentParser(prog="microservices", description="a stand-in microservice")
    parser.add_argument("name", choices=sorted(MICROSERVICES))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--work", type=float, default=5.0, help="seconds that a job takes")
    arguments = parser.parse_args()
    service = MICROSERVICES[arguments.name](arguments.port, arguments.work)
    asyncio.run(_run(service, arguments.name))


if __name__ == "__main__":
    main()
