"""The fast path and the general one: the same bytes, and no seam where one hands over.

Every test first makes the proxy keep a connection to the upstream, without which nothing is plain.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.http1 import (
    PATIENCE,
    Connection,
    Request,
    Site,
    Truncated,
    Upstream,
    answer,
    assert_problem,
    get,
    ok,
    post,
    respond,
)

GENERAL = "tests.http1.general_path"
ROOT = Path(__file__).resolve().parents[2]
ALL = {"name": "all", "path": "/{rest:*}"}
TIMES = {"timeouts": {"response": "700ms", "idle": "700ms"}}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A proxy with short upstream time-outs; upstreams with a breaker and with retries."""
    upstream = Upstream()
    rules: dict[str, dict[str, Any]] = {
        "watched": {"breaker": {"failure_threshold": 3, "open_for": "30s"}},
        "retried": {"retry": {"attempts": 2, "on": [503], "backoff": "1ms", "budget": "100%"}},
    }
    with Site(
        tmp_path_factory.mktemp("proxy"),
        {
            "front": {},
            "hasty": {"timeouts": {"idle": "1500ms"}},
            "stale": {"routes": [{**ALL, "upstream": "app", "fallback": {"stale": "1m"}}]},
            **{name: {"routes": [{**ALL, "upstream": name}]} for name in rules},
        },
        app=TIMES,
        upstreams={name: {"targets": [upstream.url], **more} for name, more in rules.items()},
        upstream=upstream,
    ) as site:
        yield site


@pytest.fixture(scope="module")
def general(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The same proxy with its fast path off."""
    with Site(tmp_path_factory.mktemp("general"), app=TIMES, module=GENERAL) as site:
        yield site


@pytest.fixture(autouse=True)
def _clean(site: Site) -> Iterator[None]:
    """Each test starts with a well-behaved upstream and is checked for damage."""
    site.upstream.fresh()
    yield
    site.check()


def warm(site: Site, listener: str = "front") -> None:
    """Leave a connection to the upstream idle."""
    site.upstream.fresh()
    assert site.ask(get("/warm"), listener).status == 200
    site.upstream.fresh()


# --- the same bytes -----------------------------------------------------------------------------

REQUESTS = {
    "plain": get("/a"),
    "query": get("/a?b=c&token=secret"),
    "escapes": get("/%61/b//c"),
    "own id": get("/", "X-Correlation-ID: mine-1"),
    "bad id": get("/", "X-Correlation-ID: not mine"),
    "two ids": get("/", "X-Correlation-ID: a", "X-Correlation-ID: b"),
    "fields": get("/", "Accept: */*", "X-A: 1", "x-a:2", "Cookie: a=b", "traceparent: 00-1-1-01"),
    "named in connection": get("/", "Connection: x-gone", "X-Gone: 1", "X-Stays: 1"),
    "keep-alive": get("/", "Connection: keep-alive", "Keep-Alive: timeout=5"),
    "close": get("/", "Connection: close"),
    "forwarded": get("/", "X-Forwarded-For: 6.6.6.6", "Forwarded: for=6.6.6.6"),
    "te": get("/", "TE: trailers", "Connection: TE"),
    "max-forwards": get("/", "Max-Forwards: 3"),
    "expect": get("/", "Expect: 100-continue"),
    "upgrade to h2c": get("/", "Connection: Upgrade", "Upgrade: h2c"),
    "content-length 0": get("/", "Content-Length: 0", method="POST"),
    "post without a body": get("/", method="POST"),
    "post": post(b"hello"),
    "head": get("/", method="HEAD"),
    "delete": get("/", method="DELETE"),
    "options": get("/", method="OPTIONS"),
    "unknown method": get("/", method="BREW"),
    "absolute form": get("http://other.test/a"),
    "http/1.0": get("/", version="1.0"),
    "http/1.0 keep-alive": get("/", "Connection: keep-alive", version="1.0"),
    "large head": get("/", "X-Large: " + "a" * 3000),
    "empty line first": b"\r\n" + get("/"),
}


def exchange(site: Site, request: bytes) -> tuple[bytes, bytes]:
    """What the upstream and the client see of one exchange on a kept connection, made the same."""
    site.upstream.fresh()
    site.upstream.handler = answer(respond(b"hello", "200 OK", "X-B: 1", "Server: x"))
    if request.startswith(b"HEAD"):
        site.upstream.handler = answer(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
    with site.connect() as client:
        client.send(request)
        head = client.response(request.split(b" ", 1)[0].decode())
        seen = site.upstream.only
    made = head.get("X-Correlation-ID")
    assert made
    assert seen.get("X-Correlation-ID") == made
    names = (made.encode(), b"ID") if b"mine-1" not in request else (b"", b"")
    raw_head = undated(head.raw_head).replace(*names)
    return seen.raw_head.replace(*names) + seen.body, raw_head + head.body


def undated(raw_head: bytes) -> bytes:
    """A head whose `Date` says nothing of the second in which it was sent."""
    return re.sub(rb"\r\nDate: [^\r]+", b"\r\nDate: now", raw_head)


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS.keys())
def test_both_paths_send_the_same_bytes(site: Site, general: Site, request_: bytes) -> None:
    """Whatever a request asks for: upstream and client cannot tell which path it took, neither the
    first time nor when it is remembered."""
    for one in (site, general):
        warm(one)
    expected = exchange(general, request_)
    assert exchange(site, request_) == expected
    assert exchange(site, request_) == expected


RESPONSES = {
    "plain": respond(b"hello"),
    "empty": respond(b""),
    "fields": respond(b"x", "200 OK", "Set-Cookie: a=b", "Set-Cookie: c=d", "Via: 1.1 other"),
    "its own id": respond(b"x", "200 OK", "X-Correlation-ID: theirs"),
    "named in connection": respond(b"x", "200 OK", "Connection: x-gone", "X-Gone: 1"),
    "close": respond(b"x", "200 OK", "Connection: close"),
    "404": respond(b"no", "404 Not Found"),
    "500": respond(b"no", "500 Oh"),
    "no reason": respond(b"x", "200 "),
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "204 with a length": respond(b"", "204 No Content"),
    "304 with a length": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    "interim first": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + respond(b"x"),
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
    "http/1.0": respond(b"x", version="1.0"),
    "large": respond(b"x" * 100_000),
}


@pytest.mark.parametrize("raw", RESPONSES.values(), ids=RESPONSES.keys())
def test_both_paths_pass_the_same_response(site: Site, general: Site, raw: bytes) -> None:
    """Whatever the upstream answers: the client cannot tell the paths apart."""
    seen = []
    for one in (general, site, site):
        warm(one)
        one.upstream.handler = answer(raw)
        with one.connect() as client:
            client.send(get("/", "X-Correlation-ID: mine"))
            response = client.response()
            interim = [found.raw_head for found in client.interim]
            seen.append((interim, undated(response.raw_head), response.body))
            one.upstream.fresh()
            client.send(get("/after"))
            assert client.response().body == b"GET /after 0"
    assert seen[0] == seen[1] == seen[2]


def test_both_paths_leave_the_same_record(site: Site, general: Site) -> None:
    """Access line and metrics of a fast-path exchange are those of a general one."""
    lines = []
    for one in (general, site):
        warm(one)
        with one.connect() as client:
            for name in ("rec-1", "rec-2"):
                client.send(get("/rec?key=s3cret", f"X-Correlation-ID: {name}"))
                assert client.response().status == 200
        line = one.proxy.access_line("rec-2")
        for name in ("timestamp", "duration_ms", "upstream_ms", "client", "target"):
            assert line.pop(name)
        lines.append(line)
        before = one.proxy.metric("http_requests_total", status="200")
        one.ask(get("/rec"))
        after = one.proxy.metric("http_requests_total", status="200")
        assert before is not None
        assert after == before + 1
        assert one.proxy.metric("proxy_requests_in_flight", listener="front") == 0
    assert lines[0] == lines[1]
    assert lines[0]["attempts"] == 1
    assert lines[0]["path"] == "/rec?key=***"


# --- where one hands over to the other ----------------------------------------------------------


def in_pieces(site: Site, *pieces: bytes) -> Callable[[Connection, Request], None]:
    """A handler that sends a response in pieces, each of which the proxy has read before the next
    (it has answered another request that came after it)."""

    def handler(connection: Connection, request: Request) -> None:
        if request.target == "/proof":
            ok(connection, request)
            return
        for piece in pieces[:-1]:
            connection.send(piece)
            assert site.ask(get("/proof")).status == 200
        connection.send(pieces[-1])

    return handler


WHOLE = respond(b"hello world", "200 OK", "X-A: 1")
END_OF_HEAD = WHOLE.index(b"\r\n\r\n") + 4


@pytest.mark.parametrize("cut", [1, 20, END_OF_HEAD - 2, END_OF_HEAD, END_OF_HEAD + 5])
def test_a_response_in_two_reads(site: Site, cut: int) -> None:
    """Wherever it is cut, the general path puts it together."""
    warm(site)
    site.upstream.handler = in_pieces(site, WHOLE[:cut], WHOLE[cut:])
    with site.connect() as client:
        client.send(get())
        response = client.response()
        assert (response.status, response.body, response.get("X-A")) == (200, b"hello world", "1")
        site.upstream.fresh()
        client.send(get("/after"))
        assert client.response().body == b"GET /after 0"


def test_a_response_longer_than_it_says(site: Site) -> None:
    """What is too much answers nobody; the connection is not used again."""
    warm(site)
    site.upstream.handler = answer(respond(b"hello") + respond(b"evil"))
    with site.connect() as client:
        client.send(get())
        assert client.response().body == b"hello"
        first = site.upstream.only.connection
        site.upstream.fresh()
        client.send(get("/after"))
        assert client.response().body == b"GET /after 0"
        assert site.upstream.only.connection != first


def test_a_shorter_response_is_cut(site: Site) -> None:
    """The client sees that the body is incomplete."""
    warm(site)
    site.upstream.handler = answer(
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello", then="close"
    )
    with site.connect() as client:
        client.send(get())
        with pytest.raises(Truncated):
            client.response()


def test_a_malformed_response(site: Site) -> None:
    """502 from the general path, and the client's connection goes on."""
    warm(site)
    site.upstream.handler = answer(b"HTTP/1.1 200 OK\r\nX : 1\r\nContent-Length: 0\r\n\r\n")
    with site.connect() as client:
        client.send(get("/", "X-Correlation-ID: broken-1"))
        assert_problem(client.response(), 502, "upstream_reset")
        site.upstream.fresh()
        client.send(get("/after"))
        assert client.response().body == b"GET /after 0"
    assert site.proxy.access_line("broken-1")["attempts"] == 1


def test_silence_of_the_upstream(site: Site) -> None:
    """504 after the response time-out, as ever."""
    warm(site)

    def handler(connection: Connection, request: Request) -> None:
        assert connection.wait_end(PATIENCE)
        connection.close()

    site.upstream.handler = handler
    assert_problem(site.ask(get("/", "X-Correlation-ID: silent-1")), 504, "upstream_timeout")
    assert 700 <= site.proxy.access_line("silent-1")["duration_ms"] < PATIENCE * 1000


def test_a_stale_connection(site: Site) -> None:
    """Closed as the request came: sent once more on a new one, as one attempt."""
    warm(site)

    def handler(connection: Connection, request: Request) -> None:
        if connection.served:
            connection.close()
        else:
            ok(connection, request)

    site.upstream.handler = handler
    assert site.ask(get("/", "X-Correlation-ID: stale-1")).status == 200
    assert site.upstream.targets == ["/", "/"]
    assert site.proxy.access_line("stale-1")["attempts"] == 1


def test_a_request_while_another_is_under_way(site: Site) -> None:
    """Pipelined behind a plain one: both are answered, in order."""
    warm(site)
    seen, go = threading.Event(), threading.Event()

    def handler(connection: Connection, request: Request) -> None:
        seen.set()
        assert go.wait(PATIENCE)
        ok(connection, request)

    site.upstream.handler = handler
    with site.connect() as client:
        client.send(get("/1"))
        assert seen.wait(PATIENCE)
        client.send(get("/2") + get("/3"))
        go.set()
        assert [client.response().body for _ in range(3)] == [
            b"GET /1 0",
            b"GET /2 0",
            b"GET /3 0",
        ]


def test_a_client_that_leaves(site: Site) -> None:
    """499, and the upstream's connection is ended."""
    warm(site)
    ended = threading.Event()

    def handler(connection: Connection, request: Request) -> None:
        if connection.wait_end(PATIENCE):
            ended.set()
        connection.close()

    site.upstream.handler = handler
    client = site.connect()
    client.send(get("/", "X-Correlation-ID: left-1"))
    site.upstream.wait_requests(1)
    client.close()
    assert ended.wait(PATIENCE)
    assert site.proxy.access_line("left-1")["status"] == 499


def test_silence_after_plain_exchanges_ends_the_connection(site: Site) -> None:
    """The idle time begins anew with each of them."""
    warm(site, "hasty")
    with site.connect("hasty") as client:
        for _ in range(3):
            client.send(get())
            assert client.response().status == 200
            assert client.silent_for(0.6)
        client.assert_closed()


def test_failures_open_the_circuit_and_a_success_ends_a_run(site: Site) -> None:
    """A breaker sees plain exchanges as it sees others."""
    warm(site, "watched")
    bad = answer(respond(b"", "503 Busy"))
    for handler, count in ((bad, 2), (ok, 1), (bad, 2)):
        site.upstream.handler = handler
        for _ in range(count):
            site.ask(get(), "watched")
    assert site.proxy.breaker("watched")["state"] == "closed"
    assert site.ask(get(), "watched").status == 503
    assert site.proxy.breaker("watched")["state"] == "open"
    assert_problem(site.ask(get(), "watched"), 503, "circuit_open")
    assert len(site.upstream.requests) == 6


def test_a_failure_is_retried(site: Site) -> None:
    """The answer that came first is held back, and the budget knows of it."""
    warm(site, "retried")

    def handler(connection: Connection, request: Request) -> None:
        first = len(site.upstream.requests) == 1
        connection.send(respond(b"busy", "503 Busy") if first else respond(b"fine"))

    site.upstream.handler = handler
    response = site.ask(get("/", "X-Correlation-ID: again-1"), "retried")
    assert (response.status, response.body) == (200, b"fine")
    assert site.upstream.requests[1].get("X-Retry-Count") == "1"
    assert site.proxy.access_line("again-1")["attempts"] == 2


def test_a_good_answer_is_kept_for_worse_times(site: Site) -> None:
    """`fallback: stale` remembers plain answers, and gives them when the upstream fails."""
    warm(site, "stale")
    site.upstream.handler = answer(respond(b"good", "200 OK", "X-A: 1"))
    with site.connect("stale") as client:
        client.send(get("/s"))
        assert client.response().body == b"good"
        site.upstream.handler = answer(respond(b"bad", "500 Oh"))
        client.send(get("/s"))
        response = client.response()
    assert (response.status, response.body, response.get("X-Stale")) == (200, b"good", "true")


def test_a_drain_says_close(tmp_path: Path) -> None:
    """An exchange that is plain when the drain begins ends with `Connection: close`."""
    seen, go = threading.Event(), threading.Event()

    def handler(connection: Connection, request: Request) -> None:
        seen.set()
        assert go.wait(PATIENCE)
        ok(connection, request)

    with Site(tmp_path) as site:
        warm(site)
        site.upstream.handler = handler
        with site.connect() as client, site.connect() as idle:
            client.send(get("/last"))
            assert seen.wait(PATIENCE)
            site.proxy.process.terminate()
            idle.assert_closed()
            go.set()
            response = client.response()
            assert (response.status, response.get("Connection")) == (200, "close")
        assert site.proxy.process.wait(PATIENCE) == 0


def test_a_reload_in_between(tmp_path: Path) -> None:
    """The exchange under way keeps its plan; what was remembered of the old one is forgotten."""
    seen, go = threading.Event(), threading.Event()

    def handler(connection: Connection, request: Request) -> None:
        seen.set()
        assert go.wait(PATIENCE)
        ok(connection, request)

    with Site(tmp_path) as site:
        warm(site)
        site.upstream.handler = handler
        with site.connect() as client:
            client.send(get("/kept", "X-Correlation-ID: kept-1"))
            assert seen.wait(PATIENCE)
            config = json.loads(site.proxy.file.read_text())
            config["listeners"]["front"]["routes"][0]["name"] = "renamed"
            site.proxy.write(config)
            assert site.proxy.admin_post("/api/reload")[0] == 200
            go.set()
            assert client.response().status == 200
            client.send(get("/kept", "X-Correlation-ID: kept-2"))
            assert client.response().status == 200
        assert site.proxy.access_line("kept-1")["route"] == "all"
        assert site.proxy.access_line("kept-2")["route"] == "renamed"
        site.check()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("family", ["http", "relay"])
def test_the_general_path_alone_passes_all_of_these_tests(family: str) -> None:
    """What the fast path takes off the general one is tested there all the same."""
    files = sorted(
        str(path)
        for path in Path(__file__).parent.glob(f"test_{family}_*.py")
        if path != Path(__file__)
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        cwd=ROOT,
        env={**os.environ, "HTTP1_MODULE": GENERAL},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
