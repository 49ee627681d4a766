"""Circuit breakers as callers and operators meet them: real proxies, a real Redis, raw sockets."""

from __future__ import annotations

import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as ws_connect
from websockets.sync.server import ServerConnection, serve

from proxy.demo.redis_server import RedisServer
from tests.http1 import (
    PATIENCE,
    Connection,
    ProxyProcess,
    RawClient,
    Request,
    Response,
    Site,
    Upstream,
    answer,
    assert_problem,
    get,
    ok,
    post,
    respond,
    wait_until,
)
from tests.jobs_site import client_of
from tests.uploads.audio import encode
from tests.uploads.drive import CONTENT_TYPE, form, part

BUSY = answer(respond(b"busy", "503 Service Unavailable"))
BREAKER = {"failure_threshold": 5, "open_for": "60s", "half_open_max_calls": 3}
QUICK = {**BREAKER, "open_for": "400ms"}
WAV = {"types": ["audio/wav"]}
RETRY = {"attempts": 4, "on": ["connect", 503], "backoff": "1ms", "min_per_second": 1000}


def settings(target: str, redis: str | None, **upstreams: Any) -> dict[str, Any]:
    """Listeners `slow`, `quick`, `again`, each leading to the upstream of that name."""
    every = {
        "slow": {"breaker": BREAKER},
        "quick": {"breaker": QUICK},
        "again": {"breaker": BREAKER, "retry": RETRY},
        **upstreams,
    }
    settings: dict[str, Any] = {
        "listeners": {
            name: {
                "direction": "egress",
                "routes": [
                    {
                        "name": "up",
                        "path": "/up",
                        "upstream": name,
                        "upload": WAV,
                    },
                    {"name": "all", "path": "/{rest:*}", "upstream": name},
                ],
            }
            for name in every
        },
        "upstreams": {name: {"targets": [target], **rules} for name, rules in every.items()},
    }
    if redis is not None:
        settings["redis"] = {"url": redis}
    return settings


class Fleet:
    """Two proxies before one upstream, sharing one Redis."""

    def __init__(self, folder: Path) -> None:
        self.redis = RedisServer(folder / "redis")
        self.redis.start()
        self.upstream = Upstream()
        self.sites: list[Site] = []
        for name in ("a", "b"):
            (folder / name).mkdir()
            given = settings(self.upstream.url, self.redis.url)
            listeners, upstreams = given.pop("listeners"), given.pop("upstreams")
            self.sites.append(
                Site(folder / name, listeners, upstreams=upstreams, upstream=self.upstream, **given)
            )

    def stop(self) -> None:
        """End everything."""
        for site in self.sites:
            site.proxy.stop()
        self.upstream.stop()
        self.redis.kill()

    def agree(self, name: str, state: str, seconds: float = PATIENCE) -> None:
        """Until both proxies say that the breaker is in this state."""
        for site in self.sites:
            wait_until(lambda s=site: s.proxy.breaker(name)["state"] == state, state, seconds)  # type: ignore[misc]

    def transitions(self, name: str) -> dict[str, float]:
        """How often each transition was counted, over both proxies."""
        found: dict[str, float] = {}
        for site in self.sites:
            for line in site.proxy.admin("/metrics")[1].splitlines():
                if line.startswith("circuit_breaker_transitions_total{") and f'"{name}"' in line:
                    labels, value = line.rsplit(" ", 1)
                    states = [part.split('"')[1] for part in labels.split(",") if "_state" in part]
                    key = ">".join(states)
                    found[key] = found.get(key, 0) + float(value)
        return found

    def leases(self, name: str) -> int:
        """Probe leases that are out, used or not."""
        with client_of(self.redis) as client:
            return int(client.zcard(f"cb:{{{name}}}:probes"))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The fleet of this module."""
    fleet = Fleet(tmp_path_factory.mktemp("fleet"))
    try:
        yield fleet
    finally:
        fleet.stop()


@pytest.fixture
def fleet(shared: Fleet) -> Iterator[Fleet]:
    """The same, all circuits closed, the upstream well."""
    shared.upstream.drop_connections()
    shared.upstream.fresh()
    for name in ("slow", "quick", "again"):
        assert shared.sites[0].proxy.admin_post(f"/api/breakers/{name}/reset")[1]["shared"]
        shared.agree(name, "closed")
    yield shared
    for site in shared.sites:
        site.check()


def hang_up_on(connection: Connection, request: Request) -> None:
    """No answer until the proxy leaves."""
    connection.wait_end()


def trip(site: Site, name: str) -> None:
    """Fail until the circuit is open; leaves the upstream as it is then."""
    site.upstream.handler = BUSY
    for _ in range(5):
        assert site.ask(get("/"), name).body == b"busy"
    # On a slow machine the open time of `quick` may be over by now.
    assert site.proxy.breaker(name)["state"] in ("open", "half_open")


def recover(site: Site, name: str, *others: Site) -> None:
    """Call, as callers do, until the circuit is closed."""

    def closed() -> bool:
        for one in (site, *others):
            one.ask(get("/"), name)
        return bool(site.proxy.breaker(name)["state"] == "closed")

    wait_until(closed, "a closed circuit")


def test_five_failures_and_then_an_instant_503(fleet: Fleet) -> None:
    """The refusal has the time that is left, the service and the cause; the upstream has peace."""
    site, other = fleet.sites
    trip(site, "slow")
    with site.connect("slow") as client:
        for number in range(50):
            client.send(get("/", f"X-Correlation-ID: refused-{number}"))
            response = client.response()
            problem = assert_problem(response, 503, "circuit_open")
    assert 55 <= int(response.get("Retry-After") or 0) <= 60
    assert problem["upstream"] == "slow"
    assert problem["cause"] == "5 consecutive failures, the last: 503"
    line = site.proxy.access_line("refused-49")
    assert (line["attempts"], line["code"], line["target"]) == (0, "circuit_open", None)
    took = [one["duration_ms"] for one in site.proxy.log() if one.get("code") == "circuit_open"]
    assert statistics.median(took[-50:]) < 50  # under 1 where nothing else runs
    assert len(fleet.upstream.requests) == 5
    fleet.agree("slow", "open")
    assert_problem(other.ask(get("/"), "slow"), 503, "circuit_open")
    assert len(fleet.upstream.requests) == 5
    row = other.proxy.breaker("slow")
    assert [failure["kind"] for failure in row["recent_failures"]] == ["503"] * 5
    assert row["recent_failures"][0]["target"] == fleet.upstream.url
    assert site.proxy.metric("circuit_breaker_state", service="slow") == 1
    assert (site.proxy.metric("proxy_breaker_rejections_total", service="slow") or 0) >= 50


def test_failures_of_two_proxies_add_up(fleet: Fleet) -> None:
    """Three here and two there make five."""
    fleet.upstream.handler = BUSY
    for number in range(5):
        fleet.sites[number % 2].ask(get("/"), "slow")
    fleet.agree("slow", "open")
    assert len(fleet.upstream.requests) == 5


def test_an_answer_of_4xx_is_no_failure(fleet: Fleet) -> None:
    """A 404 says that the service is alive: it ends a run of failures."""
    site = fleet.sites[0]
    sick = [BUSY, BUSY, BUSY, BUSY, answer(respond(b"", "404 Not Found"))] * 2
    fleet.upstream.handler = lambda connection, request: sick.pop(0)(connection, request)
    for _ in range(10):
        site.ask(get("/"), "slow")
    assert site.proxy.breaker("slow")["state"] == "closed"


def test_recovery_through_probes(fleet: Fleet) -> None:
    """When the time is over three probes pass, from either proxy, and close it; each transition is
    counted once in the whole fleet."""
    before = fleet.transitions("quick")
    trip(fleet.sites[0], "quick")
    fleet.upstream.handler = ok

    recover(fleet.sites[0], "quick", fleet.sites[1])
    fleet.agree("quick", "closed")
    after = fleet.transitions("quick")
    new = {name: count - before.get(name, 0) for name, count in after.items()}
    assert {name: count for name, count in new.items() if count} == {
        "closed>open": 1,
        "open>half_open": 1,
        "half_open>closed": 1,
    }


def test_a_lone_caller_finds_its_lease(fleet: Fleet) -> None:
    """Who calls once in a while is let through at the first call after the open time: it waits the
    moment that the lease takes, instead of being refused each time."""
    site = fleet.sites[0]
    trip(site, "quick")
    fleet.upstream.handler = ok
    for done in range(3):
        wait_until(lambda: not site.proxy.breaker("quick")["remaining"], "the end of the open time")
        # A lease that the last success asked for would hide what this is about.
        wait_until(lambda: fleet.leases("quick") == 0, "no lease at hand")
        assert site.ask(get("/"), "quick").status == 200, f"call {done + 1}"
    fleet.agree("quick", "closed")


def test_never_more_than_three_probes(fleet: Fleet) -> None:
    """While probes hang, everybody else is refused at once; one that fails opens it again."""
    trip(fleet.sites[0], "quick")
    fleet.agree("quick", "open")  # who has not heard of it yet lets calls through as before
    fleet.upstream.fresh()
    held = threading.Event()

    def hang(connection: Connection, request: Request) -> None:
        held.wait(PATIENCE)
        BUSY(connection, request)

    fleet.upstream.handler = hang
    clients: list[RawClient] = []
    try:
        deadline = time.monotonic() + PATIENCE
        while len(fleet.upstream.requests) < 3:
            assert time.monotonic() < deadline
            client = fleet.sites[len(clients) % 2].connect("quick")
            clients.append(client)
            client.send(get("/"))
            client.silent_for(0.02)
        for site in fleet.sites:
            for _ in range(10):
                problem = assert_problem(site.ask(get("/"), "quick"), 503, "circuit_open")
                assert problem["cause"] == "recovery is being probed"
        assert len(fleet.upstream.requests) == 3
    finally:
        held.set()
        for client in clients:
            client.close()
    fleet.agree("quick", "open")


def test_a_probe_whose_client_leaves_is_given_back(fleet: Fleet) -> None:
    """It counts as neither; the next callers probe, and the circuit closes."""
    site = fleet.sites[0]
    trip(site, "quick")
    fleet.upstream.fresh()
    fleet.upstream.handler = hang_up_on
    while not fleet.upstream.requests:
        with site.connect("quick") as client:
            client.send(get("/", "X-Correlation-ID: leaver"))
            client.silent_for(0.05)
    wait_until(lambda: site.proxy.breaker("quick")["probes_in_flight"] == 0, "no probe")
    assert site.proxy.breaker("quick")["state"] == "half_open"
    fleet.upstream.handler = ok
    recover(site, "quick")


def test_a_long_answer_is_a_probe_that_succeeded(fleet: Fleet) -> None:
    """After a second of flowing it counts, however long it goes on."""
    site = fleet.sites[0]
    trip(site, "quick")
    fleet.upstream.fresh()
    stop = threading.Event()

    def stream(connection: Connection, request: Request) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
        stop.wait(PATIENCE)
        connection.send(b"x" * 100)

    fleet.upstream.handler = stream
    clients: list[RawClient] = []
    try:
        deadline = time.monotonic() + PATIENCE
        while len(fleet.upstream.requests) < 3:
            assert time.monotonic() < deadline
            client = site.connect("quick")
            clients.append(client)
            client.send(get("/"))
            client.silent_for(0.03)
        fleet.agree("quick", "closed")
        assert not stop.is_set()
    finally:
        stop.set()
        for client in clients:
            client.close()


def test_the_circuit_ends_retrying(fleet: Fleet) -> None:
    """Each attempt is a failure of its own; the one that opens the circuit is the last, and its
    answer reaches the client."""
    site = fleet.sites[0]
    fleet.upstream.handler = BUSY
    assert site.ask(get("/"), "again").body == b"busy"
    response = site.ask(get("/", "X-Correlation-ID: fifth"), "again")
    assert response.body == b"busy"
    assert len(fleet.upstream.requests) == 5
    line = site.proxy.access_line("fifth")
    assert (line["attempts"], line["no_retry"]) == (1, "circuit")
    assert_problem(site.ask(get("/"), "again"), 503, "circuit_open")


def test_clients_that_leave_are_nobodys_failure(fleet: Fleet) -> None:
    """Ten that give up waiting do not open it."""
    site = fleet.sites[0]
    fleet.upstream.handler = hang_up_on
    for number in range(10):
        with site.connect("slow") as client:
            client.send(get("/", f"X-Correlation-ID: leave-{number}"))
            fleet.upstream.wait_requests(number + 1)
        assert site.proxy.access_line(f"leave-{number}")["status"] == 499
    row = site.proxy.breaker("slow")
    assert (row["state"], row["failures"]) == ("closed", 0)


def test_an_open_circuit_refuses_an_upload_unread(fleet: Fleet) -> None:
    """The answer comes while the client still sends; nothing of it reaches the upstream. When
    closed again, an upload passes."""
    site = fleet.sites[0]
    site.proxy.admin_post("/api/breakers/slow/open", {"reason": "quota"})
    body = form(part(encode("wav")))
    fields = ["Content-Type: " + CONTENT_TYPE.decode()]
    with site.connect("slow") as client:
        client.send(get("/up", f"Content-Length: {len(body)}", *fields, method="POST"))
        problem = assert_problem(client.response("POST"), 503, "circuit_open")
        assert problem["cause"] == "open by hand: quota"
    assert fleet.upstream.requests == []
    site.proxy.admin_post("/api/breakers/slow/reset")
    assert site.ask(post(body, "/up", *fields), "slow").status == 200
    assert fleet.upstream.only.body


def reliability_proxy(site: Site, *arguments: str) -> str:
    """What a command prints."""
    command = [sys.executable, "-m", "proxy", *arguments]
    admin = f"http://127.0.0.1:{site.proxy.admin_port}"
    done = subprocess.run(
        [*command, "--admin", admin], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def test_an_operator_opens_closes_and_resets(fleet: Fleet) -> None:
    """By command, for the whole fleet, with a reason, and for a time."""
    one, other = fleet.sites
    started = reliability_proxy(
        one, "breakers", "open", "slow", "--reason", "quota used up", "--for", "2h"
    )
    assert "forced_open" in started
    fleet.agree("slow", "forced_open")
    refused = other.ask(get("/"), "slow")
    assert_problem(refused, 503, "circuit_open")
    assert 7100 < int(refused.get("Retry-After") or 0) <= 7200
    listed = reliability_proxy(other, "breakers", "list")
    assert "quota used up" in listed
    reliability_proxy(other, "breakers", "close", "slow", "--reason", "false alarm")
    fleet.agree("slow", "forced_closed")
    fleet.upstream.handler = BUSY
    assert {one.ask(get("/"), "slow").body for _ in range(8)} == {b"busy"}
    reliability_proxy(one, "breakers", "reset", "slow")
    fleet.agree("slow", "closed")
    assert other.proxy.breaker("slow")["failures"] == 0


def test_what_was_forced_ends_by_itself(fleet: Fleet) -> None:
    """After its time callers probe, and it closes."""
    site = fleet.sites[0]
    site.proxy.admin_post("/api/breakers/quick/open", {"for": "300ms"})
    fleet.agree("quick", "forced_open")
    recover(site, "quick")


# --- Redis in trouble ---------------------------------------------------------------------------


def alone(folder: Path, redis: str | None, upstream: Upstream | None = None) -> Site:
    """One proxy."""
    upstream = upstream or Upstream()
    given = settings(upstream.url, redis)
    listeners, upstreams = given.pop("listeners"), given.pop("upstreams")
    return Site(folder, listeners, upstreams=upstreams, upstream=upstream, **given)


def redis_lines(proxy: ProxyProcess) -> list[bool]:
    """What the log says about Redis being reachable, in order: only changes are logged."""
    reported = [line["reachable"] for line in proxy.log() if line.get("event") == "breaker_redis"]
    assert all(one is not other for one, other in itertools.pairwise(reported)), reported
    return reported


def test_redis_that_is_away_at_the_start(tmp_path: Path) -> None:
    """Requests are served, circuits open and close here alone; each change is one log line."""
    redis = RedisServer(tmp_path / "redis")
    with alone(tmp_path, redis.url) as site:
        assert [site.ask(get("/"), "slow").status for _ in range(30)] == [200] * 30
        wait_until(lambda: redis_lines(site.proxy) == [False], "a line about it")
        trip(site, "quick")
        site.upstream.handler = ok
        wait_until(lambda: site.ask(get("/"), "quick").status == 200, "a local probe")
        trip(site, "slow")
        site.upstream.handler = ok
        redis.start()
        try:
            wait_until(lambda: redis_lines(site.proxy) == [False, True], "Redis")
            row = site.proxy.breaker("slow")
            assert (row["state"], row["shared"]) == ("open", True)
        finally:
            redis.kill()
        site.check()


def test_redis_that_hangs_and_one_that_comes_back_empty(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """No request waits: not while Redis is stopped in its tracks, nor dead; an open circuit is put
    back into the empty one, from where another proxy learns of it."""
    upstream = Upstream()
    with alone(tmp_path, redis_server.url, upstream) as site:
        wait_until(lambda: redis_lines(site.proxy) == [True], "Redis")
        assert redis_server.pid is not None
        os.kill(redis_server.pid, signal.SIGSTOP)
        try:
            # A request that waited for Redis would be answered when that is given up, not before.
            answered = 0
            while redis_lines(site.proxy)[-1]:
                assert site.ask(get("/"), "quick").status == 200
                answered += 1
            assert answered > 3
            trip(site, "slow")
        finally:
            os.kill(redis_server.pid, signal.SIGCONT)
        wait_until(lambda: redis_lines(site.proxy)[-1], "Redis again")
        assert site.proxy.breaker("slow")["state"] == "open"
        redis_server.kill()
        assert_problem(site.ask(get("/"), "slow"), 503, "circuit_open")
        wait_until(lambda: not redis_lines(site.proxy)[-1], "no Redis")
        redis_server.start()
        wait_until(lambda: redis_lines(site.proxy)[-1], "an empty Redis")
        second = tmp_path / "second"
        second.mkdir()
        other = alone(second, redis_server.url, upstream)
        try:
            assert other.proxy.breaker("slow")["state"] == "open"
            assert_problem(other.ask(get("/"), "slow"), 503, "circuit_open")
        finally:
            other.proxy.stop()
        site.check()


# --- without Redis ------------------------------------------------------------------------------


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Site]:
    """One proxy without Redis."""
    with alone(tmp_path, None) as site:
        yield site
        site.check()


def reload(site: Site, change: Callable[[dict[str, Any]], None], ok: bool = True) -> None:
    """Change the config file and have it read."""
    config = json.loads(site.proxy.file.read_text())
    change(config)
    site.proxy.write(config)
    status, _ = site.proxy.admin_post("/api/reload")
    assert (status == 200) is ok


def test_a_reload_keeps_the_state_and_takes_new_rules(local: Site) -> None:
    """An open circuit stays open though its upstream's plan is new; a refused reload changes
    nothing; a breaker that is taken away refuses nobody any more."""
    trip(local, "slow")

    def rules(config: dict[str, Any]) -> None:
        config["upstreams"]["slow"]["timeouts"] = {"response": "9s"}
        config["upstreams"]["again"]["breaker"]["failure_threshold"] = 1
        config["upstreams"]["again"]["retry"]["attempts"] = 1

    def broken(config: dict[str, Any]) -> None:
        rules(config)
        config["listeners"]["more"] = {**config["listeners"]["slow"], "bind": "192.0.2.1:1"}

    reload(local, broken, ok=False)
    local.ask(get("/"), "again")
    local.proxy.admin_post("/api/breakers/again/reset")
    reload(local, rules_only(rules))
    assert_problem(local.ask(get("/"), "slow"), 503, "circuit_open")
    assert local.ask(get("/"), "again").body == b"busy"
    assert_problem(local.ask(get("/"), "again"), 503, "circuit_open")
    reload(local, lambda config: config["upstreams"]["slow"].pop("breaker"))
    assert local.ask(get("/"), "slow").body == b"busy"


def rules_only(rules: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """`rules`, and no listener too many."""

    def change(config: dict[str, Any]) -> None:
        config["listeners"].pop("more", None)
        rules(config)

    return change


def test_a_reload_keeps_places_that_are_taken(local: Site) -> None:
    """A bulkhead of one stays one while its request goes on, whatever else changes."""
    release = threading.Event()

    def held(connection: Connection, request: Request) -> None:
        release.wait(PATIENCE)
        ok(connection, request)

    def narrow(config: dict[str, Any]) -> None:
        config["upstreams"]["slow"]["bulkhead"] = {"max_concurrent": 1, "queue": 0}

    reload(local, narrow)
    local.upstream.handler = held
    with local.connect("slow") as client:
        client.send(get("/"))
        local.upstream.wait_requests(1)
        reload(local, lambda config: config["upstreams"]["slow"].update(timeouts={"idle": "9s"}))
        assert_problem(local.ask(get("/"), "slow"), 503, "overloaded")
        # The queue is for places, not for refusals: an open circuit is told at once.
        local.proxy.admin_post("/api/breakers/slow/open")
        assert_problem(local.ask(get("/"), "slow"), 503, "circuit_open")
        release.set()
        assert client.response().status == 200


def test_websockets_and_the_breaker(local: Site) -> None:
    """A switch of protocols is a success while it lasts; refused ones are failures; an open
    circuit refuses the handshake."""

    def echo(connection: ServerConnection) -> None:
        for message in connection:
            connection.send(message)

    server = serve(echo, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    target = f"http://127.0.0.1:{server.socket.getsockname()[1]}"
    reload(local, lambda config: config["upstreams"]["quick"].update(targets=[target]))
    host, port = local.addresses["quick"]
    url = f"ws://{host}:{port}/"
    with ExitStack() as stack:
        stack.callback(thread.join, PATIENCE)
        stack.callback(server.shutdown)
        local.proxy.admin_post("/api/breakers/quick/open", {"for": "50ms"})
        links: list[ClientConnection] = []
        deadline = time.monotonic() + PATIENCE
        while len(links) < 3:
            assert time.monotonic() < deadline
            with suppress(InvalidStatus):
                links.append(stack.enter_context(ws_connect(url, proxy=None)))
        wait_until(lambda: local.proxy.breaker("quick")["state"] == "closed", "a closed circuit")
        for link in links:
            link.send("still here")
            assert link.recv(PATIENCE) == "still here"
        local.proxy.admin_post("/api/breakers/quick/open")
        with pytest.raises(InvalidStatus, match="503"), ws_connect(url, proxy=None):
            pass
        links[0].send("unharmed")
        assert links[0].recv(PATIENCE) == "unharmed"


def test_a_dead_dependency_costs_the_threshold_and_what_was_in_flight(local: Site) -> None:
    """Twenty callers at once against a dead service: it sees five calls and those under way."""
    local.upstream.handler = BUSY
    answers: list[Response] = []

    def caller() -> None:
        with local.connect("slow") as client:
            for _ in range(20):
                client.send(get("/"))
                answers.append(client.response())

    threads = [threading.Thread(target=caller) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(answers) == 400
    assert len(local.upstream.requests) <= 5 + 20
