"""The steps of the tour, in order.

Each is a coroutine function that takes the `Tour`, returns the text to show and raises `StepFailed`
if it did not see what it expected.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import aiohttp
from redis.asyncio import Redis
from redis.exceptions import RedisError

from proxy.demo.make_video.shapes import STAGES
from proxy.demo.media import inspect, make_audio, make_long_audio
from proxy.demo.tour.guide import Reply, StepFailed, Tour

AUDIO_SECONDS = 20.0
_EVENTS = 6  # shown of each timeline


async def find_shorts(tour: Tour) -> str:
    """POST /download, which calls youtube-search and video-downloader through the egress."""
    form = {"query": "motivacao", "max_shorts": "10"}
    job_id = (await tour.call("POST", "/download", data=form)).expect(202)["job_id"]
    job = await tour.follow(job_id, "search and download")
    count = job["result"]["approved_count"]
    if count != 3:
        raise StepFailed(f"expected 3 videos, found {count}")
    return f"job {job_id}: {count} videos found and downloaded"


async def upload_audio(tour: Tour) -> str:
    """Make a real MP3 and upload it to POST /make-video."""
    path = tour.world.folder / "voice.mp3"
    await asyncio.to_thread(make_audio, path, AUDIO_SECONDS)
    form = aiohttp.FormData({"max_shorts": "10"})
    form.add_field("audio_file", path.read_bytes(), filename="voice.mp3", content_type="audio/mpeg")
    tour.video_job = (await tour.call("POST", "/make-video", data=form)).expect(202)["job_id"]
    tour.upload_correlation_id = tour.correlation_id
    size = path.stat().st_size
    return f"{AUDIO_SECONDS:g} s of audio ({size / 1000:.0f} kB) accepted as job {tour.video_job}"


async def refuse_uploads(tour: Tour) -> str:
    """Files that POST /make-video rejects with an explanation and without creating a job."""
    long = tour.world.folder / "long.mp3"
    await asyncio.to_thread(make_long_audio, long, 11 * 60)
    files = (
        ("a PDF called voice.mp3", b"%PDF-1.7\n" + bytes(200_000), "upload_type_rejected"),
        ("a file of 60 MB", bytes(60_000_000), "upload_too_large"),
        ("eleven minutes of audio", long.read_bytes(), "upload_too_long"),
    )
    jobs = await job_count(tour)
    lines = []
    for what, data, code in files:
        form = aiohttp.FormData({"max_shorts": "10"})
        form.add_field("audio_file", data, filename="voice.mp3", content_type="audio/mpeg")
        began = time.monotonic()
        problem = (await tour.call("POST", "/make-video", data=form)).expect(400)
        took = (time.monotonic() - began) * 1000
        if problem["code"] != code:
            raise StepFailed(f"{what}: expected {code}, got {problem}")
        lines.append(f"{what}: 400 {code} in {took:.0f} ms\n  {problem['detail']}")
    if await job_count(tour) != jobs:
        raise StepFailed("a rejected upload created a job")
    return "\n".join([*lines, f"none of them reached the app: {jobs} jobs before and after"])


async def follow_job(tour: Tour) -> str:
    """GET /jobs/{id} until the job is completed."""
    job = await tour.follow(tour.video_job, "make the video")
    done = [name for name, stage in job["stages"].items() if stage["status"] == "completed"]
    if len(done) != len(STAGES):
        raise StepFailed(f"only these stages are completed: {', '.join(done)}")
    return f"completed, all {len(done)} stages; result at {job['result']['video_url']}"


async def fetch_video(tour: Tour) -> str:
    """GET /download/{id}: the video must be as long as the audio."""
    reply = await tour.call("GET", f"/download/{tour.video_job}")
    if reply.status != 200:
        raise StepFailed(f"expected status 200, got {reply.status}: {reply.body[:300]!r}")
    path = tour.world.folder / "video.mp4"
    path.write_bytes(reply.body)
    media = await asyncio.to_thread(inspect, path)
    if not (media.video and media.audio and abs(media.duration - AUDIO_SECONDS) < 1.0):
        raise StepFailed(f"unexpected video: {media}")
    return (
        f"{media.size / 1000:.0f} kB, {media.width}x{media.height}, {media.duration:.1f} s,"
        " with picture and sound"
    )


async def survive_redis(tour: Tour) -> str:
    """Kill Redis while a job runs: status requests are still answered, and every job returns."""
    form = aiohttp.FormData({"max_shorts": "10"})
    voice = (tour.world.folder / "voice.mp3").read_bytes()
    form.add_field("audio_file", voice, filename="voice.mp3", content_type="audio/mpeg")
    running = (await tour.call("POST", "/make-video", data=form)).expect(202)["job_id"]
    before = await job_count(tour)
    await tour.world.kill_redis()
    asked = time.monotonic()
    reply = await tour.call("GET", f"/jobs/{running}")
    answered_in = time.monotonic() - asked
    status = reply.expect(200)["status"]
    if reply.headers.get("X-Job-Source") != "sqlite":
        raise StepFailed(f"the mirror should have answered; headers: {reply.headers}")
    refused = await tour.call("POST", "/download", data={"query": "x", "max_shorts": "1"})
    problem = refused.expect(503)
    await tour.world.start_redis()
    started = time.monotonic()
    while (after := await job_count(tour)) < before:
        if time.monotonic() - started > 20:
            raise StepFailed(f"of {before} jobs only {after} are back after 20 s")
        await asyncio.sleep(0.02)
    back_in = time.monotonic() - started
    (await tour.call("GET", f"/jobs/{tour.video_job}")).expect(200)
    # Celery's queue was lost as well: without it the app would accept a job that no worker gets.
    search = {"query": "motivacao", "max_shorts": "10"}
    new = (await tour.call("POST", "/download", data=search)).expect(202)["job_id"]
    await tour.follow(new, "a new job")
    given = len(tour.log_lines(lambda line: line.get("message") == "job requeued"))
    return (
        f"Redis killed with {before} jobs in it, job {running} running\n"
        f"GET /jobs/{running}: {status!r}, from SQLite as of {reply.headers['X-Job-As-Of']},"
        f" in {answered_in * 1000:.0f} ms\n"
        f"a new job is rejected instead of lost: 503 {problem['code']}\n"
        f"Redis started empty: {after} of {before} jobs back after {back_in:.2f} s\n"
        f"Celery's queue is back, too: new job {new} was accepted and completed\n"
        f"jobs requeued because the worker's own Redis breaker had discarded their message: {given}"
    )


async def kill_worker(tour: Tour) -> str:
    """Kill the worker in the middle of a job: the next worker gets the job."""
    form = aiohttp.FormData({"max_shorts": "10"})
    voice = (tour.world.folder / "voice.mp3").read_bytes()
    form.add_field("audio_file", voice, filename="voice.mp3", content_type="audio/mpeg")
    job_id = (await tour.call("POST", "/make-video", data=form)).expect(202)["job_id"]
    started = time.monotonic()
    while (await tour.call("GET", f"/jobs/{job_id}")).expect(200)["status"] == "queued":
        if time.monotonic() - started > 30:
            raise StepFailed(f"no worker has started {job_id} after 30 s")
        await asyncio.sleep(0.1)
    await tour.world.children["worker"].kill()
    killed = time.monotonic()
    await tour.world.children["worker"].start()
    await tour.follow(job_id, "after the kill")
    took = time.monotonic() - killed
    found = tour.log_lines(
        lambda line: line.get("message") == "job requeued" and line.get("job_id") == job_id
    )
    if len(found) != 1:
        raise StepFailed(f"the message should have been requeued once: {found}")
    return (
        f"worker killed during job {job_id}; its message stayed in `unacked`\n"
        f"requeued after proof that no worker has it ({found[0]['reason']}):\n"
        f"{found[0]['evidence']}\n"
        f"completed {took:.1f} s after the kill; the real service would have waited an hour"
    )


async def trip_breaker(tour: Tour) -> str:
    """youtube-search dies: a few failures, then immediate 503s, then recovery by probes."""
    world, service = tour.world, "youtube-search"
    tour.trip_correlation_id = tour.correlation_id
    url = world.at.url("EGRESS_YOUTUBE_SEARCH") + "/health"
    headers = {"X-Correlation-ID": tour.correlation_id}

    async def call() -> tuple[Reply, float]:
        began = time.monotonic()
        async with tour.http.get(url, headers=headers) as answer:
            reply = Reply(answer.status, dict(answer.headers), await answer.read())
        return reply, time.monotonic() - began

    async def breaker() -> dict[str, Any]:
        async with tour.http.get(world.at.url("ADMIN") + "/api/breakers") as answer:
            rows = (await answer.json())["breakers"]
        return next(dict(row) for row in rows if row["name"] == service)

    await world.children[service].kill()
    saw = []
    while (reply := (await call())[0]).status == 502:
        saw.append(f"{service} is dead: 502 {reply.expect(502)['code']}")
        if len(saw) > 5:
            raise StepFailed(f"the circuit should be open by now: {await breaker()}")
    refused, took = await call()
    problem = refused.expect(503)
    if problem["code"] != "circuit_open" or "Retry-After" not in refused.headers:
        raise StepFailed(f"unexpected rejection: {problem}")
    saw.append(
        f"circuit open: 503 {problem['code']} in {took * 1000:.1f} ms,"
        f" Retry-After: {refused.headers['Retry-After']}\n{problem['detail']}"
    )
    await world.children[service].start()
    started = time.monotonic()
    good = 0
    while (row := await breaker())["state"] != "closed":
        if time.monotonic() - started > 15:
            raise StepFailed(f"the circuit should be closed by now: {row}")
        good += (await call())[0].status == 200
        await asyncio.sleep(0.05)
    healed = time.monotonic() - started
    (await call())[0].expect(200)
    saw.append(f"{service} started again: {good} probes passed, closed after {healed:.1f} s")
    return "\n".join(saw)


async def show_timelines(tour: Tour) -> str:
    """`trace` of the failed calls and of the video's job: cause and timeline, by ID."""
    saw = []
    for wanted, expected in ((tour.trip_correlation_id, "circuit_open"), (tour.video_job, None)):
        async with tour.http.get(f"{tour.world.at.url('ADMIN')}/api/trace/{wanted}") as answer:
            if answer.status != 200:
                raise StepFailed(f"no trace of {wanted}: {await answer.text()}")
            story = await answer.json()
        cause = story["suspected_cause"]
        if (cause and cause["kind"]) != expected:
            raise StepFailed(f"expected the cause {expected}, found {cause}")
        events = [event for event in story["events"] if event["kind"] != "read"]
        saw.append(f"$ reliability-proxy trace {wanted}")
        saw.append(f"suspected cause: {cause['summary']}" if cause else "nothing wrong")
        saw += [f"  {event['at'][11:23]} {event['summary']}" for event in events[:_EVENTS]]
        saw.append(f"  ... {len(events)} events in all")
    return "\n".join(saw)


async def job_count(tour: Tour) -> int:
    """The number of job documents in Redis; 0 while it is unreachable."""
    client = Redis.from_url(tour.world.redis.url, socket_timeout=2)
    try:
        return len([key async for key in client.scan_iter("make_video:job:*", count=1000)])
    except RedisError:
        return 0
    finally:
        await client.aclose()


async def show_log(tour: Tour) -> str:
    """The proxy's access log: the upload by its correlation ID, and the egress calls."""
    wanted = tour.upload_correlation_id
    deadline = time.monotonic() + 5.0  # lines are written in batches
    while not (uploads := tour.log_lines(lambda line: _is_access(line, wanted))):
        if time.monotonic() > deadline:
            raise StepFailed(f"no access line has correlation ID {wanted}")
        await asyncio.sleep(0.05)
    egress = tour.log_lines(
        lambda line: (
            _is_access(line)
            and line["listener"] != "ingress"
            and line.get("path") != "/health"  # the tour's own
        )
    )
    services = sorted({line["listener"] for line in egress})
    if len(services) != 3:
        raise StepFailed(f"calls to all three microservices should be logged, only {services} are")
    last = {line["listener"]: line for line in egress}
    return "\n".join(
        [
            *(_access_text(line) for line in uploads),
            f"and {len(egress)} calls by the worker, with the ID of their job if it is unambiguous"
            " (the app sends none); the last one to each service:",
            *(_access_text(last[name]) for name in services),
        ]
    )


async def show_errors(tour: Tour) -> str:
    """The proxy's own errors are application/problem+json with a correlation ID."""
    reply = await tour.call("PUT", f"/jobs/{tour.video_job}", correlate=False)
    problem = reply.expect(405)
    if "application/problem+json" not in reply.headers.get("Content-Type", ""):
        raise StepFailed(f"not a problem document: {reply.headers}")
    if problem["code"] != "method_not_allowed" or "Allow" not in reply.headers:
        raise StepFailed(f"unexpected problem: {problem}")
    return f"405, Allow: {reply.headers['Allow']}\n{json.dumps(problem, ensure_ascii=False)}"


async def show_metrics(tour: Tour) -> str:
    """http_requests_total of the upload's route."""
    async with tour.http.get(tour.world.metrics) as answer:
        page = await answer.text()
    lines = [
        line
        for line in page.splitlines()
        if line.startswith("http_requests_total{") and 'endpoint="create-video"' in line
    ]
    if not any('status="202"' in line and float(line.rsplit(" ", 1)[1]) >= 1 for line in lines):
        raise StepFailed(f"the upload is not counted; found: {lines or 'nothing'}")
    return "\n".join(lines)


def _is_access(line: dict[str, Any], correlation_id: str | None = None) -> bool:
    return (
        "listener" in line
        and "status" in line
        and (correlation_id is None or line.get("correlation_id") == correlation_id)
    )


def _access_text(line: dict[str, Any]) -> str:
    names = ("listener", "method", "path", "status", "duration_ms", "upstream", "correlation_id")
    return "  " + " ".join(f"{name}={line.get(name)}" for name in names)
