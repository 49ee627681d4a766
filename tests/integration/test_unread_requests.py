"""Connections that end without an answer: what a reset proves, and what an end does not."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.http1 import Connection, Request, Site, assert_problem, get, ok, post
from tests.http1.upstream import Handler

#: More than a server takes with one read of the head.
BODY = b"a" * 4_000_000


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One proxy whose upstream restarts itself."""
    app = {
        "resend_unread": True,
        "pool": {"reuse": "idempotent"},
        "buffering": {"request": True},
    }
    with Site(tmp_path_factory.mktemp("unread"), app=app) as site:
        yield site


@pytest.fixture
def site(shared: Site) -> Iterator[Site]:
    """The same, with nothing left over from another test."""
    shared.upstream.drop_connections()
    shared.upstream.fresh()
    yield shared
    shared.check()


def first(times: int, handler: Handler) -> Handler:
    """`handler` for the first `times` requests, then `ok`."""
    left = list(range(times))
    lock = threading.Lock()

    def either(connection: Connection, request: Request) -> None:
        with lock:
            mine = bool(left and left.pop() is not None)
        (handler if mine else ok)(connection, request)

    return either


def unread(connection: Connection, _request: Request) -> None:
    """The head is read, the body is not, and the socket closed: the kernel resets it."""
    connection.sock.close()


def read(connection: Connection, request: Request) -> None:
    """All is read, and the connection ends in an orderly way."""
    connection.body(request)
    connection.sock.close()


def test_a_post_that_was_not_read_goes_again(site: Site) -> None:
    """On a fresh connection, body and all, with its number in `X-Retry-Count`."""
    site.upstream.handler = first(2, unread)
    response = site.ask(post(BODY, "/make-video"))
    assert response.status == 200
    assert [request.get("X-Retry-Count") for request in site.upstream.requests][-1] == "2"
    assert site.upstream.requests[-1].body == BODY


def test_a_post_that_was_read_is_not_sent_twice(site: Site) -> None:
    """Nobody knows whether it was executed, and the answer says so."""
    site.upstream.handler = first(1, read)
    assert_problem(site.ask(post(BODY, "/make-video")), 502, "upstream_reset")
    assert len(site.upstream.requests) == 1


def test_what_resets_each_time_is_given_up(site: Site) -> None:
    """A request that kills the server must not do so for ever."""
    site.upstream.handler = unread
    assert_problem(site.ask(post(BODY, "/poison")), 502, "upstream_reset")
    assert len(site.upstream.requests) == 3


def test_a_get_goes_again_either_way(site: Site) -> None:
    """It may be repeated, and the server restarts itself."""
    site.upstream.handler = first(1, read)
    assert site.ask(get("/jobs/1")).status == 200
