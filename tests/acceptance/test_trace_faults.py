"""Faults, one after the other, in the demo's world: `trace ID` names each of them.

Everything is real: the proxy's process, Redis, the stand-ins. Nothing here looks into the proxy;
it is asked as an operator asks it.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
import pytest_asyncio

from proxy.demo import world as worlds
from proxy.demo.media import make_audio
from proxy.demo.redis_server import free_port
from proxy.demo.world import World

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]


class Operator:
    """Somebody with a terminal, and the client who complains."""

    def __init__(self, world: World, http: aiohttp.ClientSession) -> None:
        self.world = world
        self.http = http
        self.voice = b""

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, Any, str]:
        """Status, JSON and correlation ID of one request of the client's."""
        correlation_id = f"client-{uuid4()}"
        headers = {"X-Correlation-ID": correlation_id}
        url = self.world.ingress + path
        async with self.http.request(method, url, headers=headers, **options) as answer:
            body = await answer.read()
        return answer.status, json.loads(body) if body else None, correlation_id

    async def upload(self, data: bytes | None = None) -> tuple[int, Any, str]:
        """POST /make-video."""
        form = aiohttp.FormData({"max_shorts": "10"})
        form.add_field("audio_file", data or self.voice, filename="v.mp3")
        return await self.ask("POST", "/make-video", data=form)

    async def search(self) -> tuple[int, Any, str]:
        """POST /download."""
        return await self.ask("POST", "/download", data={"query": "motivacao", "max_shorts": "10"})

    async def job(self, job_id: str) -> dict[str, Any]:
        """The job as the client sees it."""
        return dict((await self.ask("GET", f"/jobs/{job_id}"))[1])

    async def until(self, job_id: str, *statuses: str) -> dict[str, Any]:
        """Poll until the job has one of these statuses."""
        found: dict[str, Any] = {}

        async def there() -> bool:
            found.clear()
            found.update(await self.job(job_id))
            return found.get("status") in statuses

        await eventually(there, f"{job_id} {' or '.join(statuses)}")
        return found

    async def trace(self, *arguments: str) -> tuple[int, str]:
        """Exit code and output of `reliability-proxy trace ...`."""
        admin = self.world.at.url("ADMIN")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "proxy", "trace", *arguments, "--admin", admin),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode()

    async def cause(self, wanted: str) -> dict[str, Any]:
        """The suspected cause in a timeline; `{}` for none."""
        code, output = await self.trace(wanted, "--json")
        assert code == 0, output
        timeline = json.loads(output)
        cause = timeline["suspected_cause"]
        if cause is not None:
            assert timeline["events"][cause["event"]]["at"] == cause["at"]
        return cause or {}

    async def named(self, wanted: str, kind: str, *words: str) -> None:
        """Wait until `trace` names this cause, in JSON and then on the terminal: between the two a
        job that waits may have become a stranded one."""

        async def is_named() -> bool:
            if (await self.cause(wanted)).get("kind") != kind:
                return False
            code, output = await self.trace(wanted)
            assert code == 0
            lines = [one for one in output.splitlines() if one.startswith("suspected cause: ")]
            return len(lines) == 1 and all(word in lines[0] for word in words)

        try:
            await eventually(is_named, kind)
        except AssertionError:
            raise AssertionError(f"{kind}: {(await self.trace(wanted))[1]}") from None

    @asynccontextmanager
    async def trouble(self, service: str, **trouble: Any) -> AsyncIterator[None]:
        """A microservice that fails or is slow on purpose."""
        url = self.world.at.url(service.upper().replace("-", "_")) + "/_control"
        async with self.http.post(url, json=trouble):
            pass
        try:
            yield
        finally:
            async with self.http.post(url, json={}):
                pass

    @asynccontextmanager
    async def without(self, child: str) -> AsyncIterator[None]:
        """A process killed, and started again afterwards."""
        await self.world.children[child].kill()
        try:
            yield
        finally:
            await self.world.children[child].start()

    async def is_waiting(self) -> bool:
        """Whether a request on the route to the app's health is under way."""
        async with self.http.get(self.world.metrics) as answer:
            page = await answer.text()
        wanted = 'proxy_requests_in_flight{endpoint="service",listener="ingress"} 1.0'
        return wanted in page

    async def reload_mistyped(self) -> None:
        """A reload of a config with a typing mistake, which is mended afterwards."""
        text = worlds.CONFIG.read_text()
        worlds.CONFIG.write_text(text.replace("path: /health", "paht: /status"))
        try:
            url = self.world.at.url("ADMIN") + "/api/reload"
            async with self.http.post(url, json={}) as answer:
                assert answer.status == 422
        finally:
            worlds.CONFIG.write_text(text)

    async def reset(self, service: str) -> None:
        """Close a circuit by hand, for whoever comes next."""
        url = f"{self.world.at.url('ADMIN')}/api/breakers/{service}/reset"
        async with self.http.post(url, json={}):
            pass


async def eventually(check: Callable[[], Awaitable[bool]], what: str, limit: float = 60) -> None:
    """Poll until `check` holds; fails after `limit` seconds."""
    deadline = asyncio.get_running_loop().time() + limit
    while not await check():
        assert asyncio.get_running_loop().time() < deadline, f"not within {limit} s: {what}"
        await asyncio.sleep(0.1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def operator(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Operator]:
    """The demo, up, with some videos found; jobs count as stuck after two seconds."""
    folder = tmp_path_factory.mktemp("faults")
    config = folder / "demo.yaml"
    text = worlds.CONFIG.read_text()
    assert "stuck_after: 1m" in text
    config.write_text(text.replace("stuck_after: 1m", "stuck_after: 2s"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worlds, "CONFIG", config)
        # Not the usual ports: a demo that somebody starts meanwhile would take them for its own.
        ports = {name: free_port() for name in worlds._PREFERRED}
        patch.setattr(worlds, "choose_ports", lambda: worlds.Addresses(ports))
        async with World() as world, aiohttp.ClientSession() as http:
            operator = Operator(world, http)
            path = folder / "voice.mp3"
            await asyncio.to_thread(make_audio, path, 10.0)
            operator.voice = path.read_bytes()
            status, answer, _ = await operator.search()
            assert status == 202
            await operator.until(answer["job_id"], "completed")
            yield operator


async def test_no_fault_no_suspect(operator: Operator) -> None:
    """A job that goes well: the whole timeline, no cause, the same by either ID."""
    status, answer, correlation_id = await operator.upload()
    assert status == 202
    job_id = answer["job_id"]
    await operator.until(job_id, "completed")
    assert await operator.cause(job_id) == {}
    by_job = json.loads((await operator.trace(job_id, "--json"))[1])
    by_correlation = json.loads((await operator.trace(correlation_id, "--json"))[1])
    assert (by_job["kind"], by_correlation["kind"]) == ("job", "correlation")
    assert by_correlation["job_ids"] == [job_id]
    assert correlation_id in by_job["correlation_ids"]
    printed = (await operator.trace(job_id))[1]
    for words in (
        f"POST /make-video: 202, {job_id} accepted, and stored",
        "upload accepted: audio/mpeg",
        "stage generate_subtitles completed",
        "call of audio-transcriber: POST /jobs: 200",
        "job completed",
    ):
        assert words in printed


async def test_dead_microservice(operator: Operator) -> None:
    """youtube-search is dead: named, by the jobs that failed for it; the second one also tells of
    the circuit that opened."""
    printed = "youtube-search could not be reached"
    async with operator.without("youtube-search"):
        for words in (printed, "its circuit opened at"):
            job_id = (await operator.search())[1]["job_id"]
            await operator.until(job_id, "failed")
            await operator.named(job_id, "service_down", printed, words, job_id)
    await operator.reset("youtube-search")


async def test_slow_microservice(operator: Operator) -> None:
    """audio-transcriber takes seconds for each answer: named, though the job was completed."""
    async with operator.trouble("audio-transcriber", delay=2.2):
        job_id = (await operator.upload())[1]["job_id"]
        await operator.until(job_id, "completed")
    await operator.named(job_id, "service_slow", "audio-transcriber was slow")


async def test_flapping_microservice(operator: Operator) -> None:
    """video-downloader answers 503 now and then: named, though the job went on."""
    async with operator.trouble("video-downloader", fail_next=1, status=503):
        job_id = (await operator.search())[1]["job_id"]
        await operator.until(job_id, "completed")
    await operator.named(job_id, "service_errors", "video-downloader answered 503")
    async with operator.trouble("youtube-search", fail_next=100, status=503):
        job_id = (await operator.search())[1]["job_id"]
        await operator.until(job_id, "failed")
        await operator.named(job_id, "service_errors", "youtube-search answered 503")
    await operator.reset("youtube-search")


async def test_bad_upload(operator: Operator) -> None:
    """A PDF called voice.mp3: refused, and why."""
    status, _, correlation_id = await operator.upload(b"%PDF-1.7\n" + bytes(100_000))
    assert status == 400
    await operator.named(correlation_id, "upload_refused", "application/pdf")


async def test_stuck_stage(operator: Operator) -> None:
    """The worker is killed in the middle: the stage that the job is stuck in is named."""
    job_id = (await operator.upload())[1]["job_id"]
    await operator.until(job_id, "processing")
    async with operator.without("worker"):
        await operator.named(job_id, "stuck_stage", job_id, "without a change for")


async def test_nobody_takes_the_job(operator: Operator) -> None:
    """No worker: the job waits, and that is said."""
    async with operator.without("worker"):
        job_id = (await operator.upload())[1]["job_id"]
        await operator.named(job_id, "unattended", "in the queue", "no worker is connected")
    await operator.until(job_id, "completed")


async def test_redis_restarts_empty(operator: Operator) -> None:
    """A job that ran meanwhile shows the loss; one that was refused meanwhile says why."""
    job_id = (await operator.upload())[1]["job_id"]
    await operator.world.kill_redis()
    try:
        while (answered := await operator.upload())[0] != 503:
            assert answered[0] == 500  # the app's own word, until the mirror has noticed as well
        refused = answered[2]
        polled = (await operator.ask("GET", f"/jobs/{job_id}"))[2]
    finally:
        await operator.world.start_redis()
    await operator.named(refused, "job_not_stored", "Redis could not be reached")
    await operator.named(polled, "redis_lost", "Redis was lost at", "put back")


async def test_app_restarts(operator: Operator) -> None:
    """Connections were refused for a while, and the request got through: that is where its time
    went."""
    async with operator.without("make-video"):
        asking = asyncio.create_task(operator.ask("GET", "/health"))
        began = time.monotonic()

        async def waits_for_long() -> bool:
            return await operator.is_waiting() and time.monotonic() > began + 0.5

        await eventually(waits_for_long, "a request that waits for the app, and is worth telling")
    status, _, correlation_id = await asking
    assert status == 200
    await operator.named(correlation_id, "service_restarting", "make-video refused connections")


async def test_wrong_config(operator: Operator) -> None:
    """A typing mistake in the file: the new route is not there, and the cause is the mistake."""
    await operator.reload_mistyped()
    status, _, correlation_id = await operator.ask("GET", "/status")
    assert status == 404
    await operator.named(correlation_id, "reload_refused", "paht")
    assert "reload refused" in (await operator.trace("--severity", "error"))[1]


async def test_full_disk(operator: Operator) -> None:
    """No file of the proxy's may grow (as on a full disk): jobs are not confirmed, and that is
    named, although the trace cannot be written either."""
    pid = operator.world.children["proxy"].pid
    assert pid is not None
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        assert (await operator.upload())[0] == 503  # it has nowhere to wait for its verdict
        status, answer, correlation_id = await operator.search()
        assert status == 202
        await operator.named(correlation_id, "store_cannot_write", "cannot write jobs")
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    await operator.until(answer["job_id"], "completed")


async def test_an_unknown_id(operator: Operator) -> None:
    """Exit code 1, and where to look next."""
    code, output = await operator.trace("mv_0000000000")
    assert code == 1
    assert "Nothing is known of this ID" in output
    assert "reliability-proxy jobs list" in output


async def test_the_latest_trouble(operator: Operator) -> None:
    """Without an ID: what went wrong lately, newest first, each with the ID to go on with."""
    refused = (await operator.upload(b"%PDF-1.7\n" + bytes(100_000)))[2]
    await operator.reload_mistyped()
    code, output = await operator.trace("--limit", "3", "--json")
    assert code == 0
    newest, *older = json.loads(output)["events"]
    assert (newest["source"], newest["kind"]) == ("proxy", "reload_refused")
    assert {event["correlation_id"] for event in older} == {refused}
    code, output = await operator.trace("--severity", "error", "--limit", "500", "--json")
    events = json.loads(output)["events"]
    assert [e["at"] for e in events] == sorted((e["at"] for e in events), reverse=True)
    assert {e["severity"] for e in events} == {"error"}


async def test_the_proxy_is_well(operator: Operator) -> None:
    """After all of that, its log has no traceback."""
    log = await asyncio.to_thread(Path(operator.world.proxy_log).read_text)
    assert "Traceback" not in log
