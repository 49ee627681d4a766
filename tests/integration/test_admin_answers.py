"""Large answers of the admin port: they are JSON, within the memory budget, and fair to others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from proxy.admin.endpoints.jobs import JobControl
from proxy.admin.large_answers import FREE, Answers, _pieces
from proxy.admin.server import AdminServers
from proxy.config.schema import Config
from proxy.core.errors import Overloaded
from proxy.core.memory.budget import MemoryBudget
from tests.http1 import PATIENCE
from tests.integration.test_admin import FakeJobs, FakeProxy

MIB = 1024 * 1024
CONFIG = Config.model_validate(
    {
        "listeners": {
            "in": {
                "bind": "127.0.0.1:0",
                "routes": [{"name": "r", "path": "/", "upstream": "u"}],
            }
        },
        "upstreams": {"u": {"targets": ["http://127.0.0.1:1"]}},
        "admin": {"bind": "127.0.0.1:0"},
    }
)
LONG = [{"job_id": f"mv_{number}", "text": 'a\n"ü', "n": [1, {"x": None}]} for number in range(50)]


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        "text",
        {"a": {}},
        {"a": [], "b": LONG, 'c"\n': {"d": [1, 2, {"e": "f\ng"}]}},
        {"a": LONG * 40, "b": LONG[:3]},
        {"b": "x" * 200_000, "a": LONG},
        LONG,
    ],
    ids=range(8),
)
def test_pieces_are_the_document(document: object) -> None:
    """Whatever its shape: JSON that means the same, in pieces of bounded size, indented."""
    pieces = list(_pieces(document))
    text = b"".join(pieces).decode()
    assert json.loads(text) == document
    assert text.endswith("\n")
    assert max(map(len, pieces)) < 300_000
    if isinstance(document, dict) and "a" in document:
        assert '\n  "a": ' in text


class Port:
    """An admin port whose jobs are `jobs`, and the memory that it shares."""

    def __init__(self, limit: int) -> None:
        self.memory = MemoryBudget(limit)
        self.account = self.memory.account("admin")
        self.jobs = FakeJobs()
        self.proxy = FakeProxy()
        self.servers = AdminServers(self.proxy, [JobControl(self.jobs)], memory=self.memory)
        self.rows: list[dict[str, Any]] = LONG * 20
        self.jobs.list = self._list  # type: ignore[method-assign]
        self.reading = self.most = 0

    async def _list(self, *_: object) -> list[dict[str, Any]]:
        self.reading += 1
        self.most = max(self.most, self.reading)
        await asyncio.sleep(0)
        self.reading -= 1
        return self.rows

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.servers.addresses[0].port

    async def ask(self, path: str = "/api/jobs", method: str = "GET") -> tuple[int, bytes, Any]:
        """The answer to a request of its own."""
        async with (
            asyncio.timeout(PATIENCE),
            aiohttp.ClientSession() as session,
            session.request(method, f"http://127.0.0.1:{self.port}{path}") as answer,
        ):
            return answer.status, await answer.read(), answer.headers

    async def until_free(self) -> None:
        """Until nothing is held."""
        async with asyncio.timeout(PATIENCE):
            while self.account.used:  # noqa: ASYNC110 (there is no event for it)
                await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def opened(limit: int = 64 * MIB) -> AsyncIterator[Port]:
    """A port, closed afterwards."""
    port = Port(limit)
    await port.servers.start(CONFIG)
    try:
        yield port
    finally:
        await port.servers.stop()


async def test_an_answer_is_whole_and_given_back() -> None:
    """A list of a thousand: framed by its length, with the marks of every answer; nothing stays
    counted. HEAD has the length and no body."""
    async with opened() as port:
        status, body, fields = await port.ask()
        assert status == 200
        assert json.loads(body)["jobs"] == port.rows
        assert fields["Content-Length"] == str(len(body))
        assert fields["Content-Type"] == "application/json; charset=utf-8"
        assert fields["Cache-Control"] == "no-store"
        assert len(fields["X-Correlation-ID"]) == 36
        status, nothing, head = await port.ask(method="HEAD")
        assert (status, nothing, head["Content-Length"]) == (200, b"", str(len(body)))
        await port.until_free()


@contextlib.asynccontextmanager
async def unread(port: Port, count: int) -> AsyncIterator[None]:
    """So many clients that ask again and again, and read nothing."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            raw = stack.enter_context(socket.socket())
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(raw, ("127.0.0.1", port.port))
            await loop.sock_sendall(raw, b"GET /api/jobs HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50)
        yield


@pytest.mark.parametrize("limit", [MIB, 64 * MIB])
async def test_answers_that_nobody_takes_are_bounded(limit: int) -> None:
    """Clients that take nothing of lists of four megabytes hold what is always free, or a quarter
    of the budget; then it is 503, and what they held is free when they have left."""
    async with opened(limit) as port:
        port.rows = [{"job_id": "x" * 4000}] * 1000
        bound = max(FREE, limit // 4)
        async with unread(port, 20):
            refused = 0
            async with asyncio.timeout(PATIENCE):
                while not refused:
                    status, body, fields = await port.ask()
                    assert port.account.used <= bound
                    if status == 503:
                        assert json.loads(body)["code"] == "overloaded"
                        assert fields["Retry-After"] == "1"
                        refused += 1
        await port.until_free()
        assert port.most <= 2
        assert (await port.ask())[0] == 200


async def test_a_growing_answer_is_refused_before_it_is_there() -> None:
    """What turns out larger than was expected is admitted piece by piece."""
    memory = MemoryBudget(MIB)
    answers = Answers(memory)

    async def read() -> object:
        return {"jobs": [{"x": "y" * 1000}] * 20_000}

    app = web.Application()

    async def handler(request: web.Request) -> web.StreamResponse:
        with pytest.raises(Overloaded):
            await answers.send(request, read, 1000)
        return web.Response(status=503)

    app.router.add_get("/", handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        port = runner.addresses[0][1]
        async with (
            asyncio.timeout(PATIENCE),
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}/") as answer,
        ):
            assert answer.status == 503  # nothing of it was sent
        assert memory.used == 0
    finally:
        await runner.cleanup()


async def test_a_crowd_gets_one_page_of_metrics() -> None:
    """Who asks while a page is written out gets the next one, which is written once for all."""
    async with opened() as port:
        go_on = threading.Event()
        pages: list[str] = []

        def exposition(accept: str) -> tuple[bytes, str]:
            pages.append(accept)
            assert go_on.wait(PATIENCE)
            return b"page %d\n" % len(pages), "text/plain"

        port.proxy.metrics.exposition = exposition  # type: ignore[method-assign]
        first = asyncio.create_task(port.ask("/metrics"))
        async with asyncio.timeout(PATIENCE):
            while not pages:  # noqa: ASYNC110 (there is no event for it)
                await asyncio.sleep(0.005)
        others = [asyncio.create_task(port.ask("/metrics")) for _ in range(20)]
        async with asyncio.timeout(PATIENCE):
            while len(port.servers.connections["admin"]) < 21:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert len(pages) == 1
        go_on.set()
        assert (await first)[1] == b"page 1\n"
        answers = {(await one)[1] for one in others}
        assert len(pages) == 1 + len(answers) <= 3
        port.account.reserve(16 * MIB)  # others hold so much that there is room for no answer
        assert (await port.ask("/metrics"))[0] == 503
        port.account.release(16 * MIB)


async def test_requests_begin_a_few_in_each_turn() -> None:
    """However many have come, a turn of the loop handles few of them."""
    async with opened() as port:
        turns: list[int] = []
        now = 0

        def live() -> bool:
            turns.append(now)
            return True

        port.proxy.live = live  # type: ignore[method-assign]

        async def count() -> None:
            nonlocal now
            while True:
                now += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        answers = await asyncio.gather(*(port.ask("/livez") for _ in range(40)))
        counting.cancel()
        assert {status for status, _, _ in answers} == {200}
        assert max(map(turns.count, turns)) <= 5
