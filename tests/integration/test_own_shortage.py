"""What happens when the proxy itself runs out of descriptors or local ports: never its upstream's
failure."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
from redis import Redis

from proxy.demo.redis_server import RedisServer
from tests.http1 import (
    Connection,
    Request,
    Site,
    assert_problem,
    get,
    respond,
    wait_until,
)

WATCHED = {
    "breaker": {"failure_threshold": 1, "open_for": "60s"},
    "retry": {"attempts": 3, "on": ["connect", "reset"], "backoff": "1ms"},
    "ejection": {"failures": 1, "eject_for": "60s"},
    "health": {"path": "/health", "every": "50ms", "timeout": "5s", "fall": 1},
}


def events(site: Site, event: str) -> list[dict[str, object]]:
    """Lines of the log with that `event`."""
    return [line for line in site.proxy.log() if line.get("event") == event]


def assert_not_blamed(site: Site) -> None:
    """Nobody who keeps count of the upstream has counted anything."""
    assert site.proxy.breaker("app")["state"] == "closed"
    assert events(site, "breaker_transition") == []
    for target in site.config["upstreams"]["app"]["targets"]:
        assert site.proxy.metric("proxy_target_healthy", target=target) == 1
        assert site.proxy.metric("proxy_target_ejected", target=target) == 0
    assert events(site, "target_health") == []
    assert site.proxy.metric("external_api_retries_total") in (None, 0)


def closes(connection: Connection, request: Request) -> None:
    """Every call needs a connection of its own."""
    connection.send(respond(b"ok", "200 OK", "Connection: close"))
    connection.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_descriptor_for_an_upstream(tmp_path: Path, host: str) -> None:
    """503 `overloaded` with `Retry-After`, one log line, no failure of a target, by address or by
    name; and all is well as soon as there are descriptors."""
    with Site(tmp_path, app=WATCHED) as site:
        # Started without a target by name: the config is replaced before the first request.
        target = site.upstream.url.replace("127.0.0.1", host)
        site.config["upstreams"]["app"]["targets"] = [target]
        site.proxy.write(site.proxy.config)
        assert site.proxy.admin_post("/api/reload")[0] == 200
        site.upstream.handler = closes
        with site.connect() as client:
            client.send(get("/first"))
            assert client.response().status == 200
            limits = site.proxy.take_descriptors()
            for _ in range(3):
                client.send(get("/"))
                answer = client.response()
                problem = assert_problem(answer, 503, "overloaded")
                assert answer.get("Retry-After") == "1"
                assert problem["upstream"] == "app"
            wait_until(lambda: len(events(site, "shortage")) == 1, "a line about the shortage")
            site.proxy.give_descriptors(limits)
            client.send(get("/after"))
            assert client.response().status == 200
        assert_not_blamed(site)
        (line,) = events(site, "shortage")
        assert (line["reason"], line["level"]) == ("no_descriptors", "ERROR")
        assert site.proxy.metric("proxy_shortages_total", reason="no_descriptors") == 1
        failures = site.proxy.metric("proxy_shortage_failures_total", reason="no_descriptors")
        assert failures is not None
        assert failures >= 3
        site.check()


def test_no_descriptor_to_accept_with(tmp_path: Path) -> None:
    """Nobody asks an upstream, and still the log has one line, not silence."""
    with Site(tmp_path) as site:
        limits = site.proxy.take_descriptors()
        with site.connect() as client:
            wait_until(lambda: len(events(site, "shortage")) == 1, "a line about the shortage")
            site.proxy.give_descriptors(limits)
            client.send(get("/"))
            assert client.response().status == 200
        site.check()


def test_a_kept_connection_serves_while_there_is_no_descriptor(tmp_path: Path) -> None:
    """What needs no new descriptor goes on."""
    with Site(tmp_path) as site, site.connect() as client:
        client.send(get("/"))
        assert client.response().status == 200
        limits = site.proxy.take_descriptors()
        client.send(get("/"))
        assert client.response().status == 200
        site.proxy.give_descriptors(limits)
        site.check()


def test_too_few_descriptors_mean_fewer_clients(tmp_path: Path) -> None:
    """Where the limit cannot be raised, the start says so, and the connection that is one too many
    gets its 503 instead of being closed without a word."""
    listeners = {"front": {"limits": {"connections": 2_000_000_000}}}
    with Site(tmp_path, listeners, descriptors=200) as site:
        wait_until(lambda: len(events(site, "descriptors")) == 1, "a line about descriptors")
        (line,) = events(site, "descriptors")
        assert (line["level"], line["connections"]) == ("WARNING", {"front": 100})
        with contextlib.ExitStack() as stack:
            for _ in range(100):  # who has been served keeps its place
                client = stack.enter_context(site.connect())
                client.send(get("/"))
                assert client.response().status == 200
            with site.connect() as late:
                problem = assert_problem(late.response(), 503, "overloaded")
                assert "100" in problem["detail"]
        assert events(site, "shortage") == []
        site.check()


def test_no_local_port(tmp_path: Path) -> None:
    """Of a range of two ports both are taken: 503, nobody is blamed (in a network of its own)."""
    if subprocess.run(["unshare", "-rn", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no network namespaces here")
    script = [sys.executable, "-m", "tests.integration.port_exhaustion", str(tmp_path)]
    ended = subprocess.run(["unshare", "-rn", *script], check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-4000:]


def test_the_fleet_does_not_learn_of_a_shortage_here(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """One sidecar without descriptors, whose connections to Redis are killed as well: the circuit
    that it shares stays closed for all, and it shares again when it can."""
    shared = {"redis": {"url": redis_server.url}}
    breaker = {"breaker": {"failure_threshold": 1, "open_for": "60s"}}
    for name in ("short", "well"):
        (tmp_path / name).mkdir()
    with (
        Site(tmp_path / "short", app=breaker, **shared) as short,
        Site(tmp_path / "well", app=breaker, upstream=short.upstream, **shared) as well,
        short.connect() as client,
    ):
        short.upstream.handler = closes
        client.send(get("/"))
        assert client.response().status == 200
        limits = short.proxy.take_descriptors()
        with Redis.from_url(redis_server.url) as redis:
            redis.client_kill_filter(_type="normal", skipme=True)
            redis.client_kill_filter(_type="pubsub")
        wait_until(
            lambda: any(line["reachable"] is False for line in events(short, "breaker_redis")),
            "Redis to be missed",
        )
        for _ in range(3):
            client.send(get("/"))
            assert_problem(client.response(), 503, "overloaded")
            assert well.ask(get("/")).status == 200
        short.proxy.give_descriptors(limits)
        wait_until(
            lambda: events(short, "breaker_redis")[-1]["reachable"] is True, "Redis to be found"
        )
        missed = next(line for line in events(short, "breaker_redis") if not line["reachable"])
        assert "no file descriptor" in str(missed["error"])
        for site in (short, well):
            assert site.proxy.breaker("app")["state"] == "closed"
            assert events(site, "breaker_transition") == []
            site.check()
