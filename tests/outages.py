"""Outages by script: a microservice that fails as scripted, a worker that calls as make-video does.

All times are those of the real service divided by `SCALE`: the worker's time-outs and waits, the
service's outages, and the durations of the ready config's upstreams (`scaled`).
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from proxy.config.units import parse_duration
from proxy.demo.redis_server import free_port

#: 30 s of the worker's patience are 3 here: the proxy's own tick of 50 ms stays small beside it.
SCALE = 10.0

#: What the worker grants one call (httpx).
PATIENCE = 30.0 / SCALE

_STATUS = {200: "OK", 404: "Not Found", 503: "Service Unavailable"}


def scaled(value: Any) -> Any:
    """A part of a config with every duration divided by `SCALE`, and every rate multiplied."""
    if isinstance(value, dict):
        return {
            # YAML 1.1, which the tests' reader speaks, takes `on` for true.
            ("on" if key is True else key): round(inner * SCALE)
            if key == "min_per_second"
            else scaled(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [scaled(inner) for inner in value]
    if isinstance(value, str) and re.fullmatch(r"[0-9.]+(ms|s|m|h)", value):
        return f"{parse_duration(value) / SCALE * 1000:g}ms"
    return value


@dataclass(frozen=True)
class Outage:
    """What happens to one service. `fails(method, path)` says which calls get 503 in the first
    `seconds` after the first call that it concerns; `share` of them do. `refuses`: no connection at
    all is taken then. `health` is the status of `/health` meanwhile."""

    service: str
    seconds: float
    fails: Callable[[str, str], bool] = lambda _method, _path: True
    share: float = 1.0
    refuses: bool = False
    health: int = 503


class Microservice:
    """Any of the three: a POST creates, a GET says that it is completed once `TAKES` are over."""

    TAKES = 4.0 / SCALE

    def __init__(self, outage: Outage) -> None:
        self._outage = outage
        self._random = random.Random(5)
        self._began: float | None = None
        self._created: dict[str, float] = {}
        self._server: asyncio.Server | None = None
        self._starting: asyncio.Task[None] | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = free_port()

    async def start(self) -> None:
        """Listen, from the outage's end on where it refuses."""
        if self._outage.refuses:
            self._starting = asyncio.create_task(self._start_late())
        else:
            await self._listen()

    async def _start_late(self) -> None:
        await asyncio.sleep(self._outage.seconds / SCALE)
        await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def stop(self) -> None:
        """Close everything."""
        if self._starting is not None:
            self._starting.cancel()
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    def _ill(self, method: str, path: str) -> bool:
        outage = self._outage
        if outage.refuses or not outage.fails(method, path):
            return False
        now = asyncio.get_running_loop().time()
        self._began = self._began if self._began is not None else now
        during = now < self._began + outage.seconds / SCALE
        return during and self._random.random() < outage.share

    def _answer(self, method: str, path: str) -> tuple[int, dict[str, Any]]:
        now = asyncio.get_running_loop().time()
        if path == "/health":
            over = self._began is None or now >= self._began + self._outage.seconds / SCALE
            return (200 if over else self._outage.health), {}
        if self._ill(method, path):
            return 503, {"detail": "unavailable"}
        if method == "POST":
            self._created["one"] = self._created.get("one", now)
            return 200, {"id": "one", "status": "queued"}
        if path.endswith(("/download", "/transcription")):
            return 200, {"content": "x" * 100}
        done = "one" in self._created and now >= self._created["one"] + self.TAKES
        return 200, {"id": "one", "status": "completed" if done else "processing"}

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = re.search(r"(?i)content-length: *(\d+)", head)
                if length:
                    await reader.readexactly(int(length[1]))
                method, target, _ = head.split(" ", 2)
                status, document = self._answer(method, target.partition("?")[0])
                body = json.dumps(document).encode()
                writer.write(
                    f"HTTP/1.1 {status} {_STATUS[status]}\r\nContent-Type: application/json\r\n"
                    f"Content-Length: {len(body)}\r\n\r\n".encode()
                    + body
                )
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()


class Failed(Exception):
    """A call that the worker counts as failed: no 2xx, no connection, no answer in time."""


async def call(port: int, method: str, path: str, body: bytes = b"") -> dict[str, Any]:
    """One call as httpx makes it: 30 s for the answer, `raise_for_status`."""
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(
                    f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
                    f"Content-Length: {len(body)}\r\n\r\n".encode()
                    + body
                )
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: *(\d+)", head)
                rest = await reader.readexactly(int(length[1])) if length else await reader.read()
            finally:
                writer.close()
    except (OSError, EOFError, TimeoutError) as error:
        raise Failed(f"{method} {path}: {error!r}") from error
    status = int(head.split(b" ", 2)[1])
    if not 200 <= status < 300:
        raise Failed(f"{method} {path}: {status} {rest[:200]!r}")
    document: dict[str, Any] = json.loads(rest)
    return document


async def pause(seconds: float) -> None:
    await asyncio.sleep(seconds / SCALE)


async def search(port: int) -> None:
    """One failed call, even a poll, fails the whole job (service-facts 9)."""
    await call(port, "POST", "/search/shorts?query=x&max_results=10")
    while (await call(port, "GET", "/jobs/one"))["status"] != "completed":
        await pause(2.0)


async def download(port: int) -> None:
    """One failed call skips the video."""
    await call(port, "POST", "/jobs", b'{"url": "https://example.test/v", "quality": "best"}')
    while (await call(port, "GET", "/jobs/one"))["status"] != "completed":
        await pause(3.0)
    await call(port, "GET", "/jobs/one/download")


async def transcribe(port: int) -> None:
    """Five attempts of the stage, in each four of the creation: calls at 0, 2, 6, 14, 15 s … to
    102 s. A failed poll is only a poll (fixtures/microservice-calls-transcriber-503)."""
    for stage_wait in (1.0, 4.0, 11.0, 16.0, None):
        for wait in (2.0, 4.0, 8.0, None):
            try:
                await call(port, "POST", "/jobs", b"--x\r\n\r\naudio" * 100)
            except Failed:
                if wait is not None:
                    await pause(wait)
                continue
            for _poll in range(100):
                try:
                    if (await call(port, "GET", "/jobs/one"))["status"] == "completed":
                        await call(port, "GET", "/jobs/one/transcription")
                        return
                except Failed:
                    pass
                await pause(3.0)
        if stage_wait is not None:
            await pause(stage_wait)
    raise Failed("audio-transcriber was given up")


WORK = {"youtube-search": search, "video-downloader": download, "audio-transcriber": transcribe}


async def finishes(outage: Outage, port: int) -> bool:
    """Whether the worker's job survives at `port`."""
    try:
        await WORK[outage.service](port)
    except Failed:
        return False
    return True
