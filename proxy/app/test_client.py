"""A listener of a running proxy in the clothes of aiohttp's test server."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp.test_utils import BaseTestServer
from aiohttp.web import BaseRunner
from yarl import URL


class ListenerServer(BaseTestServer):
    """What aiohttp's `TestClient` talks to. It starts and stops nothing: the proxy runs already,
    and goes on when the client is closed."""

    def __init__(self, url: str) -> None:
        where = URL(url)
        super().__init__(scheme=where.scheme, host=where.host or "", port=where.port)
        self._root = where

    async def start_server(
        self, loop: asyncio.AbstractEventLoop | None = None, **kwargs: Any
    ) -> None:
        """It has been started."""

    async def _make_runner(self, **kwargs: Any) -> BaseRunner:
        raise NotImplementedError("the proxy serves by itself")

    @property
    def started(self) -> bool:
        """Always."""
        return True

    async def close(self) -> None:
        """The proxy goes on."""
