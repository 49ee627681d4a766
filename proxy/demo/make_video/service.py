"""Stand-in make-video service: its HTTP side.

Reproduces the recorded behaviour of the real one, including its faults (`faults.Faults`).
`python -m proxy.demo.make_video.service --help` runs it alone.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from aiohttp import web

from proxy.core.clock import Clock, SystemClock
from proxy.demo.make_video import faults as switches
from proxy.demo.make_video import forms, shapes
from proxy.demo.make_video.about import PATHS_WITHOUT_KEY, About
from proxy.demo.make_video.faults import Faults
from proxy.demo.make_video.job_store import JobStore, Producer, StoreError
from proxy.demo.make_video.shapes import Document
from proxy.demo.serving import FileAnswer, Handler, Site, json_response, stop_on_signals

P = ParamSpec("P")
T = TypeVar("T")

AUDIO, APPROVED, OUTPUT = "data/raw/audio", "data/approved/videos", "data/approved/output"


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one instance. `data`: the app's folder; `port` 0: a free one."""

    redis_url: str
    data: Path
    port: int = 0
    faults: Faults = field(default_factory=Faults)
    api_key: str | None = None


class HttpError(Exception):
    """A response in the service's own error format."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "HTTP_ERROR",
        details: list[Document] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.details = status, message, kind, details


class MakeVideo:
    """One instance of the app. `exiting` is set once it has served `exit_every` requests."""

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self.exiting = asyncio.Event()
        self._settings = settings
        self._faults = settings.faults
        self._clock = clock or SystemClock()
        self._store = JobStore(settings.redis_url, self._faults, clock)
        self._producer = Producer(settings.redis_url, self._faults)
        self._served = 0
        self._tasks = 0  # requests being handled
        self._lingering: dict[asyncio.Transport, asyncio.TimerHandle] = {}
        about = About(
            self._clock,
            settings.data / APPROVED,
            lambda: self._on_redis(self._store.newest, None, 10_000),
        )
        app = web.Application(middlewares=[self._around], client_max_size=1 << 30)
        app.add_routes(
            [
                *about.routes(),
                web.post("/make-video", self._make_video),
                web.post("/create", self._make_video),  # the sprint document's name for it
                web.post("/download", self._download_shorts),
                web.get("/jobs", self._list, allow_head=False),
                web.get("/jobs/{id}", self._job, allow_head=False),
                web.delete("/jobs/{id}", self._delete),
                web.get("/download/{id}", self._video, allow_head=False),
            ]
        )
        self.site = Site(app, settings.port, keepalive=5.0)

    async def start(self) -> None:
        """Make the data folders and listen."""
        for folder in (AUDIO, APPROVED, OUTPUT):
            (self._settings.data / folder).mkdir(parents=True, exist_ok=True)
        await self.site.start()

    async def stop(self) -> None:
        await self.site.stop()
        self._store.close()
        self._producer.close()

    # --- around every request -------------------------------------------------------------------

    @web.middleware
    async def _around(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        limit = self._faults.connection_limit
        if self.exiting.is_set() and self._faults.drops_at_exit and request.transport is not None:
            request.transport.abort()
            return web.Response(status=503)  # never received
        # uvicorn's `limit_concurrency` counts open connections and tasks, at the time of a request.
        tasks = self._tasks + len(self._lingering)
        if limit and max(self.site.open_connections, tasks) >= limit:
            response: web.StreamResponse = web.Response(status=503, text="Service Unavailable")
            response.force_close()
        else:
            self._tasks += 1
            try:
                response = await self._answer(request, handler)
            finally:
                self._tasks -= 1
                self._linger(request.transport)
        self._served += 1
        if self._served == self._faults.exit_every:
            self.exiting.set()
        response.headers["Server"] = "uvicorn"
        return response

    def _linger(self, transport: asyncio.Transport | None) -> None:
        """Let the request's task linger; the previous one on this connection ends."""
        linger = self._faults.task_linger
        if transport is None or not linger:
            return
        if (before := self._lingering.pop(transport, None)) is not None:
            before.cancel()
        loop = asyncio.get_running_loop()
        self._lingering[transport] = loop.call_later(linger, self._lingering.pop, transport, None)

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            self._authorize(request)
            return await handler(request)
        except HttpError as error:
            body = shapes.error(error.message, error.kind, error.details)
            return json_response(body, error.status)
        except web.HTTPException as error:
            return self._framework_error(request, error)
        except StoreError as error:
            if self._faults.redis_down_is_404:
                return json_response(shapes.error(str(error), "HTTP_ERROR", None), 500)
            body = shapes.error(str(error), "SERVICE_UNAVAILABLE", None)
            return json_response(body, 503)

    def _authorize(self, request: web.Request) -> None:
        key = self._settings.api_key
        if key is None or request.path in PATHS_WITHOUT_KEY:
            return
        sent = request.headers.get("X-API-Key", "")
        if not hmac.compare_digest(sent.encode(), key.encode()):
            raise HttpError(401, "Invalid or missing API key")

    def _framework_error(
        self, request: web.Request, error: web.HTTPException
    ) -> web.StreamResponse:
        """Starlette's own 404, 405 and trailing-slash redirect."""
        if isinstance(error, web.HTTPNotFound) and request.path in ("/jobs/", "/make-video/"):
            # Absolute, from `Host`, like Starlette's `redirect_slashes`.
            location = f"http://{request.host}{request.path.rstrip('/')}"
            if request.query_string:
                location += f"?{request.query_string}"
            return web.Response(status=307, headers={"Location": location})
        message = "Not Found" if error.status == 404 else error.reason
        return json_response(shapes.error(message, "HTTP_ERROR", None), error.status)

    async def _on_redis(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A Redis call, on the event loop as in the real app, or in a thread."""
        if self._faults.blocking_redis:
            return call(*args, **kwargs)
        return await asyncio.to_thread(call, *args, **kwargs)

    # --- creation -------------------------------------------------------------------------------

    async def _make_video(self, request: web.Request) -> web.Response:
        posted = await self._form(request)
        upload = posted.get("audio_file")
        if isinstance(upload, str):
            raise HttpError(500, "An unexpected error occurred", "INTERNAL_ERROR")
        values, problems = forms.check_common(posted)
        if upload is None:
            problems.insert(0, forms.missing("body", "audio_file"))
        self._refuse(problems)
        assert isinstance(upload, web.FileField)
        size = upload.file.seek(0, os.SEEK_END)
        upload.file.seek(0)
        head = upload.file.read(16)
        upload.file.seek(0)
        if refusal := forms.check_audio(upload.filename, size, head, shapes.EXTENSIONS):
            raise HttpError(*refusal)
        job_id = shapes.new_id()
        audio = Path(AUDIO) / (job_id + Path(upload.filename).suffix.lower())
        await asyncio.to_thread(_save, upload.file, self._settings.data / audio)
        job = shapes.new_job(job_id, {**values, "audio_file": str(audio)}, self._clock.time())
        await self._enqueue(job, "make_video", "Failed to create video")
        return json_response(shapes.accepted(job, upload.filename), 202)

    async def _download_shorts(self, request: web.Request) -> web.Response:
        posted = await self._form(request)
        values, problems = forms.check_common(posted)
        self._refuse([*forms.check_query(posted), *problems])
        query = re.sub(r"['\";]|--", "", str(posted["query"])).strip()
        if len(query) < 3:
            raise HttpError(400, "Query inválida após sanitização (mínimo 3 caracteres)")
        job = shapes.new_job(shapes.new_id(), {**values, "query": query}, self._clock.time())
        await self._enqueue(job, "download_shorts", "Falha no pipeline")
        return json_response(shapes.accepted(job, None), 202)

    async def _enqueue(self, job: Document, task: str, failure: str) -> None:
        """Write key, index and message: three steps without a transaction."""
        job_id = job["id"]
        try:
            await self._on_redis(self._store.save, job)
            await self._on_redis(self._store.add_to_index, job, self._clock.time())
            await self._on_redis(self._producer.send, job_id, task)
        except StoreError as error:
            raise HttpError(500, f"{failure}: {error}") from error

    async def _form(self, request: web.Request) -> dict[str, Any]:
        """The fields of an urlencoded or multipart body; any other type has none."""
        try:
            return dict(await request.post())
        except ValueError as error:
            raise HttpError(400, "There was an error parsing the body") from error

    def _refuse(self, problems: list[Document]) -> None:
        if problems:
            raise HttpError(422, "Request validation failed", "VALIDATION_ERROR", problems)

    # --- jobs -----------------------------------------------------------------------------------

    async def _job(self, request: web.Request) -> web.Response:
        return json_response(shapes.status(await self._load(request)))

    async def _list(self, request: web.Request) -> web.Response:
        limit, problems = forms.check_integer("query", "limit", request.query.get("limit", "50"), 1)
        self._refuse(problems)
        status = request.query.get("status")
        jobs = await self._on_redis(self._store.newest, status, limit or 50)
        return json_response(shapes.listing(jobs))

    async def _delete(self, request: web.Request) -> web.Response:
        job_id = (await self._load(request))["id"]
        await self._on_redis(self._store.delete, job_id)
        # The audio stays: a running job continues and needs it.
        (self._settings.data / OUTPUT / f"{job_id}_final.mp4").unlink(missing_ok=True)
        return json_response(shapes.deleted(job_id))

    async def _video(self, request: web.Request) -> web.StreamResponse:
        job = await self._load(request)
        if job["status"] != "completed":
            raise HttpError(400, f"Job is not completed yet. Status: {job['status']}")
        name = (job["result"] or {}).get("video_file")
        path = self._settings.data / OUTPUT / str(name)
        if name is None or not path.is_file():
            raise HttpError(404, "Video file not found")
        return FileAnswer(path, headers={"Content-Type": "video/mp4"})

    async def _load(self, request: web.Request) -> Document:
        job = await self._on_redis(self._store.load, request.match_info["id"])
        if job is None:
            raise HttpError(404, "Job not found")
        return job


def _save(source: Any, path: Path) -> None:
    with path.open("wb") as target:
        shutil.copyfileobj(source, target)


async def _run(settings: Settings) -> None:
    app = MakeVideo(settings)
    stopped = stop_on_signals()
    await app.start()
    print(f"make-video listens on {app.site.url}", flush=True)
    waits = {
        asyncio.create_task(stopped.wait(), name="signal"),
        asyncio.create_task(app.exiting.wait(), name="request-limit"),
    }
    _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in pending:
        wait.cancel()
    if app.exiting.is_set():
        await asyncio.sleep(settings.faults.drops_at_exit)
    await app.stop()


def main() -> None:
    """Run until a signal, or until `--exit-every` requests are served."""
    parser = argparse.ArgumentParser(prog="make_video", description="stand-in make-video service")
    parser.add_argument("--port", type=int, default=8005)
    parser.add_argument("--redis-url", default="redis://127.0.0.1:6379/0")
    parser.add_argument("--data", type=Path, default=Path(), help="the app's folder")
    switches.add_arguments(parser)
    arguments = parser.parse_args()
    settings = Settings(
        redis_url=arguments.redis_url,
        data=arguments.data,
        port=arguments.port,
        faults=switches.from_arguments(arguments),
        api_key=os.environ.get("API_KEY") or None,
    )
    asyncio.run(_run(settings))


if __name__ == "__main__":
    main()
