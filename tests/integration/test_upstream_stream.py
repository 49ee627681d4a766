"""A connection to an upstream on a real socket: what a reset leaves of an answer."""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest
import trustme
import uvloop

from proxy.config.units import TargetAddress
from proxy.config.upstreams import Pool
from proxy.core.clock import SystemClock
from proxy.core.memory.budget import MOST, MemoryBudget
from proxy.http1.client import ClientStream
from proxy.http1.deadlines import Sweeper
from proxy.http1.upstream.connection import UpstreamStream
from proxy.http1.upstream.pool import TargetPool
from proxy.http1.upstream.target import Target
from proxy.http1.upstream.tls_dial import dial_tls
from tests.http1 import PATIENCE

SERVER, CLIENT = ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT
REFUSAL = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno"


class Waiter:
    """Stands where the client's connection would: is notified that something happened."""

    def __init__(self) -> None:
        self.notified = asyncio.Event()

    def notify(self) -> None:
        self.notified.set()


def pool_for(address: TargetAddress) -> TargetPool:
    """Of one target."""
    clock = SystemClock()
    return TargetPool(
        Target(address, 1.0), Pool(), clock, Sweeper(clock), MemoryBudget(), lambda _: None
    )


async def lost_by_writing(stream: UpstreamStream, waiter: Waiter) -> UpstreamStream:
    """The same after a write that met the reset, which has come."""
    gone = select.poll()  # the loop stands still here, as it does behind other work
    gone.register(stream.transport.get_extra_info("socket").fileno(), select.POLLHUP)
    assert gone.poll(5_000)
    stream.transport.write(b"x" * 10_000)
    async with asyncio.timeout(PATIENCE):
        while not stream.lost:
            waiter.notified.clear()
            await waiter.notified.wait()
    return stream


async def reset_in_the_middle(answer: bytes, before: bytes = b"") -> UpstreamStream:
    """The connection to an app that answered and closed with bytes unread, after the write that met
    the reset, made before the event loop could read; `before` was read already."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        host, port = listening.getsockname()
        pool = pool_for(TargetAddress("http", host, port))
        loop = asyncio.get_running_loop()
        _, stream = await loop.create_connection(lambda: UpstreamStream(pool), host, port)
        waiter = Waiter()
        stream.owner = cast(ClientStream, waiter)
        app, _ = listening.accept()
        if before:
            stream.data_received(before)
        stream.transport.write(b"x" * 100_000)
        app.recv(1_000)
        app.sendall(answer)
        app.close()
        return await lost_by_writing(stream, waiter)


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_an_answer_survives_the_reset_behind_it(runner: Callable[..., Any]) -> None:
    """A write that fails ends the reading, but not before what has arrived is taken."""
    stream = runner(reset_in_the_middle(REFUSAL))
    assert isinstance(stream.error, ConnectionError)
    head = stream.read_head()
    assert head is not None
    assert (head.status, stream.take()) == (401, b"no")


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_what_is_taken_at_the_end_is_bounded(runner: Callable[..., Any]) -> None:
    """A client that reads slowly does not make us keep more than from a connection that lives."""
    full = b"a" * MOST
    stream = runner(reset_in_the_middle(b"b" * 1_000, full))
    assert stream.take() == full


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_an_answer_over_tls_survives_the_reset_behind_it(
    runner: Callable[..., Any], version: ssl.TLSVersion
) -> None:
    """What is left in the socket is decrypted before the connection is given up."""
    stream = runner(reset_over_tls(REFUSAL, version))
    assert isinstance(stream.error, ConnectionError)
    head = stream.read_head()
    assert head is not None
    assert (head.status, stream.take()) == (401, b"no")


async def reset_over_tls(answer: bytes, version: ssl.TLSVersion) -> UpstreamStream:
    """As `reset_in_the_middle`; the app runs in a thread, as the handshake needs it."""
    authority = trustme.CA()
    served, trusted = (ssl.SSLContext(kind) for kind in (SERVER, CLIENT))
    authority.issue_cert("127.0.0.1").configure_cert(served)
    served.maximum_version = version
    authority.configure_trust(trusted)
    asked = threading.Event()

    def app(listening: socket.socket) -> None:
        plain, _ = listening.accept()
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # nothing waits for an ACK
        with served.wrap_socket(plain, server_side=True) as connection:
            assert asked.wait(PATIENCE)
            connection.recv(1_000)
            connection.sendall(answer)
            connection.close()  # with bytes unread: a reset

    with socket.create_server(("127.0.0.1", 0)) as listening:
        host, port = listening.getsockname()
        thread = threading.Thread(target=app, args=(listening,))
        thread.start()
        waiter, pool = Waiter(), pool_for(TargetAddress("https", host, port))
        stream = await dial_tls(lambda: UpstreamStream(pool), host, port, trusted, host)
        stream.owner = cast(ClientStream, waiter)
        stream.transport.write(b"x" * 100_000)
        await asyncio.sleep(0)
        asked.set()
        thread.join(PATIENCE)
        return await lost_by_writing(stream, waiter)
