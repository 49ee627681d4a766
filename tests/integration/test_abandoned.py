"""Services that are silent until their callers give up, and streams that last: both are counted."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http1 import wait_until
from tests.http1.message import Request
from tests.http1.site import Site, get, post
from tests.http1.upstream import Connection

PATIENCE_OF_CALLERS = 0.05  # seconds, more than `slow_call` below


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """An upstream whose circuit opens at the second call that was given up."""
    breaker = {
        "failure_threshold": 2,
        "slow_call": "20ms",
        "failure_on": [500, "abandoned"],
    }
    with Site(tmp_path, app={"breaker": breaker}) as made:
        yield made


def hang(connection: Connection, request: Request) -> None:
    """Take the request and say nothing."""
    connection.wait_end()
    connection.close()


def give_up(site: Site, name: str, calls: int) -> None:
    """A caller with a little patience."""
    with site.connect() as client:
        client.send(get("/", f"X-Correlation-ID: {name}"))
        site.upstream.wait_requests(calls)
        time.sleep(PATIENCE_OF_CALLERS)


def test_a_silent_service_is_seen_and_opens_its_circuit(site: Site) -> None:
    """The wait is on the access line, in the histogram, on the page, and a failure."""
    site.upstream.handler = hang
    for number in (1, 2):
        give_up(site, f"hung-{number}", number)
        line = site.proxy.access_line(f"hung-{number}")
        assert line["status"] == 499
        assert line["silent_ms"] >= PATIENCE_OF_CALLERS * 500
    assert site.proxy.metric("proxy_upstream_abandoned_seconds_count", upstream="app") == 2
    waited = site.proxy.metric("proxy_upstream_abandoned_seconds_sum", upstream="app")
    assert waited is not None
    assert waited >= PATIENCE_OF_CALLERS
    where = {"listener": "front", "endpoint": "all"}
    assert site.proxy.metric("proxy_client_gone_total", phase="upstream", **where) == 2
    wait_until(lambda: site.proxy.breaker("app")["state"] == "open", "the open circuit")
    status, text = site.proxy.admin("/api/status")
    assert status == 200
    (app,) = (one for one in json.loads(text)["upstreams"] if one["name"] == "app")
    assert app["abandoned"] in (0, 2)  # 0 where the history began with them


def test_clients_that_leave_elsewhere_are_nobodys_silence(site: Site) -> None:
    """In the middle of their request, or of the answer: counted as that, and no failure."""

    def begin(connection: Connection, request: Request) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        connection.wait_end()
        connection.close()

    with site.connect() as client:
        client.send(post(b"hello", "/", "X-Correlation-ID: midway")[:-2])
        site.upstream.wait_requests(1)
    assert "silent_ms" not in site.proxy.access_line("midway")
    site.upstream.wait(lambda: site.upstream.concurrent == 0, "the cut connection")
    site.upstream.handler = begin
    with site.connect() as client:
        client.send(get("/", "X-Correlation-ID: reading"))
        client.read_until(b"hello")
    line = site.proxy.access_line("reading")
    assert "silent_ms" not in line
    assert line["unfinished_ms"] >= 0  # it had all that came, and waited for the upstream
    where = {"listener": "front", "endpoint": "all"}
    for phase, count in (("request", 1), ("unfinished", 1), ("upstream", None)):
        assert site.proxy.metric("proxy_client_gone_total", phase=phase, **where) == count
    assert site.proxy.metric("proxy_upstream_abandoned_seconds_count", upstream="app") == 0
    assert site.proxy.breaker("app")["state"] == "closed"


def test_an_error_page_with_status_200_is_named(tmp_path: Path) -> None:
    """A service that gave JSON gives a web page: passed on, noted, counted."""
    kinds = iter((b"application/json", b"text/html", b"text/html"))

    def answer(connection: Connection, request: Request) -> None:
        connection.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: 2\r\n\r\n{}" % next(kinds)
        )

    with (
        Site(tmp_path, {"calls": {"direction": "egress"}}) as site,
        site.connect("calls") as client,
    ):
        site.upstream.handler = answer
        for name in ("data", "page", "again"):
            client.send(get("/", f"X-Correlation-ID: {name}"))
            assert client.read_until(b"{}").startswith(b"HTTP/1.1 200")
        assert "unexpected_type" not in site.proxy.access_line("data")
        assert site.proxy.access_line("again")["unexpected_type"] == "text/html"
        where = {"listener": "calls", "endpoint": "all"}
        assert site.proxy.metric("proxy_unexpected_answers_total", **where) == 2


@pytest.mark.parametrize("kind", ["events", "websocket"])
def test_how_long_a_stream_lasts_is_no_duration_of_a_request(site: Site, kind: str) -> None:
    """The request counts with the time to the head, the stream in a series of its own."""
    fields: tuple[str, ...] = ()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n"
    if kind == "websocket":
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        fields = ("Upgrade: websocket", "Connection: Upgrade", key, "Sec-WebSocket-Version: 13")
        head = (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
        )

    def stream(connection: Connection, request: Request) -> None:
        connection.send(head)
        connection.wait_end()
        connection.close()

    site.upstream.handler = stream
    with site.connect() as client:
        client.send(get("/", *fields, f"X-Correlation-ID: {kind}"))
        client.read_until(b"\r\n\r\n")
        time.sleep(0.2)  # how long it lasts
    line = site.proxy.access_line(kind)
    assert line["duration_ms"] >= 200
    where = {"listener": "front", "endpoint": "all"}
    assert site.proxy.metric("proxy_stream_seconds_count", **where) == 1
    lasted = site.proxy.metric("proxy_stream_seconds_sum", **where)
    assert lasted is not None
    counted = {"method": "GET", "endpoint": "all"}
    took = site.proxy.metric("http_request_duration_seconds_sum", **counted)
    assert took is not None
    assert took <= lasted - 0.19
    assert site.proxy.metric("http_request_duration_seconds_count", **counted) == 1
