"""Stand-in Celery worker of the make-video service: pool solo, one job at a time.

1. A message moves from the queue to `unacked`, is processed, and is then acknowledged, whatever the
   result: even if the job is not found, the task succeeds.
2. The worker keeps its own copy of the job and writes all of it at every step. So a job deleted
   meanwhile reappears, and a write that Redis refuses is lost while the work continues.
3. The calls to the microservices are in `calls`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp

from proxy.core.clock import Clock, SystemClock
from proxy.demo import media
from proxy.demo.make_video import faults as switches
from proxy.demo.make_video import shapes
from proxy.demo.make_video.calls import Calls, Services, StageFailed, log
from proxy.demo.make_video.faults import Faults
from proxy.demo.make_video.job_store import TASKS, Consumer, JobStore, StoreError
from proxy.demo.make_video.reports import Receiver, Reports, receiver_from
from proxy.demo.make_video.service import APPROVED, AUDIO, OUTPUT
from proxy.demo.make_video.shapes import STAGES, Document
from proxy.demo.serving import stop_on_signals

# Seconds that the recorded job spent in each stage, calls not included.
STAGE_SECONDS = {
    "analyze_audio": 0.18,
    "load_approved": 0.37,
    "select_shorts": 0.01,
    "assemble_video": 15.4,
    "generate_subtitles": 0.4,
    "final_composition": 11.9,
    "trim_video": 7.6,
    "validate_av_sync": 0.26,
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one worker. `speed` divides every recorded duration and wait."""

    redis_url: str
    data: Path
    services: Services
    speed: float = 10.0
    faults: Faults = field(default_factory=Faults)
    statsd: Receiver | None = None


class Worker:
    """Takes messages until `stop`."""

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._store = JobStore(settings.redis_url, _breaker(settings.faults), clock)
        self._queue = Consumer(settings.redis_url, clock)
        self._reports = Reports(settings.statsd)
        self._stopping = False

    def stop(self) -> None:
        """Finish the current message and take no more."""
        self._stopping = True

    async def run(self) -> None:
        """Work until `stop`. Redis may come and go."""
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            calls = Calls(http, self._settings.services, self._settings.speed)
            declared = False
            while not self._stopping:
                try:
                    if not declared:
                        self._declare()
                        declared = True
                    # Only between tasks, like the solo pool, which does not answer while it works.
                    self._queue.answer_control()
                    taken = await asyncio.to_thread(self._queue.take, 0.2)
                    if taken is not None:
                        await self._work(calls, taken.job_id, taken.task)
                        self._queue.acknowledge(taken)
                except StoreError as error:
                    log(f"Redis: {error}; declaring the queue again later")
                    declared = False
                    await asyncio.sleep(max(0.1, self._settings.faults.redeclare_after))
        self._store.close()
        self._queue.close()
        self._reports.close()

    def _declare(self) -> None:
        self._queue.declare()
        if not self._settings.faults.stranding_worker:
            self._queue.recover()

    async def _work(self, calls: Calls, job_id: str, task: str) -> None:
        job = self._store.load(job_id)
        if job is None:
            log(f"{job_id}: no such job, message dropped")
            return
        log(f"{job_id}: {task}")
        pipeline = self._download_shorts if task == TASKS["download_shorts"] else self._make_video
        try:
            await pipeline(calls, job_id, job)
        except Exception as error:
            # Like Celery: an exception ends the task, not the worker.
            self._fail(job_id, job, None, StageFailed("INTERNAL", repr(error), "Exception"))
        log(f"{job_id}: {job['status']}")

    def _write(self, job: Document) -> None:
        """Save our copy, even of a deleted job. A failed write is not retried."""
        faults = self._settings.faults
        job_id = job["id"]
        try:
            if faults.resurrecting_worker or self._store.exists(job_id):
                self._store.save(job)
        except StoreError as error:
            log(f"{job_id}: write lost: {error}")

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self._settings.speed)

    # --- the two pipelines ----------------------------------------------------------------------

    async def _download_shorts(self, calls: Calls, job_id: str, job: Document) -> None:
        """Search, then download the videos one by one into the approved folder."""
        now = self._clock.time
        try:
            for progress in (5.0, 10.0):
                shapes.downloading(job, progress, now())
                self._write(job)
            found = await calls.search(str(job["query"]), int(job["max_shorts"]))
            shapes.downloading(job, 25.0, now())
            self._write(job)
            approved = []
            for video in found:
                if (clip := await calls.download(video)) is not None:
                    path = self._settings.data / APPROVED / f"{video['video_id']}.mp4"
                    path.write_bytes(clip)
                    await self._search_text(path)
                    approved.append(video)
            for progress in (50.0, 55.0):
                shapes.downloading(job, progress, now())
                self._write(job)
        except StageFailed as error:
            self._fail(job_id, job, None, error)
            return
        result = {
            "query": job["query"],
            "total_found": len(found),
            "total_downloaded": len(approved),
            "approved_count": len(approved),
            "rejected_count": 0,
            "approved_videos": [video["video_id"] for video in approved],
            "rejected_videos": [],
        }
        shapes.completed(job, result, now())
        self._write(job)

    async def _search_text(self, path: Path) -> None:
        """The real one rejects shorts with burnt-in subtitles; here they are only measured."""
        began = time.perf_counter()
        try:
            certainties = await asyncio.to_thread(media.search_text, path)
        except media.MediaError as error:
            log(f"{path.name}: not searched for text: {error}")
            return
        self._reports.text_search(time.perf_counter() - began, certainties)

    async def _make_video(self, calls: Calls, job_id: str, job: Document) -> None:
        """All stages in order, two writes each."""
        started = self._clock.monotonic()
        data = self._settings.data
        run = _Run(
            audio=next((data / AUDIO).glob(f"{job_id}.*"), data / AUDIO / job_id),
            clips=sorted((data / APPROVED).glob("*.mp4")),
            output=data / OUTPUT / f"{job_id}_final.mp4",
        )
        shapes.started(job, self._clock.time())
        self._write(job)
        for stage in STAGES:
            shapes.stage_started(job, stage, self._clock.time())
            self._write(job)
            try:
                await self._stage(calls, stage, job, run)
            except StageFailed as error:
                self._fail(job_id, job, stage, error)
                return
            shapes.stage_done(job, stage, self._clock.time())
            self._write(job)
        took = (self._clock.monotonic() - started) * self._settings.speed
        shapes.completed(job, _result(job_id, job, run, took), self._clock.time())
        self._write(job)

    async def _stage(self, calls: Calls, stage: str, job: Document, run: _Run) -> None:
        if stage in ("assemble_video", "trim_video"):  # done by ffmpeg in the real one
            with self._reports.operation(stage.removesuffix("_video")):
                await self._pause(STAGE_SECONDS[stage])
        else:
            await self._pause(STAGE_SECONDS[stage])
        if stage == "analyze_audio":
            if not run.audio.is_file():
                raise StageFailed("AUDIO_NOT_FOUND", "Audio file is gone", "AudioException")
        elif stage == "load_approved":
            if not run.clips:
                message = "No approved videos available. Run /download first."
                raise StageFailed("NO_SHORTS_FOUND", message, "VideoProcessingException")
        elif stage == "generate_subtitles":
            run.segments = len(await calls.transcribe(run.audio, str(job["subtitle_language"])))
        elif stage == "final_composition":
            try:
                with self._reports.operation("compose"):
                    run.media = await asyncio.to_thread(
                        media.compose, run.audio, run.clips, run.output
                    )
            except media.MediaError as error:
                raise StageFailed("FFMPEG_FAILED", str(error), "FFmpegException") from error

    def _fail(self, job_id: str, job: Document, stage: str | None, error: StageFailed) -> None:
        message = f"[Job: {job_id}] {error}"
        shapes.failed(job, stage, message, error.kind, self._clock.time())
        self._write(job)


@dataclass(slots=True)
class _Run:
    """What one job collects on its way through the stages."""

    audio: Path
    clips: list[Path]
    output: Path
    segments: int = 0
    media: media.Media | None = None


def _result(job_id: str, job: Document, run: _Run, took: float) -> Document:
    assert run.media is not None
    resolution = f"{run.media.width}x{run.media.height}"
    return {
        "video_url": f"/download/{job_id}",
        "video_file": run.output.name,
        "file_size": run.media.size,
        "file_size_mb": round(run.media.size / 1_048_576, 2),
        "duration": round(run.media.duration, 3),
        "resolution": resolution,
        "aspect_ratio": job["aspect_ratio"],
        "fps": media.FPS,
        "shorts_used": len(run.clips),
        "shorts_list": [
            {
                "video_id": clip.stem,
                "duration_seconds": 6.0,
                "file_path": f"{APPROVED}/{clip.name}",
                "position_in_video": 6.0 * number,
                "resolution": resolution,
                "fps": media.FPS,
            }
            for number, clip in enumerate(run.clips)
        ],
        "subtitle_segments": run.segments,
        "processing_time": round(took, 6),
    }


def _breaker(faults: Faults) -> Faults:
    """The worker's store has the app's breaker, unless only its writes are to be lost."""
    return replace(faults, lying_breaker=faults.eating_worker)


async def _run(settings: Settings) -> None:
    worker = Worker(settings)
    stopped = stop_on_signals()
    working = asyncio.create_task(worker.run(), name="worker")
    stopping = asyncio.create_task(stopped.wait(), name="signal")
    await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    worker.stop()
    stopping.cancel()
    await working


def main() -> None:
    """Run until a signal; the addresses of the microservices come from the environment."""
    parser = argparse.ArgumentParser(prog="worker", description="stand-in make-video worker")
    parser.add_argument("--redis-url", default="redis://127.0.0.1:6379/0")
    parser.add_argument("--data", type=Path, default=Path(), help="the app's folder")
    parser.add_argument("--speed", type=float, default=10.0, help="1: a job takes 42 s")
    switches.add_arguments(parser)
    arguments = parser.parse_args()
    settings = Settings(
        redis_url=arguments.redis_url,
        data=arguments.data,
        services=Services(
            youtube_search=os.environ.get("YOUTUBE_SEARCH_URL", "http://127.0.0.1:8003"),
            video_downloader=os.environ.get("VIDEO_DOWNLOADER_URL", "http://127.0.0.1:8002"),
            audio_transcriber=os.environ.get("AUDIO_TRANSCRIBER_URL", "http://127.0.0.1:8004"),
        ),
        speed=arguments.speed,
        faults=switches.from_arguments(arguments),
        statsd=receiver_from(dict(os.environ)),
    )
    asyncio.run(_run(settings))


if __name__ == "__main__":
    main()
