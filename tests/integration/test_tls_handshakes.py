"""Connections of a TLS listener count from their first packet on, handshake or not."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import pytest
import trustme

from proxy.config.units import Bind
from proxy.server.listening import bound
from tests.http1 import PATIENCE, RawClient, Site, assert_problem, get, wait_until

FEW = 8


@pytest.fixture(scope="module")
def trust() -> trustme.CA:
    """The authority of every certificate here."""
    return trustme.CA()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, trust: trustme.CA) -> Iterator[Site]:
    """One proxy: `few` takes eight connections, `fair` four of one client, `brief` is impatient."""
    directory = tmp_path_factory.mktemp("proxy")
    pair = directory / "pair.pem"
    trust.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(pair)
    tls = {"cert": str(pair), "key": str(pair)}
    listeners = {
        "few": {"tls": tls, "limits": {"connections": FEW}, "timeouts": {"header": "60s"}},
        "fair": {
            "tls": tls,
            "limits": {"per_client": {"connections": 2}},
            "timeouts": {"header": "60s"},
        },
        "brief": {"tls": tls, "limits": {"connections": 2}, "timeouts": {"header": "100ms"}},
    }
    with Site(directory, listeners) as one:
        yield one


def ask(site: Site, listener: str, client: ssl.SSLContext, source: str | None = None) -> int:
    """The status of a request of its own."""
    with site.connect(listener, tls=client, source=source) as connection:
        connection.send(get("/"))
        return connection.response().status


@pytest.fixture
def client(trust: trustme.CA) -> ssl.SSLContext:
    """A client's context that trusts the authority."""
    context = ssl.create_default_context()
    trust.configure_trust(context)
    return context


def test_half_open_connections_give_way(site: Site, client: ssl.SSLContext) -> None:
    """Ten times as many as there are places, which never say a word: the process holds no more than
    there are places, and whoever does shake hands is served."""
    before = site.proxy.descriptors()
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(site.connect("few")) for _ in range(10 * FEW)]
        wait_until(lambda: site.proxy.descriptors() <= before + FEW + 2, "the oldest to be let go")
        assert ask(site, "few", client) == 200
        held[0].assert_closed()
        site.check()


def test_established_connections_do_not_give_way(site: Site, client: ssl.SSLContext) -> None:
    """Half-open ones come and go beside them; when all places are theirs, one more gets a 503."""
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(site.connect("few", tls=client)) for _ in range(FEW)]
        for _ in range(2 * FEW):
            stack.enter_context(site.connect("few"))
        with site.connect("few", tls=client) as late:
            assert_problem(late.response(), 503, "overloaded")
        for one in kept:
            one.send(get("/"))
            assert one.response().status == 200
        site.check()


def test_half_open_connections_count_in_the_share_of_their_client(
    site: Site, client: ssl.SSLContext
) -> None:
    """Two silent ones and this client's next gets 429, its fifth no handshake; others are served;
    and when they are gone, it is served again."""
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(site.connect("fair", source="127.0.5.1")) for _ in range(2)]
        with site.connect("fair", tls=client, source="127.0.5.1") as third:
            assert_problem(third.response(), 429, "too_many_requests")
            silent += [
                stack.enter_context(site.connect("fair", source="127.0.5.1")) for _ in range(3)
            ]
            silent[-1].assert_closed()
        assert ask(site, "fair", client, "127.0.5.2") == 200
        for one in silent:
            one.close()
    wait_until(lambda: ask(site, "fair", client, "127.0.5.1") == 200, "places of its own again")
    site.check()


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"])
def test_handshakes_that_fail_are_counted_out(
    site: Site, client: ssl.SSLContext, sent: bytes
) -> None:
    """Silence, another protocol, a handshake that breaks off: none keeps a place."""
    before = site.proxy.descriptors()
    for _ in range(4):
        with contextlib.suppress(OSError), RawClient(site.addresses["brief"]) as one:
            one.send_lenient(sent)
            one.assert_closed()
    assert ask(site, "brief", client) == 200
    wait_until(lambda: site.proxy.descriptors() <= before + 1, "their descriptors to be closed")
    site.check()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", ""])
def test_addresses_of_a_tls_listener(host: str) -> None:
    """One socket for an address; for every address one of each family, apart from each other."""
    sockets = bound(Bind(host, 0))
    try:
        families = [one.family for one in sockets]
        if host:
            assert families == [socket.AF_INET6 if ":" in host else socket.AF_INET]
        else:
            assert families in (
                [socket.AF_INET, socket.AF_INET6],
                [socket.AF_INET],  # where there is no IPv6
            )
        taken = Bind(host, sockets[0].getsockname()[1])
        sockets[0].listen()
        with pytest.raises(OSError, match="in use"):
            bound(taken)
    finally:
        for one in sockets:
            one.close()


def test_a_shortage_of_descriptors_is_waited_for(site: Site, client: ssl.SSLContext) -> None:
    """A connection that cannot be accepted waits in the kernel, and is served when it can be."""

    def shortages() -> list[object]:
        return [line for line in site.proxy.log() if line.get("event") == "shortage"]

    limits = site.proxy.take_descriptors()
    try:
        with socket.create_connection(site.addresses["few"], timeout=PATIENCE) as raw:
            wait_until(lambda: bool(shortages()), "a line about the shortage")
            site.proxy.give_descriptors(limits)
            with client.wrap_socket(raw, server_hostname="localhost") as secure:
                secure.sendall(get("/", "Connection: close"))
                assert secure.recv(12) == b"HTTP/1.1 200"
    finally:
        site.proxy.give_descriptors(limits)
    assert len(shortages()) == 1
    site.check()


def test_the_certificate_and_its_refusals_are_shown(site: Site, client: ssl.SSLContext) -> None:
    """Days left as metric and on the page; a client that does not trust it counts by that reason,
    and one line says so."""
    assert ask(site, "few", client) == 200
    expiry = site.proxy.metric("proxy_certificate_expiry_timestamp_seconds", listener="few")
    assert expiry is not None
    assert expiry > 1.8e9
    shown = json.loads(site.proxy.admin("/api/status")[1])["certificates"]
    assert {one["listener"] for one in shown} == {"few", "fair", "brief"}
    for _ in range(3):
        with pytest.raises(ssl.SSLError):
            ask(site, "few", ssl.create_default_context())

    def refused() -> float | None:
        name = "proxy_tls_handshake_failures_total"
        return site.proxy.metric(name, listener="few", reason="certificate")

    wait_until(lambda: refused() == 3, "three refusals")

    def logged() -> list[dict[str, Any]]:
        lines = [line for line in site.proxy.log() if line.get("event") == "tls_handshake"]
        return [line for line in lines if line["reason"] == "certificate"]

    wait_until(lambda: bool(logged()), "the line, which the writer takes its time for")
    (line,) = logged()
    assert (line["listener"], line["failures"]) == ("few", 1)
    assert line["client"] == "127.0.0.1"
