"""Request targets, methods and routes: what is forwarded how, and what is answered here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.http1 import Site, answer, assert_problem, get, post, respond

ROUTES = [
    {"name": "create", "path": "/make-video", "methods": ["POST"], "upstream": "app"},
    {"name": "job", "path": "/jobs/{job_id}", "methods": ["GET"], "upstream": "app"},
    {"name": "job-delete", "path": "/jobs/{job_id}", "methods": ["DELETE"], "upstream": "app"},
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """`front` forwards everything, `narrow` three routes only."""
    with Site(tmp_path_factory.mktemp("proxy"), {"front": {}, "narrow": {"routes": ROUTES}}) as s:
        yield s


@pytest.fixture(autouse=True)
def _clean(site: Site) -> Iterator[None]:
    """Each test starts with a well-behaved upstream and is checked for damage."""
    site.upstream.fresh()
    yield
    site.check()


# --- absolute-form (RFC 9112 §3.2.2) ------------------------------------------------------------

ABSOLUTE = {
    "path and query": ("http://other.test/a?b=c", "/a?b=c", "other.test"),
    "with port": ("http://other.test:8080/a", "/a", "other.test:8080"),
    "without path": ("http://other.test", "/", "other.test"),
    "without path, with query": ("http://other.test?q=1", "/?q=1", "other.test"),
    "upper-case scheme": ("HTTP://other.test/a", "/a", "other.test"),
    "ipv6": ("http://[::1]:8080/a", "/a", "[::1]:8080"),
}


@pytest.mark.parametrize(("target", "path", "host"), ABSOLUTE.values(), ids=ABSOLUTE.keys())
def test_absolute_target_replaces_host(site: Site, target: str, path: str, host: str) -> None:
    """The target's authority wins over `Host`; the upstream gets origin-form."""
    response = site.ask(f"GET {target} HTTP/1.1\r\nHost: wrong.test\r\n\r\n".encode())
    assert response.status == 200
    assert site.upstream.only.target == path
    assert site.upstream.only.get("Host") == host


def test_absolute_target_is_routed_by_its_path(site: Site) -> None:
    """Routing sees the path inside an absolute target, not the whole URI."""
    assert site.ask(get("http://example.test/jobs/7"), "narrow").status == 200
    assert_problem(site.ask(get("http://example.test/x"), "narrow"), 404, "no_route")
    assert site.upstream.only.target == "/jobs/7"


# --- OPTIONS (RFC 9110 §9.3.7) ------------------------------------------------------------------


def test_options_asterisk_is_forwarded_as_such(site: Site) -> None:
    """`OPTIONS *` reaches the upstream unchanged where a catch-all route exists."""
    assert site.ask(get("*", method="OPTIONS")).status == 200
    assert site.upstream.only.target == "*"


def test_options_with_empty_absolute_target_becomes_asterisk(site: Site) -> None:
    """The last proxy turns `OPTIONS http://host` into `OPTIONS *` (RFC 9112 §3.2.4)."""
    assert site.ask(get("http://example.test", method="OPTIONS")).status == 200
    assert site.upstream.only.target == "*"


def test_options_asterisk_without_catch_all_is_answered_here(site: Site) -> None:
    """Nobody to ask: 204 of our own, without a body."""
    response = site.ask(get("*", method="OPTIONS"), "narrow")
    assert response.status == 204
    assert response.get("X-Correlation-ID")
    assert site.upstream.requests == []


@pytest.mark.parametrize("target", ["/jobs/7", "*"])
def test_max_forwards_zero_ends_here(site: Site, target: str) -> None:
    """OPTIONS with `Max-Forwards: 0` is answered by us (RFC 9110 §7.6.2)."""
    assert site.ask(get(target, "Max-Forwards: 0", method="OPTIONS")).status in (200, 204)
    assert site.upstream.requests == []


def test_max_forwards_is_counted_down(site: Site) -> None:
    """OPTIONS with `Max-Forwards: 3` goes on with 2 (RFC 9110 §7.6.2)."""
    assert site.ask(get("/", "Max-Forwards: 3", method="OPTIONS")).status == 200
    assert site.upstream.only.get("Max-Forwards") == "2"


# --- methods ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["example.test:443", "example.test:80", "[::1]:443"])
def test_connect_is_refused_and_closed(site: Site, target: str) -> None:
    """We are no tunnel to anywhere: 405 with `Allow`, and what follows is not read as HTTP."""
    with site.connect() as client:
        client.send(get(target, method="CONNECT") + get("/smuggled"))
        response = client.response("POST")
        assert_problem(response, 405, "method_not_allowed")
        assert response.get("Allow") is not None
        assert not response.keeps_alive
        client.assert_closed()
    assert site.upstream.requests == []


def test_connect_to_a_path_is_refused(site: Site) -> None:
    """CONNECT with anything but an authority is a syntax error or simply not allowed."""
    assert site.ask(get("/", method="CONNECT"), method="GET").status in (400, 405)
    assert site.upstream.requests == []


def test_trace_is_refused(site: Site) -> None:
    """TRACE would echo credentials; 405, never forwarded."""
    assert_problem(site.ask(get("/", method="TRACE")), 405, "method_not_allowed")
    assert site.upstream.requests == []


@pytest.mark.parametrize(
    "method", ["PUT", "PATCH", "DELETE", "PROPFIND", "QUERY", "get", "M-SEARCH", "X"]
)
def test_other_methods_are_forwarded(site: Site, method: str) -> None:
    """Methods are case-sensitive tokens; unknown ones are the upstream's business."""
    assert site.ask(post(b"hello", method=method)).status == 200
    assert site.upstream.only.method == method
    assert site.upstream.only.body == b"hello"


def test_unknown_methods_are_counted_as_other(site: Site) -> None:
    """No metric label carries a client's own words."""
    assert site.ask(get(method="BREW-7f3a")).status == 200
    text = site.proxy.admin("/metrics")[1]
    assert 'method="OTHER"' in text
    assert "BREW-7f3a" not in text


# --- HEAD ---------------------------------------------------------------------------------------


def test_head_keeps_the_fields_and_has_no_body(site: Site) -> None:
    """`Content-Length` of a HEAD answer passes; the connection goes on right behind the head."""
    site.upstream.handler = answer(b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\nETag: x\r\n\r\n")
    with site.connect() as client:
        for _ in range(2):
            client.send(get(method="HEAD"))
            response = client.response("HEAD")
            assert response.get("Content-Length") == "1234"
            assert response.get("ETag") == "x"
    assert len(site.upstream.requests) == 2


def test_head_on_our_own_errors_has_no_body(site: Site) -> None:
    """A 404 of ours to HEAD is a head only, or the next answer would be misread."""
    with site.connect("narrow") as client:
        client.send(get("/nowhere", method="HEAD"))
        assert client.response("HEAD").status == 404
        client.send(get("/jobs/7"))
        assert client.response().body == b"GET /jobs/7 0"


# --- routing ------------------------------------------------------------------------------------


def test_no_route_is_404(site: Site) -> None:
    """404 `no_route`, and the connection may go on."""
    with site.connect("narrow") as client:
        client.send(get("/nowhere"))
        assert_problem(client.response(), 404, "no_route")
        client.send(get("/jobs/1"))
        assert client.response().status == 200


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/make-video", {"POST"}),
        ("POST", "/jobs/7", {"GET", "DELETE"}),
        ("PUT", "/jobs/7", {"GET", "DELETE"}),
    ],
)
def test_method_not_allowed_names_the_allowed(
    site: Site, method: str, path: str, allow: set[str]
) -> None:
    """405 `method_not_allowed` with the methods of all routes of that path in `Allow`."""
    response = site.ask(get(path, method=method), "narrow")
    assert_problem(response, 405, "method_not_allowed")
    allowed = {word.strip() for word in (response.get("Allow") or "").split(",")}
    assert allow <= allowed <= allow | {"HEAD", "OPTIONS"}
    assert site.upstream.requests == []


@pytest.mark.parametrize(
    "path", ["/make-video", "/%6dake-video", "/make%2Dvideo", "/make-video?a=/b"]
)
def test_routes_match_the_decoded_path_and_forward_the_raw_one(site: Site, path: str) -> None:
    """Percent-encoding is no way around a route, and nothing is re-encoded."""
    assert site.ask(post(b"x", path), "narrow").status == 200
    assert site.upstream.only.target == path


@pytest.mark.parametrize(
    "path",
    ["/jobs", "/jobs/", "/jobs/a/b", "/make-video/", "/Make-Video", "/make-videox", "//jobs/1"],
)
def test_near_misses_are_no_route(site: Site, path: str) -> None:
    """A parameter is one non-empty segment; slashes and case count."""
    assert site.ask(get(path), "narrow").status == 404


def test_our_errors_have_the_contract_form(site: Site) -> None:
    """Problem document with date, length, no caching by heuristics and the client's ID."""
    raw = get("/nowhere", "X-Correlation-ID: my.id-1")
    response = site.ask(raw, "narrow")
    document = assert_problem(response, 404, "no_route")
    assert document["correlation_id"] == "my.id-1"
    assert document["type"] == "about:blank"
    assert response.get("Content-Length") == str(len(response.body))
    assert response.get("Date"), "RFC 9110 §6.6.1: an origin with a clock sends Date"


def test_no_route_with_a_body_never_reads_it_as_a_request(site: Site) -> None:
    """A refused body is skipped or the connection closed; its bytes are never a request."""
    hidden = get("/jobs/hidden")
    with site.connect("narrow") as client:
        client.send_lenient(post(hidden, "/nowhere") + get("/jobs/next"))
        response = client.response("POST")
        assert_problem(response, 404, "no_route")
        if response.keeps_alive:
            assert client.response().body == b"GET /jobs/next 0"
        else:
            client.rest()
    assert "/jobs/hidden" not in site.upstream.targets


def test_route_parameters_do_not_swallow_encoded_slashes_unsafely(site: Site) -> None:
    """`/jobs/a%2Fb`: one raw segment or two decoded ones, but never a 500 or a changed target."""
    response = site.ask(get("/jobs/a%2Fb"), "narrow")
    assert response.status in (200, 404)
    assert site.upstream.targets in ([], ["/jobs/a%2Fb"])


def test_status_and_reason_pass(site: Site) -> None:
    """Unusual final statuses pass with their reason phrase."""
    for status in ("299 Fine Indeed", "418 I'm a teapot", "599 Odd", "503 Service Unavailable"):
        site.upstream.handler = answer(respond(b"x", status))
        response = site.ask(get())
        assert f"{response.status} {response.reason.decode()}" == status
        assert response.body == b"x"
