"""The same exchange over TLS, IPv6 and unix sockets, on either side."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.http1 import ProxyProcess, Site, Truncated, Upstream, answer, assert_problem, get, post

BLOCK = bytes(range(256)) * 8000


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority of this test run."""
    return trustme.CA()


@pytest.fixture(scope="module")
def secure_upstream(authority: trustme.CA) -> Iterator[Upstream]:
    """An `https` upstream for `localhost` and 127.0.0.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    upstream = Upstream(tls=context)
    yield upstream
    upstream.stop()


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA, secure_upstream: Upstream
) -> Iterator[Site]:
    """Listeners `tls`, `ipv6` and one per kind of upstream."""
    directory = tmp_path_factory.mktemp("proxy")
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    leaf = authority.issue_cert("localhost")
    leaf.private_key_pem.write_to_path(str(directory / "key.pem"))
    for blob in leaf.cert_chain_pems:
        blob.write_to_path(str(directory / "cert.pem"), append=True)
    unix = Upstream(path=directory / "app.sock")
    six = Upstream("::1")
    target = secure_upstream.url
    ca = {"ca": str(directory / "ca.pem")}
    upstreams = {
        "verified": {"targets": [target], "tls": ca},
        "unknown-ca": {"targets": [target]},
        "wrong-name": {"targets": [target], "tls": ca | {"server_name": "other.test"}},
        "unverified": {"targets": [target], "tls": {"verify": False}},
        "unix": {"targets": [unix.url]},
        "six": {"targets": [six.url]},
    }
    listeners = {
        name: {"routes": [{"name": "all", "path": "/{rest:*}", "upstream": name}]}
        for name in upstreams
    }
    files = {"cert": str(directory / "cert.pem"), "key": str(directory / "key.pem")}
    listeners |= {"tls": {"tls": files}, "ipv6": {"host": "::1"}}
    with Site(directory, listeners, upstreams=upstreams) as site:
        yield site
    unix.stop()
    six.stop()


@pytest.fixture(autouse=True)
def _clean(site: Site, secure_upstream: Upstream) -> Iterator[None]:
    """Each test starts with well-behaved upstreams and is checked for damage."""
    site.upstream.fresh()
    secure_upstream.fresh()
    yield
    assert secure_upstream.faults == []
    site.check()


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """A client's context that trusts the authority."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_tls_listener(site: Site, trusting: ssl.SSLContext) -> None:
    """Keep-alive, a body each way and `X-Forwarded-Proto: https`."""
    site.upstream.handler = answer(b"HTTP/1.1 200 OK\r\nContent-Length: 2048000\r\n\r\n" + BLOCK)
    with site.connect("tls", tls=trusting) as client:
        for _ in range(3):
            client.send(post(BLOCK))
            assert client.response("POST").body == BLOCK
    assert site.upstream.requests[0].body == BLOCK
    assert site.upstream.requests[0].get("X-Forwarded-Proto") == "https"


def test_plain_http_on_a_tls_listener_is_refused(site: Site) -> None:
    """A client that forgot TLS is cut off; nothing is served in the clear."""
    with site.connect("tls") as client:
        client.send(get())
        text = client.rest()
    assert b"200 OK" not in text
    assert site.upstream.requests == []


def test_tls_12_is_still_spoken(site: Site, trusting: ssl.SSLContext) -> None:
    """TLS 1.2 clients are served, too."""
    trusting.minimum_version = ssl.TLSVersion.TLSv1_2
    trusting.maximum_version = ssl.TLSVersion.TLSv1_2
    with site.connect("tls", tls=trusting) as client:
        assert client.sock.version() == "TLSv1.2"  # type: ignore[attr-defined]


def test_half_a_handshake_hinders_nobody(site: Site, trusting: ssl.SSLContext) -> None:
    """A client that stops in the handshake, and one that sends garbage, leave the rest alone."""
    with site.connect("tls") as silent, site.connect("tls") as garbage:
        silent.send(b"\x16\x03\x01")
        garbage.send_lenient(b"\x16\x03\x01\x00\x05hello")
        with site.connect("tls", tls=trusting) as client:
            client.send(get())
            assert client.response().status == 200


def test_handshakes_that_fail_take_no_place(
    tmp_path: Path, site: Site, trusting: ssl.SSLContext
) -> None:
    """A port scan of a TLS listener leaves room for as many clients as before, and no trace in the
    number of open connections."""
    tls = site.config["listeners"]["tls"]["tls"]
    few = {"front": {"tls": tls, "limits": {"connections": 3}}}
    with Site(tmp_path, few) as small:
        for _ in range(10):
            with small.connect() as scanner:
                scanner.send_lenient(get())
                scanner.rest()
        for _ in range(3):
            with small.connect(tls=trusting) as client:
                client.send(get())
                assert client.response().status == 200


def test_chunked_without_end_is_truncated_over_tls(site: Site, trusting: ssl.SSLContext) -> None:
    """The visible end of a broken body works the same inside TLS."""
    site.upstream.handler = answer(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", then="close"
    )
    with site.connect("tls", tls=trusting) as client:
        client.send(get())
        with pytest.raises((Truncated, ssl.SSLError)):
            client.response()


def test_https_upstream_is_verified(site: Site, secure_upstream: Upstream) -> None:
    """With the right authority: requests and bodies pass, connections are reused."""
    for _ in range(3):
        response = site.ask(post(BLOCK), "verified")
        assert response.body == b"POST / 2048000"
    assert len({request.connection for request in secure_upstream.requests}) == 1


@pytest.mark.parametrize("listener", ["unknown-ca", "wrong-name"])
def test_unverifiable_upstream_is_502(site: Site, secure_upstream: Upstream, listener: str) -> None:
    """A foreign authority or another name: no byte of the request is sent."""
    response = site.ask(get("/", "Authorization: secret"), listener)
    assert_problem(response, 502, "upstream_unreachable")
    assert secure_upstream.requests == []


def test_verification_can_be_switched_off(site: Site) -> None:
    """`verify: false` is taken at its word."""
    assert site.ask(get(), "unverified").status == 200


def test_unix_socket_upstream(site: Site) -> None:
    """`unix:/path` works like any target."""
    assert site.ask(post(BLOCK), "unix").body == b"POST / 2048000"


def test_ipv6_both_sides(site: Site) -> None:
    """An IPv6 listener and an IPv6 target."""
    assert site.ask(get(), "six").status == 200
    assert site.ask(get(), "ipv6").status == 200
    assert site.upstream.only.get("X-Forwarded-For") in ("::1", "[::1]")


def test_reuse_port(tmp_path: Path) -> None:
    """Two processes share a port with `reuse_port: true`."""
    with Site(tmp_path, {"front": {"reuse_port": True}}) as first:
        twin_directory = tmp_path / "twin"
        twin_directory.mkdir()
        twin = ProxyProcess(twin_directory, first.config)
        try:
            for _ in range(10):
                assert first.ask(get()).status == 200
            twin.assert_sane()
        finally:
            assert twin.stop() == 0
        assert socket.create_connection(first.addresses["front"]).close() is None
