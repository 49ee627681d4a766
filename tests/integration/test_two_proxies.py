"""Two proxies in one process: what happens to one says nothing about the other."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import importlib
import json
import logging
import types
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import prometheus_client
import pytest
from aiohttp import web

import proxy
from proxy.core import tasks
from proxy.core.process.shortage import PORTS
from proxy.embed import CannotReload, ReliabilityProxy
from tests.jobs_kit import eventually

ROOT = Path(proxy.__file__).parent

CONFIG: dict[str, Any] = {
    "listeners": {
        "ingress": {
            "bind": "127.0.0.1:0",
            "routes": [{"name": "all", "path": "/{rest:*}", "upstream": "app"}],
        }
    },
    "upstreams": {"app": {"targets": ["http://127.0.0.1:9"], "breaker": {"failure_threshold": 1}}},
}


def app(date: str | None = None) -> web.Application:
    """An app that fails at `/fail`; `date` is what it believes to be now."""

    async def answer(request: web.Request) -> web.Response:
        headers = {} if date is None else {"Date": date}
        return web.Response(status=500 if request.path == "/fail" else 200, headers=headers)

    made = web.Application()
    made.router.add_route("*", "/{rest:.*}", answer)
    return made


class Pair:
    """Two proxies from one config. Everything happens to `one`."""

    def __init__(self, one: ReliabilityProxy, two: ReliabilityProxy) -> None:
        self.one, self.two = one, two
        self.client = aiohttp.ClientSession()

    async def ask(self, path: str) -> tuple[int, int]:
        """The statuses of both."""
        async with (
            self.client.get(self.one.url("ingress", path)) as first,
            self.client.get(self.two.url("ingress", path)) as second,
        ):
            return first.status, second.status

    async def admin(self, path: str) -> tuple[Any, Any]:
        """What both doors answer."""
        found = []
        for one in (self.one, self.two):
            async with self.client.get(one.admin_url + path) as answer:
                text = await answer.text()
                found.append(json.loads(text) if "json" in answer.content_type else text)
        return found[0], found[1]

    async def metric(self, sample: str) -> tuple[str | None, str | None]:
        """The value of a sample, with its labels, in both."""
        pages = await self.admin("/metrics")
        lines = [dict(line.rsplit(" ", 1) for line in page.splitlines() if line[:1] != "#")
                 for page in pages]  # fmt: skip
        return lines[0].get(sample), lines[1].get(sample)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    date = "Sat, 01 Jan 2000 00:00:00 GMT"
    async with (
        ReliabilityProxy(CONFIG, apps={"app": app(date)}) as one,
        ReliabilityProxy(CONFIG, apps={"app": app()}) as two,
    ):
        made = Pair(one, two)
        yield made
        await made.client.close()


async def test_clocks(pair: Pair) -> None:
    """An app whose clock stands still is a finding for the proxy before it, and for no other."""
    assert await pair.ask("/") == (200, 200)
    one, two = await pair.admin("/api/status")
    assert one["clocks"][0]["ahead"] < -700_000_000
    assert [finding["kind"] for finding in one["health"]["findings"]] == ["clock_skew"]
    assert abs(two["clocks"][0]["ahead"]) < 600, "as far as this machine was held up"
    assert two["health"]["level"] == "ok"


async def test_background_tasks(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that keeps dying is at the door of its own proxy."""
    monkeypatch.setattr(tasks, "PAUSE", (0.01, 0.05))
    (loop,) = [one for one in pair.one._running.vitals.tasks if one.name == "loop-lag"]
    for number in (1, 2):
        await eventually(lambda: loop.state == "running", "it goes on")
        loop.inject(RuntimeError("straw"))
        await eventually(lambda number=number: loop.deaths == number, "it died")
    one, two = await pair.admin("/readyz")
    assert "loop-lag keeps dying" in one["checks"]["tasks"]["detail"]
    assert two["checks"]["tasks"]["ok"]
    assert await pair.metric('proxy_task_deaths_total{task="loop-lag"}') == ("2.0", "0.0")


async def test_shortages(pair: Pair) -> None:
    """What failed for the lack of something is counted and shown where it failed."""
    pair.one._running.vitals.shortages.seen(PORTS, "a test")
    one, two = await pair.admin("/readyz")
    assert f"shortage:{PORTS}" in one["checks"]
    assert f"shortage:{PORTS}" not in two["checks"]
    assert await pair.metric(f'proxy_shortages_total{{reason="{PORTS}"}}') == ("1.0", "0.0")


async def test_breakers_and_metrics(pair: Pair) -> None:
    """A circuit of the same name opens in one alone, and each counts its own requests."""
    async with pair.client.get(pair.one.url("ingress", "/fail")) as answer:
        assert answer.status == 500
    assert await pair.ask("/") == (503, 200)
    one, two = await pair.admin("/api/breakers")
    assert [one["breakers"][0]["state"], two["breakers"][0]["state"]] == ["open", "closed"]
    name = 'http_requests_total{{endpoint="all",method="GET",status="{}"}}'
    assert await pair.metric(name.format(503)) == ("1.0", None)
    assert await pair.metric(name.format(200)) == (None, "1.0")


async def test_reloads_and_logs(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    """A reload, refused or not, is its own; so is the level."""
    caplog.set_level(logging.INFO)
    with pytest.raises(CannotReload):
        await pair.one.reload({"listeners": {}})
    await pair.one.reload(CONFIG | {"logging": {"level": "ERROR"}})
    caplog.clear()
    assert await pair.ask("/seen") == (200, 200)
    lines = [one for one in caplog.records if one.name == "proxy.access"]
    assert len(lines) == 1
    assert await pair.metric('proxy_config_reloads_total{result="refused"}') == ("1.0", "0.0")
    assert await pair.metric('proxy_config_reloads_total{result="ok"}') == ("1.0", "0.0")


async def test_the_end(pair: Pair) -> None:
    """One drains and stops; the other answers on, and is ready."""
    await pair.one.stop()
    async with pair.client.get(pair.two.url("ingress", "/")) as answer:
        assert answer.status == 200
    async with pair.client.get(f"{pair.two.admin_url}/readyz") as answer:
        assert answer.status == 200
        assert all(check["ok"] for check in (await answer.json())["checks"].values())


def test_each_may_have_a_thread_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an event loop of its own; what they share is nobody's more than once."""
    monkeypatch.setattr("proxy.core.headers._random", [])
    seen: list[str] = []

    async def ask() -> None:
        async with (
            ReliabilityProxy(CONFIG, apps={"app": app()}) as one,
            aiohttp.ClientSession(one.url("ingress")) as client,
        ):
            for _ in range(100):
                async with client.get("/") as answer:
                    assert answer.status == 200
                    seen.append(answer.headers["X-Correlation-ID"])

    with ThreadPoolExecutor(3) as threads:
        for done in [threads.submit(asyncio.run, ask()) for _ in range(3)]:
            done.result()
    assert len(set(seen)) == 300


async def test_the_metrics_of_the_program(pair: Pair) -> None:
    """They are written out as ever; ours have no `_created` series."""
    registry = prometheus_client.CollectorRegistry()
    prometheus_client.Counter("mine", "The program's", registry=registry).inc()
    await pair.ask("/")
    assert b"mine_created" in prometheus_client.generate_latest(registry)
    assert "_created " not in (await pair.admin("/metrics"))[0]


#: Module-level objects that change, or might, each with the reason why proxies may share it.
SHARED = {
    "proxy.resilience.circuit.fleet.store._digests": "digests of scripts, the same for all",
    "proxy.core.headers._random": "random numbers, each taken once",
    "proxy.forward.exchange._NO_BODY": "has no state",
    "proxy.forward.outcome._NO_OP": "has no state",
    "proxy.demo.ports._reservations": "ports are the machine's",
    "proxy.uploads.form.reader.PART_END": "has no state",
}


def test_modules_hold_no_state() -> None:
    """Whatever a module creates when it is imported is constant, or stands in the table."""
    found = set()
    for file in ROOT.rglob("*.py"):
        parts = ["proxy", *file.relative_to(ROOT).with_suffix("").parts]
        name = ".".join(parts).removesuffix(".__init__")
        if name == "proxy.__main__":
            continue
        for attribute, value in vars(importlib.import_module(name)).items():
            if not attribute.startswith("__") and changes(attribute, value):
                found.add(f"{name}.{attribute}")
    assert found == set(SHARED)


def changes(name: str, value: object) -> bool:
    """Whether such an object may hold state. Capitals are constants, whatever they are made of."""
    kind = type(value)
    if isinstance(value, type | types.ModuleType | types.FunctionType | enum.Enum):
        return False
    if kind.__module__.partition(".")[0] == "proxy":
        return not (dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen)
    return isinstance(value, list | dict | set | deque | bytearray) and not name.isupper()
