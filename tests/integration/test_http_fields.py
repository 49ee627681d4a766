"""Which fields pass, which are removed, which we add (RFC 9110 §7.6; contract A3)."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

import pytest

from tests.http1 import Site, answer, get, post, respond

UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """`front` trusts nobody, `trusting` the loopback addresses."""
    listeners = {"front": {}, "trusting": {"trusted_proxies": ["127.0.0.0/8"]}}
    with Site(tmp_path_factory.mktemp("proxy"), listeners) as site:
        yield site


@pytest.fixture(autouse=True)
def _clean(site: Site) -> Iterator[None]:
    """Each test starts with a well-behaved upstream and is checked for damage."""
    site.upstream.fresh()
    yield
    site.check()


# --- hop-by-hop ---------------------------------------------------------------------------------

HOP_BY_HOP = ["Keep-Alive: timeout=5", "Proxy-Connection: keep-alive", "Upgrade: foo/1", "TE: gzip"]


@pytest.mark.parametrize("field", HOP_BY_HOP)
def test_hop_by_hop_request_fields_stop_here(site: Site, field: str) -> None:
    """Never forwarded, named in `Connection` or not."""
    name = field.partition(":")[0]
    for connection in ("keep-alive", name):
        site.upstream.fresh()
        assert site.ask(get("/", field, f"Connection: {connection}")).status == 200
        assert site.upstream.only.get(name) is None


@pytest.mark.parametrize(
    "connection",
    [
        ["Connection: X-Secret"],
        ["Connection: close, X-Secret"],
        ["Connection: keep-alive,X-SECRET ,foo"],
        ["Connection: keep-alive", "Connection: x-secret"],
        ["Connection: , ,X-Secret,,"],
    ],
    ids=["alone", "behind close", "other case", "second field", "empty elements"],
)
def test_fields_named_in_connection_stop_here(site: Site, connection: list[str]) -> None:
    """What `Connection` names is for us alone, and so is `Connection` (RFC 9110 §7.6.1)."""
    assert site.ask(get("/", "X-Secret: 1", *connection, "X-Other: 2")).status == 200
    request = site.upstream.only
    assert request.get("X-Secret") is None
    assert request.get("X-Other") == "2"
    named = ",".join(request.all("Connection")).lower()
    assert "x-secret" not in named
    assert "foo" not in named


@pytest.mark.parametrize(
    "name", ["Host", "Content-Length", "Content-Type", "Authorization", "Cookie", "Expect"]
)
def test_connection_cannot_take_away_what_a_request_needs(site: Site, name: str) -> None:
    """Nominating framing or authority is ignored or refused, never obeyed into another meaning."""
    raw = post(b"hello", "/", f"Connection: {name}", "Content-Type: text/plain")
    response = site.ask(raw)
    assert response.status in (200, 400)
    if response.status == 200:
        assert site.upstream.only.body == b"hello"
        assert site.upstream.only.get("Host") == "example.test"


@pytest.mark.parametrize(
    "name", ["X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Correlation-ID", "Via"]
)
def test_connection_cannot_take_away_what_we_add(site: Site, name: str) -> None:
    """A client cannot strip the proxy's own fields by naming them (a known attack)."""
    assert site.ask(get("/", f"Connection: close, {name}")).status == 200
    assert site.upstream.only.get(name)


@pytest.mark.parametrize(
    "connection",
    [
        ["Connection: X-Secret"],
        ["Connection: close, x-secret"],
        ["Connection: a", "Connection: X-Secret"],
    ],
    ids=["alone", "other case", "second field"],
)
def test_response_fields_named_in_connection_stop_here(site: Site, connection: list[str]) -> None:
    """The same on the way back."""
    site.upstream.handler = answer(
        respond(b"x", "200 OK", "X-Secret: 1", *connection, "Keep-Alive: timeout=5",
                "Proxy-Connection: x", "X-Other: 2")
    )  # fmt: skip
    response = site.ask(get())
    assert response.get("X-Secret") is None
    assert response.get("Keep-Alive") is None
    assert response.get("Proxy-Connection") is None
    assert response.get("X-Other") == "2"
    assert "secret" not in ",".join(response.all("Connection")).lower()


def test_response_connection_cannot_take_away_the_length(site: Site) -> None:
    """`Connection: Content-Length` from an upstream: the body still ends where it ends."""
    site.upstream.handler = answer(respond(b"hello", "200 OK", "Connection: Content-Length"))
    with site.connect() as client:
        client.send(get() + get())
        for _ in range(2):
            response = client.response()
            assert (response.status, response.body) in ((200, b"hello"),) or response.status == 502


def test_upstream_close_is_not_the_clients(site: Site) -> None:
    """`Connection: close` of the upstream ends its connection, not the client's."""
    site.upstream.handler = answer(respond(b"x", "200 OK", "Connection: close"), then="close")
    with site.connect() as client:
        for _ in range(3):
            client.send(get())
            assert client.response().keeps_alive


# --- TE and trailers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", ["trailers", "Trailers", "trailers, deflate;q=0.5", "gzip, trailers"]
)
def test_te_trailers_passes_alone(site: Site, value: str) -> None:
    """Of `TE` only `trailers` goes on, re-nominated by us (RFC 9110 §10.1.4)."""
    assert site.ask(get("/", f"TE: {value}", "Connection: TE")).status == 200
    request = site.upstream.only
    assert (request.get("TE") or "").lower() == "trailers"
    assert "te" in [word.strip().lower() for word in (request.get("Connection") or "").split(",")]


@pytest.mark.parametrize("value", ["gzip", "", "chunked"])
def test_other_te_is_removed(site: Site, value: str) -> None:
    """Codings that we do not speak to the client are not asked for."""
    assert site.ask(get("/", f"TE: {value}", "Connection: TE")).status == 200
    assert site.upstream.only.get("TE") is None


def test_response_trailers_pass(site: Site) -> None:
    """Trailers of a chunked response reach the client; `Trailer` announces them still."""
    site.upstream.handler = answer(
        b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5\r\nhello\r\n0\r\nX-Sum: abc\r\n\r\n"
    )
    response = site.ask(get("/", "TE: trailers", "Connection: TE"))
    assert response.body == b"hello"
    assert response.get("Trailer") == "X-Sum"
    assert response.trailers == [(b"X-Sum", b"abc")]


def test_dangerous_response_trailers_never_pass(site: Site) -> None:
    """Framing and identity fields behind a response body are dropped (or the response is cut)."""
    site.upstream.handler = answer(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"
        b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\nX-Correlation-ID: evil\r\n\r\n"
    )
    response = site.ask(get("/", "TE: trailers", "Connection: TE"))
    assert response.status in (200, 502)
    assert response.trailers == []


# --- what we add --------------------------------------------------------------------------------


def test_via_is_added_behind_earlier_ones(site: Site) -> None:
    """`Via` on requests names us, behind whoever came before (RFC 9110 §7.6.3)."""
    assert site.ask(get("/", "Via: 1.0 fred")).status == 200
    assert ", ".join(site.upstream.only.all("Via")) == "1.0 fred, 1.1 reliability-proxy"


def test_via_alone(site: Site) -> None:
    """Without earlier proxies there is one element."""
    assert site.ask(get()).status == 200
    assert site.upstream.only.get("Via") == "1.1 reliability-proxy"


SPOOFED = ["X-Forwarded-For: 6.6.6.6", "X-Forwarded-Proto: https", "X-Forwarded-Host: evil.test"]


def test_forwarded_fields_of_strangers_are_replaced(site: Site) -> None:
    """Nobody who is not trusted says where a request came from, whatever the case of the names."""
    for fields in (SPOOFED, [field.lower() for field in SPOOFED], SPOOFED + SPOOFED):
        site.upstream.fresh()
        assert site.ask(get("/", *fields)).status == 200
        request = site.upstream.only
        assert request.get("X-Forwarded-For") == "127.0.0.1"
        assert request.get("X-Forwarded-Proto") == "http"
        assert request.get("X-Forwarded-Host") == "example.test"


def test_forwarded_fields_of_trusted_proxies_are_kept(site: Site) -> None:
    """A trusted proxy's chain is continued, its other two fields are kept."""
    assert site.ask(get("/", *SPOOFED), "trusting").status == 200
    request = site.upstream.only
    chain = ", ".join(request.all("X-Forwarded-For"))
    assert chain.replace(" ", "") == "6.6.6.6,127.0.0.1"
    assert request.get("X-Forwarded-Proto") == "https"
    assert request.get("X-Forwarded-Host") == "evil.test"


def test_forwarded_fields_are_set_for_trusted_proxies_without_any(site: Site) -> None:
    """A trusted proxy that says nothing gets the same three fields."""
    assert site.ask(get(), "trusting").status == 200
    assert site.upstream.only.get("X-Forwarded-For") == "127.0.0.1"
    assert site.upstream.only.get("X-Forwarded-Proto") == "http"


def test_end_to_end_fields_pass_untouched(site: Site) -> None:
    """Tracing, credentials, content negotiation and caching fields are none of our business."""
    fields = [
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate: a=b",
        "Authorization: Bearer x",
        "Cookie: a=b; c=d",
        "Accept-Encoding: gzip, br",
        "Range: bytes=0-4",
        "If-None-Match: \"x\"",
        "User-Agent: test",
        "Cache-Control: no-cache",
        "Content-Type: text/plain; charset=utf-8",
    ]  # fmt: skip
    assert site.ask(post(b"x", "/", *fields)).status == 200
    for field in fields:
        name, _, value = field.partition(": ")
        assert site.upstream.only.get(name) == value


@pytest.mark.parametrize("reply", [respond(b"a"), b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nConnection: date\r\nContent-Length: 0\r\n\r\n"])  # fmt: skip
def test_an_answer_without_a_date_gets_one(site: Site, reply: bytes) -> None:
    """What comes without is dated by when we passed it on (RFC 9110 §6.6.1), kept connections and
    their plain exchanges included."""
    site.upstream.handler = answer(reply)
    with site.connect() as client:
        for _ in range(3):
            client.send(get())
            response = client.response()
            (date,) = response.all("Date")
            assert abs(parsedate_to_datetime(date).timestamp() - time.time()) < 120


def test_response_fields_pass_untouched(site: Site) -> None:
    """Several `Set-Cookie` stay apart, `Date` and `Server` stay the upstream's."""
    fields = [
        "Set-Cookie: a=1, 2",
        "Set-Cookie: b=2",
        "Server: app",
        "Date: Tue, 24 Nov 2026 02:00:00 GMT",
        "Content-Encoding: gzip",
        "X-A: caf\xe9",
        "Content-Range: bytes 0-1/5",
        'ETag: W/"1"',
    ]
    site.upstream.handler = answer(respond(b"xx", "206 Partial Content", *fields))
    response = site.ask(get())
    assert response.all("Set-Cookie") == ["a=1, 2", "b=2"]
    assert response.get("Server") == "app"
    assert response.get("Date") == "Tue, 24 Nov 2026 02:00:00 GMT"
    assert response.get("X-A") == "caf\xe9"
    assert response.get("ETag") == 'W/"1"'


# --- correlation --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "x" * 128, "0"])
def test_good_correlation_id_is_kept(site: Site, name: str) -> None:
    """The client's ID goes to the upstream and back."""
    response = site.ask(get("/", f"X-Correlation-ID: {name}"))
    assert response.get("X-Correlation-ID") == name
    assert site.upstream.only.get("X-Correlation-ID") == name


@pytest.mark.parametrize(
    "bad",
    ["", "x" * 129, "a b", "a/b", "caf\xe9", "a,b", "{jndi:ldap://x}", "a;b", "<script>", "a\tb"],
)
def test_bad_correlation_id_is_replaced(site: Site, bad: str) -> None:
    """Anything else is replaced by a UUIDv4, the same upstream and on the answer."""
    response = site.ask(get("/", f"X-Correlation-ID: {bad}"))
    fresh = response.get("X-Correlation-ID") or ""
    assert UUID4.fullmatch(fresh)
    assert site.upstream.only.get("X-Correlation-ID") == fresh


def test_missing_correlation_id_is_made_new_each_time(site: Site) -> None:
    """Two requests on one connection get two IDs."""
    with site.connect() as client:
        client.send(get() + get())
        first, second = (client.response().get("X-Correlation-ID") for _ in range(2))
    assert first != second
    assert UUID4.fullmatch(first or "")


def test_repeated_correlation_id_yields_one(site: Site) -> None:
    """Two IDs from a client: exactly one goes on, the same everywhere."""
    response = site.ask(get("/", "X-Correlation-ID: one", "x-correlation-id: two"))
    assert site.upstream.only.get("X-Correlation-ID") == response.get("X-Correlation-ID")


def test_upstreams_correlation_id_does_not_replace_ours(site: Site) -> None:
    """An upstream that sends its own: the client still sees one, the request's."""
    site.upstream.handler = answer(respond(b"x", "200 OK", "X-Correlation-ID: theirs"))
    assert site.ask(get("/", "X-Correlation-ID: mine")).get("X-Correlation-ID") == "mine"


def test_access_line_has_the_ids_and_no_secrets(site: Site) -> None:
    """One JSON line per exchange; secrets in the query are redacted, a bad ID is kept cleaned."""
    raw = get("/p?token=hunter2&page=3", "X-Correlation-ID: a b", "Authorization: Bearer hunter3")
    correlation_id = site.ask(raw).get("X-Correlation-ID") or ""
    line = site.proxy.access_line(correlation_id)
    assert line["status"] == 200
    assert line["method"] == "GET"
    assert line["route"] == "all"
    assert line["listener"] == "front"
    assert line["upstream"] == "app"
    assert line["attempts"] == 1
    assert line["client_correlation_id"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["timestamp"])
    assert "page=3" in line["path"]
    assert "hunter" not in site.proxy.output()


def test_log_lines_cannot_be_forged(site: Site) -> None:
    """Bytes of a client stay inside their JSON string, whatever they are."""
    response = site.ask(get('/%0a{"level":"x"}\x22%00', 'X-Correlation-ID: "}\\'))
    assert response.status in (200, 400)
    if response.status == 200:
        site.proxy.access_line(response.get("X-Correlation-ID") or "")
