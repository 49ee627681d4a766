"""Held calls through the proxy: a raw client, a scripted upstream, circuits opened by hand."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.http1 import (
    Connection,
    Request,
    Site,
    Upstream,
    assert_problem,
    free_port,
    get,
    ok,
    post,
    respond,
    wait_until,
)

BUSY = respond(b"busy", "503 Service Unavailable")
RETRY: dict[str, Any] = {
    "attempts": 3,
    "on": ["connect", "reset", "timeout", 503],
    "backoff": "10ms",
    "max_backoff": "50ms",
    "min_per_second": 1000,
    "deadline": "60s",
}
FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: 19\r\nconnection: close\r\n\r\nService Unavailable"
)


class Script:
    """Answers 503 while `ill`; `/health` has its own opinion."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.ill = False
        self.healthy = True
        self.asked = 0

    def __call__(self, connection: Connection, request: Request) -> None:
        if request.target == "/health":
            with self.lock:
                self.asked += 1
            connection.send(respond(b"") if self.healthy else BUSY)
            return
        connection.body(request)
        if self.ill:
            connection.send(BUSY)
        else:
            ok(connection, request)


@pytest.fixture(scope="module")
def checked() -> Iterator[Upstream]:
    """The upstream whose health is asked."""
    upstream = Upstream()
    yield upstream
    upstream.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, checked: Upstream) -> Iterator[Site]:
    """One proxy, an upstream for each kind of breaker."""
    upstream = Upstream()
    here = {"targets": [upstream.url]}
    held = {"failure_threshold": 2, "open_for": "10m", "hold": "60s", "hold_queue": 4}
    upstreams: dict[str, dict[str, Any]] = {
        "held": {**here, "breaker": held},
        "brief": {**here, "breaker": {**held, "hold": "300ms"}},
        "well": {
            "targets": [checked.url],
            "breaker": held,
            "retry": RETRY,
            "health": {"path": "/health", "every": "50ms"},
        },
        "whole": {**here, "retry": {**RETRY, "deadline": "400ms"}},
        "full": {
            **here,
            "overload_answer": {"body": "Service Unavailable", "patience": "60s"},
            "pool": {"reuse": "idempotent", "max_connections": 2},
        },
        "pair": {
            "targets": [upstream.url, f"http://127.0.0.1:{free_port()}"],
            "retry": RETRY,
        },
    }
    listeners = {
        name: {
            "direction": "egress",
            "routes": [
                {
                    "name": "query",
                    "methods": ["POST"],
                    "path": "/search",
                    "upstream": name,
                    "repeatable": True,
                },
                {"name": "all", "path": "/{rest:*}", "upstream": name},
            ],
        }
        for name in upstreams
    }
    with Site(
        tmp_path_factory.mktemp("held"), listeners, upstream=upstream, upstreams=upstreams
    ) as site:
        yield site


@pytest.fixture
def script(shared: Site, checked: Upstream) -> Iterator[Script]:
    """A well upstream and closed circuits."""
    script = Script()
    for upstream in (shared.upstream, checked):
        upstream.drop_connections()
        upstream.fresh()
        upstream.handler = script
    for name in ("held", "brief", "well"):
        shared.proxy.admin_post(f"/api/breakers/{name}/reset")
    yield script
    shared.check()


def in_line(site: Site, name: str, count: int) -> None:
    wait_until(lambda: site.proxy.breaker(name)["held"] == count, f"{count} calls held")


def calls(upstream: Upstream) -> list[str]:
    """The targets that it saw, health checks aside."""
    return [path for path in upstream.targets if path != "/health"]


def test_a_call_waits_for_the_circuit_to_close(shared: Site, script: Script) -> None:
    """Nothing is dialled meanwhile; the queue is bounded; all go when it closes."""
    shared.proxy.admin_post("/api/breakers/held/open", {"for": "10m"})
    clients = [shared.connect("held") for _ in range(4)]
    for number, client in enumerate(clients):
        client.send(get(f"/{number}", f"X-Correlation-ID: held-{number}"))
        in_line(shared, "held", number + 1)
    assert_problem(shared.ask(get("/5"), "held"), 503, "circuit_open")
    assert calls(shared.upstream) == []
    shared.proxy.admin_post("/api/breakers/held/reset")
    for number, client in enumerate(clients):
        assert client.response().status == 200
        assert shared.proxy.access_line(f"held-{number}")["held"] >= 0
        client.close()
    assert sorted(calls(shared.upstream)) == [f"/{number}" for number in range(4)]


def test_a_held_upload_is_not_read(shared: Site, script: Script) -> None:
    """The body stays with the client until the circuit lets it through."""
    shared.proxy.admin_post("/api/breakers/held/open", {"for": "10m"})
    with shared.connect("held") as client:
        client.send(get("/up", "Content-Length: 5", "Expect: 100-continue", method="POST"))
        in_line(shared, "held", 1)
        assert client.silent_for(0.1)
        shared.proxy.admin_post("/api/breakers/held/reset")
        client.read_until(b"HTTP/1.1 100 Continue\r\n\r\n")
        client.send(b"hello")
        assert client.response("POST").status == 200


def test_whoever_leaves_frees_the_place(shared: Site, script: Script) -> None:
    """The queue counts who is there, not who came."""
    shared.proxy.admin_post("/api/breakers/held/open", {"for": "10m"})
    for _ in range(6):
        client = shared.connect("held")
        client.send(get("/gone"))
        in_line(shared, "held", 1)
        client.close()
        in_line(shared, "held", 0)
    assert calls(shared.upstream) == []


def test_when_its_time_is_over_it_gets_the_refusal(shared: Site, script: Script) -> None:
    """503 `circuit_open`, with the time that is really left."""
    shared.proxy.admin_post("/api/breakers/brief/open", {"for": "10m"})
    document = assert_problem(
        shared.ask(get("/", "X-Correlation-ID: brief"), "brief"), 503, "circuit_open"
    )
    assert 500 < document["retry_after"] <= 600
    assert shared.proxy.access_line("brief")["held"] >= 0.25


def test_a_retry_outlives_the_circuit_that_it_opens(
    shared: Site, checked: Upstream, script: Script
) -> None:
    """Its second failure opens the circuit for ten minutes; good health answers let it probe, as
    often as it takes, until the service is well. One request, one good answer."""
    script.ill = True
    with shared.connect("well") as client:
        client.send(get("/job", "X-Correlation-ID: outlives"))
        wait_until(lambda: len(calls(checked)) >= 6, "more attempts than `attempts`")
        script.ill = False
        assert client.response().status == 200
    line = shared.proxy.access_line("outlives")
    assert line["attempts"] >= 6
    assert "no_retry" not in line


def test_bad_health_answers_keep_it_open(shared: Site, checked: Upstream, script: Script) -> None:
    """While `/health` fails no call is let through, however long it takes."""
    script.ill, script.healthy = True, False
    with shared.connect("well") as client:
        client.send(get("/job"))
        in_line(shared, "well", 1)
        before, asked = len(calls(checked)), script.asked
        wait_until(lambda: script.asked > asked + 3, "several health checks")
        assert len(calls(checked)) == before
        script.ill, script.healthy = False, True
        assert client.response().status == 200


@pytest.mark.parametrize(("path", "status"), [("/search", 200), ("/jobs", 503)])
def test_a_repeatable_post_is_retried(shared: Site, script: Script, path: str, status: int) -> None:
    """A route may say that its POST does no harm twice; the others are not repeated."""
    answers = iter([BUSY])
    shared.upstream.handler = lambda connection, request: (
        connection.body(request),
        connection.send(next(answers, respond(b"done"))),
    )[1]
    assert shared.ask(post(b"q", path), "whole").status == status


def test_the_deadline_bounds_the_whole(shared: Site, script: Script) -> None:
    """An upstream that keeps silent is cut at the deadline, not at its response time-out."""
    shared.upstream.handler = lambda connection, request: connection.wait_end()
    document = assert_problem(
        shared.ask(get("/", "X-Correlation-ID: whole"), "whole"), 504, "upstream_timeout"
    )
    assert "time for all attempts is over" in document["detail"]
    assert shared.proxy.access_line("whole")["reason"] == "deadline"


@pytest.mark.parametrize("raw", [get("/x"), post(b"body", "/x")], ids=["get", "post"])
def test_a_server_that_is_full_is_asked_again(shared: Site, script: Script, raw: bytes) -> None:
    """uvicorn's own 503 has executed nothing, so even a POST goes again, body and all."""
    answers = iter([FULL, FULL])

    def handler(connection: Connection, request: Request) -> None:
        connection.body(request)
        full = next(answers, None)
        if full is None:
            ok(connection, request)
        else:
            connection.send(full)
            connection.close()

    shared.upstream.handler = handler
    response = shared.ask(raw, "full")
    assert response.status == 200
    counts = [request.get("X-Retry-Count") for request in shared.upstream.requests]
    assert counts == [None, "1", "2"]


@pytest.mark.parametrize(
    "answer",
    [
        FULL.replace(b"connection: close\r\n", b""),
        FULL.replace(b"text/plain", b"text/html"),
        FULL.replace(b"Unavailable\r\nc", b"unavailable\r\nc").replace(b"e Un", b"e un"),
    ],
    ids=["stays", "type", "body"],
)
def test_what_only_looks_like_it_is_the_answer(shared: Site, script: Script, answer: bytes) -> None:
    """An application that says so itself has looked at the request: it is not sent again."""

    def handler(connection: Connection, request: Request) -> None:
        connection.body(request)
        connection.send(answer)
        connection.close()

    shared.upstream.handler = handler
    assert shared.ask(post(b"x", "/x"), "full").status == 503
    assert len(shared.upstream.requests) == 1


def test_a_post_never_goes_on_a_kept_connection(shared: Site, script: Script) -> None:
    """GETs share one, each POST gets its own, though the pool is full of idle ones."""
    for _ in range(3):
        assert shared.ask(get("/g"), "full").status == 200
    for _ in range(3):
        assert shared.ask(post(b"x", "/p"), "full").status == 200
    assert shared.ask(post(b"x", "/search"), "full").status == 200
    by_path: dict[str, set[int]] = {}
    for request in shared.upstream.requests:
        by_path.setdefault(request.target, set()).add(request.connection)
    assert len(by_path["/g"]) == 1
    assert len(by_path["/p"]) == 3
    assert not by_path["/p"] & by_path["/g"]


def test_posts_and_gets_share_a_small_pool(shared: Site, script: Script) -> None:
    """Twenty clients on two connections: whoever needs a fresh one gets it in its turn."""
    statuses: list[int] = []

    def client(number: int) -> None:
        raw = post(b"x", "/p") if number % 2 else get("/g")
        for _ in range(5):
            statuses.append(shared.ask(raw, "full").status)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 100


def test_another_attempt_prefers_a_target_that_has_not_failed(tmp_path: Path) -> None:
    """Of two targets one is ill: no request meets it twice."""
    ill, well = Upstream(), Upstream()
    ill.handler = lambda connection, request: (
        connection.body(request),
        connection.send(BUSY),
    )[1]
    with Site(
        tmp_path,
        {"front": {}},
        app={"targets": [ill.url, well.url], "retry": {**RETRY, "attempts": 2}},
        upstream=well,
    ) as site:
        assert [site.ask(get(f"/{number}")).status for number in range(12)] == [200] * 12
    ill.stop()


def test_a_drain_ends_the_wait(tmp_path: Path) -> None:
    """SIGTERM while a call is held: it gets its answer at once, and the proxy ends."""
    rules = {"failure_threshold": 2, "open_for": "10m", "hold": "10m"}
    with Site(tmp_path, {"front": {}}, app={"breaker": rules}) as site:
        site.proxy.admin_post("/api/breakers/app/open", {"for": "10m"})
        with site.connect() as client:
            client.send(get("/"))
            wait_until(lambda: site.proxy.breaker("app")["held"] == 1, "held")
            site.proxy.signal(signal.SIGTERM)
            assert_problem(client.response(), 503, "draining")
        wait_until(lambda: site.proxy.process.poll() is not None, "the proxy to end")
