"""The stand-in make-video service answers, stores and misbehaves as the recorded real one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis
from aiohttp import web

from proxy.core.clock import ManualClock
from proxy.demo.make_video.faults import Faults
from proxy.demo.make_video.service import MakeVideo, Settings
from proxy.demo.redis_server import RedisServer, free_port
from proxy.demo.serving import Site
from tests.http1 import PATIENCE

MP3 = b"ID3\x04" + bytes(400)
NOT_FOUND = {"error": "HTTP_ERROR", "message": "Job not found"}

Serve = Callable[..., AbstractAsyncContextManager["Client"]]


class Client:
    """Talks to one stand-in; every request on a connection of its own."""

    def __init__(self, app: MakeVideo) -> None:
        self.app = app
        self.url = app.site.url

    async def call(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        """Status, and the body: parsed when it is JSON, else text."""
        connector = aiohttp.TCPConnector(force_close=True)
        async with (
            aiohttp.ClientSession(connector=connector) as http,
            http.request(method, self.url + path, allow_redirects=False, **options) as answer,
        ):
            text = await answer.text()
            is_json = answer.content_type == "application/json" and text
            return answer.status, json.loads(text) if is_json else text

    async def create(self) -> str:
        """A new video job; its id."""
        status, body = await self.call("POST", "/make-video", data=audio_form())
        assert status == 202
        return str(body["job_id"])


@pytest.fixture
def serve(redis_server: RedisServer, tmp_path: Path) -> Serve:
    """Starts a stand-in on the test's Redis: `async with serve(clock, fault=...)`."""

    @asynccontextmanager
    async def start(clock: ManualClock | None = None, **faults: Any) -> AsyncIterator[Client]:
        settings = Settings(redis_server.url, tmp_path / "app", faults=Faults(**faults))
        app = MakeVideo(settings, clock)
        await app.start()
        try:
            yield Client(app)
        finally:
            await app.stop()

    return start


@pytest.fixture
def store(redis_server: RedisServer) -> Iterator[Any]:
    """A client on the same Redis."""
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as client:
        yield client


def audio_form(content: bytes = MP3, name: str = "voz.mp3", **fields: str) -> aiohttp.FormData:
    """A multipart form as the recorder sent it."""
    form = aiohttp.FormData(fields, default_to_multipart=True)
    form.add_field("audio_file", content, filename=name, content_type="audio/mpeg")
    return form


def text_form() -> aiohttp.FormData:
    """The file field sent as text."""
    form = aiohttp.FormData(default_to_multipart=True)
    form.add_field("audio_file", "just text")
    return form


def failed(message: str) -> dict[str, Any]:
    """The body of an error."""
    return {"error": "HTTP_ERROR", "message": message}


def invalid(kind: str, place: str, name: str, msg: str, value: Any, **ctx: Any) -> dict[str, Any]:
    """The body of a 422 with one detail."""
    detail = {"type": kind, "loc": [place, name], "msg": msg, "input": value}
    return {
        "error": "VALIDATION_ERROR",
        "message": "Request validation failed",
        "details": [{**detail, "ctx": ctx} if ctx else detail],
    }


LOW = "Input should be greater than or equal to"
RATIOS = "'9:16', '16:9', '1:1' or '4:5'"

# Request, status and body as recorded on the current version.
RECORDED: list[tuple[str, str, dict[str, Any], int, Any]] = [
    ("GET", "/jobs", {}, 200, {"status": "success", "total": 0, "jobs": []}),
    ("GET", "/jobs/mv_doesnotexist", {}, 404, NOT_FOUND),
    ("DELETE", "/jobs/mv_doesnotexist", {}, 404, NOT_FOUND),
    ("GET", "/download/mv_doesnotexist", {}, 404, NOT_FOUND),
    (
        *("GET", "/cache/stats", {}, 200),
        {"total_shorts": 0, "total_size_mb": 0.0, "approved_videos": 0},
    ),
    ("POST", "/make-video", {"data": audio_form(b"")}, 400, failed("Audio file is empty")),
    (
        *("POST", "/make-video", {"data": audio_form(b"hello", "voz.txt")}, 400),
        failed("Formato de áudio não suportado. Use: .wav, .ogg, .m4a, .mp3"),
    ),
    (
        *("POST", "/make-video", {"data": audio_form(b"hello world")}, 400),
        failed("Invalid audio file. Not a valid .mp3 audio file."),
    ),
    (
        *("POST", "/make-video", {"data": audio_form(max_shorts="1")}, 422),
        invalid("greater_than_equal", "body", "max_shorts", f"{LOW} 10", "1", ge=10),
    ),
    (
        *("POST", "/make-video", {"data": audio_form(aspect_ratio="3:2")}, 422),
        invalid(
            "enum", "body", "aspect_ratio", f"Input should be {RATIOS}", "3:2", expected=RATIOS
        ),
    ),
    (
        *("POST", "/make-video", {"data": text_form()}, 500),
        {"error": "INTERNAL_ERROR", "message": "An unexpected error occurred"},
    ),
    (
        *("POST", "/make-video", {"json": {"query": "x"}}, 422),
        invalid("missing", "body", "audio_file", "Field required", None),
    ),
    ("GET", "/make-video", {}, 405, failed("Method Not Allowed")),
    ("GET", "/nope", {}, 404, failed("Not Found")),
    ("HEAD", "/health", {}, 405, ""),
    (
        *("POST", "/download", {"data": {"query": "';--", "max_shorts": "10"}}, 400),
        failed("Query inválida após sanitização (mínimo 3 caracteres)"),
    ),
    (
        *("POST", "/download", {"data": {"query": "motivacao", "max_shorts": "5"}}, 422),
        invalid("greater_than_equal", "body", "max_shorts", f"{LOW} 10", "5", ge=10),
    ),
    (
        *("GET", "/jobs?limit=0", {}, 422),
        invalid("greater_than_equal", "query", "limit", f"{LOW} 1", "0", ge=1),
    ),
]


async def test_answers_as_recorded(serve: Serve) -> None:
    """Each recorded request gets the recorded status and body. (Without the limit on connections:
    tasks that outlive their answers reach it when requests follow each other this fast.)"""
    async with serve(connection_limit=0) as client:
        for method, path, options, status, body in RECORDED:
            answer = await client.call(method, path, **options)
            assert (method, path, *answer) == (method, path, status, body)


async def test_accepts_a_job_as_recorded(serve: Serve) -> None:
    """A created job is answered 202, readable, listed, not downloadable yet, and deletable."""
    async with serve() as client:
        form = audio_form(subtitle_language="en", aspect_ratio="16:9")
        status, accepted = await client.call("POST", "/create", data=form)
        assert status == 202
        job_id = accepted.pop("job_id")
        assert job_id.startswith("mv_")
        assert len(job_id) == 13
        assert accepted == {
            "status": "accepted",
            "message": "Processamento de vídeo iniciado",
            "audio_filename": "voz.mp3",
            "max_shorts": 10,
            "subtitle_language": "en",
            "subtitle_style": "static",
            "aspect_ratio": "16:9",
            "crop_position": "center",
        }
        status, job = await client.call("GET", f"/jobs/{job_id}")
        assert status == 200
        assert list(job) == [
            *("job_id", "status", "progress", "stages", "result", "error"),
            *("created_at", "updated_at"),
        ]
        assert (job["status"], job["progress"], job["updated_at"]) == ("queued", 0.0, "")
        assert job["created_at"].endswith("-03:00")
        _, listing = await client.call("GET", "/jobs?status=queued&limit=5")
        assert [raw["id"] for raw in listing["jobs"]] == [job_id]
        assert await client.call("GET", f"/download/{job_id}") == (
            400,
            failed("Job is not completed yet. Status: queued"),
        )
        assert await client.call("DELETE", f"/jobs/{job_id}") == (
            200,
            {
                "status": "deleted",
                "job_id": job_id,
                "message": "Job e arquivos associados removidos com sucesso",
            },
        )
        assert await client.call("GET", f"/jobs/{job_id}") == (404, NOT_FOUND)


async def test_describes_itself(serve: Serve) -> None:
    """`/`, `/health`, `/metrics`, `/docs` and `/openapi.json` answer 200."""
    async with serve() as client:
        await client.create()
        for path in ("/", "/health", "/docs"):
            assert (await client.call("GET", path))[0] == 200
        assert "makevideo_jobs_queued 1\n" in (await client.call("GET", "/metrics"))[1]
        _, document = await client.call("GET", "/openapi.json")
        assert set(document["paths"]["/jobs/{id}"]) == {"get", "delete"}


async def test_redirect_is_built_from_host(serve: Serve) -> None:
    """`/jobs/` redirects to an absolute address that the client's `Host` decides."""
    async with serve() as client, aiohttp.ClientSession() as http:
        url, headers = client.url + "/jobs/", {"Host": "example.test"}
        async with http.get(url, headers=headers, allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (307, "http://example.test/jobs")


async def test_api_key(redis_server: RedisServer, tmp_path: Path) -> None:
    """With a key set, a missing one is 401 before any validation; `/health` stays open."""
    app = MakeVideo(Settings(redis_server.url, tmp_path / "app", api_key="s3cret"))
    await app.start()
    client = Client(app)
    assert (await client.call("POST", "/make-video"))[0] == 401
    assert (await client.call("GET", "/jobs", headers={"X-API-Key": "s3cret"}))[0] == 200
    assert (await client.call("GET", "/health"))[0] == 200
    await app.stop()


async def test_writes_in_the_recorded_order(serve: Serve, store: Any) -> None:
    """A creation is SETEX with a day to live, ZADD, the binding's SMEMBERS, and one LPUSH."""
    interesting = {"SETEX", "SET", "ZADD", "SMEMBERS", "LPUSH"}
    async with serve() as client:
        with store.monitor() as monitor:
            job_id = await client.create()
            store.ping()
            commands = []
            for command in monitor.listen():
                words = command["command"].split(" ")
                if words[0] == "PING":
                    break
                if words[0] in interesting:
                    commands.append(words)
        assert [words[:2] for words in commands] == [
            ["SETEX", f"make_video:job:{job_id}"],
            ["ZADD", "make_video:jobs:list"],
            ["SMEMBERS", "_kombu.binding.make_video_queue"],
            ["LPUSH", "make_video_queue"],
        ]
        assert commands[0][2] == "86400"


# --- what hurts, switch by switch ---------------------------------------------------------------


@pytest.mark.parametrize(("lies", "status"), [(True, 404), (False, 503)])
async def test_redis_down(serve: Serve, redis_server: RedisServer, lies: bool, status: int) -> None:
    """Pain 1: without Redis a job reads as not found, the list and the POSTs are 500, and
    `/health` knows nothing."""
    async with serve(redis_down_is_404=lies) as client:
        job_id = await client.create()
        redis_server.kill()
        for method, path in (
            ("GET", f"/jobs/{job_id}"),
            ("DELETE", f"/jobs/{job_id}"),
            ("GET", f"/download/{job_id}"),
        ):
            assert (await client.call(method, path))[0] == status
        assert (await client.call("GET", "/health"))[0] == 200
        if lies:
            down, body = await client.call("POST", "/make-video", data=audio_form())
            assert (down, body["error"]) == (500, "HTTP_ERROR")
            assert body["message"].startswith("Failed to create video: Error 111 connecting to")
            assert (await client.call("GET", "/jobs"))[0] == 500
            assert "# Error generating" in (await client.call("GET", "/metrics"))[1]


async def test_corrupt_key_is_not_found(serve: Serve, store: Any) -> None:
    """Pain 1: a value that is not JSON reads as not found too."""
    async with serve() as client:
        job_id = await client.create()
        store.set(f"make_video:job:{job_id}", "{not json")
        assert await client.call("GET", f"/jobs/{job_id}") == (404, NOT_FOUND)


@pytest.mark.parametrize("lying", [True, False])
async def test_lying_breaker(
    serve: Serve, redis_server: RedisServer, store: Any, lying: bool
) -> None:
    """Pain 2: after five failures jobs are accepted for a minute without their key written."""
    clock = ManualClock()
    async with serve(clock=clock, lying_breaker=lying) as client:
        redis_server.kill()
        for _ in range(5):
            await client.call("GET", "/jobs/mv_any")
        redis_server.start()
        job_id = await client.create()
        assert store.exists(f"make_video:job:{job_id}") == (not lying)
        assert store.zscore("make_video:jobs:list", job_id) is not None
        assert (await client.call("GET", f"/jobs/{job_id}"))[0] == (404 if lying else 200)
        clock.advance(61)
        assert store.exists(f"make_video:job:{await client.create()}")


@pytest.mark.parametrize("deaf", [True, False])
async def test_deaf_queue(serve: Serve, redis_server: RedisServer, store: Any, deaf: bool) -> None:
    """Pain 3: after an empty restart nothing is pushed, until someone declares the queue."""
    async with serve(deaf_queue=deaf) as client:
        await client.create()
        assert store.llen("make_video_queue") == 1
        redis_server.kill()
        redis_server.start()
        job_id = await client.create()
        assert (await client.call("GET", f"/jobs/{job_id}"))[1]["status"] == "queued"
        assert store.llen("make_video_queue") == (0 if deaf else 1)


@pytest.mark.parametrize("blocking", [True, False])
async def test_hung_redis(serve: Serve, redis_server: RedisServer, blocking: bool) -> None:
    """Pain 4: a stopped Redis freezes `/health` for as long as a read is tried, twice; then 404."""
    async with serve(blocking_redis=blocking, redis_timeout=0.5) as client:
        assert redis_server.pid is not None
        job_link = await Link.open(client.app.site.port)
        health_link = await Link.open(client.app.site.port)
        await health_link.get("/health")
        os.kill(redis_server.pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            job = asyncio.create_task(job_link.get("/jobs/mv_any"))
            await asyncio.sleep(0)  # the read goes first
            assert (await health_link.get("/health")).startswith("HTTP/1.1 200")
            took = time.monotonic() - started
            assert (await job).startswith("HTTP/1.1 404")
            assert time.monotonic() - started >= 1.0
            assert (took >= 1.0) == blocking
        finally:
            os.kill(redis_server.pid, signal.SIGCONT)
        await job_link.close()
        await health_link.close()


async def test_connection_limit(serve: Serve) -> None:
    """Pain 5: the tenth open connection is refused in plain text and closed, the others go on."""
    async with serve() as client:
        links = [await Link.open(client.app.site.port) for _ in range(9)]
        for link in links:
            assert (await link.get("/health")).startswith("HTTP/1.1 200")
        tenth = await Link.open(client.app.site.port)
        refusal = await tenth.get("/health")
        assert refusal.startswith("HTTP/1.1 503 Service Unavailable")
        assert "content-type: text/plain; charset=utf-8" in refusal.lower()
        assert "connection: close" in refusal.lower()
        assert refusal.endswith("Service Unavailable")
        assert await tenth.at_end()
        assert (await links[0].get("/health")).startswith("HTTP/1.1 200")
        for link in [*links, tenth]:
            await link.close()


@pytest.mark.parametrize(("limit", "status"), [(3, 503), (0, 200)])
async def test_silent_connections_count(serve: Serve, limit: int, status: int) -> None:
    """Pain 5: connections that never send anything use the limit up as well; 0 switches it off."""
    async with serve(connection_limit=limit) as client:
        links = [await Link.open(client.app.site.port) for _ in range(3)]
        assert (await links[2].get("/health")).startswith(f"HTTP/1.1 {status}")
        for link in links:
            await link.close()


@pytest.mark.parametrize(("linger", "status"), [(3600.0, 503), (0.0, 200)])
async def test_tasks_count_beyond_their_answers(serve: Serve, linger: float, status: int) -> None:
    """Pain 12: a task outlives its answer, one on each connection, and counts for the limit."""
    async with serve(connection_limit=4, task_linger=linger) as client:
        links = [await Link.open(client.app.site.port) for _ in range(3)]
        for _ in range(2):
            for link in links:
                assert (await link.get("/health")).startswith("HTTP/1.1 200")
        client.app._tasks += 1  # one that is still being handled
        assert (await links[0].get("/health")).startswith(f"HTTP/1.1 {status}")
        client.app._tasks -= 1
        for link in links:
            await link.close()


async def test_a_request_that_meets_the_exit_is_dropped(serve: Serve) -> None:
    """Pain 13: the connection closes without an answer, and no job was made."""
    async with serve(exit_every=1) as client:
        link = await Link.open(client.app.site.port)
        assert (await link.get("/health")).startswith("HTTP/1.1 200")
        assert client.app.exiting.is_set()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await link.get("/health")
        await link.close()


async def test_idle_connections_are_closed() -> None:
    """Pain 5: a connection is closed some time after its answer; a silent one stays open."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text="here")

    app = web.Application()
    app.add_routes([web.get("/", answer)])
    site = Site(app, keepalive=0.2)
    await site.start()
    idle, silent = await Link.open(site.port), await Link.open(site.port)
    assert (await idle.get("/")).endswith("here")
    assert (await idle.get("/")).endswith("here")
    assert await idle.at_end()
    assert site.open_connections == 1
    await idle.close()
    await silent.close()
    await site.stop()


async def test_exit_after_n_requests(redis_server: RedisServer, tmp_path: Path) -> None:
    """Pain 6: the process ends by itself, with exit code 0, after its share of requests."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy.demo.make_video.service", "--port", str(port)),
        *("--redis-url", redis_server.url, "--data", str(tmp_path), "--exit-every", "3"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        assert b"listens" in await process.stdout.readline()
        async with aiohttp.ClientSession() as http:
            for _ in range(3):
                async with http.get(f"http://127.0.0.1:{port}/health") as answer:
                    assert answer.status == 200
        assert await process.wait() == 0


class Link:
    """A raw kept-alive connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> Link:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def get(self, path: str) -> str:
        """Head and body of one answer."""
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: demo\r\n\r\n".encode())
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
        return head + (await self._reader.readexactly(length)).decode()

    async def at_end(self) -> bool:
        return await self._reader.read(1) == b""

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()
