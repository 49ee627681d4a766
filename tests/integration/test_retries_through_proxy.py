"""Retries, bulkheads, ejection and fallbacks on the wire: a raw client and a scripted upstream."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.http1 import (
    PATIENCE,
    Connection,
    ProxyProcess,
    Request,
    Site,
    Upstream,
    answer,
    assert_problem,
    free_port,
    get,
    ok,
    post,
    respond,
    wait_until,
)
from tests.http1.upstream import Handler

RETRY: dict[str, Any] = {
    "attempts": 3,
    "on": ["connect", "reset", "timeout", 502, 503, 504],
    "backoff": "10ms",
    "max_backoff": "2s",
    "min_per_second": 1000,
}
BUSY = respond(b"busy", "503 Service Unavailable")


def route(upstream: str, **more: Any) -> list[dict[str, Any]]:
    """A catch-all route."""
    return [{"name": "all", "path": "/{rest:*}", "upstream": upstream, **more}]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One proxy; each listener leads to an upstream of its own rules, all at the same address."""
    upstream = Upstream()
    gone = f"http://127.0.0.1:{free_port()}"
    here = {"targets": [upstream.url]}
    upstreams: dict[str, dict[str, Any]] = {
        "retry": {**here, "retry": RETRY, "timeouts": {"response": "1s"}},
        "keyed": {**here, "retry": {**RETRY, "idempotency_key": True}},
        "slow": {**here, "retry": {**RETRY, "backoff": "60s", "max_backoff": "60s"}},
        "poor": {**here, "retry": {**RETRY, "min_per_second": 0, "budget": 0}},
        "gone": {"targets": [gone], "retry": RETRY},
        "late": {
            "targets": [gone],
            "connect_patience": "280ms",
            "retry": {**RETRY, "attempts": 9, "backoff": "1ms", "deadline": "300ms"},
        },
        # Who waits here waits until the test lets him through, however slow the machine is.
        "narrow": {**here, "bulkhead": {"max_concurrent": 2, "queue": 1, "queue_timeout": "5m"}},
        "hasty": {**here, "bulkhead": {"max_concurrent": 1, "queue": 1, "queue_timeout": "300ms"}},
        "stale": {**here, "breaker": {"failure_threshold": 2, "open_for": "60s"}},
        "static": {"targets": [gone]},
    }
    static = {"status": 299, "headers": {"Content-Type": "application/json"}, "body": '{"n": []}'}
    fallbacks = {"stale": {"stale": "10m"}, "static": {"answer": static}}
    listeners = {
        name: {
            "direction": "egress",
            "routes": route(name, **({"fallback": fallbacks[name]} if name in fallbacks else {})),
        }
        for name in upstreams
    }
    folder = tmp_path_factory.mktemp("retries")
    with Site(folder, listeners, upstream=upstream, upstreams=upstreams) as site:
        yield site


@pytest.fixture
def site(shared: Site) -> Iterator[Site]:
    """The same, with nothing left over from another test."""
    shared.upstream.drop_connections()  # a kept one that breaks is repeated without being counted
    shared.upstream.fresh()
    yield shared
    shared.check()


def first(*handlers: Handler) -> Handler:
    """Each handler once, in order, then `ok`."""
    left = list(handlers)
    lock = threading.Lock()

    def handler(connection: Connection, request: Request) -> None:
        with lock:
            chosen = left.pop(0) if left else ok
        chosen(connection, request)

    return handler


def reset(connection: Connection, request: Request) -> None:
    """RST once the request is read."""
    connection.body(request)
    connection.reset()


def silence(connection: Connection, request: Request) -> None:
    """No answer until the proxy hangs up."""
    connection.body(request)
    connection.wait_end()


# --- retries ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [answer(BUSY), reset, silence], ids=["status", "reset", "silent"])
def test_a_get_outlives_two_faults(site: Site, fault: Handler) -> None:
    """The third attempt's answer is the client's; the upstream gets the number of the retry."""
    site.upstream.handler = first(fault, fault)
    response = site.ask(get("/jobs/1"), "retry")
    assert (response.status, response.body) == (200, b"GET /jobs/1 0")
    counts = [request.get("X-Retry-Count") for request in site.upstream.requests]
    assert counts == [None, "1", "2"]
    line = site.proxy.access_line(response.get("X-Correlation-ID") or "")
    assert line["attempts"] == 3
    assert "no_retry" not in line


def test_connect_errors_are_attempts_and_counted(site: Site) -> None:
    """Nothing was sent, so even a POST is tried three times; the metric counts two retries."""
    before = site.proxy.metric("external_api_retries_total", service="gone") or 0
    response = site.ask(post(b"x", "/search", "X-Correlation-ID: refused"), "gone")
    assert_problem(response, 502, "upstream_unreachable")
    line = site.proxy.access_line("refused")
    assert (line["attempts"], line["no_retry"]) == (3, "attempts")
    assert site.proxy.metric("external_api_retries_total", service="gone") == before + 2


def test_what_could_not_be_reached_in_time_is_not_called_overloaded(site: Site) -> None:
    """Refusals use up the time, so that none is left to wait for a connection: it is they that the
    answer names."""
    for number in range(5):
        response = site.ask(post(b"x", "/search", f"X-Correlation-ID: late-{number}"), "late")
        assert_problem(response, 502, "upstream_unreachable")
        assert "Connection refused" in site.proxy.access_line(f"late-{number}")["detail"]


def test_a_post_that_was_sent_is_not_repeated(site: Site) -> None:
    """The upstream's own answer reaches the client, and the log says why there was no retry."""
    site.upstream.handler = answer(BUSY)
    response = site.ask(post(b"x", "/search", "X-Correlation-ID: unsafe"), "retry")
    assert (response.status, response.body) == (503, b"busy")
    assert site.upstream.only.body == b"x"
    assert site.proxy.access_line("unsafe")["no_retry"] == "unsafe"


@pytest.mark.parametrize(("listener", "sent"), [("keyed", 2), ("retry", 1)])
def test_idempotency_key_counts_where_configured(site: Site, listener: str, sent: int) -> None:
    """A POST with the key is repeated only where the upstream is known to heed it."""
    site.upstream.handler = first(answer(BUSY))
    response = site.ask(post(b"pay", "/", "Idempotency-Key: 1"), listener)
    assert response.status == (200 if sent == 2 else 503)
    assert [request.body for request in site.upstream.requests] == [b"pay"] * sent


CHUNKED = "Transfer-Encoding: chunked"


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (post(b"p" * 65536, "/", method="PUT"), b"p" * 65536),
        (get("/", CHUNKED, method="PUT") + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", b"abcde"),
        (get("/", CHUNKED, method="PUT") + b"0\r\n\r\n", b""),
        (get("/", CHUNKED, method="PUT") + b"2\r\nhi\r\n0\r\nX-Sum: 7\r\n\r\n", b"hi"),
    ],
    ids=["64KiB", "chunks", "no-chunk", "trailers"],
)
def test_bodies_are_replayed_whole(site: Site, raw: bytes, body: bytes) -> None:
    """From the second time on with its length, if no trailers follow; the client's bytes are
    counted once."""
    site.upstream.handler = first(answer(BUSY), reset)
    marked = raw.replace(b"\r\n", b"\r\nX-Correlation-ID: replay-%d\r\n" % len(raw), 1)
    response = site.ask(marked, "retry")
    assert response.status == 200
    assert [request.body for request in site.upstream.requests] == [body] * 3
    later = "chunked" if b"X-Sum" in raw else "length"
    assert [request.framing for request in site.upstream.requests[1:]] == [later] * 2
    assert len({tuple(request.trailers) for request in site.upstream.requests}) == 1
    line = site.proxy.access_line(f"replay-{len(raw)}")
    assert line["bytes_in"] == len(body)


def test_a_longer_body_is_not_replayed(site: Site) -> None:
    """One byte over the buffer: no retry, and the log says so."""
    site.upstream.handler = first(answer(BUSY))
    raw = post(b"p" * 65537, "/", "X-Correlation-ID: long", method="PUT")
    assert site.ask(raw, "retry").status == 503
    assert len(site.upstream.requests) == 1
    assert site.proxy.access_line("long")["no_retry"] == "body"


def test_an_early_answer_is_retried_in_the_middle_of_a_body(site: Site) -> None:
    """What was read is sent again, what comes later follows."""

    def early(connection: Connection, request: Request) -> None:
        connection.send(BUSY)
        connection.wait_end()

    site.upstream.handler = first(early)
    with site.connect("retry") as client:
        client.send(get("/", "Content-Length: 10", method="PUT") + b"01234")
        site.upstream.wait_requests(2)
        client.send(b"56789")
        assert client.response("PUT").status == 200
    assert site.upstream.requests[1].body == b"0123456789"


def test_leave_to_send_is_given_once(site: Site) -> None:
    """`Expect: 100-continue`: one 100 for all attempts, and the connection lives on."""
    site.upstream.handler = first(answer(BUSY), answer(BUSY))
    with site.connect("retry") as client:
        client.send(get("/", "Content-Length: 4", "Expect: 100-continue", method="PUT"))
        assert client.read_response_head().status == 100
        client.send(b"body")
        assert client.response("PUT").status == 200
        assert client.interim == []
        client.send(get("/again"))
        assert client.response().status == 200
    assert [request.body for request in site.upstream.requests] == [b"body"] * 3 + [b""]


def test_the_clients_own_retry_count_gives_way_to_ours(site: Site) -> None:
    """It passes while we have nothing to say, and is never doubled."""
    site.upstream.handler = first(answer(BUSY))
    assert site.ask(get("/", "X-Retry-Count: 7"), "retry").status == 200
    assert [request.all("X-Retry-Count") for request in site.upstream.requests] == [["7"], ["1"]]


def test_nothing_is_repeated_once_the_client_has_seen_a_byte(site: Site) -> None:
    """A response that breaks off is cut, not begun anew."""
    partial = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345"
    site.upstream.handler = answer(partial, then="close")
    with site.connect("retry") as client:
        client.send(get("/"))
        assert client.response_head().status == 200
        assert len(client.rest()) <= 5
    assert len(site.upstream.requests) == 1


def test_retry_after_is_waited_for(site: Site) -> None:
    """A second is honoured; an hour means that there is no retry."""
    busy = respond(b"", "503 Service Unavailable", "Retry-After: 1")
    site.upstream.handler = first(answer(busy))
    began = time.monotonic()
    assert site.ask(get("/"), "retry").status == 200
    assert time.monotonic() - began >= 1.0
    site.upstream.fresh()
    busy = respond(b"", "503 Service Unavailable", "Retry-After: 3600")
    site.upstream.handler = first(answer(busy))
    response = site.ask(get("/", "X-Correlation-ID: hour"), "retry")
    assert (response.status, response.get("Retry-After")) == (503, "3600")
    assert site.proxy.access_line("hour")["no_retry"] == "retry_after"


def test_an_empty_budget_allows_no_retry(site: Site) -> None:
    """The first answer is given."""
    site.upstream.handler = first(answer(BUSY))
    assert site.ask(get("/", "X-Correlation-ID: poor"), "poor").status == 503
    assert site.proxy.access_line("poor")["no_retry"] == "budget"


def test_a_client_that_leaves_during_backoff(site: Site) -> None:
    """499, and the upstream is not called again."""
    site.upstream.handler = answer(BUSY)
    with site.connect("slow") as client:
        client.send(get("/", "X-Correlation-ID: left"))
        site.upstream.wait_requests(1)
        site.upstream.wait(lambda: site.upstream.concurrent == 0, "the first attempt's end")
    line = site.proxy.access_line("left")
    assert (line["status"], line["code"]) == (499, "client_left")
    assert line["attempts"] <= 2  # full jitter may have drawn next to nothing


def test_connections_survive_retried_statuses(site: Site) -> None:
    """The answer that was thrown away is never taken for the next one, on either side."""
    site.upstream.handler = first(*[answer(BUSY), ok] * 5)
    with site.connect("retry") as client:
        for number in range(5):
            client.send(get(f"/{number}"))
            assert client.response().body == f"GET /{number} 0".encode()


# --- bulkhead -----------------------------------------------------------------------------------


def test_two_run_one_waits_the_rest_are_refused(site: Site) -> None:
    """503 `overloaded` at once when the queue is full; who is in it gets a place later."""
    release = threading.Event()

    def held(connection: Connection, request: Request) -> None:
        release.wait(PATIENCE)
        ok(connection, request)

    site.upstream.handler = held
    clients = [site.connect("narrow") for _ in range(3)]
    try:
        for client in clients[:2]:
            client.send(get("/"))
        site.upstream.wait_requests(2)
        clients[2].send(get("/"))
        wait_until(
            lambda: site.proxy.metric("proxy_bulkhead_waiting", upstream="narrow") == 1, "a queue"
        )
        assert site.proxy.metric("proxy_bulkhead_in_flight", upstream="narrow") == 2
        problem = assert_problem(site.ask(get("/"), "narrow"), 503, "overloaded")
        assert problem["upstream"] == "narrow"
        assert site.proxy.metric("proxy_bulkhead_rejections_total", upstream="narrow") == 1
        release.set()
        assert [client.response().status for client in clients] == [200, 200, 200]
    finally:
        release.set()
        for client in clients:
            client.close()
    wait_until(
        lambda: site.proxy.metric("proxy_bulkhead_in_flight", upstream="narrow") == 0, "free places"
    )
    assert site.proxy.metric("proxy_bulkhead_waiting", upstream="narrow") == 0


def test_who_waits_too_long_is_refused(site: Site) -> None:
    """503 `overloaded` from within the queue, after `queue_timeout`; the connection lives on."""
    release = threading.Event()

    def held(connection: Connection, request: Request) -> None:
        release.wait(PATIENCE)
        ok(connection, request)

    site.upstream.handler = held
    with site.connect("hasty") as inside, site.connect("hasty") as waiting:
        try:
            inside.send(get("/"))
            site.upstream.wait_requests(1)
            began = time.monotonic()
            waiting.send(get("/"))
            assert_problem(waiting.response(), 503, "overloaded")
            assert time.monotonic() - began > 0.25
            assert site.proxy.metric("proxy_bulkhead_rejections_total", upstream="hasty") == 1
        finally:
            release.set()
        assert inside.response().status == 200
        wait_until(
            lambda: site.proxy.metric("proxy_bulkhead_in_flight", upstream="hasty") == 0,
            "a free place",
        )
        waiting.send(get("/"))
        assert waiting.response().status == 200


def test_who_waits_gets_the_next_place_and_who_leaves_frees_one(site: Site) -> None:
    """Places are handed on in order; a client that left in the queue takes none."""
    gates = [threading.Event(), threading.Event(), threading.Event()]
    turns = iter(gates)

    def held(connection: Connection, request: Request) -> None:
        next(turns).wait(PATIENCE)
        ok(connection, request)

    site.upstream.handler = held
    with site.connect("narrow") as one, site.connect("narrow") as two:
        one.send(get("/one"))
        two.send(get("/two"))
        site.upstream.wait_requests(2)
        with site.connect("narrow") as gone:
            gone.send(get("/gone", "X-Correlation-ID: gone"))
            wait_until(
                lambda: site.proxy.metric("proxy_bulkhead_waiting", upstream="narrow") == 1,
                "one that waits",
            )
        assert site.proxy.access_line("gone")["status"] == 499
        with site.connect("narrow") as three:
            three.send(get("/three"))
            gates[0].set()
            gates[1].set()
            site.upstream.wait_requests(3)
            gates[2].set()
            assert three.response().status == 200
        assert one.response().status == two.response().status == 200
    assert "/gone" not in site.upstream.targets


# --- fallbacks ----------------------------------------------------------------------------------


@pytest.fixture
def closed(site: Site) -> Site:
    """The breaker before `stale` is closed."""
    assert site.proxy.admin_post("/api/breakers/stale/reset")[0] == 200
    return site


def test_a_set_answer_instead_of_the_error(site: Site) -> None:
    """Whole for GET, without body for HEAD, and the connection lives on."""
    with site.connect("static") as client:
        client.send(get("/", "X-Correlation-ID: static"))
        response = client.response()
        assert (response.status, response.body) == (299, b'{"n": []}')
        assert response.get("Content-Type") == "application/json"
        assert response.get("Date")
        client.send(get("/", method="HEAD"))
        head = client.response("HEAD")
        assert (head.status, head.get("Content-Length")) == (299, "9")
        client.send(get("/"))
        assert client.response().status == 299
    assert site.proxy.access_line("static")["rescued_from"] == "upstream_unreachable"


def test_the_last_good_answer_while_failing_and_while_open(closed: Site) -> None:
    """With `Age` and `X-Stale`, to the same request only, to HEAD too; keep-alive goes on."""
    site = closed
    site.upstream.handler = answer(respond(b"fresh", "200 OK", "Age: 5", "Cache-Control: public"))
    assert site.ask(get("/s"), "stale").get("X-Stale") is None
    site.upstream.handler = answer(BUSY)
    with site.connect("stale") as client:
        for _ in range(4):  # two failures open the circuit
            client.send(get("/s"))
            response = client.response()
            assert (response.status, response.body) == (200, b"fresh")
            assert response.get("X-Stale") == "true"
            assert int(response.get("Age") or 0) >= 5
        client.send(get("/s", method="HEAD"))
        head = client.response("HEAD")
        assert (head.status, head.get("Content-Length"), head.get("X-Stale")) == (200, "5", "true")
        client.send(get("/other"))
        assert_problem(client.response(), 503, "circuit_open")
    assert site.proxy.breaker("stale")["state"] == "open"


def test_stale_answers_belong_to_their_credentials(closed: Site) -> None:
    """Nobody gets another caller's answer."""
    site = closed

    def mine(connection: Connection, request: Request) -> None:
        connection.send(respond((request.get("Authorization") or "nobody").encode()))

    site.upstream.handler = mine
    for name in ("anna", "bert"):
        site.ask(get("/me", f"Authorization: {name}"), "stale")
    site.upstream.handler = reset
    for name in ("anna", "bert"):
        response = site.ask(get("/me", f"Authorization: {name}"), "stale")
        assert (response.body, response.get("X-Stale")) == (name.encode(), "true")
    for fields in (["Authorization: carl"], [], ["Authorization: anna", "Cookie: a=1"]):
        assert site.ask(get("/me", *fields), "stale").status == 503


@pytest.mark.parametrize(
    "field", ["Set-Cookie: a=1", "Cache-Control: private, no-store", "Vary: User-Agent"]
)
def test_what_must_not_be_kept_is_not(closed: Site, field: str) -> None:
    """And an answer kept earlier for the same request is forgotten."""
    site = closed
    site.upstream.handler = first(ok, answer(respond(b"secret", "200 OK", field)), answer(BUSY))
    statuses = [site.ask(get("/kept"), "stale").status for _ in range(3)]
    assert statuses == [200, 200, 503]


def test_a_broken_answer_is_not_kept(closed: Site) -> None:
    """Only complete ones are."""
    site = closed
    partial = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345"
    site.upstream.handler = first(answer(partial, then="close"), answer(BUSY))
    with site.connect("stale") as client:
        client.send(get("/broken"))
        client.rest()
    assert site.ask(get("/broken"), "stale").status == 503


# --- several targets ----------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Upstream, Upstream, ProxyProcess, int]]:
    """Two targets, ejection after two failures, health checks ten times a second."""
    one, other, port = Upstream(), Upstream(), free_port()
    proxy = ProxyProcess(
        tmp_path,
        {
            "listeners": {"front": {"bind": f"127.0.0.1:{port}", "routes": route("app")}},
            "upstreams": {
                "app": {
                    "targets": [one.url, other.url],
                    "ejection": {"failures": 2, "eject_for": "60s"},
                    "health": {"path": "/health", "every": "100ms", "timeout": "1s", "fall": 2},
                }
            },
        },
    )
    try:
        yield one, other, proxy, port
        proxy.assert_sane()
    finally:
        proxy.stop()
        one.stop()
        other.stop()


def ask(port: int) -> int:
    """The status of one GET."""
    with socket.create_connection(("127.0.0.1", port), 8) as link:
        link.sendall(get("/work", "Connection: close"))
        data = link.recv(65536)
        return int(data.split(b" ", 2)[1])


def apart(work: Handler, health: Handler = ok) -> Handler:
    """Health checks are answered by one handler, all else by the other."""

    def handler(connection: Connection, request: Request) -> None:
        (health if request.target == "/health" else work)(connection, request)

    return handler


def test_a_failing_target_is_left_out_but_never_all(
    two: tuple[Upstream, Upstream, ProxyProcess, int],
) -> None:
    """Two failures eject the one; when the other fails as well it stays."""
    one, other, proxy, port = two
    one.handler = apart(answer(BUSY))

    def ejected(target: Upstream) -> float | None:
        return proxy.metric("proxy_target_ejected", upstream="app", target=target.url)

    statuses = []
    while not ejected(one):
        statuses.append(ask(port))
        assert len(statuses) < 60
    assert statuses.count(503) == 2
    assert {ask(port) for _ in range(20)} == {200}
    other.handler = apart(answer(BUSY))
    assert {ask(port) for _ in range(6)} == {503}
    assert (ejected(one), ejected(other)) == (1, 0)


def test_health_checks_take_a_target_out_and_bring_it_back(
    two: tuple[Upstream, Upstream, ProxyProcess, int],
) -> None:
    """A log line and a metric tell of each change; when none is well, all are tried."""
    one, other, proxy, port = two

    def healthy(target: Upstream, value: float) -> None:
        name = "proxy_target_healthy"
        wait_until(lambda: proxy.metric(name, upstream="app", target=target.url) == value, "health")

    def work(upstream: Upstream) -> int:
        return upstream.targets.count("/work")

    healthy(one, 1)
    one.handler = apart(ok, answer(BUSY))
    healthy(one, 0)
    before = work(one)
    assert {ask(port) for _ in range(20)} == {200}
    assert work(one) == before
    other.handler = apart(ok, reset)
    healthy(other, 0)
    assert {ask(port) for _ in range(20)} == {200}
    one.handler = ok
    healthy(one, 1)
    wait_until(lambda: len([line for line in proxy.log() if is_change(line)]) == 3, "log lines")
    changes = [line for line in proxy.log() if is_change(line)]
    assert [(line["target"], line["healthy"]) for line in changes] == [
        (one.url, False),
        (other.url, False),
        (one.url, True),
    ]
    assert changes[0]["reason"] == "status 503"


def is_change(line: dict[str, Any]) -> bool:
    """A change of a target's health."""
    return line.get("event") == "target_health"
