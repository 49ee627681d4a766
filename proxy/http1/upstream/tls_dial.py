"""A TLS connection whose last answer is read though a write has failed.

An app that refuses an upload answers and closes without reading on, which resets the connection.
An event loop gives up reading at the first write that meets the reset, though the answer has
arrived before it. Over TLS what is left in the socket can be read only by who decrypts it, so a
small protocol stands between the two.
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

#: Bytes of what is left that are read at most: the answer's head and what fits beside it.
MOST_LEFT = 512 * 1024


async def dial_tls(
    factory: Callable[[], P], host: str, port: int, context: ssl.SSLContext, server_name: str
) -> P:
    """The protocol of a new connection, made as `loop.create_connection` makes it. Raises
    `OSError`, `ssl.SSLError`."""
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
    """Takes what comes with the end of the handshake, before anybody has asked for it."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.error: Exception | None = None

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, error: Exception | None) -> None:
        self.error = error


class _LastWords(asyncio.BufferedProtocol):
    """Passes everything on to the TLS of the event loop, and at a loss first what is unread."""

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
        # A socket that is gone, or TLS that cannot go on: then there is nothing to be read.
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
