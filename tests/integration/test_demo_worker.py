"""The stand-in worker writes the recorded versions of a job, and fails as recorded."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis

from proxy.demo import media
from proxy.demo.make_video.calls import Services
from proxy.demo.make_video.faults import Faults
from proxy.demo.make_video.service import APPROVED, MakeVideo
from proxy.demo.make_video.service import Settings as AppSettings
from proxy.demo.make_video.shapes import STAGES
from proxy.demo.make_video.worker import Settings, Worker
from proxy.demo.microservices import AudioTranscriber, Trouble, VideoDownloader, YoutubeSearch
from proxy.demo.redis_server import RedisServer
from tests.http1 import PATIENCE

SPEED = 100.0


async def until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds. Raises `TimeoutError` after 20 s."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        await asyncio.sleep(0.01)


class Shop:
    """App, worker and microservices in one loop; the worker is started by the test."""

    def __init__(self, redis_url: str, data: Path, **faults: Any) -> None:
        self.data = data
        self.redis_url = redis_url
        self.faults = Faults(**{"redeclare_after": 0.0, **faults})
        self.app = MakeVideo(AppSettings(redis_url, data, faults=self.faults))
        self.search = YoutubeSearch(work=0.02)
        self.downloader = VideoDownloader(work=0.02)
        self.transcriber = AudioTranscriber(work=0.02)
        self.store: Any = redis.Redis.from_url(redis_url, decode_responses=True)
        self.http = aiohttp.ClientSession()
        self._worker: tuple[Worker, asyncio.Task[None]] | None = None

    async def __aenter__(self) -> Shop:
        for part in (self.app, self.search, self.downloader, self.transcriber):
            await part.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop_worker()
        for part in (self.app, self.search, self.downloader, self.transcriber):
            await part.stop()
        await self.http.close()
        self.store.close()

    def start_worker(self) -> None:
        services = Services(
            self.search.site.url, self.downloader.site.url, self.transcriber.site.url
        )
        worker = Worker(
            Settings(
                self.redis_url,
                self.data,
                services,
                speed=SPEED,
                faults=self.faults,
            )
        )
        self._worker = worker, asyncio.create_task(worker.run(), name="worker")

    async def stop_worker(self) -> None:
        if self._worker is not None:
            worker, task = self._worker
            worker.stop()
            await task
            self._worker = None

    def kill_worker(self) -> asyncio.Task[None]:
        """As kill -9: the worker does nothing more, and puts nothing back."""
        assert self._worker is not None
        _, task = self._worker
        task.cancel()
        self._worker = None
        return task

    def approve_clip(self) -> None:
        media.make_clip(self.data / APPROVED / "short0000.mp4", 1.0, 1)

    async def post_video(self) -> str:
        """Upload one second of real audio; the job's id."""
        path = self.data / "voice.wav"
        media.make_audio(path, 1.0)
        form = aiohttp.FormData(default_to_multipart=True)
        form.add_field("audio_file", path.read_bytes(), filename="voice.wav")
        return await self._post("/make-video", form)

    async def post_download(self) -> str:
        return await self._post("/download", {"query": "motivacao", "max_shorts": "10"})

    async def _post(self, path: str, data: Any) -> str:
        async with self.http.post(self.app.site.url + path, data=data) as answer:
            assert answer.status == 202
            return str((await answer.json())["job_id"])

    async def get(self, path: str) -> tuple[int, bytes, Any]:
        """Status, body and headers."""
        async with self.http.get(self.app.site.url + path) as answer:
            return answer.status, await answer.read(), answer.headers

    def job(self, job_id: str) -> dict[str, Any] | None:
        """The raw document in Redis."""
        text = self.store.get(f"make_video:job:{job_id}")
        return None if text is None else dict(json.loads(text))

    async def reaches(self, job_id: str, *statuses: str) -> dict[str, Any]:
        """The job, once its status is one of these."""
        await until(lambda: (self.job(job_id) or {}).get("status") in statuses)
        job = self.job(job_id)
        assert job is not None
        return job


@pytest.fixture
async def shops(redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[Any]:
    """Makes shops that are taken down at the end."""
    async with AsyncExitStack() as stack:

        async def open_shop(**faults: Any) -> Shop:
            shop = Shop(redis_server.url, tmp_path / "app", **faults)
            return await stack.enter_async_context(shop)

        yield open_shop


class Recorder:
    """Every version of every job key as it is written, from MONITOR."""

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor

    def versions(self, store: Any, job_id: str) -> Iterator[dict[str, Any]]:
        """The versions of a job written until now, in order."""
        store.ping()
        for command in self._monitor.listen():
            words = command["command"].split(" ", 3)
            if words[0] == "PING":
                return
            if words[:2] == ["SETEX", f"make_video:job:{job_id}"]:
                # MONITOR escapes as in C: quotes, backslashes, and non-ASCII bytes.
                text = words[3].encode("latin-1", "backslashreplace").decode("unicode_escape")
                yield json.loads(text)


async def test_a_job_passes_through_the_recorded_versions(shops: Any) -> None:
    """19 versions: queued, processing, two for each of eight stages, completed."""
    shop = await shops()
    shop.approve_clip()
    with shop.store.monitor() as monitor:
        job_id = await shop.post_video()
        shop.start_worker()
        final = await shop.reaches(job_id, "completed", "failed")
        versions = list(Recorder(monitor).versions(shop.store, job_id))
    expected = [("queued", 0.0, {}), ("processing", 0.0, {})]
    changed: dict[str, tuple[str, float]] = {}
    for name, (_, progress) in STAGES.items():
        for status, value in (("processing", progress), ("completed", 100.0)):
            changed = {**changed, name: (status, value)}
            expected.append(("processing", 0.0, changed))
    expected.append(("completed", 100.0, changed))
    assert [
        (
            version["status"],
            version["progress"],
            {
                name: (stage["status"], stage["progress"])
                for name, stage in version["stages"].items()
                if stage["status"] != "pending"
            },
        )
        for version in versions
    ] == expected
    assert len(versions) == 19
    assert final["result"]["shorts_used"] == 1
    assert final["completed_at"].endswith("-03:00")


async def test_the_result_is_a_playable_video(shops: Any, tmp_path: Path) -> None:
    """The download has picture and sound for as long as the audio, an ETag, and ranges."""
    shop = await shops()
    shop.approve_clip()
    job_id = await shop.post_video()
    shop.start_worker()
    await shop.reaches(job_id, "completed")
    status, body, headers = await shop.get(f"/download/{job_id}")
    assert status == 200
    assert headers["ETag"]
    assert headers["Accept-Ranges"] == "bytes"
    (tmp_path / "out.mp4").write_bytes(body)
    found = media.inspect(tmp_path / "out.mp4")
    assert found.video
    assert found.audio
    assert found.duration == pytest.approx(1.0, abs=0.2)
    url = f"{shop.app.site.url}/download/{job_id}"
    async with shop.http.get(url, headers={"Range": "bytes=0-9"}) as answer:
        assert (answer.status, await answer.read()) == (206, body[:10])


async def test_download_job(shops: Any) -> None:
    """A download job finds three videos, fetches them, and a video job can use them."""
    shop = await shops()
    job_id = await shop.post_download()
    shop.start_worker()
    job = await shop.reaches(job_id, "completed", "failed")
    assert job["result"]["approved_videos"] == ["short0000", "short0001", "short0002"]
    assert all(stage["status"] == "pending" for stage in job["stages"].values())
    assert media.inspect(shop.data / APPROVED / "short0002.mp4").video


async def test_no_approved_videos(shops: Any) -> None:
    """Without a download first, a video job fails as recorded, and has no `completed_at`."""
    shop = await shops()
    job_id = await shop.post_video()
    shop.start_worker()
    job = await shop.reaches(job_id, "completed", "failed")
    message = (
        f"[Job: {job_id}] [NO_SHORTS_FOUND] No approved videos available. Run /download first."
    )
    assert job["error"] == {"message": message, "type": "VideoProcessingException"}
    assert job["stages"]["load_approved"]["error_message"] == message
    assert job["completed_at"] is None


async def test_one_503_of_the_search_fails_the_job(shops: Any) -> None:
    """Pain 9: youtube-search is not asked twice."""
    shop = await shops()
    shop.search.trouble = Trouble(fail_next=1)
    job_id = await shop.post_download()
    shop.start_worker()
    job = await shop.reaches(job_id, "completed", "failed")
    assert job["status"] == "failed"
    assert "youtube-search: 503" in job["error"]["message"]


async def test_a_video_that_fails_is_skipped(shops: Any) -> None:
    """Pain 9: the other two are downloaded."""
    shop = await shops()
    shop.downloader.trouble = Trouble(fail_next=1)
    job_id = await shop.post_download()
    shop.start_worker()
    job = await shop.reaches(job_id, "completed", "failed")
    assert job["result"]["approved_videos"] == ["short0001", "short0002"]


async def test_the_transcriber_is_tried_again(shops: Any) -> None:
    """Pain 9: four refused creations and a refused poll do not fail the job; 20 creations do."""
    shop = await shops()
    shop.approve_clip()
    shop.start_worker()
    shop.transcriber.trouble = Trouble(fail_next=5)
    assert (await shop.reaches(await shop.post_video(), "completed", "failed"))["status"] == (
        "completed"
    )
    shop.transcriber.trouble = Trouble(fail_next=20)
    job = await shop.reaches(await shop.post_video(), "completed", "failed")
    assert (job["status"], shop.transcriber.trouble.fail_next) == ("failed", 0)
    assert job["stages"]["generate_subtitles"]["status"] == "failed"


async def test_an_open_breaker_eats_the_queue(
    shops: Any, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Pain 11: five writes failed, and for a minute the worker takes messages, finds no job, and
    ends each task as succeeded: the job stays queued and its message is gone."""
    shop = await shops(breaker_open_for=3600.0)
    shop.approve_clip()
    running = await shop.post_video()
    shop.transcriber.trouble = Trouble(delay=1.0)
    shop.start_worker()
    await until(lambda: shop.job(running)["stages"]["generate_subtitles"]["status"] == "processing")
    await asyncio.to_thread(redis_server.kill)
    shop.transcriber.trouble = Trouble()
    worker = shop._worker[0]
    await until(lambda: worker._store._open_until > 0)
    await asyncio.to_thread(redis_server.start)
    await until(lambda: shop.store.scard("_kombu.binding.make_video_queue") == 1)
    eaten = await shop.post_download()
    await until(lambda: shop.store.llen("make_video_queue") == 0)
    await until(lambda: shop.store.hlen("unacked") == 0)
    assert shop.job(eaten)["status"] == "queued"

    def results() -> set[str]:
        found = [shop.store.get(key) for key in shop.store.keys("celery-task-meta-*")]
        return {json.loads(one)["status"] for one in found}

    await until(lambda: results() == {"SUCCESS"})


async def test_a_worker_answers_between_two_tasks(shops: Any) -> None:
    """Pain 15: who works is silent; who does not says that it has nothing in its hands."""
    shop = await shops()
    shop.approve_clip()
    shop.transcriber.trouble = Trouble(delay=60)
    shop.start_worker()
    channel = "/0.celery.pidbox"

    def ask() -> int:
        shop.store.sadd("_kombu.binding.reply.celery.pidbox", "me\x06\x16\x06\x16replies")
        reply_to = {"exchange": "reply.celery.pidbox", "routing_key": "me"}
        body = {"method": "active", "destination": None, "ticket": "t", "reply_to": reply_to}
        encoded = base64.b64encode(json.dumps(body).encode()).decode()
        return int(shop.store.publish(channel, json.dumps({"body": encoded})))

    await until(lambda: ask() == 1)
    assert shop.store.pubsub_numsub(channel) == [(channel, 0)]  # subscribed by pattern
    await until(lambda: shop.store.llen("replies") > 0)
    reply = json.loads(shop.store.rpop("replies"))
    assert json.loads(base64.b64decode(reply["body"])) == {"celery@demo": []}
    await shop.reaches(await shop.post_video(), "processing")
    shop.store.delete("replies")
    assert ask() == 1
    assert shop.store.llen("replies") == 0
    with pytest.raises(asyncio.CancelledError):
        await shop.kill_worker()


@pytest.mark.parametrize("resurrecting", [True, False])
async def test_deletion_is_not_final(shops: Any, resurrecting: bool) -> None:
    """Pain 7: a job deleted while it runs is gone, then comes back and completes."""
    shop = await shops(resurrecting_worker=resurrecting)
    shop.approve_clip()
    job_id = await shop.post_video()
    shop.transcriber.trouble = Trouble(delay=0.3)
    shop.start_worker()
    await until(lambda: shop.job(job_id)["stages"]["generate_subtitles"]["status"] == "processing")
    async with shop.http.delete(f"{shop.app.site.url}/jobs/{job_id}") as answer:
        assert answer.status == 200
    assert (await shop.get(f"/jobs/{job_id}"))[0] == 404
    # The message of the next job is taken when the deleted one is over.
    other = await shop.post_download()
    await shop.reaches(other, "completed")
    job = shop.job(job_id)
    assert (job and job["status"]) == ("completed" if resurrecting else None)


@pytest.mark.parametrize("stranding", [True, False])
async def test_a_killed_worker_strands_its_job(shops: Any, stranding: bool) -> None:
    """Pain 8: the message of a killed worker sits in `unacked`, and the next one leaves it."""
    shop = await shops(stranding_worker=stranding)
    shop.approve_clip()
    job_id = await shop.post_video()
    shop.transcriber.trouble = Trouble(delay=60)
    shop.start_worker()
    await shop.reaches(job_id, "processing")
    task = shop.kill_worker()
    with pytest.raises(asyncio.CancelledError):
        await task
    (entry,) = shop.store.hvals("unacked")
    body = json.loads(entry)[0]["body"]
    assert json.loads(base64.b64decode(body))[1] == {"job_id": job_id}
    shop.transcriber.trouble = Trouble()
    shop.start_worker()
    await shop.reaches(await shop.post_download(), "completed")
    job = shop.job(job_id)
    assert job is not None
    if stranding:
        assert job["status"] == "processing"
        assert shop.store.hlen("unacked") == 1
    else:
        await shop.reaches(job_id, "completed")


async def test_an_idle_worker_declares_the_queue_again(
    shops: Any, redis_server: RedisServer
) -> None:
    """Pain 3: after an empty restart a job waits until the worker has noticed."""
    shop = await shops()
    shop.start_worker()
    await shop.reaches(await shop.post_download(), "completed")
    redis_server.kill()
    await asyncio.to_thread(redis_server.start)
    await until(lambda: shop.store.exists("_kombu.binding.make_video_queue"))
    await shop.reaches(await shop.post_download(), "completed")
