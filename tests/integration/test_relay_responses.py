"""Upstream responses that are as hostile as requests (RFC 9112 §4–§7 from the other side).

Before the head was passed on, anything ambiguous is 502; after it, the client must be able to see
that the body is incomplete. Nothing of one response ever shows up in another.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest

from tests.http1 import (
    PATIENCE,
    Connection,
    Request,
    Site,
    Truncated,
    answer,
    assert_problem,
    get,
    post,
    respond,
)

OK = b"HTTP/1.1 200 OK\r\n"
EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One proxy for all; short upstream time-outs, so that a stall is seen soon."""
    app = {"timeouts": {"connect": "1s", "response": "700ms", "idle": "700ms"}}
    with Site(tmp_path_factory.mktemp("proxy"), app=app) as site:
        yield site


@pytest.fixture(autouse=True)
def _clean(site: Site) -> Iterator[None]:
    """Each test starts with a well-behaved upstream and is checked for damage."""
    site.upstream.fresh()
    yield
    site.check()


def assert_fresh(site: Site) -> None:
    """The next requests get their own answers, whatever came before."""
    site.upstream.fresh()
    for number in range(3):
        assert site.ask(get(f"/after/{number}")).body == f"GET /after/{number} 0".encode()


BROKEN_HEADS = {
    "nothing": b"",
    "only crlf": b"\r\n\r\n",
    "garbage": b"\x16\x03\x01\x02\x00garbage\r\n\r\n",
    "html": b"<html>hello</html>\r\n\r\n",
    "a request": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "half a status line": b"HTTP/1.1 20",
    "half a head": OK + b"Content-Le",
    "status letters": b"HTTP/1.1 abc OK\r\n\r\n",
    "status two digits": b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
    "status four digits": b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
    "status negative": b"HTTP/1.1 -20 OK\r\nContent-Length: 0\r\n\r\n",
    "status zero": b"HTTP/1.1 000 OK\r\nContent-Length: 0\r\n\r\n",
    "version 2": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "version lower case": b"http/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "shoutcast": b"ICY 200 OK\r\nContent-Length: 0\r\n\r\n",
    "no version": b"200 OK\r\nContent-Length: 0\r\n\r\n",
    "reason with nul": b"HTTP/1.1 200 O\x00K\r\nContent-Length: 0\r\n\r\n",
    "reason with cr": b"HTTP/1.1 200 O\rK\r\nContent-Length: 0\r\n\r\n",
    "field with nul": OK + b"X-A: a\x00b\r\nContent-Length: 0\r\n\r\n",
    "field with bare cr": OK + b"X-A: a\rX-B: b\r\nContent-Length: 0\r\n\r\n",
    "field with control character": OK + b"X-A: a\x01\r\nContent-Length: 0\r\n\r\n",
    "field without colon": OK + b"X-A\r\nContent-Length: 0\r\n\r\n",
    "field without name": OK + b": a\r\nContent-Length: 0\r\n\r\n",
    "field name not a token": OK + b"X(A): a\r\nContent-Length: 0\r\n\r\n",
    "cl letters": OK + b"Content-Length: abc\r\n\r\nhello",
    "cl plus": OK + b"Content-Length: +5\r\n\r\nhello",
    "cl minus": OK + b"Content-Length: -5\r\n\r\nhello",
    "cl hexadecimal": OK + b"Content-Length: 0x5\r\n\r\nhello",
    "cl empty": OK + b"Content-Length:\r\n\r\nhello",
    "cl huge": OK + b"Content-Length: 99999999999999999999999\r\n\r\nhello",
    "cl list unequal": OK + b"Content-Length: 5, 6\r\n\r\nhello",
    "cl twice unequal": OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "cl space before colon": OK + b"Content-Length : 5\r\n\r\nhello",
    "te and cl": OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "te twice": OK + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n0\r\n\r\n",
    "te chunked, chunked": OK + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "te chunked, identity": OK + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "te gzip, chunked": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "te gzip": OK + b"Transfer-Encoding: gzip\r\n\r\nhello",
    "te unknown": OK + b"Transfer-Encoding: cow\r\n\r\nhello",
    "te xchunked": OK + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "te vertical tab": OK + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "te in http/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "101 nobody asked for": b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n"
    b"Upgrade: websocket\r\n\r\n",
    "interim with a body": b"HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\nhello",
    "interim and nothing": b"HTTP/1.1 103 Early Hints\r\n\r\n",
    "endless field": OK + b"X-A: " + b"a" * 2_000_000,
    "endless fields": OK + b"X-A: a\r\n" * 300_000,
}


@pytest.mark.parametrize("raw", BROKEN_HEADS.values(), ids=BROKEN_HEADS.keys())
def test_broken_head_is_502_and_its_connection_is_closed(site: Site, raw: bytes) -> None:
    """502 `upstream_reset` to the client, whose connection goes on; nothing is reused upstream."""

    def handler(connection: Connection, request: Request) -> None:
        connection.body(request)
        whole_head = raw.endswith(b"\n\r\n") and not raw.startswith(b"HTTP/1.1 103")
        connection.send(raw + EVIL if whole_head else raw)
        if len(raw) < 100_000:
            connection.half_close()
        assert connection.wait_end(PATIENCE), "the proxy kept the connection"
        connection.close()

    site.upstream.handler = handler
    with site.connect() as client:
        client.send(get("/", "X-Correlation-ID: abc"))
        document = assert_problem(client.response(), 502, "upstream_reset")
        assert document["correlation_id"] == "abc"
        site.upstream.fresh()
        client.send(get("/after"))
        assert client.response().body == b"GET /after 0"
    assert_fresh(site)


MENDABLE_HEADS = {
    "space before colon": OK + b"X-A : a\r\nContent-Length: 5\r\n\r\nhello",
    "folded value": OK + b"X-A: a\r\n b\r\nContent-Length: 5\r\n\r\nhello",
    "bare lf": b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
    "cl twice equal": OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "cl list equal": OK + b"Content-Length: 5, 5\r\n\r\nhello",
    "no reason": b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello",
    "version 1.2": b"HTTP/1.2 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "te empty": OK + b"Transfer-Encoding:\r\nContent-Length: 5\r\n\r\nhello",
}


@pytest.mark.parametrize("raw", MENDABLE_HEADS.values(), ids=MENDABLE_HEADS.keys())
def test_mendable_head_is_mended_or_502(site: Site, raw: bytes) -> None:
    """What the RFC lets a proxy mend is mended or refused; what passes is always well-formed."""
    site.upstream.handler = answer(raw)
    response = site.ask(get())
    assert (response.status, response.body) == (200, b"hello") or response.status == 502
    assert_fresh(site)


BROKEN_BODIES = {
    "cl too short, fin": (OK + b"Content-Length: 10\r\n\r\nhello", "close"),
    "cl too short, rst": (OK + b"Content-Length: 10\r\n\r\nhello", "reset"),
    "cl and no byte": (OK + b"Content-Length: 10\r\n\r\n", "close"),
    "chunked without end, fin": (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "close"),
    "chunked without end, rst": (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "reset"),
    "chunked cut inside": (OK + b"Transfer-Encoding: chunked\r\n\r\nff\r\nhello", "close"),
    "chunked cut before last crlf": (
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        "close",
    ),
    "close-delimited, rst": (OK + b"\r\nhello", "reset"),
    "cl stalls": (OK + b"Content-Length: 10\r\n\r\nhello", "keep"),
    "chunked stalls": (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "keep"),
    "close-delimited stalls": (OK + b"\r\nhello", "keep"),
}
BROKEN_BODIES |= {
    f"chunk {name}": (OK + b"Transfer-Encoding: chunked\r\n\r\n" + body, "keep")
    for name, body in {
        "size negative": b"-5\r\nhello\r\n0\r\n\r\n",
        "size 0x": b"0x5\r\nhello\r\n0\r\n\r\n",
        "size empty": b"\r\nhello\r\n0\r\n\r\n",
        "size overflow": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
        "size line ended by lf": b"5\nhello\r\n0\r\n\r\n",
        "data longer than size": b"3\r\nhello\r\n0\r\n\r\n",
        "data ended by lf": b"5\r\nhello\n0\r\n\r\n",
        "extension with lf": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
        "extension endless": b"5;" + b"a" * 500_000 + b"\r\nhello\r\n0\r\n\r\n",
        "trailer with lf": b"5\r\nhello\r\n0\r\nX-T: a\nX-U: b\r\n\r\n",
        "trailer endless": b"5\r\nhello\r\n0\r\nX-T: " + b"a" * 500_000 + b"\r\n\r\n",
    }.items()
}


@pytest.mark.parametrize(("raw", "then"), BROKEN_BODIES.values(), ids=BROKEN_BODIES.keys())
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_broken_body_is_visibly_incomplete(site: Site, raw: bytes, then: str, version: str) -> None:
    """A clean 502/504, or a body whose end is visibly missing; never complete-looking and short."""

    def handler(connection: Connection, request: Request) -> None:
        connection.body(request)
        connection.send(raw)
        if then == "keep":
            connection.wait_end(PATIENCE)
        if then == "reset":
            connection.reset()
        else:
            connection.close()

    site.upstream.handler = handler
    with site.connect() as client:
        client.send(get("/", version=version))
        with contextlib.suppress(Truncated):
            response = client.response()
            assert response.status in (502, 504), f"looks complete: {response}"
    assert_fresh(site)


EXTRA_BYTES = {
    "behind content-length": (get(), respond(b"hello"), b"hello"),
    "behind last chunk": (
        get(),
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"hello",
    ),
    "behind 204": (get(), b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "behind 304": (get(), b"HTTP/1.1 304 Not Modified\r\nContent-Length: 50\r\n\r\n", b""),
    "behind head": (get(method="HEAD"), OK + b"Content-Length: 50\r\n\r\n", b""),
    "behind chunked head": (
        get(method="HEAD"),
        OK + b"Transfer-Encoding: chunked\r\n\r\n",
        b"",
    ),
    "behind an error to a post": (post(), respond(b"no", "500 Oops"), b"no"),
}


@pytest.mark.parametrize(("ask", "raw", "body"), EXTRA_BYTES.values(), ids=EXTRA_BYTES.keys())
@pytest.mark.parametrize("extra", [EVIL, b"x", b"\r\n" + EVIL], ids=["response", "byte", "crlf"])
@pytest.mark.parametrize("late", [False, True], ids=["at once", "later"])
def test_bytes_behind_a_response_never_answer_the_next_request(
    site: Site, ask: bytes, raw: bytes, body: bytes, extra: bytes, late: bool
) -> None:
    """Response splitting: what an upstream sends unasked is thrown away with its connection."""
    sent = threading.Event()
    received = threading.Event()

    def handler(connection: Connection, request: Request) -> None:
        connection.body(request)
        if late:
            connection.send(raw)
            received.wait(PATIENCE)
            connection.send(extra)
        else:
            connection.send(raw + extra)
        sent.set()

    site.upstream.handler = handler
    with site.connect() as client:
        client.send(ask)
        response = client.response(ask.split(b" ")[0].decode())
        received.set()
        assert sent.wait(PATIENCE)
        assert response.body == body
        site.upstream.fresh()
        for number in range(3):
            client.send(get(f"/next/{number}"))
            assert client.response().body == f"GET /next/{number} 0".encode()


BODILESS = {
    "204": (get(), b"HTTP/1.1 204 No Content\r\nX-A: a\r\n\r\n", 204),
    "204 with length zero": (get(), b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", 204),
    "304 with length": (get(), b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304),
    "304": (get(), b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n", 304),
    "head with length": (get(method="HEAD"), OK + b"Content-Length: 5\r\n\r\n", 200),
    "head chunked": (get(method="HEAD"), OK + b"Transfer-Encoding: chunked\r\n\r\n", 200),
    "head without framing": (get(method="HEAD"), OK + b"\r\n", 200),
    "length zero": (get(), OK + b"Content-Length: 0\r\n\r\n", 200),
    "reset content": (get(), b"HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n", 205),
}


@pytest.mark.parametrize(("ask", "raw", "status"), BODILESS.values(), ids=BODILESS.keys())
def test_responses_without_a_body_end_with_their_head(
    site: Site, ask: bytes, raw: bytes, status: int
) -> None:
    """No waiting for a body that cannot come, and the connection goes on (RFC 9112 §6.3)."""
    site.upstream.handler = answer(raw)
    with site.connect() as client:
        for _ in range(2):
            client.send(ask)
            response = client.response(ask.split(b" ")[0].decode())
            assert response.status == status
            assert response.body == b""
            assert response.keeps_alive
            if status == 204:
                assert response.framing == "none", "RFC 9110 §8.6: no Content-Length in a 204"


def test_204_with_transfer_encoding_is_not_believed(site: Site) -> None:
    """A 204 has no body, whatever it says: passed without framing, or 502."""
    site.upstream.handler = answer(
        b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    )
    response = site.ask(get())
    assert response.status in (204, 502)
    assert response.status == 502 or response.framing == "none"
    assert_fresh(site)


def test_close_delimited_response_is_framed_for_the_client(site: Site) -> None:
    """An HTTP/1.0 upstream without a length: the client gets the whole and a visible end."""
    for head in (b"HTTP/1.0 200 OK\r\n\r\n", OK + b"Connection: close\r\n\r\n", OK + b"\r\n"):
        site.upstream.handler = answer(head + b"hello" * 1000, then="close")
        response = site.ask(get())
        assert response.version == b"1.1"
        assert response.body == b"hello" * 1000
        assert site.ask(get("/", version="1.0")).body == b"hello" * 1000


def test_http10_upstream_connection_is_not_reused(site: Site) -> None:
    """HTTP/1.0 without keep-alive: the next request opens a new connection."""
    site.upstream.handler = answer(respond(b"x", version="1.0"))
    for _ in range(2):
        assert site.ask(get()).status == 200
    first, second = site.upstream.requests
    assert first.connection != second.connection


def test_response_before_the_request_is_never_used(site: Site) -> None:
    """A response sent on an idle connection (a 408, as some servers do) answers nobody."""
    interim_sent = threading.Event()

    def then_408(connection: Connection, request: Request) -> None:
        connection.body(request)
        connection.send(respond(b"first"))
        connection.send(respond(b"time-out", "408 Request Timeout", "Connection: close"))
        connection.close()
        interim_sent.set()

    site.upstream.handler = then_408
    assert site.ask(get()).body == b"first"
    assert interim_sent.wait(PATIENCE)
    assert_fresh(site)


def test_large_body_passes_whole(site: Site) -> None:
    """10 MB, in each framing, arrive byte for byte."""
    block = bytes(range(256)) * 40_000
    plain = OK + b"Content-Length: %d\r\n\r\n" % len(block) + block
    chunked = OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\r\n" % len(block) + block
    for raw, then in ((plain, "keep"), (chunked + b"\r\n0\r\n\r\n", "keep"),
                      (OK + b"\r\n" + block, "close")):  # fmt: skip
        site.upstream.handler = answer(raw, then=then)
        assert site.ask(get()).body == block


def test_response_byte_by_byte(site: Site) -> None:
    """A response in segments of one byte reads like one in a single segment."""

    def drip(connection: Connection, request: Request) -> None:
        connection.body(request)
        raw = (
            OK + b"X-A: a\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\nX-T: t\r\n\r\n"
        )
        for at in range(len(raw)):
            connection.send(raw[at : at + 1])

    site.upstream.handler = drip
    response = site.ask(get())
    assert response.body == b"hello"
    assert response.trailers == [(b"X-T", b"t")]


def test_silent_upstream_is_504(site: Site) -> None:
    """No head within `timeouts.response`: 504 `upstream_timeout`, the connection given up."""
    ended = threading.Event()

    def silent(connection: Connection, request: Request) -> None:
        if connection.wait_end(PATIENCE):
            ended.set()
        connection.close()

    site.upstream.handler = silent
    assert_problem(site.ask(get()), 504, "upstream_timeout")
    assert ended.wait(PATIENCE)


def test_dripping_head_is_504(site: Site) -> None:
    """A head that comes a byte at a time for ever does not extend `timeouts.response`."""
    stop = threading.Event()

    def drip(connection: Connection, request: Request) -> None:
        connection.send(OK + b"X-A: ")
        while not stop.wait(0.05):
            connection.send(b"a")

    site.upstream.handler = drip
    try:
        assert site.ask(get()).status == 504
    finally:
        stop.set()
