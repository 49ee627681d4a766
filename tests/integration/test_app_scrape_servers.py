"""Fetching the app's metrics page from real servers: good, gone, slow, lying and malicious ones."""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from proxy.app_telemetry.scrape.external_metrics import ExternalMetrics, Fetched
from proxy.app_telemetry.scrape.fetch import AppScrape
from proxy.config.telemetry import AppMetrics
from proxy.core.clock import ManualClock
from proxy.core.vitals import Vitals
from proxy.demo.redis_server import free_port
from tests.http1 import PATIENCE
from tests.streams import Conversation, conversing
from tests.unit.test_app_scrape import RECORDED


@asynccontextmanager
async def speaking(conversation: Conversation) -> AsyncIterator[str]:
    """A server that does anything at all with a connection; its URL."""

    async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await conversation(reader, writer)

    async with conversing(asked) as port:
        yield f"http://127.0.0.1:{port}/metrics"


def answering(body: bytes, head: bytes = b"HTTP/1.1 200 OK") -> Conversation:
    """A conversation of one complete answer."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()

    return answer


def page_of(url: str, **keys: Any) -> tuple[AppScrape, ExternalMetrics]:
    """A fetcher and what it exposes."""
    external = ExternalMetrics(ManualClock(), 60.0)
    return AppScrape(AppMetrics.model_validate({"url": url, **keys}), external, Vitals()), external


def shown(external: ExternalMetrics) -> list[str]:
    """Names of the app's families that are exposed."""
    return [f.name for f in external.families(set()) if not f.name.startswith("proxy_")]


async def test_a_good_page() -> None:
    """Fetched over a connection of its own, with the headers of the config, and shown."""
    seen: list[web.Request] = []

    async def metrics(request: web.Request) -> web.Response:
        seen.append(request)
        return web.Response(body=RECORDED, content_type="text/plain")

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    headers = {"X-API-Key": "s3cret", "X-Empty": None}
    page, external = page_of(f"http://127.0.0.1:{port}/metrics", headers=headers)
    assert await page.fetch() is Fetched.OK
    assert shown(external)[-1] == "makevideo_disk_used_percent"
    (request,) = seen
    assert request.headers["X-API-Key"] == "s3cret"
    assert request.headers["Accept"] == "text/plain;version=0.0.4"
    assert request.headers["Accept-Encoding"] == "identity"
    assert "X-Empty" not in request.headers
    assert request.headers["Connection"] == "close"
    await runner.cleanup()


async def test_nobody_there() -> None:
    """A refused connection is counted, and nothing more."""
    page, external = page_of(f"http://127.0.0.1:{free_port()}/metrics")
    assert await page.fetch() is Fetched.UNREACHABLE
    assert await page.fetch() is Fetched.UNREACHABLE
    assert external.fetches[Fetched.UNREACHABLE] == 2


async def test_changes_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Not at every fetch; and what the app said is no part of the line."""
    bodies = [b"a 1\n", b"a 1\n", b"evil\x1b[31m\n", b"evil\n", b"a 1\n"]

    async def next_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answering(bodies.pop(0))(reader, writer)

    with caplog.at_level(logging.INFO, logger="proxy.app_telemetry"):
        async with speaking(next_one) as url:
            page, _ = page_of(url)
            while bodies:
                await page.fetch()
    assert [record.message for record in caplog.records] == [
        "app metrics fetched",
        "app metrics not fetched",
        "app metrics fetched",
    ]
    assert vars(caplog.records[1])["reason"] == "line 1: not in the Prometheus text format"


async def slow_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def slow_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\na 1\n")
    while not writer.is_closing():
        writer.write(b"#")
        await writer.drain()
        await asyncio.sleep(0.01)


async def endless_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    while not writer.is_closing():
        writer.write(b"a 1\n" * 10_000)
        await writer.drain()


async def endless_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while not writer.is_closing():
        writer.write(b"X-Y: " + b"z" * 1000 + b"\r\n")
        await writer.drain()


async def cut_short(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\na 1\n")
    await writer.drain()


async def no_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
    await writer.drain()


BOMB = gzip.compress(b"a 1\n" * 10_000_000)


@pytest.mark.parametrize(
    ("conversation", "result"),
    [
        (answering(b"a 1\n"), Fetched.OK),
        (answering(b""), Fetched.EMPTY),
        (answering(b"# Error generating metrics: boom"), Fetched.EMPTY),
        (answering(b"a 1\na 2\n"), Fetched.OK),
        (answering(b"<html>Not what you want</html>"), Fetched.MALFORMED),
        (answering(b"a 1\n", b"HTTP/1.1 500 Oops"), Fetched.STATUS),
        (answering(b"a 1\n", b"HTTP/1.1 302 Found\r\nLocation: /other"), Fetched.STATUS),
        (answering(BOMB, b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip"), Fetched.MALFORMED),
        (answering(BOMB), Fetched.MALFORMED),
        (answering(b"a 1\n" * 100_000), Fetched.TOO_LARGE),
        (answering(b"\n".join(b"m%d 1" % n for n in range(2001))), Fetched.TOO_MANY_SERIES),
        (slow_head, Fetched.TIMEOUT),
        (slow_body, Fetched.TIMEOUT),
        (endless_body, Fetched.TOO_LARGE),
        (endless_head, Fetched.UNREACHABLE),
        (cut_short, Fetched.UNREACHABLE),
        (no_http, Fetched.UNREACHABLE),
    ],
)  # fmt: skip
async def test_what_servers_do(
    conversation: Conversation, result: Fetched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has its result, soon; what was fetched before is still shown."""
    monkeypatch.setattr("proxy.app_telemetry.scrape.fetch.LARGEST", 100 * 1024)
    external = ExternalMetrics(ManualClock(), 60.0)
    async with speaking(answering(b"before 1\n")) as url:
        config = AppMetrics.model_validate({"url": url})
        assert await AppScrape(config, external, Vitals()).fetch() is Fetched.OK
    async with speaking(conversation) as url:
        patience = "300ms" if result is Fetched.TIMEOUT else f"{PATIENCE:g}s"
        keys = {"url": url, "timeout": patience}
        page = AppScrape(AppMetrics.model_validate(keys), external, Vitals())
        assert await page.fetch() is result
    good = result in (Fetched.OK, Fetched.EMPTY)
    assert (shown(external) == ["before"]) is not good


async def test_it_fetches_again_and_ends_when_stopped() -> None:
    """On its schedule; `stop` during a fetch that hangs leaves no task and no connection."""
    asked = asyncio.Event()
    left = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        left.set()

    async with speaking(hang) as url:
        page, external = page_of(url, timeout="30s")
        page.start()
        await asyncio.wait_for(asked.wait(), PATIENCE)
        await page.stop()
        await page.stop()
        await asyncio.wait_for(left.wait(), PATIENCE)
    assert sum(external.fetches.values()) == 0
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "app-metrics"]


async def test_a_mistake_of_ours_does_not_end_the_fetching(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged with its traceback and counted; the next fetch is as good as ever."""
    async with speaking(answering(b"a 1\n")) as url:
        page, external = page_of(url)
        with monkeypatch.context() as broken:
            broken.setattr("proxy.app_telemetry.scrape.fetch.read_page", None)
            assert await page.fetch() is Fetched.FAULT
        assert await page.fetch() is Fetched.OK
    assert caplog.records[0].exc_info
    assert external.fetches[Fetched.FAULT] == 1
