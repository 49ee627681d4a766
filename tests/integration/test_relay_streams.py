"""Bodies as streams: piece by piece, both ways, with bounded memory whoever is slow."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest

from tests.http1 import PATIENCE, Connection, Request, Site, answer, get, ok, respond

MEGABYTE = 1_000_000
ROOM = 30 * MEGABYTE
"""How much the proxy may grow while somebody is slow: far below any body in this file."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One proxy with default settings."""
    with Site(tmp_path_factory.mktemp("proxy")) as site:
        yield site


@pytest.fixture(autouse=True)
def _clean(site: Site) -> Iterator[None]:
    """Each test starts with a well-behaved upstream and is checked for damage."""
    site.upstream.fresh()
    yield
    site.check()


@pytest.mark.parametrize("framing", ["chunked", "close", "length"])
def test_events_are_flushed_one_by_one(site: Site, framing: str) -> None:
    """Server-sent events: each is with the client before the upstream makes the next."""
    seen = threading.Semaphore(0)

    def events(connection: Connection, request: Request) -> None:
        connection.body(request)
        extra = {"chunked": b"Transfer-Encoding: chunked\r\n", "length": b"Content-Length: 30\r\n"}
        connection.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            + extra.get(framing, b"")
            + b"\r\n"
        )
        assert seen.acquire(timeout=PATIENCE)
        for number in range(3):
            event = b"data: %d\n\n" % number
            event += b"\n" * (10 - len(event))
            connection.send(b"a\r\n" + event + b"\r\n" if framing == "chunked" else event)
            assert seen.acquire(timeout=PATIENCE)
        if framing == "chunked":
            connection.send(b"0\r\n\r\n")
        if framing == "close":
            connection.close()

    site.upstream.handler = events
    with site.connect() as client:
        client.send(get())
        head = client.response_head()
        assert head.get("Content-Type") == "text/event-stream"
        seen.release()
        for number in range(3):
            client.read_until(b"data: %d\n\n" % number)
            seen.release()


def test_request_body_is_streamed_piece_by_piece(site: Site) -> None:
    """The upstream has the first piece before the client sends the second."""
    first = threading.Event()

    def watch(connection: Connection, request: Request) -> None:
        assert connection.line("chunk size") == b"5"
        assert connection.read_length(7) == b"first\r\n"
        first.set()
        request.body, request.trailers = connection.read_chunked()
        request.complete = True
        connection.send(respond(request.body))

    site.upstream.handler = watch
    with site.connect() as client:
        client.send(get("/", "Transfer-Encoding: chunked", method="POST") + b"5\r\nfirst\r\n")
        assert first.wait(PATIENCE), "the proxy holds the body back"
        client.send(b"6\r\nsecond\r\n0\r\n\r\n")
        assert client.response("POST").body == b"second"


def test_answer_may_begin_before_the_request_has_ended(site: Site) -> None:
    """Both bodies at once: an echo that answers each piece as it comes."""

    def echo(connection: Connection, request: Request) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            size = int(connection.line("chunk size"), 16)
            piece = connection.read_length(size + 2)
            if size == 0:
                break
            connection.send(b"%x\r\n" % size + piece)
        request.complete = True
        connection.send(b"0\r\n\r\n")

    site.upstream.handler = echo
    with site.connect() as client:
        client.send(get("/", "Transfer-Encoding: chunked", method="POST"))
        head = client.response_head()
        assert head.status == 200
        for piece in (b"one;", b"two;", b"six;"):
            client.send(b"4\r\n" + piece + b"\r\n")
            client.read_until(piece)
        client.send(b"0\r\n\r\n")
        client.read_until(b"0\r\n\r\n")
        if head.keeps_alive:  # closing after an answer before the end of a request is fine, too
            site.upstream.handler = ok
            client.send(get("/next"))
            assert client.response().body == b"GET /next 0"
        else:
            client.assert_closed()


def test_slow_reader_holds_the_upstream_back(site: Site) -> None:
    """A client that does not read a 200 MB answer costs no memory, and gets it all in the end."""
    total = 200 * MEGABYTE
    sent = 0
    stalled = threading.Event()

    def pour(connection: Connection, request: Request) -> None:
        nonlocal sent
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        connection.sock.settimeout(0.5)
        block = memoryview(b"x" * MEGABYTE)
        while sent < total:
            try:
                sent += connection.sock.send(block[: min(MEGABYTE, total - sent)])
            except TimeoutError:
                stalled.set()
                connection.sock.settimeout(PATIENCE)

    before = site.proxy.memory()
    site.upstream.handler = pour
    with site.connect(receive_buffer=65536) as client:
        client.send(get())
        assert client.response_head().status == 200
        assert stalled.wait(PATIENCE), "nothing held the upstream back"
        assert sent < 60 * MEGABYTE
        assert site.proxy.memory() - before < ROOM
        received = len(client.buffer)
        while received < total:
            client.buffer.clear()
            assert client.fill()
            received += len(client.buffer)
    assert received == total
    assert site.proxy.memory() - before < ROOM


def test_slow_upstream_holds_the_client_back(site: Site) -> None:
    """An upstream that does not read a 100 MB upload costs no memory, and gets it all at last."""
    total = 100 * MEGABYTE
    go_on = threading.Event()
    received = 0

    def slow(connection: Connection, request: Request) -> None:
        nonlocal received
        assert go_on.wait(PATIENCE)
        received = len(connection.buffer)
        while received < total:
            connection.buffer.clear()
            assert connection.fill()
            received += len(connection.buffer)
        connection.buffer.clear()
        request.complete = True
        connection.send(respond(b"thanks"))

    before = site.proxy.memory()
    site.upstream.handler = slow
    with site.connect() as client:
        client.send(get("/", f"Content-Length: {total}", method="POST"))
        client.sock.settimeout(0.5)
        sent = 0
        block = memoryview(b"x" * MEGABYTE)
        with contextlib.suppress(TimeoutError):
            while sent < total:
                sent += client.sock.send(block[: min(MEGABYTE, total - sent)])
        assert sent < 60 * MEGABYTE
        assert site.proxy.memory() - before < ROOM
        go_on.set()
        client.sock.settimeout(PATIENCE)
        while sent < total:
            sent += client.sock.send(block[: min(MEGABYTE, total - sent)])
        assert client.response("POST").body == b"thanks"
    assert received == total
    assert site.proxy.memory() - before < ROOM


def test_many_tiny_chunks_do_not_grow(site: Site) -> None:
    """A body of 200,000 chunks of one byte each passes whole, in bounded memory."""
    before = site.proxy.memory()
    count = 200_000
    site.upstream.handler = answer(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"1;ext\r\nx\r\n" * count
        + b"0\r\n\r\n"
    )
    assert len(site.ask(get()).body) == count
    assert site.proxy.memory() - before < ROOM


def test_thirty_slow_readers_are_independent(site: Site) -> None:
    """Clients that do not read hinder nobody else."""
    block = b"x" * 2 * MEGABYTE
    site.upstream.handler = answer(respond(block))
    clients = [site.connect(receive_buffer=65536) for _ in range(30)]
    try:
        for client in clients:
            client.send(get())
        site.upstream.wait_requests(30)
        site.upstream.handler = ok
        assert site.ask(get("/quick")).body == b"GET /quick 0"
        for client in clients:
            assert client.response().body == block
    finally:
        for client in clients:
            client.close()
