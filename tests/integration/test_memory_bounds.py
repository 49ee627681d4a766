"""One budget for the whole process: whoever takes nothing is bounded, and nobody else notices."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http1 import PATIENCE, Connection, Request, Site, get, respond
from tests.http1.process import wait_until

MIB = 1024 * 1024
BUDGET = 64 * MIB
SPARE = 64 * MIB
"""What the process may have beside its budget, its start included."""


def large(connection: Connection, request: Request) -> None:
    """300 KB for those who ask for it, else a word."""
    connection.body(request)
    body = b"x" * 300_000 if request.target == "/large" else b"hello"
    connection.send(respond(body))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A proxy with a small budget."""
    with Site(
        tmp_path,
        app={"pool": {"max_connections": 200}, "timeouts": {"idle": "10m"}},
        limits={"memory": "64MiB"},
    ) as site:
        site.upstream.handler = large
        yield site


def resident(site: Site) -> int:
    """Bytes of the proxy that are in memory."""
    pages = int(Path(f"/proc/{site.proxy.pid}/statm").read_text().split()[1])
    return pages * 4096


def used(site: Site) -> float:
    """Bytes that the proxy's connections hold."""
    return sum(
        site.proxy.metric("proxy_memory_used_bytes", holder=holder) or 0.0
        for holder in ("inboxes", "outboxes")
    )


def greedy(site: Site, request: bytes, size: int) -> socket.socket:
    """A client that sends as much as is taken, up to `size`, and reads nothing."""
    host, port = site.addresses["front"]
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(PATIENCE)
    sock.connect((host, port))
    sock.setblocking(False)
    left = request
    while size > 0:
        try:
            sent = sock.send(left[:size])
        except OSError:  # it takes no more, or has ended us
            break
        size -= sent
        left = left[sent:] or request
    return sock


@pytest.mark.parametrize(
    ("request_", "size"),
    [
        (get("/large") * 400, 64_000),
        (get("/", method="TRACE") * 4_000, MIB),
        (get("/")[:-2] + b"X: " + b"y" * 30_000, 30_000),
    ],
    ids=["answers", "refusals", "heads"],
)
def test_clients_that_take_nothing_are_bounded(site: Site, request_: bytes, size: int) -> None:
    """The process stays within its budget and a margin, a neighbour gets every answer, and what was
    held is given back."""
    with contextlib.ExitStack() as stack:
        neighbour = stack.enter_context(site.connect())
        for _ in range(150):
            stack.callback(greedy(site, request_, size).close)
            neighbour.send(get("/small"))
            assert neighbour.response().body == b"hello"
            assert resident(site) < BUDGET + SPARE
    wait_until(lambda: used(site) == 0, "what they held to be given back")
    assert site.proxy.metric("proxy_memory_level") == 0
    site.proxy.assert_sane()


def test_uploads_that_the_upstream_does_not_take_are_held_once(site: Site) -> None:
    """Nothing more is read of an upload while what was read last has not been written."""
    uploads, one_read = 12, 256 * 1024
    go = threading.Event()

    def take_nothing(connection: Connection, request: Request) -> None:
        go.wait(PATIENCE)
        connection.close()

    site.upstream.handler = take_nothing
    head = get("/", "Content-Length: 100000000", method="POST")
    clients: list[socket.socket] = []

    def held_up() -> bool:
        """Send what is taken; whether all of them hold something that goes no further."""
        sent = 0
        for client in clients:
            with contextlib.suppress(BlockingIOError):
                sent += client.send(bytes(one_read))
        return not sent and used(site) > uploads * one_read / 8

    try:
        for _ in range(uploads):
            clients.append(socket.create_connection(site.addresses["front"]))
            clients[-1].sendall(head)
            clients[-1].setblocking(False)
        wait_until(held_up, "uploads that are held up")
        assert used(site) <= uploads * (one_read + 1024)
    finally:
        go.set()
        for client in clients:
            client.close()
