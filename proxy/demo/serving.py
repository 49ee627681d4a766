"""Running one stand-in HTTP service: on a free or given port, alone or inside a test."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import Any

from aiohttp import web


def json_response(body: Any, status: int = 200) -> web.Response:
    """Compact JSON as Starlette writes it: UTF-8, no spaces, no charset parameter."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return web.Response(
        body=text.encode(), status=status, headers={"Content-Type": "application/json"}
    )


class Site:
    """An application that listens on 127.0.0.1. `keepalive` is in seconds."""

    def __init__(self, app: web.Application, port: int = 0, keepalive: float = 5.0) -> None:
        self._runner = web.AppRunner(
            app, keepalive_timeout=keepalive, access_log=None, shutdown_timeout=5.0
        )
        self._port = port

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
        """Client connections open at this moment, silent ones too."""
        server = self._runner.server
        return 0 if server is None else len(server.connections)

    async def start(self) -> None:
        """Listen. Raises `OSError` when the port is taken."""
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()

    async def stop(self) -> None:
        """Stop listening, let requests end (5 s), close."""
        await self._runner.cleanup()


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set; for the main coroutine of a process."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    return stopped
