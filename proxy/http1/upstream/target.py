"""Where connections to an upstream go, and how one is opened."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from proxy.config.units import TargetAddress
from proxy.http1.upstream.tls_dial import dial_tls

P = TypeVar("P", bound=asyncio.Protocol)


@dataclass(slots=True)
class Target:
    """`connect_timeout` is in seconds and includes the TLS handshake. `tls` is the context for an
    https target, which a reload replaces, as certificate files may have changed; `server_name` is
    the name that its certificate must have."""

    address: TargetAddress
    connect_timeout: float
    tls: ssl.SSLContext | None = None
    server_name: str | None = None

    async def dial(self, factory: Callable[[], P]) -> P:
        """Open a connection and return its protocol. Raises `TimeoutError`, `OSError` and
        `ssl.SSLError`."""
        loop = asyncio.get_running_loop()
        address = self.address
        async with asyncio.timeout(self.connect_timeout):
            if address.path is not None:
                return (await loop.create_unix_connection(factory, address.path))[1]
            if self.tls is not None:
                name = self.server_name or address.host
                return await dial_tls(factory, address.host, address.port, self.tls, name)
            return (await loop.create_connection(factory, address.host, address.port))[1]
