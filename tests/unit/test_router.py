"""Routing: first match in file order, on the path as the application will understand it."""

from __future__ import annotations

from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.errors import BadRequest, MethodNotAllowed, NoRoute
from proxy.forward.routing.path_readings import _decode, canonical
from proxy.forward.routing.router import RouteTable

TABLE = RouteTable(
    [
        (["POST"], "/make-video", "create"),
        (["GET", "HEAD"], "/jobs/{job_id}", "status"),
        (["DELETE"], "/jobs/{job_id}", "delete"),
        (None, "/files/{rest:*}", "files"),
        (["GET"], "/a.b/{x}/c/{y}", "two"),
    ]
)
GUARDED = [
    (["POST"], "/make-video", "create"),
    (["GET"], "/jobs/{job_id}", "status"),
    (["POST"], "/jobs/{job_id}/parts/{part}", "part"),
    (["GET"], "/jobs", "list"),
]
CATCH_ALL = RouteTable([(["POST"], "/make-video", "create"), (None, "/{rest:*}", "other")])


@pytest.mark.parametrize(
    ("method", "target", "route", "parameters"),
    [
        ("POST", "/make-video", "create", {}),
        ("POST", "/make-video?x=/jobs/1", "create", {}),
        ("POST", "/%6dake-video", "create", {}),
        ("GET", "/jobs/mv_1", "status", {"job_id": "mv_1"}),
        ("DELETE", "/jobs/mv_1", "delete", {"job_id": "mv_1"}),
        ("PATCH", "/files/", "files", {"rest": ""}),
        ("GET", "/files/a/b%20c", "files", {"rest": "a/b c"}),
        ("GET", "/a.b/1/c/2", "two", {"x": "1", "y": "2"}),
    ],
)
def test_match(method: str, target: str, route: str, parameters: dict[str, str]) -> None:
    """The route and the decoded parameters of a target, query left aside."""
    assert TABLE.match(method, target) == (route, parameters)


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
    [("/a/b%20", "/a/b "), ("/a//%62/", "/a//b/"), ("/%ff", "/\ufffd"), ("/...%2e", "/....")],
)
def test_canonical(raw: str, expected: str) -> None:
    """A path is decoded once, and only decoded."""
    assert canonical(raw) == expected


@pytest.mark.parametrize(
    "path",
    [
        *("/make-video%0a", "/%00", "/a%0D%0Ab", "/%7f", "/%c2%85", "/%e2%80%a8", "/%c0%8a"),
        *("/a/./b", "/..", "/a/..", "/.", "/%2e", "/a/%2E%2e/b", "/a/.%2e", "/a%2f..%2fb"),
        *(
            "/a/..;x/b",
            "/a/..;",
            "/a\\..\\b",
            "/a%5c..",
            "/%252e%252e/b",
            "/a%252f..",
            "/%c0%ae./b",
        ),
    ],
)
@pytest.mark.parametrize("table", [TABLE, CATCH_ALL])
def test_refused(path: str, table: RouteTable[str]) -> None:
    """Control characters and dot segments are refused on every route, however they are spelled."""
    with pytest.raises(BadRequest):
        table.match("POST", path)
    with pytest.raises(BadRequest):
        table.match("GET", path + "?x=1")


@pytest.mark.parametrize(
    "path", ["/.well-known/x", "/a..b", "/...", "/a.", "/x?a=../..", "/x?%0a", "/%2e%2ex"]
)
def test_not_refused(path: str) -> None:
    """Dots in names, and anything in a query, are nobody's trouble."""
    assert CATCH_ALL.match("GET", path)[0] == "other"


WITH_GUARDS = RouteTable([*GUARDED, (None, "/{rest:*}", "other")], guards=lambda name: True)
SEGMENT = st.text(st.sampled_from("abcXYZ019-_~:@!$&'()*+,= é☃"), min_size=1, max_size=8)


@given(st.lists(SEGMENT, max_size=5), st.booleans())
def test_ordinary_paths_are_nobodys_spelling(segments: list[str], slash: bool) -> None:
    """Whatever an application may name its other resources, encoded as it has to be, passes."""
    path = "/x" + "".join(f"/{quote(one, safe=':@!$&()*+,=~')}" for one in segments)
    assert WITH_GUARDS.match("POST", path + "/" * slash)[0] == "other"


ESCAPES = st.sampled_from(
    [
        "%",
        "%4",
        "41",
        "%41",
        "%25",
        "%5c",
        "%00",
        "%fF",
        "%c3",
        "%a9",
        "\\",
        "\\x",
        "\\N",
        "é",
        "日",
    ]
)


@given(st.lists(ESCAPES, max_size=10).map("".join))
def test_decoding_is_that_of_urllib(path: str) -> None:
    """The faster decoder says what urllib's says: of broken escapes, backslashes and non-ASCII."""
    assert _decode(path) == unquote(path, errors="replace")


@pytest.mark.parametrize("high", ["%c0", "%E0%80", "%f0%80%80", "%F0%80%80"])
def test_overlong_bytes_are_the_character_they_spell(high: str) -> None:
    """`m` in two to four bytes of UTF-8 leads to the guarding route."""
    high = high[:-1] + "1" if len(high) > 3 else "%c1"
    assert WITH_GUARDS.match("POST", f"/{high}%aDake-video")[0] == "create"
