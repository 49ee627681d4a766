"""What a route sets and removes of header fields, on every way that an answer can take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http1.site import Site, assert_problem, get, post
from tests.http1.upstream import answer, respond

HEADERS = {
    "request": {"set": {"X-Tenant": "acme", "Accept": "text/plain"}, "remove": ["cookie"]},
    "response": {"set": {"Cache-Control": "no-store"}, "remove": ["Server", "x-secret"]},
}
ANSWER = respond(
    b"ok",
    "200 OK",
    "Server: app/1",
    "X-Secret: a",
    "x-secret: b",
    "Cache-Control: public",
    "X-A: 1",
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """One route with edits, one without."""
    routes = [
        {"name": "edited", "path": "/edited/{rest:*}", "upstream": "app", "headers": HEADERS},
        {"name": "plain", "path": "/{rest:*}", "upstream": "app"},
    ]
    with Site(tmp_path, {"front": {"routes": routes}}) as site:
        site.upstream.handler = answer(ANSWER)
        yield site
        site.check()


def test_requests_are_edited(site: Site) -> None:
    """Set fields replace all of their name, removed ones are gone, others stay; with a body too."""
    fields = ("Cookie: a=1", "COOKIE: b=2", "X-Tenant: forged", "Accept: */*", "X-Mine: 1")
    site.ask(get("/edited/a", *fields))
    site.ask(post(b"body", "/edited/a", *fields))
    for received in site.upstream.requests:
        assert received.all("X-Tenant") == ["acme"]
        assert received.all("Accept") == ["text/plain"]
        assert received.all("Cookie") == []
        assert received.get("X-Mine") == "1"
        assert received.get("X-Correlation-ID")
    assert site.upstream.requests[1].get("Content-Length") == "4"


def test_answers_are_edited(site: Site) -> None:
    """The upstream's, on a connection's first request and on later ones; other routes' are not."""
    with site.connect() as client:
        for _ in range(3):
            client.send(get("/edited/a"))
            response = client.response()
            assert response.body == b"ok"
            assert response.all("Cache-Control") == ["no-store"]
            assert response.get("Server") is None
            assert response.get("X-Secret") is None
            assert response.get("X-A") == "1"
            client.send(get("/other"))
            untouched = client.response()
            assert untouched.get("Server") == "app/1"
            assert untouched.all("Cache-Control") == ["public"]


def test_our_own_answers_are_edited(site: Site) -> None:
    """An error of ours on that route has the set fields, so that no cache keeps it."""
    site.upstream.handler = answer(b"", then="reset")
    problem = site.ask(post(b"x", "/edited/a"))
    assert_problem(problem, 502, "upstream_reset")
    assert problem.get("Cache-Control") == "no-store"
    other = site.ask(post(b"x", "/other"))
    assert other.get("Cache-Control") is None
