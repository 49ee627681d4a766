"""Connections that pile up while the proxy is busy: here it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest

from proxy.core.clock import ManualClock
from proxy.core.process.shortage import Shortages
from proxy.http1.client import ClientStream
from proxy.server.accept import Acceptor
from proxy.server.listening import duplicate
from tests.http1 import Site, get


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One proxy; on `narrow` a client may have two connections."""
    listeners = {"front": {}, "narrow": {"limits": {"per_client": {"connections": 2}}}}
    with Site(tmp_path_factory.mktemp("proxy"), listeners) as one:
        yield one


@contextlib.contextmanager
def stopped(site: Site) -> Iterator[None]:
    """The kernel goes on completing connections, and nobody accepts them."""
    os.kill(site.proxy.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(site.proxy.pid, signal.SIGCONT)


def discarded(site: Site, listener: str, reason: str) -> float:
    """Connections closed before they were served."""
    name = "proxy_client_connections_discarded_total"
    return site.proxy.metric(name, listener=listener, reason=reason) or 0


def test_reset_connections_are_not_served(site: Site) -> None:
    """Whole requests whose clients have gone before anybody read them reach no upstream; what
    others sent meanwhile is answered."""
    with stopped(site), contextlib.ExitStack() as stack:
        before, after = (stack.enter_context(site.connect()) for _ in range(2))
        before.send(get("/before"))
        for _ in range(50):
            with site.connect() as gone:
                gone.send(get("/gone"))
                gone.reset()
        after.send(get("/after"))
        stack = stack.pop_all()
    with stack:
        assert before.response().status == 200
        assert after.response().status == 200
    assert discarded(site, "front", "reset") == 50
    assert {request.target for request in site.upstream.requests} == {"/before", "/after"}
    site.check()


def test_half_closed_connections_are_served(site: Site) -> None:
    """Whoever has ended its half waits for an answer."""
    with site.connect() as client:
        with stopped(site):
            client.send(get("/half"))
            client.half_close()
        assert client.response().status == 200


def test_a_client_with_far_too_many_is_not_even_answered(site: Site) -> None:
    """Of ten at once, those beyond twice the limit are closed; another client is served."""
    with stopped(site), contextlib.ExitStack() as stack:
        mine = [stack.enter_context(site.connect("narrow", source="127.0.6.1")) for _ in range(10)]
        other = stack.enter_context(site.connect("narrow", source="127.0.6.2"))
        other.send(get("/other"))
        stack = stack.pop_all()
    with stack:
        assert other.response().status == 200
        for one in mine[:2]:
            one.send(get("/mine"))
            assert one.response().status == 200
        for one in mine[2:4]:
            assert one.response().status == 429
        for one in mine[4:]:
            one.assert_closed()
    refused = "proxy_clients_refused_total"
    assert site.proxy.metric(refused, listener="narrow", reason="client_connections") == 8


class Counted:
    """A listener's connections, counted only."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.vanished = 0

    def arrive(self, peer: tuple[str, int]) -> ClientStream:
        """Each is welcome."""
        return cast(ClientStream, SimpleNamespace(host_ip=peer[0]))

    def vanish(self, client: ClientStream) -> None:
        """It has gone."""
        self.vanished += 1

    def discarded(self, reason: str) -> None:
        """It has been closed."""
        self.reasons.append(reason)


async def test_handshakes_begin_a_few_per_turn() -> None:
    """Clients take turns in the meantime, and those that reset while they wait are discarded."""
    started: list[str] = []

    def start(connection: socket.socket, client: ClientStream) -> None:
        started.append(client.host_ip)
        connection.close()

    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        counted = Counted()
        # Time stands still: no share of a turn is ever used up.
        acceptor = Acceptor(
            [duplicate(listening)], counted, start, ManualClock(), Shortages(), per_turn=2
        )
        stack.callback(acceptor.abort)
        clients = [
            stack.enter_context(
                socket.create_connection(listening.getsockname(), source_address=(source, 0))
            )
            for source in ("127.0.0.2", "127.0.0.2", "127.0.0.2", "127.0.0.2", "127.0.0.3")
        ]
        listening.setblocking(False)
        acceptor._accept(listening)
        assert started == ["127.0.0.2", "127.0.0.3"]
        clients[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        clients[1].close()
        while len(acceptor):  # noqa: ASYNC110 - of the loop's turns
            await asyncio.sleep(0)
        assert started == ["127.0.0.2", "127.0.0.3", "127.0.0.2", "127.0.0.2"]
        assert counted.reasons == ["reset"]
        assert counted.vanished == 1


async def test_errors_of_accept_do_not_hold_the_loop() -> None:
    """An error that is no shortage, and comes again and again, costs its share of a turn."""
    clock, calls = ManualClock(), 0

    class Failing:
        """A socket whose `accept` has an error each time."""

        def accept(self) -> None:
            nonlocal calls
            calls += 1
            assert calls < 1000, "the loop is held"
            clock.advance(0.0001)
            raise ConnectionAbortedError

    acceptor = Acceptor([], Counted(), lambda *_: None, clock, Shortages(), per_turn=2)
    acceptor._accept(cast("socket.socket", Failing()))
    assert calls > 1
    assert not len(acceptor)
