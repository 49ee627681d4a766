"""Connections to the upstream: reuse, replay, limits, patience, several targets."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.http1 import (
    PATIENCE,
    Connection,
    RawClient,
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
)


def to(upstream: str) -> dict[str, object]:
    """A listener that forwards everything to `upstream`."""
    return {"routes": [{"name": "all", "path": "/{rest:*}", "upstream": upstream}]}


@pytest.fixture(scope="module")
def small() -> Iterator[Upstream]:
    """The upstream behind a pool of eight."""
    upstream = Upstream()
    yield upstream
    upstream.stop()


@pytest.fixture(scope="module")
def late_port() -> int:
    """Where an upstream comes up during a test."""
    return free_port()


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, small: Upstream, late_port: int
) -> Iterator[Site]:
    """One proxy; a listener per upstream setting."""
    dead = f"http://127.0.0.1:{free_port()}"
    pool = {"max_connections": 8, "queue": 3}
    with Site(
        tmp_path_factory.mktemp("proxy"),
        {
            "front": {},
            "small": to("small"),
            "hasty": to("hasty"),
            "brief": to("brief"),
            "dead": to("dead"),
            "late": to("late"),
        },
        upstreams={
            "small": {"targets": [small.url], "pool": pool | {"queue_timeout": "60s"}},
            "hasty": {
                "targets": [small.url],
                "pool": {"max_connections": 1, "queue": 3, "queue_timeout": "300ms"},
            },
            "brief": {"targets": [small.url], "pool": {"keepalive": "300ms"}},
            "dead": {"targets": [dead]},
            "late": {"targets": [f"http://127.0.0.1:{late_port}"], "connect_patience": "60s"},
        },
    ) as site:
        yield site


@pytest.fixture(autouse=True)
def _clean(site: Site, small: Upstream) -> Iterator[None]:
    """Each test starts with well-behaved upstreams and is checked for damage."""
    site.upstream.fresh()
    small.fresh()
    yield
    assert small.faults == []
    site.check()


# --- reuse and replay ---------------------------------------------------------------------------


def test_connections_are_reused(site: Site) -> None:
    """Requests one after the other share one upstream connection, whoever sends them."""
    for number in range(5):
        assert site.ask(get(f"/{number}")).status == 200
    assert len({request.connection for request in site.upstream.requests}) == 1


def close_when_reused(connection: Connection, request: Request) -> None:
    """Serve the first request of a connection, close without a word on every later one."""
    if connection.served:
        connection.body(request)
        connection.close()
    else:
        ok(connection, request)


def test_get_on_a_stale_connection_is_replayed_once(site: Site) -> None:
    """The upstream closed a kept connection under us: the client notices nothing."""
    site.upstream.drop_connections()
    site.upstream.handler = close_when_reused
    assert site.ask(get("/first")).status == 200
    assert site.ask(get("/again")).body == b"GET /again 0"
    assert site.upstream.targets == ["/first", "/again", "/again"]


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_post_on_a_stale_connection_is_not_replayed(site: Site, method: str) -> None:
    """It may have been acted on: 502, and the upstream saw it once."""
    site.upstream.drop_connections()
    site.upstream.handler = close_when_reused
    assert site.ask(get("/first")).status == 200
    assert_problem(site.ask(post(b"x", "/once", method=method)), 502, "upstream_reset")
    assert site.upstream.targets == ["/first", "/once"]


def test_post_after_an_idle_close_goes_to_a_new_connection(site: Site) -> None:
    """A close that was seen before anything was sent costs nobody anything."""
    assert site.ask(get("/first")).status == 200
    site.upstream.drop_connections()
    for number in range(5):
        assert site.ask(post(b"x", f"/{number}")).status == 200
        site.upstream.drop_connections()


def test_replay_happens_once_only(site: Site) -> None:
    """An upstream that always hangs up sees two attempts at most, the client 502."""
    site.upstream.drop_connections()
    assert site.ask(get("/first")).status == 200

    def hang_up(connection: Connection, request: Request) -> None:
        connection.body(request)
        connection.close()

    site.upstream.handler = hang_up
    assert_problem(site.ask(get("/again")), 502, "upstream_reset")
    assert site.upstream.targets.count("/again") <= 2


def test_fresh_connection_that_hangs_up_is_not_replayed(site: Site) -> None:
    """On a new connection the close is an answer of sorts: 502 at once."""
    site.upstream.drop_connections()

    def hang_up(connection: Connection, request: Request) -> None:
        connection.body(request)
        connection.close()

    site.upstream.handler = hang_up
    assert_problem(site.ask(get("/once")), 502, "upstream_reset")
    assert site.upstream.targets == ["/once"]


def test_no_replay_once_a_byte_of_the_answer_was_seen(site: Site) -> None:
    """Half a response head on a reused connection: 502, no second attempt."""
    site.upstream.drop_connections()

    def half(connection: Connection, request: Request) -> None:
        connection.body(request)
        if connection.served:
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Le")
            connection.close()
        else:
            connection.send(respond(b"x"))

    site.upstream.handler = half
    assert site.ask(get("/first")).status == 200
    assert_problem(site.ask(get("/once")), 502, "upstream_reset")
    assert site.upstream.targets == ["/first", "/once"]


def test_upstream_close_ends_the_reuse(site: Site) -> None:
    """`Connection: close` from the upstream: the next request opens a new connection."""
    site.upstream.handler = answer(respond(b"x", "200 OK", "Connection: close"))
    for _ in range(2):
        assert site.ask(get()).status == 200
    first, second = site.upstream.requests
    assert first.connection != second.connection


def test_idle_connections_are_given_up_before_the_upstream_does(
    site: Site, small: Upstream
) -> None:
    """`pool.keepalive` after the last use the proxy closes, so that the upstream never has to."""
    idle: list[bool] = []

    def wait(connection: Connection, request: Request) -> None:
        connection.body(request)
        connection.send(respond(b"x"))
        idle.append(connection.wait_end(PATIENCE))
        connection.close()

    small.handler = wait
    assert site.ask(get(), "brief").status == 200
    small.wait(lambda: bool(idle), "an idle close")
    assert idle == [True]


# --- bounds -------------------------------------------------------------------------------------


def crowd(site: Site, listener: str, count: int) -> list[RawClient]:
    """`count` clients with a request each, sent one after the other."""
    clients = []
    for number in range(count):
        client = site.connect(listener)
        clients.append(client)
        client.send(get(f"/{number}"))
    return clients


def test_pool_and_queue_are_bounded(site: Site, small: Upstream) -> None:
    """Eight connections, three in the queue; the next gets 503 `overloaded` at once."""
    release = threading.Event()

    def hold(connection: Connection, request: Request) -> None:
        assert release.wait(PATIENCE)
        ok(connection, request)

    small.handler = hold
    clients = crowd(site, "small", 11)
    try:
        small.wait_requests(8)
        refusal = site.ask(get("/more"), "small")
        for _ in range(20):  # the eleven may still be on their way into the queue
            if refusal.status == 503:
                break
            refusal = site.ask(get("/more"), "small")
        assert_problem(refusal, 503, "overloaded")
        assert int(refusal.get("Retry-After") or 0) >= 1
        assert len(small.requests) == 8
        release.set()
        assert [client.response().status for client in clients] == [200] * 11
        assert small.most_concurrent == 8
    finally:
        release.set()
        for client in clients:
            client.close()


def test_queue_time_is_bounded(site: Site, small: Upstream) -> None:
    """Who waits longer than `queue_timeout` gets 503 `overloaded`."""
    release = threading.Event()

    def hold(connection: Connection, request: Request) -> None:
        assert release.wait(PATIENCE)
        ok(connection, request)

    small.handler = hold
    (holder,) = crowd(site, "hasty", 1)
    try:
        small.wait_requests(1)
        assert_problem(site.ask(get("/waits"), "hasty"), 503, "overloaded")
        release.set()
        assert holder.response().status == 200
        assert small.targets == ["/0"]
    finally:
        release.set()
        holder.close()


def test_client_that_leaves_the_queue_is_never_served(site: Site, small: Upstream) -> None:
    """A place in the queue is given up with its client; the others move on."""
    release = threading.Event()

    def hold(connection: Connection, request: Request) -> None:
        assert release.wait(PATIENCE)
        ok(connection, request)

    small.handler = hold
    clients = crowd(site, "small", 8)
    try:
        small.wait_requests(8)
        with site.connect("small") as leaver:
            leaver.send(get("/leaver", "X-Correlation-ID: leaver"))
        assert site.proxy.access_line("leaver")["status"] == 499
        release.set()
        assert [client.response().status for client in clients] == [200] * 8
        assert site.ask(get("/next"), "small").status == 200
        assert "/leaver" not in small.targets
    finally:
        release.set()
        for client in clients:
            client.close()


def test_slots_come_back_after_every_kind_of_end(site: Site, small: Upstream) -> None:
    """Errors, resets and leavers do not eat the pool: afterwards eight fit again."""

    def bad(connection: Connection, request: Request) -> None:
        if request.target == "/reset":
            connection.reset()
        elif request.target == "/garbage":
            connection.send(b"garbage\r\n\r\n")
            connection.close()
        else:
            connection.wait_end()
            connection.close()

    small.handler = bad
    for _ in range(10):
        assert site.ask(get("/reset"), "small").status == 502
        assert site.ask(get("/garbage"), "small").status == 502
        with site.connect("small") as leaver:
            count = len(small.requests)
            leaver.send(get("/leave"))
            small.wait_requests(count + 1)
    small.wait(lambda: small.concurrent == 0, "the end of all requests")
    small.fresh()
    clients = crowd(site, "small", 8)
    for client in clients:
        assert client.response().status == 200
        client.close()


# --- connecting ---------------------------------------------------------------------------------


def test_refused_connection_is_502(site: Site) -> None:
    """Nobody listens: `upstream_unreachable`, and the client's connection goes on."""
    with site.connect("dead") as client:
        for _ in range(2):
            client.send(get())
            assert_problem(client.response(), 502, "upstream_unreachable")


@pytest.mark.parametrize("raw", [get("/x"), post(b"hello", "/x")], ids=["get", "post"])
def test_patience_outlasts_a_restart(site: Site, late_port: int, raw: bytes) -> None:
    """A refused connection is tried again while `connect_patience` lasts, POST included."""
    replies: list[int] = []
    with site.connect("late") as client:
        client.send(raw)
        assert client.silent_for(0.5), "refused although there was patience left"
        upstream = Upstream(port=late_port)
        try:
            replies.append(client.response("POST").status)
            assert upstream.only.target == "/x"
        finally:
            upstream.stop()
    assert replies == [200]


def test_client_that_leaves_ends_the_patience(site: Site) -> None:
    """Nobody waits any more, so nobody is connected for."""
    with site.connect("late") as client:
        client.send(get("/", "X-Correlation-ID: impatient"))
        assert client.silent_for(0.3)
    assert site.proxy.access_line("impatient")["status"] == 499


def test_dead_target_is_stepped_over(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of two targets one is down: every request succeeds on the other, POST included."""
    upstream = Upstream()
    app = {"targets": [f"http://127.0.0.1:{free_port()}", upstream.url]}
    with Site(tmp_path_factory.mktemp("two"), app=app, upstream=upstream) as site:
        for number in range(20):
            assert site.ask(post(b"x", f"/{number}")).status == 200
        site.check()


def test_targets_share_the_load(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Two healthy targets both get work."""
    first, second = Upstream(), Upstream()
    app = {"targets": [first.url, second.url]}
    try:
        with Site(tmp_path_factory.mktemp("both"), app=app, upstream=first) as site:
            for number in range(40):
                assert site.ask(get(f"/{number}")).status == 200
            site.check()
        assert len(first.requests) >= 5
        assert len(second.requests) >= 5
    finally:
        second.stop()


def test_host_upstream_replaces_host(tmp_path_factory: pytest.TempPathFactory) -> None:
    """`host: upstream` sends the target's authority; X-Forwarded-Host keeps the client's."""
    with Site(tmp_path_factory.mktemp("host"), app={"host": "upstream"}) as site:
        assert site.ask(get()).status == 200
        assert site.upstream.only.get("Host") == f"127.0.0.1:{site.upstream.port}"
        assert site.upstream.only.get("X-Forwarded-Host") == "example.test"
        site.check()
