"""Connections that the proxy has closed and the client keeps: none holds a place for ever."""

from __future__ import annotations

import signal
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.http1 import Site, answer, get, ok, wait_until


@pytest.fixture
def authority() -> trustme.CA:
    """A certificate authority of this test."""
    return trustme.CA()


@pytest.fixture
def site(tmp_path: Path, authority: trustme.CA) -> Iterator[Site]:
    """A TLS listener, and a drain that waits for long."""
    pair = tmp_path / "pair.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(pair)
    files = {"cert": str(pair), "key": str(pair)}
    with Site(tmp_path, {"front": {"tls": files}}, drain_timeout="60s") as site:
        yield site


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """A client's context that trusts the authority."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_a_tls_client_that_sleeps_does_not_hold_the_drain(
    site: Site, trusting: ssl.SSLContext
) -> None:
    """A kept connection that nobody reads from never answers the end of TLS: not waited for."""
    with site.connect(tls=trusting) as sleeper:
        sleeper.send(get())
        assert sleeper.response().status == 200
        site.proxy.signal(signal.SIGTERM)
        assert site.proxy.process.wait(30) == 0


def test_the_end_of_a_tls_client_is_not_logged(site: Site, trusting: ssl.SSLContext) -> None:
    """Clients come and go, in the middle of an answer too, without a line in the log but that of
    their request."""
    site.upstream.handler = answer(
        b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n" + bytes(50_000_000)
    )
    for number in range(5):
        with site.connect(tls=trusting) as leaver:
            leaver.send(get("/", f"X-Correlation-ID: leaver-{number}"))
            assert leaver.response_head().status == 200
    for number in range(5):
        assert site.proxy.access_line(f"leaver-{number}")["status"] == 499
    site.upstream.handler = ok
    for polite in (True, False):
        client = site.connect(tls=trusting)
        client.send(get("/", "Connection: close"))
        assert client.response().status == 200
        if polite and isinstance(client.sock, ssl.SSLSocket):
            client.sock.unwrap()
        client.close()
    wait_until(
        lambda: site.proxy.metric("proxy_client_connections", listener="front") == 0, "the ends"
    )
    site.proxy.signal(signal.SIGTERM)
    assert site.proxy.process.wait(30) == 0
    assert [line for line in site.proxy.log() if line["logger"] == "asyncio"] == []
