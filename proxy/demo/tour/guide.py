"""Shared by the steps of the tour: a client, and results of earlier steps."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from proxy.demo.make_video.shapes import TERMINAL
from proxy.demo.tour.narrator import Narrator
from proxy.demo.world import World

JOB_DEADLINE = 60.0  # seconds


class StepFailed(Exception):
    """A step did not see what it expected; the text says what it saw."""


@dataclass(slots=True)
class Tour:
    """The state that the steps share: the world, a client, and results for later steps."""

    world: World
    http: aiohttp.ClientSession
    narrator: Narrator
    correlation_id: str = ""
    """Of the current step, sent with its requests."""
    answered: dict[str, None] = field(default_factory=dict)
    """The correlation IDs in the responses to the current step, in order."""
    video_job: str = ""
    upload_correlation_id: str = ""
    trip_correlation_id: str = ""

    async def call(
        self, method: str, path: str, *, correlate: bool = True, **options: Any
    ) -> Reply:
        """Send one request through the ingress. The response must carry our correlation ID, or one
        made by the proxy if we send none. Raises `StepFailed`."""
        headers = {"X-Correlation-ID": self.correlation_id} if correlate else {}
        url = self.world.ingress + path
        try:
            async with self.http.request(method, url, headers=headers, **options) as answer:
                reply = Reply(answer.status, dict(answer.headers), await answer.read())
        except (aiohttp.ClientError, TimeoutError) as error:
            raise StepFailed(f"{method} {path}: {error!r}") from error
        returned = answer.headers.get("X-Correlation-ID", "")
        if not returned or (correlate and returned != self.correlation_id):
            raise StepFailed(
                f"{method} {path}: sent correlation ID {self.correlation_id!r}, got {returned!r}"
            )
        self.answered[returned] = None
        return reply

    async def follow(self, job_id: str, text: str) -> dict[str, Any]:
        """Poll a job until it is completed, and return it. The bar shows its stages."""
        deadline = time.monotonic() + JOB_DEADLINE
        with self.narrator.bar() as bar:
            while True:
                job = (await self.call("GET", f"/jobs/{job_id}")).expect(200)
                bar.show(*_progress(job, text))
                if job["status"] == "completed":
                    return job
                if job["status"] in TERMINAL:
                    raise StepFailed(f"job {job_id} {job['status']}: {job['error']}")
                if time.monotonic() > deadline:
                    raise StepFailed(f"job {job_id} still {job['status']} after {JOB_DEADLINE} s")
                await asyncio.sleep(0.2)

    def log_lines(self, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """The proxy's log records that match `wanted`."""
        records = []
        for line in self.world.proxy_log.read_text(errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # a line being written at this moment, or a traceback
            if isinstance(record, dict) and wanted(record):
                records.append(record)
        return records


@dataclass(frozen=True, slots=True)
class Reply:
    """A response that has been read."""

    status: int
    headers: dict[str, str]
    body: bytes

    def expect(self, status: int) -> dict[str, Any]:
        """The JSON object of a response with this status. Raises `StepFailed`."""
        if self.status != status:
            text = self.body[:300].decode(errors="replace")
            raise StepFailed(f"expected status {status}, got {self.status}: {text}")
        try:
            return dict(json.loads(self.body))
        except ValueError as error:
            raise StepFailed(f"not a JSON object: {self.body[:100]!r}") from error


def _progress(job: dict[str, Any], text: str) -> tuple[float, str]:
    """The fraction done and the current activity. A job's `progress` stays 0 until the end, so its
    stages are counted; a download job updates only `progress`."""
    stages = job["stages"].values()
    done = sum(stage["status"] == "completed" for stage in stages)
    share = max(job["progress"] / 100, done / max(1, len(stages)))
    running = [stage["display_name"] for stage in stages if stage["status"] == "processing"]
    return share, running[0] if running else f"{text}: {job['status']}"
