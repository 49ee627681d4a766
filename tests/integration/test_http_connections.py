"""The life of a client connection: keep-alive, pipelining, HTTP/1.0, early answers, time-outs."""

from __future__ import annotations

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
    ok,
    post,
    respond,
)

SMUGGLED = get("/smuggled")
IMPATIENT = {"timeouts": {"header": "400ms", "body": "400ms", "idle": "400ms"}}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """`front` has the default time-outs, `impatient` short ones."""
    with Site(tmp_path_factory.mktemp("proxy"), {"front": {}, "impatient": IMPATIENT}) as site:
        yield site


@pytest.fixture(autouse=True)
def _clean(site: Site) -> Iterator[None]:
    """Each test starts with a well-behaved upstream and is checked for damage."""
    site.upstream.fresh()
    yield
    site.check()


# --- keep-alive (RFC 9112 §9.3) -----------------------------------------------------------------


def test_connection_is_kept_by_default(site: Site) -> None:
    """HTTP/1.1 goes on without being asked, and without a `Connection` field to say so."""
    with site.connect() as client:
        for number in range(20):
            client.send(get(f"/{number}"))
            response = client.response()
            assert response.body == f"GET /{number} 0".encode()
            assert response.keeps_alive


@pytest.mark.parametrize("value", ["close", "Close", "keep-alive, close", "close, X-A", "x,close"])
def test_close_is_honoured_and_sent(site: Site, value: str) -> None:
    """After `close` there is one answer with `Connection: close`, then FIN; no further request."""
    with site.connect() as client:
        client.send(get("/", f"Connection: {value}") + SMUGGLED)
        response = client.response()
        assert response.status == 200
        assert not response.keeps_alive
        client.assert_closed()
    assert site.upstream.targets == ["/"]


def test_http10_closes_by_default(site: Site) -> None:
    """HTTP/1.0 without `keep-alive`: one answer, then FIN; no `Host` needed."""
    with site.connect() as client:
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        assert client.response().status == 200
        client.assert_closed()
    assert site.upstream.only.get("Host"), "towards the upstream we speak 1.1, which needs a Host"


def test_http10_keep_alive(site: Site) -> None:
    """HTTP/1.0 with `keep-alive` may go on; if so, the answer says it (RFC 9112 §9.3)."""
    raw = get("/", "Connection: keep-alive", version="1.0")
    with site.connect() as client:
        client.send(raw)
        response = client.response()
        assert response.status == 200
        if "keep-alive" in (response.get("Connection") or "").lower():
            client.send(raw)
            assert client.response().status == 200
        else:
            client.assert_closed()


def test_chunked_answer_for_http10_is_made_plain(site: Site) -> None:
    """HTTP/1.0 never sees chunks, trailers or `Transfer-Encoding`: the close is the end."""
    site.upstream.handler = answer(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n"
    )
    for fields in ([], ["Connection: keep-alive"]):
        with site.connect() as client:
            client.send(get("/", *fields, version="1.0"))
            response = client.response()
            assert response.body == b"hello"
            assert response.framing == "none"
            client.assert_closed()


# --- pipelining (§9.3.2) ------------------------------------------------------------------------


def test_ten_requests_in_one_segment(site: Site) -> None:
    """Answers come in order, bodies and all."""
    raw = b"".join(
        get(f"/{n}") if n % 2 else post(b"x" * n, f"/{n}", "X-A: " + "a" * n) for n in range(10)
    )
    with site.connect() as client:
        client.send(raw)
        for number in range(10):
            method, size = ("GET", 0) if number % 2 else ("POST", number)
            assert client.response().body == f"{method} /{number} {size}".encode()
    assert site.upstream.targets == [f"/{n}" for n in range(10)]


def test_pipelined_request_waits_for_a_slow_answer(site: Site) -> None:
    """Requests behind a slow one are neither lost nor sent to the upstream in another order."""
    release = threading.Event()

    def slow_first(connection: Connection, request: Request) -> None:
        if request.target == "/slow":
            assert release.wait(PATIENCE)
        ok(connection, request)

    site.upstream.handler = slow_first
    with site.connect() as client:
        client.send(get("/slow") + get("/fast"))
        site.upstream.wait_requests(1)
        release.set()
        assert client.response().body == b"GET /slow 0"
        assert client.response().body == b"GET /fast 0"


def test_thousands_of_pipelined_requests_are_bounded_not_dropped(site: Site) -> None:
    """A burst of 1,000 requests is answered completely and in order."""
    burst = b"".join(get(f"/{n}") for n in range(1000))
    with site.connect() as client, client.sending(burst):
        for number in range(1000):
            assert client.response().body == f"GET /{number} 0".encode()


def test_bad_request_behind_a_good_one(site: Site) -> None:
    """The good one is answered first, then comes the 400."""
    with site.connect() as client:
        client.send(get("/good") + b"GET /bad HTTP/1.1\r\nHost : x\r\n\r\n" + SMUGGLED)
        assert client.response().body == b"GET /good 0"
        assert_problem(client.response(), 400, "bad_request")
        client.assert_closed()
    assert site.upstream.targets == ["/good"]


# --- early answers ------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["200 OK", "413 Content Too Large", "401 Unauthorized"])
@pytest.mark.parametrize("then", ["keep", "close"])
def test_unread_body_behind_an_early_answer_is_never_a_request(
    site: Site, status: str, then: str
) -> None:
    """The upstream answers before the body came; the body's bytes look like a request."""

    def early(connection: Connection, request: Request) -> None:
        if request.target == "/early":
            connection.send(respond(b"early", status))
            if then == "close":
                connection.close()
            else:
                connection.body(request)
        else:
            ok(connection, request)

    site.upstream.handler = early
    with site.connect() as client:
        client.send(post(SMUGGLED * 20, "/early")[: -len(SMUGGLED) * 20])
        response = client.response("POST")
        assert response.status == int(status[:3])
        assert response.body == b"early"
        client.send_lenient(SMUGGLED * 20 + get("/next"))
        if response.keeps_alive:
            assert client.response().body == b"GET /next 0"
        else:
            client.rest()
    assert "/smuggled" not in site.upstream.targets


def test_early_answer_to_a_large_upload_reaches_the_client(site: Site) -> None:
    """A client that is still sending gets the refusal whole, not a reset (lingering close)."""

    def refuse(connection: Connection, request: Request) -> None:
        connection.send(respond(b"too large", "413 Content Too Large", "Connection: close"))
        connection.half_close()
        connection.wait_end()  # closing over unread bytes would be a reset
        connection.close()

    site.upstream.handler = refuse
    body = b"x" * 5_000_000
    with site.connect() as client, client.sending(post(body)):
        response = client.response("POST")
        assert response.status == 413
        assert response.body == b"too large"


def test_our_own_refusal_of_a_large_upload_reaches_the_client(site: Site) -> None:
    """The same for a 405 of ours, written while megabytes are under way."""
    raw = post(b"x" * 5_000_000, "/", method="TRACE")
    with site.connect() as client, client.sending(raw):
        assert client.response("POST").status in (400, 405)


def test_bytes_far_behind_a_close_do_not_hold_the_connection(site: Site) -> None:
    """A client that goes on sending after `Connection: close` is cut off in the end."""
    with site.connect() as client:
        client.send(get("/", "Connection: close"))
        assert client.response().status == 200
        client.sock.settimeout(1)
        with pytest.raises(OSError, match=r"reset|Broken pipe|timed out"):
            client.send(b"x" * 130_000_000)


# --- time-outs ----------------------------------------------------------------------------------


def test_slow_header_is_408(site: Site) -> None:
    """Slowloris: a head that does not come to an end is answered 408 and closed."""
    with site.connect("impatient") as client:
        client.send(b"GET / HTTP/1.1\r\nHost: example.test\r\nX-A: ")
        assert_problem(client.response(), 408, "request_timeout")
        client.assert_closed()


def test_dripping_header_is_408(site: Site) -> None:
    """A byte now and then does not extend the time for the whole head."""
    stop = threading.Event()
    with site.connect("impatient") as client:
        client.send(b"GET / HTTP/1.1\r\nHost: example.test\r\nX-A: ")

        def drip() -> None:
            while not stop.wait(0.05):
                client.send_lenient(b"a")

        dripper = threading.Thread(target=drip)
        dripper.start()
        try:
            assert_problem(client.response(), 408, "request_timeout")
        finally:
            stop.set()
            dripper.join()


def test_slow_body_is_408_and_ends_the_upstream_request(site: Site) -> None:
    """A body that stops coming: 408 to the client, the upstream's connection cut."""
    with site.connect("impatient") as client:
        client.send(post(b"hello")[:-2])
        assert_problem(client.response("POST"), 408, "request_timeout")
        client.assert_closed()
    site.upstream.wait(lambda: site.upstream.concurrent == 0, "the cut connection")
    assert not any(request.complete for request in site.upstream.requests)


def test_idle_connection_is_closed_silently(site: Site) -> None:
    """Between two requests there is nobody to tell: FIN, no 408."""
    with site.connect("impatient") as client:
        client.send(get())
        assert client.response().status == 200
        client.assert_closed()


def test_connection_that_never_speaks_is_closed(site: Site) -> None:
    """A connection without a single byte is given up."""
    with site.connect("impatient") as client:
        text = client.rest()
    assert text == b"" or text.startswith(b"HTTP/1.1 408 ")


# --- clients that leave -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset", "half_close"])
def test_client_that_leaves_aborts_the_upstream_request(site: Site, how: str) -> None:
    """FIN or RST in flight: the upstream's connection ends, the access line says 499."""
    ended = threading.Event()

    def hang(connection: Connection, request: Request) -> None:
        if connection.wait_end():
            ended.set()
        connection.close()

    site.upstream.handler = hang
    name = f"leaves-{how}"
    with site.connect() as client:
        client.send(get("/", f"X-Correlation-ID: {name}"))
        site.upstream.wait_requests(1)
        getattr(client, how)()
        assert ended.wait(PATIENCE), "the upstream was not told"
        line = site.proxy.access_line(name)
        assert line["status"] == 499
        assert line["code"] == "client_left"


def test_client_that_leaves_inside_its_body_is_499(site: Site) -> None:
    """The same when the body was still under way."""
    with site.connect() as client:
        client.send(post(b"hello", "/", "X-Correlation-ID: leaves-body")[:-2])
        site.upstream.wait_requests(1)
    site.upstream.wait(lambda: site.upstream.concurrent == 0, "the cut connection")
    assert site.proxy.access_line("leaves-body")["status"] == 499
    assert not site.upstream.only.complete


def test_client_that_leaves_inside_the_answer(site: Site) -> None:
    """RST while the answer is being sent: the upstream stops, too."""
    ended = threading.Event()

    def endless(connection: Connection, request: Request) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        try:
            for _ in range(10_000):
                connection.send(b"x" * 65536)
        except OSError:
            ended.set()
        connection.close()

    site.upstream.handler = endless
    with site.connect() as client:
        client.send(get())
        assert client.response_head().status == 200
        client.reset()
        assert ended.wait(PATIENCE)


def test_half_closed_client_with_a_quick_answer_gets_it(site: Site) -> None:
    """`printf ... | nc`: FIN right behind the request is no reason to lose a prompt answer."""
    with site.connect() as client:
        client.send(get("/quick"))
        client.half_close()
        assert client.response().body == b"GET /quick 0"
        client.assert_closed()


def test_connect_and_leave(site: Site) -> None:
    """A hundred connections that never say a word leave nothing behind and nothing in the way."""
    for _ in range(100):
        with site.connect():
            pass
    assert site.ask(get()).status == 200


def test_client_that_leaves_inside_its_head(site: Site) -> None:
    """Half a head and FIN: no request, no 500."""
    with site.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: exa")
        client.half_close()
        text = client.rest()
    assert text == b"" or text.startswith(b"HTTP/1.1 400 ")
    assert site.upstream.requests == []


def test_answer_is_complete_or_visibly_not(site: Site) -> None:
    """An HTTP/1.0 client cannot see a missing last chunk; a broken answer ends in RST for it."""
    site.upstream.handler = answer(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", then="reset"
    )
    with pytest.raises(Truncated) as cut:
        site.ask(get("/", version="1.0"))
    assert cut.value.reset
