"""Boards that share breakers through a real Redis, and what they do when it misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import time
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import redis as blocking
import trustme

from proxy.core.errors import BadRequest, CircuitOpen
from proxy.demo.redis_server import RedisServer, find_redis_server, free_port
from proxy.resilience.circuit.states import State
from tests.breaker_kit import (
    HASTY,
    PATIENT,
    Sidecar,
    all_in,
    fleet,
    lines,
    now,
    polls_under_way,
    until,
)
from tests.http1 import PATIENCE
from tests.streams import conversing


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody polls: what a sidecar knows of the others was pushed to it."""
    monkeypatch.setattr("proxy.resilience.circuit.fleet.sync.POLL", 3600.0)


# --- together -------------------------------------------------------------------------------------


async def test_failures_of_several_sidecars_add_up(redis_server: RedisServer, pushed: None) -> None:
    """Three failures here and two there open the circuit everywhere, counted once."""
    async with fleet(redis_server.url, 3) as sidecars:
        sidecars[0].fail(3)
        sidecars[1].fail(2)
        await all_in(sidecars, State.OPEN)
        assert sum(s.transitions() for s in sidecars) == 1
        with pytest.raises(CircuitOpen) as caught:
            sidecars[2].breaker.admit(now())
        assert 59 < (caught.value.retry_after or 0) <= 60
        failures = sidecars[2].breakers.show("svc")["recent_failures"]
        assert sorted(f["correlation_id"] for f in failures) == ["id-2"] * 2 + ["id-3"] * 3


async def test_a_transition_is_one_warning_with_the_failures(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Only its maker warns, and says which calls failed; gauges change everywhere."""
    async with fleet(redis_server.url, 3) as sidecars:
        sidecars[0].fail(5)
        await all_in(sidecars, State.OPEN)
        await until(lambda: bool(lines(caplog, "breaker_transition")))
        warned = [
            record
            for record in lines(caplog, "breaker_transition")
            if record.levelno == logging.WARNING
        ]
        assert [record.by for record in warned] == ["a"]
        assert len(warned[0].failures) == 5
        assert warned[0].failures[0]["target"] == "http://h"
        for sidecar in sidecars:
            gauge = sidecar.registry.get_sample_value("circuit_breaker_state", {"service": "svc"})
            assert gauge == 1


async def test_a_success_elsewhere_ends_the_run_of_failures(redis_server: RedisServer) -> None:
    """Consecutive means consecutive in the fleet."""
    async with fleet(redis_server.url) as (one, two):
        one.fail(3)
        await until(lambda: two.breaker.fleet_failures == 3)
        two.breaker.admit(now()).success(now(), 0.01)
        await until(lambda: one.breaker.fleet_failures == 0)
        two.fail(3)
        await until(lambda: one.breaker.fleet_failures == 3)
        assert one.breaker.state is State.CLOSED


async def test_a_trip_is_pushed_to_all(redis_server: RedisServer, pushed: None) -> None:
    """Eight sidecars, one of them sees five failures: the others need no poll to know."""
    async with fleet(redis_server.url, 8) as sidecars:
        sidecars[3].fail(5)
        await all_in(sidecars, State.OPEN)


async def probes_of(sidecars: list[Sidecar], then: float = 0.0) -> list[Any]:
    """Probes given out to callers who come to every sidecar all the time, until there are three,
    and for `then` seconds more."""
    permits: list[Any] = []
    given_up = now() + PATIENCE
    enough: float | None = None
    while enough is None or now() < enough:
        assert now() < given_up, f"{len(permits)} probes"
        for sidecar in sidecars:
            try:
                permits.append(sidecar.breaker.admit(now()))
            except CircuitOpen:
                continue
        if enough is None and len(permits) >= 3:
            enough = now() + then
        await asyncio.sleep(0.005)
    return permits


async def test_never_more_than_three_probes_in_the_whole_fleet(
    redis_server: RedisServer, pushed: None
) -> None:
    """Eight sidecars with callers get three leases between them; their successes close it."""
    async with fleet(redis_server.url, 8, open_for="300ms", lease=30.0) as sidecars:
        sidecars[0].fail(5)
        await all_in(sidecars, State.OPEN)
        permits = await probes_of(sidecars, 0.5)
        assert len(permits) == 3
        for permit in permits:
            permit.success(now(), 0.1)
        await all_in(sidecars, State.CLOSED)
        assert sum(s.transitions() for s in sidecars) == 3


async def test_who_was_refused_while_open_keeps_no_lease_from_others(
    redis_server: RedisServer, pushed: None
) -> None:
    """A sidecar whose only caller never comes again ends the open time, and takes no probe of it:
    the next caller of another sidecar probes at once."""
    rules: dict[str, Any] = {"open_for": "3s", "lease": 30.0, "half_open_max_calls": 1}
    async with fleet(redis_server.url, 2, **rules) as (one, two):
        one.fail(5)
        await all_in([one, two], State.OPEN)
        with pytest.raises(CircuitOpen):
            one.breaker.admit(now())
        await all_in([one, two], State.HALF_OPEN)
        answered = asyncio.Event()
        assert two.breaker.ask(now(), answered.set) is not None
        async with asyncio.timeout(PATIENCE):
            await answered.wait()
        two.breaker.admit(now()).success(now(), 0.01)
        await all_in([one, two], State.CLOSED)


async def test_a_hung_probe_is_free_again_after_its_lease(redis_server: RedisServer) -> None:
    """Leases whose owner says nothing run out by Redis' clock."""
    async with fleet(redis_server.url, 2, open_for="100ms", lease=0.5) as sidecars:
        sidecars[0].fail(5)
        await all_in(sidecars, State.OPEN)
        first = await probes_of(sidecars)
        await probes_of(sidecars)
        for permit in first:
            permit.success(now(), 1.0)
        await asyncio.sleep(0.1)
        assert all(s.breaker.state is State.HALF_OPEN for s in sidecars)


async def test_by_hand_for_the_whole_fleet_and_for_a_time(redis_server: RedisServer) -> None:
    """Open, close and reset reach everyone and expire by themselves."""
    async with fleet(redis_server.url, 3) as sidecars:
        row = await sidecars[0].breakers.force("svc", "open", "quota used up", 0.3)
        assert row["state"] == "forced_open"
        assert row["reason"] == "open by hand: quota used up"
        await all_in(sidecars, State.FORCED_OPEN)
        await all_in(sidecars, State.HALF_OPEN)
        await sidecars[1].breakers.force("svc", "close", "we know", 0.3)
        await all_in(sidecars, State.FORCED_CLOSED)
        await all_in(sidecars, State.CLOSED)
        sidecars[2].fail(5)
        await all_in(sidecars, State.OPEN)
        await sidecars[2].breakers.force("svc", "reset", "fixed")
        await all_in(sidecars, State.CLOSED)
        with pytest.raises(BadRequest, match="over zero"):
            await sidecars[0].breakers.force("svc", "open", "", 0.0)
        with pytest.raises(KeyError):
            await sidecars[0].breakers.force("other", "open", "")


async def test_healthy_traffic_sends_nothing_to_redis(
    redis_server: RedisServer, pushed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand good calls add no command: there is none beside the poll, which is held off."""
    polling = polls_under_way(monkeypatch)
    with blocking.Redis(port=redis_server.port, protocol=2) as client:
        async with fleet(redis_server.url) as (one, two):
            await until(lambda: one.breaker.shared and two.breaker.shared)
            syncs = [one.breakers._sync, two.breakers._sync]
            # Whoever has just subscribed polls once, for what was published before.
            await until(
                lambda: all(s and s._channel._subscribed and s._poll_at > now() for s in syncs)
            )
            await until(lambda: not polling)
            before: Any = client.info("commandstats")
            for _ in range(10_000):
                one.breaker.admit(now()).success(now(), 0.01)
            await asyncio.sleep(0.3)
            after: Any = client.info("commandstats")

    def scripts(stats: Any) -> int:
        names = ("cmdstat_evalsha", "cmdstat_eval")
        return sum(stats[name]["calls"] for name in names if name in stats)

    assert scripts(before) > 0
    assert scripts(after) == scripts(before)


async def test_the_keys_are_those_of_the_contract(redis_server: RedisServer) -> None:
    """State, failures, last_failure and half_open_calls read with redis-cli, under the prefix."""
    async with fleet(redis_server.url, 1, {"key_prefix": "shop:"}) as (one,):
        one.fail(5)
        await until(lambda: one.transitions() == 1)
        with blocking.Redis(port=redis_server.port, decode_responses=True, protocol=2) as client:
            assert client.get("shop:cb:{svc}:state") == "open"
            assert client.get("shop:cb:{svc}:failures") == "0"
            assert float(str(client.get("shop:cb:{svc}:last_failure"))) == pytest.approx(
                time.time(), abs=5
            )
            assert client.get("shop:cb:{svc}:half_open_calls") == "0"
            keys: Any = client.keys("*")
            assert all(key.startswith("shop:cb:{svc}:") for key in keys)
            assert all(int(str(client.ttl(key))) > 86400 for key in keys)


# --- trouble --------------------------------------------------------------------------------------


async def test_a_breaker_that_never_changed_is_closed_since_the_start(
    redis_server: RedisServer,
) -> None:
    """Not since 1970, which is what Redis has where there was no transition yet."""
    began = time.time()
    async with fleet(redis_server.url, 1) as (one,):
        await until(lambda: one.breaker.shared)
        since = datetime.fromisoformat(one.breakers.show("svc")["since"]).timestamp()
        assert began - 1 <= since <= time.time()


async def test_an_open_breaker_survives_an_empty_restart(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Redis comes back knowing nothing: the circuit is open there again, for the same time."""
    async with fleet(redis_server.url) as sidecars:
        sidecars[0].fail(5)
        await all_in(sidecars, State.OPEN)
        await asyncio.to_thread(redis_server.kill)
        await until(lambda: not any(s.breaker.shared for s in sidecars))
        await asyncio.to_thread(redis_server.start)
        await until(lambda: all(s.breaker.shared for s in sidecars))
        assert all(s.breaker.state is State.OPEN for s in sidecars)
        async with fleet(redis_server.url, 1) as (late,):
            assert late.breaker.state is State.OPEN
            assert 50 < late.breakers.show("svc")["remaining"] <= 60
        assert sum(s.transitions() for s in sidecars) == 1
    changes = [record.reachable for record in lines(caplog, "breaker_redis")]
    assert changes.count(False) == 2, "one line per sidecar"


async def test_a_trip_during_the_outage_opens_the_fleet_on_return(
    redis_server: RedisServer,
) -> None:
    """Decided locally while Redis was away, shared when it is back, counted once."""
    async with fleet(redis_server.url) as (one, two):
        await asyncio.to_thread(redis_server.kill)
        one.fail(5)
        assert one.breaker.state is State.OPEN
        await until(lambda: not one.breaker.shared and not two.breaker.shared)
        assert two.breaker.state is State.CLOSED
        await asyncio.to_thread(redis_server.start)
        await all_in([one, two], State.OPEN)
        await until(lambda: one.breaker.shared and two.breaker.shared)
        assert one.transitions() + two.transitions() == 1


async def test_set_by_hand_during_the_outage_holds_for_the_fleet_on_return(
    tmp_path: Path,
) -> None:
    """Forced open here while Redis, which remembers an open breaker, was away."""
    server = RedisServer(tmp_path / "redis")
    await asyncio.to_thread(server.start)
    try:
        async with fleet(server.url, 2, HASTY) as (one, two):
            one.fail(5)
            await all_in([one, two], State.OPEN)
            assert server.pid is not None
            os.kill(server.pid, signal.SIGSTOP)
            try:
                await until(lambda: not one.breaker.shared and not two.breaker.shared)
                row = await one.breakers.force("svc", "close", "we know better", 600.0)
                assert (row["state"], row["shared"]) == ("forced_closed", False)
                assert two.breaker.state is State.OPEN
            finally:
                os.kill(server.pid, signal.SIGCONT)
            await all_in([one, two], State.FORCED_CLOSED)
    finally:
        await asyncio.to_thread(server.kill)


async def test_by_hand_while_redis_hangs_is_counted_once(redis_server: RedisServer) -> None:
    """The command is carried out here when Redis does not answer, and by Redis when it awakes."""
    async with fleet(redis_server.url, 2, HASTY) as (one, two):
        assert redis_server.pid is not None
        await one.breakers.force("svc", "reset", "", None)  # Redis knows the script from now on
        os.kill(redis_server.pid, signal.SIGSTOP)
        try:
            row = await one.breakers.force("svc", "open", "it burns", 600.0)
            assert (row["state"], row["shared"]) == ("forced_open", False)
        finally:
            os.kill(redis_server.pid, signal.SIGCONT)
        await all_in([one, two], State.FORCED_OPEN)
        await until(lambda: one.breaker.shared and two.breaker.shared)
        assert one.transitions() + two.transitions() == 1


async def test_without_redis_it_recovers_by_itself(redis_server: RedisServer) -> None:
    """Open time, probes and closing are decided locally during an outage."""
    async with fleet(redis_server.url, 1, open_for="200ms") as (one,):
        one.fail(5)
        await until(lambda: one.transitions() == 1)
        await asyncio.to_thread(redis_server.kill)
        await until(lambda: not one.breaker.shared)
        permits = await probes_of([one], 0.2)
        assert len(permits) == 3
        for permit in permits:
            permit.success(now(), 0.1)
        assert one.breaker.state is State.CLOSED
        assert one.transitions() == 3


@pytest.mark.parametrize("settings", [PATIENT, HASTY], ids=["waited for", "given up"])
async def test_a_hung_redis_delays_no_decision(
    redis_server: RedisServer, settings: dict[str, str]
) -> None:
    """SIGSTOP: admitting and failing wait for nothing; after SIGCONT all agree, counted once."""
    async with fleet(redis_server.url, 2, settings) as sidecars:
        assert redis_server.pid is not None
        os.kill(redis_server.pid, signal.SIGSTOP)
        try:
            began = now()
            sidecars[0].fail(5)
            with pytest.raises(CircuitOpen):
                sidecars[0].breaker.admit(now())
            if settings is PATIENT:
                assert now() - began < PATIENCE  # the command that they did not wait for: an hour
            else:
                await until(lambda: not any(s.breaker.shared for s in sidecars))
        finally:
            os.kill(redis_server.pid, signal.SIGCONT)
        await until(lambda: all(s.breaker.shared for s in sidecars))
        await all_in(sidecars, State.OPEN)
        assert sum(s.transitions() for s in sidecars) == 1


async def test_a_flushed_script_cache_is_not_noticed(redis_server: RedisServer) -> None:
    """SCRIPT FLUSH between two reports: the text is sent again, nothing is lost."""
    with blocking.Redis(port=redis_server.port, protocol=2) as client:
        async with fleet(redis_server.url) as sidecars:
            client.script_flush()
            sidecars[0].fail(5)
            await all_in(sidecars, State.OPEN)
            assert all(s.breaker.shared for s in sidecars)


async def test_flushed_keys_are_put_back(redis_server: RedisServer) -> None:
    """FLUSHALL while open: the next poll puts the open breaker back."""
    with blocking.Redis(port=redis_server.port, decode_responses=True, protocol=2) as client:
        async with fleet(redis_server.url) as sidecars:
            sidecars[0].fail(5)
            await all_in(sidecars, State.OPEN)
            client.flushall()
            await until(lambda: client.get("cb:{svc}:state") == "open")
            assert all(s.breaker.state is State.OPEN for s in sidecars)
            assert sum(s.transitions() for s in sidecars) == 1


@pytest.mark.parametrize("trouble", ["read-only", "wrong password", "refused", "black hole"])
async def test_a_redis_that_refuses_is_one_log_line(
    trouble: str, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is wrong with it, calls go on with local decisions, and one line says so."""
    caplog.set_level(logging.INFO)
    url = redis_server.url

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            continue

    if trouble == "read-only":
        with blocking.Redis(port=redis_server.port, protocol=2) as client:
            client.execute_command("REPLICAOF", "127.0.0.1", str(free_port()))
    elif trouble == "wrong password":
        url = url.replace("redis://", "redis://:wrong@")
    elif trouble == "refused":
        url = f"redis://127.0.0.1:{free_port()}/0"
    async with conversing(hold) as silent:
        if trouble == "black hole":
            url = f"redis://127.0.0.1:{silent}/0"
        async with fleet(url, 1, HASTY) as (one,):
            await until(lambda: bool(lines(caplog, "breaker_redis")))
            one.fail(5)
            assert one.breaker.state is State.OPEN
            assert one.transitions() == 1
            await asyncio.sleep(1.2)
            assert [record.reachable for record in lines(caplog, "breaker_redis")] == [False]
            row = await one.breakers.force("svc", "reset", "fixed")
            assert (row["state"], row["shared"]) == ("closed", False)


# --- every kind of Redis --------------------------------------------------------------------------


async def both_agree(url: str, settings: dict[str, Any] | None = None) -> None:
    """A trip in one sidecar reaches the other through the Redis at `url`, pushed: nobody polls."""
    with mock.patch("proxy.resilience.circuit.fleet.sync.POLL", 3600.0):
        async with fleet(url, 2, settings) as sidecars:
            await until(lambda: all(s.breaker.shared for s in sidecars))
            sidecars[0].fail(5)
            await all_in(sidecars, State.OPEN)
            await until(lambda: sidecars[0].transitions() == 1)


async def test_unix_socket_with_user_and_password(tmp_path: Path) -> None:
    """A unix socket, and an ACL user whose password needs escaping."""
    path = tmp_path / "r.sock"
    server = RedisServer(
        tmp_path / "redis",
        None,
        *("--unixsocket", str(path)),
        *("--user", "proxy", "on", ">p@ss/word", "~cb:*", "resetchannels", "&cb:events"),
        *("+@scripting", "+@read", "+@write", "+@pubsub", "+@connection", "+select", "+time"),
    )
    await asyncio.to_thread(server.start)
    try:
        await both_agree(f"unix://proxy:p%40ss%2Fword@{path}?db=1")
        await both_agree(f"unix://{path}", {"username": "proxy", "password": "p@ss/word"})
    finally:
        await asyncio.to_thread(server.kill)


async def test_tls(tmp_path: Path) -> None:
    """rediss:// with an authority of one's own; an unknown one is refused."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    port = free_port()
    server = RedisServer(
        tmp_path / "redis",
        None,
        *("--tls-port", str(port), "--tls-auth-clients", "no"),
        *("--tls-cert-file", str(tmp_path / "cert.pem")),
        *("--tls-key-file", str(tmp_path / "key.pem")),
        *("--tls-ca-cert-file", str(tmp_path / "ca.pem")),
    )
    try:
        await asyncio.to_thread(server.start)
    except RuntimeError:
        pytest.skip("this redis-server was built without TLS")
    try:
        url = f"rediss://127.0.0.1:{port}/0"
        await both_agree(url, {"tls": {"ca": str(tmp_path / "ca.pem")}})
        async with fleet(url, 1) as (stranger,):
            assert not stranger.breaker.shared
    finally:
        await asyncio.to_thread(server.kill)


def cluster_port() -> int:
    """A free port whose fellow for the cluster's bus, 10,000 higher, is free as well and none of
    those that the kernel gives to outgoing connections."""
    for port in iter(free_port, 0):
        if port + 10_000 < 32_768:
            with socket.socket() as bus, contextlib.suppress(OSError):
                bus.bind(("127.0.0.1", port + 10_000))
                return port
    raise AssertionError("no port is 0")


@pytest.mark.parametrize("nodes", [1, 3])
async def test_cluster(tmp_path: Path, nodes: int) -> None:
    """One node with all slots, and three that share them: each node leads to every breaker."""
    servers = [
        RedisServer(
            tmp_path / str(number),
            cluster_port(),
            *("--cluster-enabled", "yes", "--cluster-node-timeout", "5000"),
        )
        for number in range(nodes)
    ]
    clients: list[Any] = []
    try:
        for number, server in enumerate(servers):
            await asyncio.to_thread(server.start)
            client = blocking.Redis(port=server.port, decode_responses=True, protocol=2)
            clients.append(client)
            slots = range(16384 * number // nodes, 16384 * (number + 1) // nodes)
            client.execute_command("CLUSTER", "ADDSLOTS", *slots)
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", servers[0].port)

        def whole() -> bool:
            stats = [str(client.execute_command("CLUSTER INFO")) for client in clients]
            known = [client.execute_command("CLUSTER NODES") for client in clients]
            return all("ok" in one for one in stats) and all(len(one) == nodes for one in known)

        await until(whole)
        for number, server in enumerate(servers):
            fresh = {"key_prefix": f"fleet-{number}:"}
            await both_agree(f"redis+cluster://127.0.0.1:{server.port}", fresh)
    finally:
        for client in clients:
            client.close()
        for server in servers:
            await asyncio.to_thread(server.kill)


async def test_sentinel_fails_over(tmp_path: Path) -> None:
    """Through Sentinel, before and after a failover: the open breaker stays open."""
    master = RedisServer(tmp_path / "one")
    await asyncio.to_thread(master.start)
    replica = RedisServer(tmp_path / "two", None, "--replicaof", "127.0.0.1", str(master.port))
    await asyncio.to_thread(replica.start)
    port = free_port()
    config = tmp_path / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\n"
        f"sentinel monitor main 127.0.0.1 {master.port} 1\n"
        "sentinel down-after-milliseconds main 1000\nsentinel failover-timeout main 2000\n"
    )
    with (tmp_path / "sentinel.log").open("wb") as log:
        sentinel = subprocess.Popen(  # noqa: ASYNC220 (returns at once)
            [find_redis_server(), str(config), "--sentinel"], stdout=log, stderr=log
        )
    try:
        with blocking.Redis(port=port, decode_responses=True, protocol=2) as asked:

            def replicas_known() -> bool:
                try:
                    rows: Any = asked.execute_command("SENTINEL", "REPLICAS", "main")
                except blocking.RedisError:
                    return False
                return bool(rows) and "master-link-status" in str(rows)

            await until(replicas_known)
        with blocking.Redis(port=replica.port, protocol=2) as second:

            def replicates() -> bool:
                info: Any = second.info("replication")
                return bool(info["master_link_status"] == "up")

            await until(replicates)
        async with fleet(f"redis+sentinel://127.0.0.1:{port}/main/0") as sidecars:
            await until(lambda: all(s.breaker.shared for s in sidecars))
            sidecars[0].fail(5)
            await all_in(sidecars, State.OPEN)
            await asyncio.to_thread(master.kill)
            await until(lambda: not any(s.breaker.shared for s in sidecars))
            await until(lambda: all(s.breaker.shared for s in sidecars))
            assert all(s.breaker.state is State.OPEN for s in sidecars)
            assert sum(s.transitions() for s in sidecars) == 1
    finally:
        sentinel.kill()
        sentinel.wait()
        await asyncio.to_thread(replica.kill)
        await asyncio.to_thread(master.kill)


async def test_a_good_health_answer_ends_the_open_time_for_all(
    redis_server: RedisServer, pushed: None
) -> None:
    """Once in the fleet, and only of the opening that it was asked after: an answer from before is
    worth nothing, and neither is one about a state set by hand."""
    async with fleet(redis_server.url) as sidecars:
        one, other = sidecars
        asked_before = now()
        one.fail(5)
        await all_in(sidecars, State.OPEN)
        one.breaker.proven_well(now(), asked_before, "asked too early")
        held = other.breaker.hold(lambda: None)
        one.breaker.proven_well(now(), now(), "the health check is good")
        await all_in(sidecars, State.HALF_OPEN)
        assert {s.breaker.reason for s in sidecars} == {"the health check is good"}
        await until(lambda: held.turn == 0.0)  # a lease has come for the call that is held there
        assert other.breaker.try_admit(now()) is not None
        await one.breakers.force("svc", "open", "", 60.0)
        await all_in(sidecars, State.FORCED_OPEN)
        one.breaker.proven_well(now(), now(), "well")
        assert one.breaker.take_proof() == ""
