"""Connections that pile up while the proxy is busy: here it is stopped."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

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
