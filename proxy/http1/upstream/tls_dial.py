"""TLS connections whose last response can be read after a write has failed.

An app that refuses an upload answers and closes without reading the rest, which resets the
connection. The event loop stops reading at the first write that fails, although the response
arrived before the reset. Over TLS, the bytes left in the socket must be decrypted, so a small
protocol sits between the socket and the event loop's TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Callable
from typing import Any, TypeVar, cast

P = TypeVar("P", bound=asyncio.Protocol)

_PIECE = 64 * 1024  # bytes read at a time

#: The most bytes that are read after a failed write: the response's head and some of its body.
MOST_LEFT = 512 * 1024


async def dial_tls(
    factory: Callable[[], P], host: str, port: int, context: ssl.SSLContext, server_name: str
) -> P:
    """Connect like `loop.create_connection` and return the new connection's protocol. Raises
    `OSError` and `ssl.SSLError`."""
    loop = asyncio.get_running_loop()
    early = _Early()
    raw, _ = await loop.create_connection(asyncio.Protocol, host, port)
    try:
        secured = await loop.start_tls(raw, early, context, server_hostname=server_name)
    except BaseException:
        raw.abort()
        raise
    if secured is None or raw.is_closing():
        raw.abort()
        raise early.error or ConnectionResetError("closed as soon as it was secured")
    raw.set_protocol(_LastWords(raw.get_protocol(), raw.get_extra_info("socket")))
    protocol = factory()
    secured.set_protocol(protocol)
    protocol.connection_made(secured)
    if early.data:
        protocol.data_received(bytes(early.data))
    return protocol


class _Early(asyncio.Protocol):
    """Keeps bytes that arrive with the end of the handshake, before the real protocol is set."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.error: Exception | None = None

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, error: Exception | None) -> None:
        self.error = error


class _LastWords(asyncio.BufferedProtocol):
    """Passes everything on to the event loop's TLS protocol; when the connection is lost, first the
    bytes that are still unread."""

    def __init__(self, tls: asyncio.BaseProtocol, raw: Any) -> None:
        secured = cast(asyncio.BufferedProtocol, tls)
        self._tls = secured
        self._descriptor = raw.fileno()
        self.get_buffer = secured.get_buffer  # type: ignore[method-assign]
        self.buffer_updated = secured.buffer_updated  # type: ignore[method-assign]
        self.eof_received = secured.eof_received  # type: ignore[method-assign]
        self.pause_writing = secured.pause_writing  # type: ignore[method-assign]
        self.resume_writing = secured.resume_writing  # type: ignore[method-assign]

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self._read_what_is_left()
        self._tls.connection_lost(error)

    def _read_what_is_left(self) -> None:
        left = MOST_LEFT
        # If the socket is gone or TLS cannot continue, there is nothing to read.
        with (
            contextlib.suppress(OSError, ssl.SSLError),
            socket.socket(fileno=os.dup(self._descriptor)) as raw,
        ):
            while left > 0:
                count = raw.recv_into(self.get_buffer(_PIECE), 0, socket.MSG_DONTWAIT)
                if not count:
                    return
                self.buffer_updated(count)
                left -= count
