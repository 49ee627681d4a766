"""100-continue, other 1xx, and `Upgrade` (RFC 9110 §7.8, §10.1.1, §15.2)."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.http1 import (
    PATIENCE,
    Connection,
    Request,
    Site,
    answer,
    assert_problem,
    free_port,
    get,
    respond,
    wait_until,
)

HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
WEBSOCKET = [
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """`front` forwards everything, `narrow` only POST /known, `nowhere` has no upstream alive."""
    routes = [{"name": "known", "path": "/known", "methods": ["POST"], "upstream": "app"}]
    dead = [{"name": "all", "path": "/{rest:*}", "upstream": "dead"}]
    with Site(
        tmp_path_factory.mktemp("proxy"),
        {"front": {}, "narrow": {"routes": routes}, "nowhere": {"routes": dead}},
        upstreams={"dead": {"targets": [f"http://127.0.0.1:{free_port()}"]}},
    ) as site:
        yield site


@pytest.fixture(autouse=True)
def _clean(site: Site) -> Iterator[None]:
    """Each test starts with a well-behaved upstream and is checked for damage."""
    site.upstream.fresh()
    yield
    site.check()


# --- Expect: 100-continue -----------------------------------------------------------------------


def expecting(path: str = "/", *fields: str, length: int = 5) -> bytes:
    """The head of a POST that waits for 100."""
    return get(path, "Expect: 100-continue", f"Content-Length: {length}", *fields, method="POST")


def test_100_is_answered_here_and_expect_is_not_forwarded(site: Site) -> None:
    """One 100 before the body is sent, then the answer; the upstream knows nothing of it."""
    with site.connect() as client:
        client.send(expecting())
        assert client.read_response_head().status == 100
        client.send(b"hello")
        assert client.response("POST").body == b"POST / 5"
    assert client.interim == []
    assert site.upstream.only.get("Expect") is None
    assert site.upstream.only.body == b"hello"


def test_expect_is_case_insensitive(site: Site) -> None:
    """`100-Continue` is the same expectation (RFC 9110 §10.1.1)."""
    with site.connect() as client:
        client.send(expecting().replace(b"100-continue", b"100-Continue"))
        assert client.read_response_head().status == 100
        client.send(b"hello")
        assert client.response("POST").status == 200


def test_client_that_does_not_wait_is_served(site: Site) -> None:
    """The body right behind the head: 100 or not, one complete exchange."""
    with site.connect() as client:
        client.send(expecting() + b"hello" + get("/next"))
        assert client.response("POST").body == b"POST / 5"
        assert client.response().body == b"GET /next 0"


def test_expect_with_chunked_body(site: Site) -> None:
    """The same with chunked framing."""
    with site.connect() as client:
        client.send(get("/", "Expect: 100-continue", "Transfer-Encoding: chunked", method="POST"))
        assert client.read_response_head().status == 100
        client.send(b"5\r\nhello\r\n0\r\n\r\n")
        assert client.response("POST").body == b"POST / 5"


@pytest.mark.parametrize(
    ("listener", "path", "status", "code"),
    [
        ("narrow", "/unknown", 404, "no_route"),
        ("nowhere", "/", 502, "upstream_unreachable"),
    ],
)
def test_refusal_comes_without_100(
    site: Site, listener: str, path: str, status: int, code: str
) -> None:
    """Who is refused is not asked for the body first; the body never is read as a request."""
    with site.connect(listener) as client:
        client.send(expecting(path))
        assert_problem(client.response("POST"), status, code)
        assert client.interim == []


def test_upstream_refusal_before_the_body(site: Site) -> None:
    """The upstream refuses on the head alone: the client gets that, and no byte is misread."""

    def refuse(connection: Connection, request: Request) -> None:
        connection.send(respond(b"no", "401 Unauthorized", "Connection: close"))
        connection.close()

    site.upstream.handler = refuse
    with site.connect() as client:
        client.send(expecting(length=1000))
        assert client.response("POST").status == 401


def test_no_100_for_http10(site: Site) -> None:
    """An HTTP/1.0 client does not know 1xx; its expectation is ignored (RFC 9110 §10.1.1)."""
    raw = get("/", "Expect: 100-continue", "Content-Length: 5", method="POST", version="1.0")
    with site.connect() as client:
        client.send(raw + b"hello")
        assert client.response("POST").status == 200
        assert client.interim == []


def test_unknown_expectation(site: Site) -> None:
    """417, or ignored; never forwarded into a dead end (RFC 9110 §10.1.1)."""
    assert site.ask(get("/", "Expect: 200-maybe")).status in (200, 417)


# --- 1xx from the upstream ----------------------------------------------------------------------


def test_early_hints_pass_before_the_answer_is_there(site: Site) -> None:
    """103 reaches the client at once, with its fields, before the final response."""
    seen = threading.Event()

    def hint(connection: Connection, request: Request) -> None:
        connection.body(request)
        connection.send(HINTS)
        assert seen.wait(PATIENCE)
        connection.send(respond(b"done"))

    site.upstream.handler = hint
    with site.connect() as client:
        client.send(get())
        head = client.read_response_head()
        assert head.status == 103
        assert head.get("Link") == "</a.css>; rel=preload"
        seen.set()
        assert client.response().body == b"done"


def test_several_interim_responses_pass_in_order(site: Site) -> None:
    """102, 103, 103 and an unknown 1xx, in one segment with the answer."""
    raw = b"HTTP/1.1 102 Processing\r\n\r\n" + HINTS + HINTS + b"HTTP/1.1 199 Odd\r\nX-A: a\r\n\r\n"
    site.upstream.handler = answer(raw + respond(b"done"))
    with site.connect() as client:
        client.send(get())
        assert client.response().body == b"done"
        assert [head.status for head in client.interim] == [102, 103, 103, 199]


def test_unasked_100_does_not_disturb(site: Site) -> None:
    """A 100 that nobody asked for is passed or dropped; the answer is the answer."""
    site.upstream.handler = answer(b"HTTP/1.1 100 Continue\r\n\r\n" + respond(b"done"))
    with site.connect() as client:
        client.send(get())
        assert client.response().body == b"done"
        assert {head.status for head in client.interim} <= {100}


def test_http10_clients_never_see_1xx(site: Site) -> None:
    """RFC 9110 §15.2: a server must not send 1xx to an HTTP/1.0 client."""
    site.upstream.handler = answer(HINTS + HINTS + respond(b"done"))
    with site.connect() as client:
        client.send(get("/", version="1.0"))
        assert client.response().body == b"done"
        assert client.interim == []


def test_interim_before_head_answer(site: Site) -> None:
    """1xx and HEAD: both bodiless, still distinguished."""
    site.upstream.handler = answer(HINTS + b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
    with site.connect() as client:
        client.send(get(method="HEAD") + get(method="HEAD"))
        assert client.response("HEAD").status == 200
        assert client.response("HEAD").status == 200


def test_flood_of_interim_responses_is_bounded(site: Site) -> None:
    """100,000 times 103 to a client that reads: an end comes, memory does not grow."""
    before = site.proxy.memory()

    def flood(connection: Connection, request: Request) -> None:
        connection.body(request)
        for _ in range(100):
            connection.send(HINTS * 1000)
        connection.send(respond(b"done"))

    site.upstream.handler = flood
    with site.connect() as client:
        client.send(get())
        status = client.response().status
    assert status in (200, 502)
    assert site.proxy.memory() - before < 30_000_000


# --- Upgrade ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"],
        ["Connection: Upgrade", "Upgrade: TLS/1.2"],
        ["Connection: Upgrade", "Upgrade: foo, bar/1"],
        ["Upgrade: websocket"],
        ["Connection: Upgrade"],
    ],
    ids=["h2c", "tls", "unknown", "not nominated", "nothing named"],
)
def test_other_upgrades_are_ignored(site: Site, fields: list[str]) -> None:
    """Only WebSocket tunnels; everything else is answered as plain HTTP, the field removed."""
    with site.connect() as client:
        client.send(get("/", *fields) + get("/next"))
        assert client.response().body == b"GET / 0"
        assert client.response().body == b"GET /next 0"
    first = site.upstream.requests[0]
    assert first.get("Upgrade") is None
    assert first.get("HTTP2-Settings") is None
    assert "upgrade" not in (first.get("Connection") or "").lower()


def test_websocket_by_post_is_no_upgrade(site: Site) -> None:
    """WebSocket needs GET; with another method the request is a plain one or refused."""
    response = site.ask(get("/", *WEBSOCKET, "Content-Length: 0", method="POST"))
    assert response.status in (200, 400)
    if site.upstream.requests:
        assert site.upstream.only.get("Upgrade") is None


def test_websocket_by_http10_is_no_upgrade(site: Site) -> None:
    """An `Upgrade` in HTTP/1.0 is ignored (RFC 9110 §7.8)."""
    assert site.ask(get("/", *WEBSOCKET, version="1.0")).status == 200
    assert site.upstream.only.get("Upgrade") is None


def test_tunnel_passes_bytes_both_ways_untouched(site: Site) -> None:
    """After 101 everything is opaque, also what came in the same segment as the heads."""

    def switch(connection: Connection, request: Request) -> None:
        connection.send(SWITCH + b"from upstream at once;")
        text = connection.read_length(len("early;GET / HTTP/1.1\r\n\r\n"))
        connection.send(text.upper())
        connection.wait_end()
        connection.close()

    site.upstream.handler = switch
    with site.connect() as client:
        client.send(get("/ws", *WEBSOCKET) + b"early;")
        head = client.response_head()
        assert head.status == 101
        assert (head.get("Upgrade") or "").lower() == "websocket"
        assert "upgrade" in (head.get("Connection") or "").lower()
        assert head.get("Sec-WebSocket-Accept") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert head.get("X-Correlation-ID")
        client.send(b"GET / HTTP/1.1\r\n\r\n")
        assert client.read_until(b";") == b"from upstream at once;"
        assert client.read_until(b"\r\n\r\n") == b"EARLY;GET / HTTP/1.1\r\n\r\n"
    request = site.upstream.only
    assert (request.get("Upgrade") or "").lower() == "websocket"
    assert (request.get("Connection") or "").lower() == "upgrade"
    assert request.get("Sec-WebSocket-Key") == "dGhlIHNhbXBsZSBub25jZQ=="


def test_refused_upgrade_stays_http(site: Site) -> None:
    """426 instead of 101: what the client sends next is routed as HTTP, no hidden tunnel."""

    def refuse(connection: Connection, request: Request) -> None:
        connection.body(request)
        connection.send(respond(b"no", "426 Upgrade Required", "Upgrade: websocket",
                                "Connection: upgrade"))  # fmt: skip

    site.upstream.handler = refuse
    with site.connect() as client:
        client.send(get("/ws", *WEBSOCKET[:2], "Sec-WebSocket-Version: 777"))
        assert client.response().status == 426
        site.upstream.handler = answer(respond(b"routed"))
        client.send(get("/next", "X-Forwarded-For: 6.6.6.6"))
        assert client.response().body == b"routed"
    assert site.upstream.requests[-1].get("X-Forwarded-For") == "127.0.0.1", "not a tunnel"


@pytest.mark.parametrize(
    "raw",
    [
        SWITCH.replace(b"Upgrade: websocket", b"Upgrade: h2c"),
        SWITCH.replace(b"Upgrade: websocket\r\n", b""),
    ],
    ids=["to something else", "to nothing"],
)
def test_101_to_another_protocol_is_502(site: Site, raw: bytes) -> None:
    """An upstream may only switch to what was offered (RFC 9110 §15.2.2)."""
    site.upstream.handler = answer(raw, then="close")
    assert_problem(site.ask(get("/ws", *WEBSOCKET)), 502, "upstream_reset")


def test_tunnel_ends_with_either_side(site: Site) -> None:
    """FIN of one side ends the other; nothing stays open."""
    before = site.proxy.descriptors()
    ended = threading.Event()

    def switch(connection: Connection, request: Request) -> None:
        connection.send(SWITCH)
        if request.target == "/server-first":
            connection.close()
        elif connection.wait_end():
            ended.set()
            connection.close()

    site.upstream.handler = switch
    with site.connect() as client:
        client.send(get("/server-first", *WEBSOCKET))
        assert client.response_head().status == 101
        client.assert_closed()
    with site.connect() as client:
        client.send(get("/client-first", *WEBSOCKET))
        assert client.response_head().status == 101
    assert ended.wait(PATIENCE)
    wait_until(lambda: site.proxy.descriptors() <= before + 1, "closed tunnels")


def test_tunnel_holds_back_a_fast_sender(site: Site) -> None:
    """A client that does not read its tunnel stops the upstream, not the memory."""
    before = site.proxy.memory()
    sent = 0
    stalled = threading.Event()

    def pour(connection: Connection, request: Request) -> None:
        nonlocal sent
        connection.send(SWITCH)
        connection.sock.settimeout(0.5)
        try:
            for _ in range(3000):
                connection.send(b"x" * 65536)
                sent += 65536
        except TimeoutError:
            stalled.set()
        connection.close()

    site.upstream.handler = pour
    with site.connect(receive_buffer=65536) as client:
        client.send(get("/ws", *WEBSOCKET))
        assert stalled.wait(PATIENCE), "nothing held the sender back"
        assert site.proxy.memory() - before < 30_000_000
    assert sent < 60_000_000
