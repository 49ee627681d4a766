"""The status page's endpoints over real connections: snapshots, the stream, and who may look."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import aiohttp
import pytest

from proxy.admin.status import sampler as sampler_module
from proxy.admin.status.page import HEADERS
from proxy.admin.status.snapshot import Sources
from proxy.core.clock import ManualClock
from proxy.core.redis.client import connect
from proxy.core.vitals import Vitals
from proxy.demo.redis_server import RedisServer
from proxy.forward.watch import UpstreamWatch
from proxy.jobs.service import Mirrors
from proxy.jobs.store.schema import StoreSilent
from proxy.resilience.circuit.registry import BreakerRegistry
from proxy.telemetry.metrics.registry import Metrics
from tests.http1.client import RawClient
from tests.http1.message import PATIENCE, Request
from tests.http1.process import ProxyProcess, free_port
from tests.http1.site import get
from tests.http1.upstream import Connection, Upstream, ok
from tests.jobs_kit import PREFIX, eventually, job, settings
from tests.status_site import TOKEN, FakeProxy, Site, redis_config
from tests.telemetry_facts import Facts


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """Without token, mirrors and traces."""
    async with Site() as site:
        yield site


async def until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds; fails after 10 s."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.005)


async def event(answer: aiohttp.ClientResponse) -> tuple[str, Any]:
    """The next event: its kind and its document."""
    kind, data = "", None
    async with asyncio.timeout(PATIENCE):
        while line := (await answer.content.readline()).decode():
            line = line.rstrip("\n")
            if line.startswith("event: "):
                kind = line[7:]
            elif line.startswith("data: "):
                data = json.loads(line[6:])
            elif not line and kind:
                return kind, data
    raise EOFError


async def test_a_snapshot_has_everything(site: Site) -> None:
    """Routes with their figures, upstreams with their breaker, health, and no job where there is
    no mirror."""
    site.metrics.upstream("search")
    site.sampler._snapshots.record()
    site.count(200, 200, 200, 503)
    site.count(200, listener="back")
    found = await site.snapshot()
    front, back = found["routes"]
    assert (front["requests"], front["errors"], front["error_share"]) == (4, 1, 0.25)
    assert (back["requests"], back["errors"]) == (1, 0)
    assert front["p50"] == pytest.approx(0.35)
    (search,) = found["upstreams"]
    assert search["requests"] == 5
    assert search["breaker"]["state"] == "closed"
    assert 0.1 < search["p95"] < 0.2  # the upstream's own time, not the exchange's
    assert found["health"]["sentence"] == "All good."
    assert found["jobs"] == {"problem": None, "list": []}
    assert found["traces"] is False
    site.proxy.state = "draining"
    await site.breakers.force("search", "open", "quota", 60.0)
    found = await site.snapshot()
    assert found["health"]["level"] == "error"
    assert [f["kind"] for f in found["health"]["findings"]] == [
        "not_serving",
        "circuit_forced_open",
    ]


async def test_requests_that_no_route_matched_are_shown(site: Site) -> None:
    """A wrong path in somebody's config is to be seen; before it happens there is no such line."""
    assert [one["route"] for one in (await site.snapshot())["routes"]] == ["all", "all"]
    counters = site.metrics.route("front", "-", "ingress", "-")
    counters.begin()
    counters.record(replace(Facts(), status=404))
    last = (await site.snapshot())["routes"][-1]
    assert (last["route"], last["listener"], last["path"]) == ("-", "front", None)


async def test_the_stream_begins_with_all_points(site: Site) -> None:
    """Points, then snapshots; later only what is new of the points."""
    site.count(200)
    await until(lambda: site.sampler._snapshots.history.steps > 3)
    async with site.stream() as answer:
        assert answer.content_type == "text/event-stream"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Correlation-ID"]
        kind, points = await event(answer)
        assert kind == "points"
        assert len(points["series"]["route:front/all"]) == points["last"] - 1
        kind, snapshot = await event(answer)
        assert kind == "snapshot"
        assert snapshot["version"]
        while True:
            kind, more = await event(answer)
            if kind == "points":
                break
        assert len(more["series"]["route:front/all"]) == more["last"] - points["last"]
    status, body, _ = await site.get(f"/api/status/points?since={points['last']}")
    assert status == 200
    assert json.loads(body)["last"] >= more["last"]


async def test_nobody_looks_and_nothing_is_sampled(site: Site) -> None:
    """The sampler begins with the first viewer, is one for all, and ends with the last."""
    assert not site.sampler.sampling
    async with site.stream() as first:
        await event(first)
        assert site.sampler.sampling
        sampler = site.sampler._sampler
        async with site.stream() as second:
            await event(second)
            assert site.sampler._sampler is sampler
            assert site.sampler.viewers == 2
        await until(lambda: site.sampler.viewers == 1)
        assert site.sampler.sampling
    await until(lambda: site.sampler.viewers == 0)
    assert not site.sampler.sampling
    async with site.stream() as again:
        assert (await event(again))[0] == "points"


async def test_a_sampler_that_died_begins_anew(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A mistake of ours is logged, and the streams that are open go on when it is over."""
    async with site.stream() as first:
        await event(first)
        with monkeypatch.context() as broken:
            broken.setattr(site.sampler._snapshots, "take", lambda jobs: 1 / 0)
            await until(lambda: "background task died" in caplog.text)
        assert (await event(first))[0] in ("points", "snapshot")
        async with site.stream() as second:
            assert (await event(second))[0] == "points"
            assert (await event(second))[0] == "snapshot"


async def test_viewers_are_bounded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many gets 503 with `Retry-After`; when one leaves there is room again."""
    monkeypatch.setattr(sampler_module, "MOST_VIEWERS", 2)
    async with AsyncExitStack() as stack:
        for _ in range(2):
            await event(await stack.enter_async_context(site.stream()))
        status, body, headers = await site.get("/api/status/stream")
        assert (status, json.loads(body)["code"]) == (503, "overloaded")
        assert int(headers["Retry-After"]) > 0
    await until(lambda: site.sampler.viewers == 0)
    async with site.stream() as answer:
        await event(answer)


async def test_a_viewer_that_does_not_read_is_dropped() -> None:
    """Its place is free again, and memory does not grow for it; who reads is not harmed."""
    async with Site(write_limit=0.2, tick=0.001) as site:
        site.sampler._snapshots.take = lambda jobs: {"x": "y" * 200_000}  # type: ignore[method-assign]
        door = site.servers.addresses[0]
        _reader, writer = await asyncio.open_connection(door.host, door.port, limit=1024)
        writer.write(b"GET /api/status/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await until(lambda: site.sampler.viewers == 1)
        await until(lambda: site.sampler.viewers == 0)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        async with site.stream() as answer:
            await event(answer)


async def test_stopping_ends_the_streams(site: Site) -> None:
    """The proxy's end does not wait for those who look."""
    async with site.stream() as answer:
        await event(answer)
        await site.sampler.stop()
        await answer.read()  # it has an end
    assert site.sampler.viewers == 0
    assert not site.sampler.sampling


async def test_the_page_and_its_files_are_locked_up(site: Site) -> None:
    """Each comes with the policy that lets nothing else run; other names are 404."""
    status, body, headers = await site.get("/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert b"<main" in body
    for path, kind in (("main.js", "text/javascript"), ("style.css", "text/css")):
        status, _, more = await site.get(f"/status/{path}")
        assert (status, more["Content-Type"]) == (200, f"{kind}; charset=utf-8")
        for name, value in HEADERS.items():
            assert more[name] == headers[name] == value
        assert more["X-Content-Type-Options"] == "nosniff"
    for path in ("/status/", "/status/page.py", "/status/..%2fpage.py", "/status/a/b"):
        assert (await site.get(path))[0] == 404


async def test_the_read_only_door_has_no_page(site: Site) -> None:
    """Prometheus' door shows nothing of it."""
    for path in ("/", "/status/main.js", "/api/status", "/api/status/stream"):
        assert (await site.get(path, door=1))[0] == 404


async def test_the_token_guards_what_the_page_shows() -> None:
    """The page itself can be loaded, to ask for the token; every figure needs it."""
    async with Site(token=TOKEN) as site:
        assert (await site.get("/"))[0] == 200
        assert (await site.get("/status/main.js"))[0] == 200
        for path in ("/api/status", "/api/status/points", "/api/status/stream"):
            assert (await site.get(path))[0] == 401
            assert (await site.get(path, Authorization="Bearer wrong"))[0] == 401
        async with site.stream(Authorization=f"Bearer {TOKEN}") as answer:
            assert (await event(answer))[0] == "points"


@pytest.mark.parametrize(
    "target",
    [
        "/status/../api/status", "/status/%2e%2e/api/status", "/status/..%2fapi/status",
        "/status//../api/status", "/status/.%2E/api/config", "//api/status", "/./api/status",
    ],
)  # fmt: skip
async def test_no_way_around_the_token(target: str) -> None:
    """A path that begins like a file of the page and means something else opens nothing."""
    async with Site(token=TOKEN) as site:
        door = site.servers.addresses[0]
        reader, writer = await asyncio.open_connection(door.host, door.port)
        writer.write(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        status = (await reader.readline()).split()[1]
        writer.close()
        await writer.wait_closed()
        assert status in (b"401", b"404")


async def test_pages_of_other_sites_take_no_place(site: Site) -> None:
    """A browser that says where a request comes from is believed."""
    for where in ("cross-site", "same-site"):
        status, body, _ = await site.get("/api/status/stream", **{"Sec-Fetch-Site": where})
        assert (status, json.loads(body)["code"]) == (403, "forbidden")
    async with site.stream(**{"Sec-Fetch-Site": "same-origin"}) as answer:
        await event(answer)


@pytest.mark.parametrize("path", ["/api/status?x=1", "/api/status/points?since=-1"])
async def test_odd_questions_are_refused(site: Site, path: str) -> None:
    """As everywhere in the admin API."""
    assert (await site.get(path))[0] == 400


async def test_the_page_knows_whether_traces_are_kept() -> None:
    """It asks for none where no part serves them."""
    async with Site(traces={}) as site:
        assert (await site.snapshot())["traces"] is True


def has_versions(site: Site, statuses: list[str]) -> Callable[[], Awaitable[bool]]:
    """Whether these versions of mv_1 are committed."""

    async def check() -> bool:
        status, body, _ = await site.get("/api/jobs/make_video/mv_1")
        return status == 200 and [v["status"] for v in json.loads(body)["versions"]] == statuses

    return check


async def test_jobs_with_their_stages(redis_server: RedisServer, tmp_path: Path) -> None:
    """Failed jobs with their error and stages, and in full with every version."""
    mirrors = {"make_video": settings(tmp_path / "jobs.db")}
    async with Site(mirrors=mirrors, redis=redis_server) as site:
        stages = {
            "analyze_audio": {
                "display_name": "Analyzing audio",
                "status": "completed",
                "started_at": "2026-11-23T13:21:42-03:00",
                "completed_at": "2026-11-23T13:21:44.5-03:00",
            },
            "load_approved": {"status": "failed", "error_message": "<b>none</b>"},
        }
        client = connect(redis_config(redis_server), client_name="app")
        mirror = site.mirrors.by_name["make_video"]
        await until(lambda: mirror.state()["whole"])
        await client.set(PREFIX + "mv_1", job("mv_1"), ex=1000)
        failed = job("mv_1", "failed", stages=stages, error={"message": "[Job: mv_1] <b>none</b>"})
        await eventually(has_versions(site, ["queued"]), "the first version")
        await client.set(PREFIX + "mv_1", failed, ex=1000)
        await client.aclose()
        await eventually(has_versions(site, ["queued", "failed"]), "both versions")
        rows: list[dict[str, Any]] = []
        async with asyncio.timeout(PATIENCE):
            while not rows or rows[0]["status"] != "failed":
                rows = (await site.snapshot())["jobs"]["list"]
        (row,) = rows
        assert row["error"] == "<b>none</b>"
        assert row["created"] == "2026-11-23T16:21:42.670Z"
        assert row["stages"] == [
            ["analyze_audio", "Analyzing audio", "done", 2.5],
            ["load_approved", "Load approved", "failed", None],
        ]
        status, body, _ = await site.get("/api/jobs/make_video/mv_1")
        shown = json.loads(body)
        assert status == 200
        assert shown["stages"][0]["started"] == "2026-11-23T16:21:42.000Z"
        assert (shown["stages"][0]["seconds"], shown["error"]) == (2.5, "<b>none</b>")


async def test_a_silent_store_costs_no_snapshot(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream goes on, says why jobs are not fresh, and shows those it had."""
    mirrors = {"make_video": settings(tmp_path / "jobs.db")}
    async with Site(mirrors=mirrors, redis=redis_server) as site:
        silent = asyncio.Event()

        async def overview(limit: int) -> Any:
            await silent.wait()
            raise StoreSilent("disk hung")

        monkeypatch.setattr(site.mirrors.by_name["make_video"].inspection, "overview", overview)
        async with site.stream() as answer:
            for _ in range(6):
                await event(answer)
            silent.set()
            while (document := (await event(answer))[1]) is None or not (
                document.get("jobs", {}).get("problem")
            ):
                pass
            assert document["jobs"]["problem"] == "the store does not answer: disk hung"
            assert document["health"]["findings"][-1]["kind"] == "jobs_unknown"


def test_a_proxy_with_viewers_ends_as_asked(tmp_path: Path) -> None:
    """SIGTERM: the stream reports the drain and ends, and the process with it."""
    backend = Upstream()
    backend.handler = gated = Gate()
    front = free_port()
    route = {"name": "all", "path": "/{rest:*}", "upstream": "app"}
    proxy = ProxyProcess(
        tmp_path,
        {
            "listeners": {"front": {"bind": f"127.0.0.1:{front}", "routes": [route]}},
            "upstreams": {"app": {"targets": [backend.url]}},
        },
    )
    try:
        with (
            RawClient(("127.0.0.1", front)) as caller,
            urlopen(
                f"http://127.0.0.1:{proxy.admin_port}/api/status/stream", timeout=PATIENCE
            ) as stream,
        ):
            caller.send_lenient(get("/slow"))  # keeps the drain open
            assert gated.entered.wait(PATIENCE)
            proxy.signal(signal.SIGTERM)
            for line in stream:
                if b'"state":"draining"' in line:
                    break
            else:
                pytest.fail("the stream ended without a word of the drain")
            gated.leave.set()
            assert caller.response("GET").status == 200
            stream.read()  # it has an end
        assert proxy.process.wait(PATIENCE) == 0
        assert "Traceback" not in proxy.output()
    finally:
        gated.leave.set()
        proxy.stop()
        backend.stop()


class Gate:
    """Answers when it is let go."""

    def __init__(self) -> None:
        self.entered, self.leave = threading.Event(), threading.Event()

    def __call__(self, connection: Connection, request: Request) -> None:
        self.entered.set()
        self.leave.wait(PATIENCE)
        ok(connection, request)


def test_the_history_is_recorded_with_a_clock_of_its_own() -> None:
    """Snapshots take the injected clock, so that tests and replays can stand still."""
    metrics = Metrics("1")
    clock = ManualClock()
    breakers = BreakerRegistry({}, registry=metrics.registry)
    mirrors = Mirrors({}, lambda: pytest.fail("no Redis here"), metrics.registry, clock)
    sources = Sources(
        FakeProxy(metrics), metrics, breakers, mirrors, UpstreamWatch(clock), Vitals()
    )
    snapshots = sampler_module.Snapshots(sources, clock)
    snapshots.record()
    clock.advance(30.0)
    taken = snapshots.take({"problem": None, "list": []})
    assert taken["uptime"] == 30.0
    assert taken["started"] == "1970-01-12T13:46:40.000Z"
