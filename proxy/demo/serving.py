"""Runs one stand-in HTTP service on a free or given port, alone or inside a test."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def json_response(body: Any, status: int = 200) -> web.Response:
    """Compact JSON as Starlette writes it: UTF-8, no spaces, no charset parameter."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return web.Response(
        body=text.encode(), status=status, headers={"Content-Type": "application/json"}
    )


class FileAnswer(web.FileResponse):
    """A file response that, like other responses, may be prepared twice; it is sent once."""

    _begun = False

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send it the first time."""
        if self._begun:
            return None
        self._begun = True
        return await super().prepare(request)


class Site:
    """An application on 127.0.0.1 that closes connections idle for `keepalive` seconds after a
    response. Like uvicorn, it keeps connections that have never sent anything. Handlers and
    middlewares return errors instead of raising them."""

    def __init__(self, app: web.Application, port: int = 0, keepalive: float = 5.0) -> None:
        # aiohttp's own limit would close silent connections too.
        self._runner = web.AppRunner(
            app, keepalive_timeout=86_400, access_log=None, shutdown_timeout=5.0
        )
        self._port = port
        self._keepalive = keepalive
        self._idle: dict[asyncio.Transport, asyncio.TimerHandle] = {}
        app.middlewares.insert(0, self._close_when_idle)

    @property
    def port(self) -> int:
        """The port, known after `start`."""
        port: int = self._runner.addresses[0][1]
        return port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def open_connections(self) -> int:
        """Open client connections, including silent ones."""
        server = self._runner.server
        return 0 if server is None else len(server.connections)

    async def start(self) -> None:
        """Listen. Raises `OSError` if the port is taken."""
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()

    async def stop(self) -> None:
        """Stop listening, wait up to 5 s for requests, and close."""
        await self._runner.cleanup()
        for timer in self._idle.values():
            timer.cancel()

    @web.middleware
    async def _close_when_idle(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        transport = request.transport
        if transport is not None and (timer := self._idle.pop(transport, None)):
            timer.cancel()
        response = await handler(request)
        # Sent here so that the idle time starts at the end of the response; aiohttp finds it sent.
        with suppress(ConnectionError):
            await response.prepare(request)
            await response.write_eof()
        if transport is not None and not transport.is_closing():
            loop = asyncio.get_running_loop()
            self._idle[transport] = loop.call_later(self._keepalive, self._close, transport)
        return response

    def _close(self, transport: asyncio.Transport) -> None:
        self._idle.pop(transport, None)
        transport.close()


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set; for the main coroutine of a process."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    return stopped
