"""Routing: first match in file order, on the path as the application will understand it."""

from __future__ import annotations

import pytest

from proxy.errors import MethodNotAllowed, NoRoute
from proxy.pipeline.router import RouteTable, normalise

TABLE = RouteTable(
    [
        (["POST"], "/make-video", "create"),
        (["GET", "HEAD"], "/jobs/{job_id}", "status"),
        (["DELETE"], "/jobs/{job_id}", "delete"),
        (None, "/files/{rest:*}", "files"),
        (["GET"], "/a.b/{x}/c/{y}", "two"),
    ]
)
CATCH_ALL = RouteTable([(["POST"], "/make-video", "create"), (None, "/{rest:*}", "other")])


@pytest.mark.parametrize(
    ("method", "target", "route", "parameters"),
    [
        ("POST", "/make-video", "create", {}),
        ("POST", "/make-video?x=/jobs/1", "create", {}),
        ("POST", "/%6dake-video", "create", {}),
        ("POST", "/x/../make-video", "create", {}),
        ("POST", "/x/%2e%2E/make-video", "create", {}),
        ("GET", "/jobs/mv_1", "status", {"job_id": "mv_1"}),
        ("DELETE", "/jobs/mv_1", "delete", {"job_id": "mv_1"}),
        ("PATCH", "/files/", "files", {"rest": ""}),
        ("GET", "/files/a/b%20c", "files", {"rest": "a/b c"}),
        ("GET", "/a.b/1/c/2", "two", {"x": "1", "y": "2"}),
    ],
)
def test_match(method: str, target: str, route: str, parameters: dict[str, str]) -> None:
    """The route and the decoded parameters of a target, query left aside."""
    found, match, group = TABLE.match(method, target)
    assert found == route
    assert TABLE.parameters(match, group) == parameters


def test_catch_all_takes_everything_else() -> None:
    """`/{rest:*}` is every path, `*` included, and takes what missed a method."""
    for method, target in [("GET", "/"), ("OPTIONS", "*"), ("GET", "/make-video"), ("X", "/y")]:
        assert CATCH_ALL.match(method, target)[0] == "other"


def test_path_without_method() -> None:
    """A known path with another method names what is allowed, over all routes of that path."""
    with pytest.raises(MethodNotAllowed) as refusal:
        TABLE.match("PUT", "/jobs/1")
    assert refusal.value.allow == "GET, HEAD, DELETE"


@pytest.mark.parametrize(
    "target", ["/", "/jobs", "//jobs/1", "/jobs/", "/jobs/1/2", "/axb/1/c/2", "/make-video/"]
)
def test_no_route(target: str) -> None:
    """Patterns match whole paths; dots are dots and a parameter is one non-empty segment."""
    with pytest.raises(NoRoute):
        TABLE.match("GET", target)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [("/a/./b", "/a/b"), ("/..", "/"), ("/a/..", "/"), ("/a//%62/", "/a//b/"), ("/%ff", "/\ufffd")],
)
def test_normalise(raw: str, expected: str) -> None:
    """One spelling for all spellings of a path; it never climbs above the root."""
    assert normalise(raw) == expected
