"""The worker's calls to its three microservices, with the retries of the real one.

1. No call identifies the job: there is no job id and no correlation header.
2. One bad response from youtube-search, polls included, fails the job. A video that cannot be
   downloaded is skipped. A transcription is retried for two minutes.
3. `speed` divides every wait.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from proxy.demo.make_video.shapes import Document

_SEARCH_POLL, _DOWNLOAD_POLL, _TRANSCRIBE_POLL = 2.0, 3.0, 3.0
_CREATE_WAITS = (2.0, 4.0, 8.0)  # four tries to create a transcription
_STAGE_WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # after each of the five attempts at the stage
_MAX_POLLS = 100


class StageFailed(Exception):
    """A stage cannot be finished. `kind`: the error type that the service records."""

    def __init__(self, code: str, message: str, kind: str) -> None:
        super().__init__(f"[{code}] {message}")
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Services:
    """Base URLs of the three; in the demo, the proxy's egress listeners."""

    youtube_search: str
    video_downloader: str
    audio_transcriber: str


class Calls:
    """The calls, on one client session."""

    def __init__(self, http: aiohttp.ClientSession, services: Services, speed: float) -> None:
        self._http = http
        self._services = services
        self._speed = speed

    async def search(self, query: str, limit: int) -> list[Document]:
        """The videos found. One failed call, polls included, fails the job: no retries."""
        base = self._services.youtube_search
        try:
            parameters = {"query": query, "max_results": str(limit)}
            created = await self._json("POST", f"{base}/search/shorts", params=parameters)
            done = await self._poll(f"{base}/jobs/{created['id']}", _SEARCH_POLL)
        except (aiohttp.ClientError, TimeoutError) as error:
            message = f"youtube-search: {error}"
            raise StageFailed("MICROSERVICE_ERROR", message, "MicroserviceException") from error
        return list(done["result"]["results"])

    async def download(self, video: Document) -> bytes | None:
        """The video file, or None if a call failed and the video is skipped."""
        base = self._services.video_downloader
        body = {"url": video["url"], "quality": "best"}
        try:
            created = await self._json("POST", f"{base}/jobs", json=body)
            await self._poll(f"{base}/jobs/{created['id']}", _DOWNLOAD_POLL)
            async with self._http.get(f"{base}/jobs/{created['id']}/download") as answer:
                answer.raise_for_status()
                return await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            log(f"video {video['video_id']} skipped: {error}")
            return None

    async def transcribe(self, audio: Path, language: str) -> list[Document]:
        """The transcribed segments. Five attempts, each with four tries to create the job."""
        for wait in _STAGE_WAITS:
            try:
                return await self._transcribe_once(audio, language)
            except (aiohttp.ClientError, TimeoutError) as error:
                last: Exception = error
                log(f"transcription failed: {error}")
                await self._pause(wait)
        message = f"audio-transcriber: {last}"
        raise StageFailed("TRANSCRIPTION_ERROR", message, "SubtitleGenerationException") from last

    async def _transcribe_once(self, audio: Path, language: str) -> list[Document]:
        base = self._services.audio_transcriber
        job_id = (await self._create_transcription(base, audio, language))["id"]
        for _ in range(_MAX_POLLS):
            async with self._http.get(f"{base}/jobs/{job_id}") as answer:
                # Failed polls are ignored here, unlike those of youtube-search.
                if answer.ok and (await answer.json())["status"] == "completed":
                    break
            await self._pause(_TRANSCRIBE_POLL)
        else:
            raise TimeoutError("the transcription never finished")
        found = await self._json("GET", f"{base}/jobs/{job_id}/transcription")
        return list(found["segments"])

    async def _create_transcription(self, base: str, audio: Path, language: str) -> Document:
        content = await asyncio.to_thread(audio.read_bytes)
        for wait in (*_CREATE_WAITS, None):
            form = aiohttp.FormData({"language_in": language})
            # The real worker uses this name for every format.
            form.add_field("file", content, filename="audio.ogg", content_type="audio/ogg")
            try:
                return await self._json("POST", f"{base}/jobs", data=form)
            except (aiohttp.ClientError, TimeoutError):
                if wait is None:
                    raise
                await self._pause(wait)
        raise AssertionError("the last try returns or raises")

    async def _poll(self, url: str, every: float) -> Document:
        """The completed job. Raises for a failed poll, and `TimeoutError` if it never completes."""
        for _ in range(_MAX_POLLS):
            job = await self._json("GET", url)
            if job["status"] == "completed":
                return job
            await self._pause(every)
        raise TimeoutError(f"{url} never completed")

    async def _json(self, method: str, url: str, **options: Any) -> Document:
        async with self._http.request(method, url, **options) as answer:
            answer.raise_for_status()
            return dict(await answer.json(content_type=None))

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self._speed)


def log(message: str) -> None:
    """A plain line on the worker's standard error."""
    print(message, file=sys.stderr, flush=True)
