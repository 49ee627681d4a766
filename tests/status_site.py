"""The admin doors with the status page, in this process: the proxy and the traces are made up."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
from aiohttp import web

from proxy.admin import problems
from proxy.admin.backend import Check, Readiness, ReloadResult
from proxy.admin.endpoints.breakers import BreakerControl
from proxy.admin.endpoints.jobs import JobControl
from proxy.admin.job_backend import JobBackend
from proxy.admin.server import AdminServers
from proxy.admin.status.page import StatusPage
from proxy.admin.status.sampler import StatusSampler
from proxy.admin.status.snapshot import Sources
from proxy.config import schema
from proxy.config.mirrors import Mirror as MirrorConfig
from proxy.config.schema import Config
from proxy.config.upstreams import Upstream
from proxy.core.clock import SystemClock
from proxy.core.redis.client import connect
from proxy.core.vitals import Vitals
from proxy.demo.redis_server import RedisServer
from proxy.forward.watch import UpstreamWatch
from proxy.jobs.service import Mirrors
from proxy.resilience.circuit.registry import BreakerRegistry
from proxy.telemetry.metrics.registry import Metrics
from tests.http1 import PATIENCE
from tests.telemetry_facts import Facts

TOKEN = "s3cret"


class FakeProxy:
    """A proxy with two routes and one upstream."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.state = "serving"

    starting = False

    def live(self) -> bool:
        return True

    def readiness(self) -> Readiness:
        ready = self.state == "serving"
        return Readiness(ready, {"listeners": Check(ready, self.state)})

    def config(self) -> dict[str, Any]:
        return {}

    def routes(self) -> list[dict[str, Any]]:
        about = {"methods": ["GET"], "upstream": "search", "targets": []}
        return [
            {"listener": "front", "direction": "ingress", "route": "all", "path": "/x", **about},
            {"listener": "back", "direction": "egress", "route": "all", "path": "/y", **about},
        ]

    def upstream_names(self) -> list[str]:
        return ["search"]

    async def reload(self) -> ReloadResult:
        return ReloadResult(True)

    def log_level(self) -> str:
        return "INFO"

    def set_log_level(self, level: str) -> None:
        raise ValueError(level)


def redis_config(server: RedisServer | None) -> schema.Redis:
    """To reach that server."""
    assert server is not None
    return schema.Redis.model_validate({"url": server.url})


class Traces:
    """Stands in for the part that serves traces: those it is given, by ID."""

    def __init__(self, known: dict[str, dict[str, Any]]) -> None:
        self.known = known

    def mount(self, router: web.UrlDispatcher) -> None:
        router.add_get("/api/trace", self.list)
        router.add_get("/api/trace/{id}", self.show)

    async def list(self, request: web.Request) -> web.Response:
        events = [event for trace in self.known.values() for event in trace["events"]]
        return web.json_response({"events": [e for e in events if e["severity"] == "error"]})

    async def show(self, request: web.Request) -> web.Response:
        trace = self.known.get(request.match_info["id"])
        if trace is None:
            raise problems.NotFound("Nothing is kept about this ID")
        return web.json_response(trace)


class Site:
    """Both doors of a proxy, with everything real but the proxy."""

    def __init__(
        self,
        *,
        token: str | None = None,
        mirrors: dict[str, MirrorConfig] | None = None,
        redis: RedisServer | None = None,
        traces: dict[str, dict[str, Any]] | None = None,
        write_limit: float = 5.0,
        tick: float = 0.02,
    ) -> None:
        self.metrics = Metrics("1")
        self.clock = SystemClock()
        upstreams = {
            "search": Upstream.model_validate({"targets": ["http://127.0.0.1:1"], "breaker": {}})
        }
        self.breakers = BreakerRegistry(upstreams, registry=self.metrics.registry)
        self.mirrors = Mirrors(
            mirrors or {},
            lambda: connect(redis_config(redis), client_name="test", protocol=3),
            self.metrics.registry,
            self.clock,
        )
        self.proxy = FakeProxy(self.metrics)
        self.sampler = StatusSampler(
            Sources(
                self.proxy,
                self.metrics,
                self.breakers,
                self.mirrors,
                UpstreamWatch(self.clock),
                Vitals(),
            ),
            self.clock,
            tick=tick,
            step=0.02,
        )
        parts = [
            StatusPage(self.sampler, write_limit=write_limit),
            JobControl(JobBackend(self.mirrors)),
            BreakerControl(self.breakers),
            *([] if traces is None else [Traces(traces)]),
        ]
        self.servers = AdminServers(self.proxy, parts)
        self.config = Config.model_validate(
            {
                "listeners": {
                    "in": {
                        "bind": "127.0.0.1:0",
                        "routes": [{"name": "r", "path": "/", "upstream": "u"}],
                    }
                },
                "upstreams": {"u": {"targets": ["http://127.0.0.1:1"]}},
                "admin": {"bind": "127.0.0.1:0", **({"token": token} if token else {})},
                "metrics": {"bind": "127.0.0.1:0"},
            }
        )

    async def __aenter__(self) -> Site:
        await self.mirrors.start()
        await self.sampler.start()
        await self.servers.start(self.config)
        self.session = aiohttp.ClientSession()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()
        await self.sampler.stop()
        await self.servers.stop()
        await self.mirrors.stop()

    def url(self, path: str, door: int = 0) -> str:
        return f"http://{self.servers.addresses[door]}{path}"

    async def get(self, path: str, door: int = 0, **headers: str) -> tuple[int, bytes, Any]:
        async with self.session.get(self.url(path, door), headers=headers) as answer:
            return answer.status, await answer.read(), answer.headers

    async def snapshot(self) -> dict[str, Any]:
        status, body, _ = await self.get("/api/status")
        assert status == 200
        return dict(json.loads(body))

    @asynccontextmanager
    async def stream(self, **headers: str) -> AsyncIterator[aiohttp.ClientResponse]:
        """The stream, open."""
        async with self.session.get(self.url("/api/status/stream"), headers=headers) as answer:
            assert answer.status == 200, await answer.text()
            yield answer

    def count(self, *statuses: int, listener: str = "front") -> None:
        """Exchanges that ended with these."""
        direction: Any = "egress" if listener == "back" else "ingress"
        tally = self.metrics.route(listener, "all", direction, "search")
        for status in statuses:
            tally.begin()
            tally.record(replace(Facts(), status=status, upstream="search"))


class SiteThread:
    """A `Site` on an event loop of its own, for tests that are not asynchronous."""

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="site")

    def __enter__(self) -> Site:
        self._thread.start()
        return asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(PATIENCE)

    async def _open(self) -> Site:
        self._site = Site(**self._options)
        return await self._site.__aenter__()

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._site.__aexit__(), self._loop).result(PATIENCE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()
