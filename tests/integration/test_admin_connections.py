"""Clients that hold connections of the admin port open: it goes on answering."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler

from proxy.admin import json_exchange
from proxy.admin.connections import MOST, Connections
from proxy.admin.server import AdminServer
from proxy.config.units import Bind
from proxy.core.errors import RequestTimeout
from tests.http1 import PATIENCE, RawClient, Site, get, wait_until

BIG = 64 * 1024 * 1024


async def until(condition: Callable[[], bool]) -> None:
    """Poll the port's state until `condition` holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 (there is no event for it)
            await asyncio.sleep(0.005)


class Clock:
    """Stands still until released."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def nothing(request: web.Request) -> web.Response:
    """Changes nothing."""
    return web.Response()


class Port:
    """A server with `/` and the endless `/wait` and `/big`, on a clock of ours."""

    def __init__(self, most: int, change: Handler) -> None:
        self.clock = Clock()
        self.connections = Connections(most=most, clock=self.clock)
        self.go_on = asyncio.Event()
        app = web.Application(middlewares=[self.connections.middleware()])
        app.router.add_get("/", self._answer)
        app.router.add_get("/wait", self._wait)
        app.router.add_get("/big", self._big)
        app.router.add_post("/change", change)
        self.server = AdminServer(app, self.connections)

    async def _answer(self, request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _wait(self, request: web.Request) -> web.Response:
        await self.go_on.wait()
        return web.Response(text="ok")

    async def _big(self, request: web.Request) -> web.Response:
        return web.Response(body=bytes(BIG))

    async def until(self, count: int) -> None:
        """Until so many connections are open."""
        await until(lambda: len(self.connections) == count)

    async def connect(self, raw: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection on which `raw` was sent; it is known to the port on return."""
        before = len(self.connections)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(raw)
        if before < self.connections.most:
            await self.until(before + 1)
        return reader, writer

    async def ask(self, path: str = "/") -> str:
        """The answer to a request of its own."""
        async with (
            asyncio.timeout(PATIENCE),
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.port}{path}") as answer,
        ):
            return await answer.text()

    port = 0


@contextlib.asynccontextmanager
async def opened(most: int = 4, change: Handler = nothing) -> AsyncIterator[Port]:
    """A port, closed afterwards."""
    port = Port(most, change)
    port.port = (await port.server.start(Bind("127.0.0.1", 0))).port
    try:
        yield port
    finally:
        port.go_on.set()
        await port.server.stop()


async def ended(reader: asyncio.StreamReader) -> bool:
    """Whether the server ends the connection without a word."""
    async with asyncio.timeout(PATIENCE):
        try:
            return await reader.read() == b""
        except ConnectionResetError:
            return True


@pytest.mark.parametrize("raw", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "])
async def test_an_unfinished_head_is_cut(raw: bytes) -> None:
    """Nothing, or a part of a head, for ten seconds: the connection goes."""
    async with opened() as port:
        reader, writer = await port.connect(raw)
        port.clock.now = 9.9
        port.connections.cut_late()
        assert len(port.connections) == 1
        port.clock.now = 10.0
        port.connections.cut_late()
        assert await ended(reader)
        assert port.connections.cut == {"head": 1}
        writer.close()


async def test_a_second_head_has_its_own_time() -> None:
    """The clock of a head begins with its first byte, not with the connection's start."""
    async with opened() as port:
        reader, writer = await port.connect(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await reader.readuntil(b"ok")
        port.clock.now = 20.0
        port.connections.cut_late()  # silent between two requests: aiohttp's to end
        assert len(port.connections) == 1
        writer.write(b"GET / HT")
        await until(lambda: next(iter(port.connections)).owes)
        port.clock.now = 30.0
        port.connections.cut_late()
        assert await ended(reader)
        writer.close()


async def test_a_request_may_take_its_time() -> None:
    """Whoever waits for an answer is not cut, nor makes room for another."""
    async with opened(most=2) as port:
        asked = [asyncio.create_task(port.ask("/wait")) for _ in range(2)]
        await port.until(2)
        await until(lambda: all(one.busy for one in port.connections))
        port.clock.now = 1000.0
        port.connections.cut_late()
        reader, writer = await port.connect()
        assert await ended(reader)
        assert port.connections.cut == {"full": 1}
        port.go_on.set()
        assert [await one for one in asked] == ["ok", "ok"]
        writer.close()


async def test_the_longest_silent_makes_room() -> None:
    """When all places are taken, an operator gets that of the oldest connection without a
    request."""
    async with opened(most=2) as port:
        first, one = await port.connect()
        port.clock.now = 1.0
        second, other = await port.connect(b"GET / HT")
        assert await port.ask() == "ok"
        assert await ended(first)
        assert not second.at_eof()
        for writer in (one, other):
            writer.close()


async def test_an_answer_that_nobody_takes_is_cut() -> None:
    """A client that reads nothing of an answer for half a minute is let go."""
    async with opened() as port:
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(raw, ("127.0.0.1", port.port))
            await loop.sock_sendall(raw, b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: any(one.stalled is not None for one in port.connections))
            port.clock.now = 29.0
            port.connections.cut_late()
            assert len(port.connections) == 1
            port.clock.now = 30.0
            port.connections.cut_late()
            await port.until(0)
            assert port.connections.cut == {"stalled": 1}


def test_a_crowd_at_the_admin_port(tmp_path: Path) -> None:
    """Three times as many silent connections as there are places: operators and probes are
    answered, and the process holds no more descriptors than there are places."""
    with Site(tmp_path) as site, contextlib.ExitStack() as stack:
        before = site.proxy.descriptors()
        address = ("127.0.0.1", site.proxy.admin_port)
        for number in range(3 * MOST):
            client = stack.enter_context(RawClient(address))
            if number % 2:
                client.send(b"GET /livez HTTP/1.1\r\nX: ")
        assert site.proxy.admin("/readyz")[0] == 200
        wait_until(lambda: site.proxy.descriptors() <= before + MOST + 8, "connections to go")
        cut = site.proxy.metric("proxy_admin_connections_cut_total", port="admin", reason="full")
        assert cut is not None
        assert cut >= 2 * MOST
        assert site.ask(get("/")).status == 200
        site.check()


async def test_a_body_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change whose body drips is answered, not waited for."""
    monkeypatch.setattr(json_exchange, "BODY_TIME", 0.01)

    async def change(request: web.Request) -> web.Response:
        with pytest.raises(RequestTimeout):
            await json_exchange.read_object(request)
        return web.Response(status=408)

    async with opened(change=change) as port:
        head = b"POST /change HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"
        reader, writer = await port.connect(head)
        assert (await reader.readline()).startswith(b"HTTP/1.1 408")
        writer.close()
