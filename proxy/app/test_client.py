"""A listener of a running proxy as a server for aiohttp's test client."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp.test_utils import BaseTestServer
from aiohttp.web import BaseRunner
from yarl import URL


class ListenerServer(BaseTestServer):
    """The server side of aiohttp's `TestClient`. It starts and stops nothing: the proxy is already
    running, and keeps running when the client is closed."""

    def __init__(self, url: str) -> None:
        where = URL(url)
        super().__init__(scheme=where.scheme, host=where.host or "", port=where.port)
        self._root = where

    async def start_server(
        self, loop: asyncio.AbstractEventLoop | None = None, **kwargs: Any
    ) -> None:
        """Do nothing: the proxy is running."""

    async def _make_runner(self, **kwargs: Any) -> BaseRunner:
        raise NotImplementedError("the proxy serves by itself")

    @property
    def started(self) -> bool:
        """Always true."""
        return True

    async def close(self) -> None:
        """Do nothing: the proxy keeps running."""
