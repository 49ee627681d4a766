"""Bodies that wait in the spool: slow callers hold none of a service's few connections."""

from __future__ import annotations

import random
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.http1 import (
    PATIENCE,
    Connection,
    RawClient,
    Request,
    Site,
    Truncated,
    Upstream,
    answer,
    assert_problem,
    get,
    post,
    respond,
)
from tests.http1.process import wait_until

MB = 1_000_000
CHUNKED = "Transfer-Encoding: chunked"
BODY = random.Random(7).randbytes(3 * MB)
NONE_LEFT = ("proxy_spool_bytes", "proxy_spool_files")


def site_of(directory: Path, **spool: Any) -> Site:
    """Listener `front` leads to an upstream of two connections that buffers, `plain` to one that
    does not, `retry` to one that retries as well, `narrow` to one with a bulkhead."""
    (directory / "spool").mkdir()
    buffering = {"request": True, "response": True}
    two = {"max_connections": 2, "queue_timeout": "60s"}
    limited = {"name": "small", "path": "/small", "upstream": "app", "limits": {"body": "1KiB"}}
    hasty = {
        "name": "hasty",
        "path": "/hasty",
        "upstream": "app",
        "timeouts": {"response": "100ms"},
    }
    rest = "/{rest:*}"
    listeners: dict[str, Any] = {
        "front": {"routes": [limited, hasty, {"name": "all", "path": rest, "upstream": "app"}]},
        "plain": {
            "routes": [
                limited | {"upstream": "plain"},
                {"name": "all", "path": rest, "upstream": "plain"},
            ],
            "limits": {"body": "4MB"},
        },
    }
    for name in ("retry", "narrow", "answers"):
        listeners[name] = {"routes": [{"name": "all", "path": rest, "upstream": name}]}
    upstream = Upstream()
    target = {"targets": [upstream.url]}
    return Site(
        directory,
        listeners,
        app={"buffering": buffering, "pool": two},
        upstreams={
            "plain": target,
            "retry": target
            | {
                "buffering": buffering,
                "retry": {"backoff": "1ms", "on": ["connect", "reset", 503]},
            },
            "answers": target | {"buffering": {"response": True}},
            "narrow": target
            | {"buffering": buffering, "bulkhead": {"max_concurrent": 1, "queue_timeout": "60s"}},
        },
        upstream=upstream,
        spool={"dir": str(directory / "spool"), **spool},
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One proxy whose spool has room."""
    with site_of(tmp_path_factory.mktemp("proxy")) as site:
        yield site


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One proxy whose spool has not."""
    with site_of(tmp_path_factory.mktemp("full"), max_size="1MiB") as site:
        yield site


@pytest.fixture(autouse=True)
def _clean(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test leaves the spool empty and the proxy sane."""
    names = [name for name in ("site", "full") if name in request.fixturenames]
    sites = [request.getfixturevalue(name) for name in names]
    for site in sites:
        site.upstream.fresh()
    yield
    for site in sites:
        site.check()
        for name in NONE_LEFT:
            wait_until(lambda s=site, n=name: s.proxy.metric(n) == 0, f"{name} to be 0")


def chunks(body: bytes, size: int = 50_000) -> bytes:
    """`body` in chunks, without the last one."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


# --- requests ---


def test_slow_senders_hold_no_connection(site: Site) -> None:
    """Eight that have sent one byte do not keep a ninth from an upstream that takes two; what they
    complete arrives with its length."""
    with ExitStack() as stack:
        slow = [stack.enter_context(site.connect()) for _ in range(8)]
        for number, client in enumerate(slow):
            if number % 2:
                client.send(get("/slow", CHUNKED, method="POST") + b"1\r\ns\r\n")
            else:
                client.send(get("/slow", "Content-Length: 4", method="POST") + b"s")
        for _ in range(3):
            assert site.ask(get("/quick")).status == 200
        assert site.ask(post(b"done", "/quick")).status == 200
        assert set(site.upstream.targets) == {"/quick"}
        site.upstream.fresh()
        for number, client in enumerate(slow):
            client.send(b"3\r\nlow\r\n0\r\n\r\n" if number % 2 else b"low")
            assert client.response("POST").status == 200
    assert [(r.body, r.framing) for r in site.upstream.requests] == [(b"slow", "length")] * 8


@pytest.mark.parametrize("framing", ["length", "chunked", "trailers", "continue"])
def test_a_large_request_arrives_as_it_was_sent(site: Site, framing: str) -> None:
    """Through a file; in chunks only where trailers follow."""
    before = site.proxy.metric("proxy_spool_written_bytes_total") or 0
    with site.connect() as client:
        if framing == "length":
            client.send(post(BODY))
        elif framing == "continue":
            client.send(
                get("/", "Expect: 100-continue", f"Content-Length: {len(BODY)}", method="PUT")
            )
            client.read_until(b"100 Continue\r\n\r\n")
            assert site.upstream.requests == []
            client.send(BODY)
        else:
            end = b"0\r\nX-Sum: 7\r\n\r\n" if framing == "trailers" else b"0\r\n\r\n"
            client.send(get("/", CHUNKED, method="POST") + chunks(BODY) + end)
        assert client.response("POST").status == 200
    arrived = site.upstream.only
    assert arrived.body == BODY
    assert arrived.framing == ("chunked" if framing == "trailers" else "length")
    assert bool(arrived.trailers) == (framing == "trailers")
    assert arrived.get("Expect") is None
    assert (site.proxy.metric("proxy_spool_written_bytes_total") or 0) - before >= 2 * MB


def test_an_empty_body_in_chunks(site: Site) -> None:
    """It has a length, too: none."""
    assert site.ask(get("/", CHUNKED, method="POST") + b"0\r\n\r\n").status == 200
    assert (site.upstream.only.body, site.upstream.only.get("Content-Length")) == (b"", "0")


def test_a_client_that_leaves_midway_costs_the_upstream_nothing(site: Site) -> None:
    """499, and nobody was asked."""
    with site.connect() as client:
        client.send(get("/", "X-Correlation-ID: left", "Content-Length: 9000000", method="POST"))
        client.send(BODY)
    assert site.proxy.access_line("left")["status"] == 499
    assert site.upstream.requests == []


def test_a_spooled_body_is_sent_again(site: Site) -> None:
    """Retries have all of a body that is far longer than `retry.buffer`."""
    calls = iter((503, 0, 200))

    def flaky(connection: Connection, request: Request) -> None:
        connection.body(request)
        status = next(calls)
        if status:
            connection.send(respond(b"", f"{status} S"))
        else:
            connection.reset()

    site.upstream.handler = flaky
    assert site.ask(post(BODY, method="PUT"), "retry").status == 200
    assert [request.body == BODY for request in site.upstream.requests] == [True] * 3


def test_pipelined_requests_behind_a_buffered_one(site: Site) -> None:
    """Each gets its own body and its answer in turn, on one connection, large answers included."""
    site.upstream.handler = lambda connection, request: connection.send(
        respond(connection.body(request))
    )
    bodies = [b"one", BODY, b"", b"three"]
    raws = [post(body) for body in bodies]
    raws[3] = get("/", CHUNKED, method="POST") + chunks(bodies[3], 2) + b"0\r\n\r\n"
    with site.connect(receive_buffer=4096) as client, client.sending(b"".join(raws)):
        site.upstream.wait_requests(2)
        hurry(client)
        assert [client.response("POST").body for _ in bodies] == bodies


def test_an_early_answer_to_a_large_request(site: Site) -> None:
    """An upstream may answer by the head alone, however much is still to be sent."""

    def refuse(connection: Connection, request: Request) -> None:
        connection.send(respond(b"no", "413 Content Too Large", "Connection: close"))
        connection.close()

    site.upstream.handler = refuse
    assert site.ask(post(BODY * 3)).status == 413


def test_an_early_answer_to_a_client_that_sends_first_and_reads_later(site: Site) -> None:
    """The answer waits, and the rest of the request is read over, so that it can be sent."""

    def at_once(connection: Connection, request: Request) -> None:
        connection.send(respond(BODY * 3, "200 OK", "Connection: close"))
        done.wait(PATIENCE)  # closing at once, the rest unread, would destroy what is under way
        connection.close()

    done = threading.Event()
    site.upstream.handler = at_once
    with site.connect("answers", receive_buffer=4096) as client:
        client.send(post(bytes(80 * MB)))  # more than all buffers on the way
        done.set()
        hurry(client)
        assert client.response("POST").body == BODY * 3


# --- no room ---


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_without_room_a_request_is_a_stream(full: Site, framing: str) -> None:
    """It arrives all the same, and is counted. Where its length is known nothing is written."""
    reason = {"reason": "max_size"}
    before = full.proxy.metric("proxy_spool_refused_total", **reason) or 0
    if framing == "length":
        raw = post(BODY)
    else:
        raw = get("/", CHUNKED, method="POST") + chunks(BODY) + b"0\r\n\r\n"
    assert full.ask(raw).status == 200
    assert full.upstream.only.body == BODY
    assert full.upstream.only.framing == framing
    assert (full.proxy.metric("proxy_spool_refused_total", **reason) or 0) > before
    full.upstream.fresh()
    small = BODY[:600_000]
    assert full.ask(post(small)).status == 200
    assert full.upstream.only.body == small


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_without_room_slow_senders_hold_half_of_the_connections(full: Site, framing: str) -> None:
    """One of two; the others wait for that one, and quick requests for nobody."""
    with ExitStack() as stack:
        slow = [stack.enter_context(full.connect()) for _ in range(4)]
        for client in slow:
            if framing == "length":
                client.send(get("/slow", f"Content-Length: {len(BODY)}", method="POST") + b"s")
            else:
                client.send(get("/slow", CHUNKED, method="POST") + chunks(BODY[:1_200_000]))
        for _ in range(3):
            assert full.ask(get("/quick")).status == 200
            assert full.ask(post(b"done", "/quick")).status == 200
        waiting = range(3, 4) if framing == "length" else range(1, 4)
        wait_until(
            lambda: full.proxy.metric("proxy_unbuffered_waiting", upstream="app") in waiting,
            "the others to wait",
        )
        assert full.proxy.metric("proxy_unbuffered_in_flight", upstream="app") == 1


def test_without_a_directory_bodies_are_streams(tmp_path: Path) -> None:
    """Both ways, from the moment it is gone."""
    with site_of(tmp_path) as site:
        shutil.rmtree(tmp_path / "spool")
        assert (
            site.ask(get("/", CHUNKED, method="POST") + chunks(BODY) + b"0\r\n\r\n").status == 200
        )
        assert site.upstream.only.body == BODY
        site.upstream.handler = answer(respond(BODY * 4))
        with site.connect(receive_buffer=4096) as client:
            client.send(get())
            head = client.response_head()
            hurry(client)
            assert client.read_response_body(head).body == BODY * 4
        assert site.proxy.metric("proxy_spool_refused_total", reason="no_directory")
        wait_until(
            lambda: any(line["message"].startswith("spool full") for line in site.proxy.log()),
            "a line about the spool",
        )


def test_a_directory_that_is_missing_is_logged_at_the_start(tmp_path: Path) -> None:
    """Before anybody needs it; the proxy serves all the same."""
    with site_of(tmp_path) as site:
        assert site.ask(get()).status == 200
        (tmp_path / "spool").rmdir()
        site.proxy.signal(signal.SIGHUP)
        wait_until(
            lambda: any(line["message"].startswith("spool full") for line in site.proxy.log()),
            "a line about the spool",
        )
        assert site.ask(get()).status == 200


def test_a_killed_proxy_leaves_nothing(tmp_path: Path) -> None:
    """The files have no names."""
    site = site_of(tmp_path)
    try:
        with site.connect() as client:
            client.send(get("/", "Content-Length: 9000000", method="POST") + BODY)
            wait_until(lambda: bool(site.proxy.metric("proxy_spool_files")), "a file")
            site.proxy.signal(signal.SIGKILL)
            site.proxy.process.wait(PATIENCE)
        assert list((tmp_path / "spool").iterdir()) == []
    finally:
        site.proxy.stop()
        site.upstream.stop()


# --- responses ---


def hurry(client: RawClient) -> None:
    """From here on it takes what comes."""
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * MB)


def large(connection: Connection, request: Request) -> None:
    """9 MB for `/large…`, in the framing that the query names."""
    connection.body(request)
    if not request.target.startswith("/large"):
        connection.send(respond(b"ok"))
    elif request.target.endswith("chunked"):
        end = b"0\r\nX-Sum: 7\r\n\r\n"
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.send(chunks(BODY * 3) + end)
    else:
        connection.send(respond(BODY * 3))


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_slow_readers_hold_no_connection(site: Site, framing: str) -> None:
    """Six that read nothing do not keep others from an upstream that takes two connections, and
    get all of it in the end."""
    site.upstream.handler = large
    with ExitStack() as stack:
        slow = [stack.enter_context(site.connect(receive_buffer=4096)) for _ in range(6)]
        for client in slow:
            client.send(get(f"/large?{framing}"))
        site.upstream.wait_requests(6)
        site.upstream.wait(lambda: site.upstream.concurrent == 0, "all six to be sent")
        assert site.ask(get("/other")).body == b"ok"
        for client in slow:
            hurry(client)
            response = client.response()
            assert response.body == BODY * 3
            assert bool(response.trailers) == (framing == "chunked")


def test_a_place_in_the_bulkhead_is_left_when_the_upstream_is_done(site: Site) -> None:
    """One slow reader at an upstream with one place."""
    site.upstream.handler = large
    with site.connect("narrow", receive_buffer=4096) as client:
        client.send(get("/large"))
        client.response_head()
        assert site.ask(get("/other"), "narrow").body == b"ok"


def test_a_reader_that_leaves_lets_go_of_what_waits(site: Site) -> None:
    """499, counted as what it took; `_clean` sees that the spool is empty."""
    site.upstream.handler = large
    with site.connect(receive_buffer=4096) as client:
        client.send(get("/large", "X-Correlation-ID: reader-left"))
        client.response_head()
        site.upstream.wait(lambda: site.upstream.concurrent == 0, "all to be sent")
        client.reset()
    line = site.proxy.access_line("reader-left")
    assert line["status"] == 499, line
    assert line["bytes_out"] < 9 * MB


def test_without_room_a_response_is_read_as_it_is_taken(full: Site) -> None:
    """Back-pressure instead of a file, and all of it arrives."""
    full.upstream.handler = large
    with full.connect(receive_buffer=4096) as client:
        client.send(get("/large"))
        assert client.response().body == BODY * 3


def test_without_room_slow_readers_hold_half_of_the_connections(full: Site) -> None:
    """One of two; the slowest makes way as soon as somebody waits, and nobody else is cut."""
    full.upstream.handler = large
    with ExitStack() as stack:
        slow = [stack.enter_context(full.connect(receive_buffer=4096)) for _ in range(2)]
        heads = []
        for number, client in enumerate(slow):
            client.send(get("/large", f"X-Correlation-ID: slow-reader-{number}"))
            heads.append(client.response_head())
        for _ in range(3):
            assert full.ask(get("/quick")).body == b"ok"
        wait_until(
            lambda: full.proxy.metric("proxy_client_connections", listener="front") == 1,
            "one of them to be cut",
        )
        ends = []
        for client, head in zip(slow, heads, strict=True):
            hurry(client)
            try:
                ends.append(client.read_response_body(head).body == BODY * 3)
            except (Truncated, ConnectionResetError):
                ends.append(False)
        assert sorted(ends) == [False, True]
    cut = full.proxy.access_line(f"slow-reader-{ends.index(False)}")
    assert (cut["status"], cut["reason"]) == (499, "client_slow")


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n",
        b"X-Accel-Buffering: no\r\nContent-Length: 40000000\r\n",
        b"Connection: close\r\n",
    ],
    ids=["events", "x-accel", "close"],
)
def test_streams_are_not_read_ahead(site: Site, fields: bytes) -> None:
    """The upstream of a client that takes nothing is not read on."""
    written = site.proxy.metric("proxy_spool_written_bytes_total")
    sent = threading.Event()

    def stream(connection: Connection, request: Request) -> None:
        connection.body(request)
        connection.send(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n")
        body = bytes(40 * MB)
        connection.send(b"%x\r\n%b\r\n" % (len(body), body) if b"chunked" in fields else body)
        sent.set()

    site.upstream.handler = stream
    with site.connect(receive_buffer=4096) as client:
        client.send(get())
        client.response_head()
        assert not sent.wait(0.5)
        assert site.proxy.metric("proxy_spool_written_bytes_total") == written


# --- cuts ---


def cut(head: bytes, body: bytes, how: str) -> Any:
    """A handler that sends so much and breaks off."""

    def handler(connection: Connection, request: Request) -> None:
        connection.body(request)
        connection.send(head + b"\r\n\r\n" + body)
        if how == "reset":
            connection.wait_end(0.2)  # a reset may take what is under way with it
            connection.reset()
        else:
            connection.close()

    return handler


@pytest.mark.parametrize("listener", ["front", "plain"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_what_came_before_a_cut_reaches_a_slow_client(
    site: Site, listener: str, version: str, framing: str, how: str
) -> None:
    """All of it, then an end that shows: by the framing, or a reset where that has no end."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 9000000"
    body = BODY
    if framing == "chunked":
        head, body = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", chunks(BODY)
    site.upstream.handler = cut(head, body, how)
    with site.connect(listener, receive_buffer=16384) as client:
        client.send(get(version=version))
        response = client.response_head()
        with pytest.raises(Truncated) as caught:
            client.read_response_body(response)
    assert caught.value.partial == BODY
    assert caught.value.reset == (framing == "chunked" and version == "1.0")


@pytest.mark.parametrize("listener", ["front", "plain"])
def test_a_body_malformed_at_once_is_a_502(site: Site, listener: str) -> None:
    """Nothing has left yet: an answer that can be read, counted as what it is."""
    raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n"
    site.upstream.handler = answer(raw)
    with site.connect(listener) as client:
        client.send(get("/", f"X-Correlation-ID: malformed-{listener}"))
        assert_problem(client.response(), 502, "upstream_reset")
        site.upstream.handler = answer(respond(b"next"))
        client.send(get())
        assert client.response().body == b"next"
    line = site.proxy.access_line(f"malformed-{listener}")
    assert (line["status"], line["reason"]) == (502, "malformed_body")


# --- limits and times ---


@pytest.mark.parametrize("listener", ["front", "plain"])
@pytest.mark.parametrize("framing", ["length", "chunked", "continue"])
def test_a_body_over_the_limit_is_refused(site: Site, listener: str, framing: str) -> None:
    """413, readable, before or while it comes; the upstream has no part in it where it buffers."""
    body = b"x" * 5000
    raw = {
        "length": post(body, "/small"),
        "chunked": get("/small", CHUNKED, method="POST") + chunks(body, 100) + b"0\r\n\r\n",
        "continue": get("/small", "Expect: 100-continue", "Content-Length: 5000", method="POST"),
    }[framing]
    with site.connect(listener) as client:
        client.send_lenient(raw)
        response = client.response("POST")
        assert client.interim == []
    document = assert_problem(response, 413, "body_too_large")
    assert document["limit"] == 1024
    assert document.get("measured") == (None if framing == "chunked" else 5000)
    if listener == "front":
        assert site.upstream.requests == []
    assert site.ask(post(b"x" * 1024, "/small"), listener).status == 200


def test_the_listener_s_limit_holds_for_all_other_routes(site: Site) -> None:
    """4 MB there, 100 MiB where nothing is said."""
    assert_problem(site.ask(post(bytes(4 * MB + 1)), "plain"), 413, "body_too_large")
    assert site.ask(post(bytes(4 * MB)), "plain").status == 200
    too_long = get("/", "Content-Length: 104857601", method="POST")
    assert_problem(site.ask(too_long), 413, "body_too_large")


def test_a_route_may_have_times_of_its_own(site: Site) -> None:
    """100 ms on one route, a minute on the other."""
    gate = threading.Event()

    def late(connection: Connection, request: Request) -> None:
        connection.body(request)
        if request.target == "/hasty":
            assert gate.wait(PATIENCE)
        connection.send(respond(b"late"))

    site.upstream.handler = late
    assert_problem(site.ask(get("/hasty")), 504, "upstream_timeout")
    gate.set()
    assert site.ask(get("/patient")).body == b"late"
