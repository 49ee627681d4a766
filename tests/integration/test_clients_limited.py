"""`limits.per_client` over sockets: who gets 429, who does not, on both paths through the proxy."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.http1 import (
    Connection,
    Request,
    Response,
    Site,
    assert_problem,
    get,
    respond,
    wait_until,
)

UPLOAD = [
    {
        "name": "up",
        "methods": ["POST"],
        "path": "/up",
        "upstream": "app",
        "upload": {"field": None, "mode": "report"},
    },
    {"name": "all", "path": "/{rest:*}", "upstream": "app"},
]


def per_client(**rules: object) -> dict[str, object]:
    """A listener with such limits."""
    return {"limits": {"per_client": rules}}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One proxy; a listener for each limit. Rates of few an hour: time plays no part."""
    listeners = {
        "few": per_client(requests="3/h"),
        "proxied": per_client(requests="3/h") | {"trusted_proxies": ["127.0.0.0/8"]},
        "six": per_client(requests="3/h") | {"host": "::1"},
        "narrow": per_client(connections=2),
        "uploads": per_client(uploads=1) | {"routes": UPLOAD},
    }
    with Site(tmp_path_factory.mktemp("proxy"), listeners) as one:
        yield one


@pytest.fixture(autouse=True)
def _sane(site: Site) -> Iterator[None]:
    """Nothing malformed goes upstream, and no bug is logged."""
    yield
    site.check()


def statuses(answers: list[Response]) -> list[int]:
    """In order."""
    return [answer.status for answer in answers]


def ask(
    site: Site, listener: str, source: str | None, *fields: str, times: int = 5
) -> list[Response]:
    """Requests on one connection."""
    answers = []
    with site.connect(listener, source=source) as client:
        for _ in range(times):
            client.send(get("/", *fields))
            answers.append(client.response())
    return answers


@pytest.mark.parametrize(
    ("source", "fields"),
    [
        ("127.0.1.1", ()),  # the fast path, where a kept connection is idle
        ("127.0.1.2", ("Expect: 100-continue",)),  # the general one
        ("127.0.1.3", ("X-Forwarded-For: 127.0.9.9",)),  # hearsay
    ],
)
def test_requests_beyond_the_rate(site: Site, source: str, fields: tuple[str, ...]) -> None:
    """The fourth is 429 and says when to come back; its connection may go on; others are not
    concerned."""
    asked = len(site.upstream.requests)
    answers = ask(site, "few", source, *fields)
    assert statuses(answers) == [200, 200, 200, 429, 429]
    problem = assert_problem(answers[3], 429, "too_many_requests")
    assert problem["limit"] == "3/h"
    retry_after = int(answers[3].get("Retry-After") or 0)
    assert 1100 < retry_after <= 1200
    assert answers[3].get("RateLimit-Policy") == '"requests";q=3;w=3600'
    assert answers[3].get("RateLimit") == f'"requests";r=0;t={retry_after}'
    assert len(site.upstream.requests) == asked + 3
    assert statuses(ask(site, "few", source, times=1)) == [429]  # on another connection, too
    assert statuses(ask(site, "few", "127.0.1.99", times=1)) == [200]
    assert statuses(ask(site, "narrow", source)) == [200] * 5


def test_pipelined_requests_count(site: Site) -> None:
    """What comes in one piece is not one request."""
    with site.connect("few", source="127.0.2.1") as client:
        client.send(get("/") * 5)
        assert statuses([client.response() for _ in range(5)]) == [200, 200, 200, 429, 429]


def test_clients_behind_a_trusted_proxy(site: Site) -> None:
    """Each has its own share, by the right-most address that is no proxy."""
    for number in range(3):
        fields = f"X-Forwarded-For: 6.6.6.{number}, 192.0.2.1, 127.0.0.5"
        assert statuses(ask(site, "proxied", None, fields, times=1)) == [200]
    assert statuses(ask(site, "proxied", None, "X-Forwarded-For: 192.0.2.1", times=1)) == [429]
    assert statuses(ask(site, "proxied", None, "X-Forwarded-For: 192.0.2.2", times=1)) == [200]


def test_ipv6(site: Site) -> None:
    """A client over IPv6 is limited alike."""
    assert statuses(ask(site, "six", None)) == [200, 200, 200, 429, 429]


def test_connections_beyond_the_limit(site: Site) -> None:
    """The third of one address is answered and closed; one of another address is served; and when
    one has gone, the next is."""
    with contextlib.ExitStack() as stack:
        first, _ = (
            stack.enter_context(site.connect("narrow", source="127.0.3.1")) for _ in range(2)
        )
        with site.connect("narrow", source="127.0.3.1") as third:
            answer = third.response()
            assert_problem(answer, 429, "too_many_requests")
            assert answer.get("Connection") == "close"
            assert answer.get("Retry-After") == "1"
            third.assert_closed()
        assert statuses(ask(site, "narrow", "127.0.3.2", times=1)) == [200]
        first.close()

        def served() -> bool:
            return statuses(ask(site, "narrow", "127.0.3.1", times=1)) == [200]

        wait_until(served, "a place for another connection")
    refused = site.proxy.metric(
        "proxy_clients_refused_total", listener="narrow", reason="client_connections"
    )
    assert refused is not None
    assert refused >= 1


def test_uploads_at_a_time(site: Site) -> None:
    """One client has one; its second is refused unread, its reads are served, another client's
    upload as well; and the place is given back, however the upload ends."""
    go_on = threading.Event()
    begun = threading.Semaphore(0)

    def slow(connection: Connection, request: Request) -> None:
        connection.body(request)
        if request.target == "/up":
            begun.release()
            go_on.wait(30)
        connection.send(respond())

    site.upstream.handler, usual = slow, site.upstream.handler
    upload = get("/up", "Content-Length: 3", "Content-Type: audio/mpeg", method="POST") + b"abc"
    with contextlib.ExitStack() as stack:
        mine, also_mine, other = (
            stack.enter_context(site.connect("uploads", source=source))
            for source in ("127.0.4.1", "127.0.4.1", "127.0.4.2")
        )
        mine.send(upload)
        assert begun.acquire(timeout=30)
        also_mine.send(upload)
        problem = assert_problem(also_mine.response("POST"), 429, "too_many_requests")
        assert problem["limit"] == "1"
        assert statuses(ask(site, "uploads", "127.0.4.1", times=1)) == [200]
        other.send(upload)
        assert begun.acquire(timeout=30)
        go_on.set()
        assert mine.response("POST").status == 200
        assert other.response("POST").status == 200
        mine.send(upload)
        assert mine.response("POST").status == 200
    site.upstream.handler = usual


def test_over_tls_the_answer_comes_through(tmp_path: Path) -> None:
    """One connection too many gets its 503 inside TLS."""
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    leaf.private_key_pem.write_to_path(tmp_path / "key.pem")
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    files = {"cert": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}
    with (
        Site(tmp_path, {"front": per_client(connections=1) | {"tls": files}}) as site,
        site.connect(tls=trust) as first,
        site.connect(tls=trust) as second,
    ):
        assert_problem(second.response(), 429, "too_many_requests")
        first.send(get("/"))
        assert first.response().status == 200


def test_a_reload_changes_the_limits_and_keeps_what_is_spent(tmp_path: Path) -> None:
    """From three an hour to four: one more. Off: all. On again: none is forgiven."""
    with Site(tmp_path, {"front": per_client(requests="3/h")}) as site:

        def limit(rules: dict[str, object] | None) -> None:
            site.proxy.config["listeners"]["front"]["limits"] = {"per_client": rules}
            site.proxy.write(site.proxy.config)
            assert site.proxy.admin_post("/api/reload")[0] == 200

        with site.connect() as kept:
            kept.send(get("/"))
            assert kept.response().status == 200
            assert statuses(ask(site, "front", None, times=3)) == [200, 200, 429]
            limit({"requests": "4/h"})
            kept.send(get("/") * 2)
            assert statuses([kept.response(), kept.response()]) == [200, 429]
            limit(None)
            kept.send(get("/"))
            assert kept.response().status == 200
            limit({"requests": "4/h"})
            kept.send(get("/"))
            assert kept.response().status == 429
        site.check()


def test_the_status_of_a_gateway_that_nobody_named(tmp_path: Path) -> None:
    """`/readyz` has nothing to say of clients while there is nothing."""
    with Site(tmp_path, {"front": per_client(requests="10/s")}) as site:
        checks = json.loads(site.proxy.admin("/readyz")[1])["checks"]
        assert not [name for name in checks if name.endswith(":clients")]
