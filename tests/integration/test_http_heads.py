"""Request lines and header fields that must not pass, and those that must (RFC 9112 §2, §3, §5)."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.http1 import Site, assert_problem, get

HOST = b"Host: example.test\r\n"
UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One proxy for all attacks, with a second listener whose limits are small."""
    small = {"limits": {"request_line": 200, "header": 2000}}
    with Site(tmp_path_factory.mktemp("proxy"), {"front": {}, "small": small}) as site:
        yield site


@pytest.fixture(autouse=True)
def _clean(site: Site) -> Iterator[None]:
    """Each attack starts with a well-behaved upstream and is checked for damage."""
    site.upstream.fresh()
    yield
    site.check()


def refused(site: Site, raw: bytes, *, statuses: tuple[int, ...] = (400,)) -> None:
    """`raw` is answered by one of `statuses` in the contract's form, closed, and stops here."""
    with site.connect() as client:
        client.send_lenient(raw)
        response = client.response()
        assert response.status in statuses, response.raw_head
        assert response.get("Content-Type") == "application/problem+json"
        assert UUID4.fullmatch(response.get("X-Correlation-ID") or "")
        assert not response.keeps_alive
        client.assert_closed()
    assert site.upstream.requests == []


REQUEST_LINES = {
    "two spaces before target": b"GET  / HTTP/1.1\r\n",
    "two spaces before version": b"GET /  HTTP/1.1\r\n",
    "tab before target": b"GET\t/ HTTP/1.1\r\n",
    "tab before version": b"GET /\tHTTP/1.1\r\n",
    "vertical tab before version": b"GET /\x0bHTTP/1.1\r\n",
    "leading space": b" GET / HTTP/1.1\r\n",
    "trailing space": b"GET / HTTP/1.1 \r\n",
    "trailing word": b"GET / HTTP/1.1 x\r\n",
    "space in target": b"GET /a b HTTP/1.1\r\n",
    "bare cr in line": b"GET /\r HTTP/1.1\r\n",
    "ended by lf": b"GET / HTTP/1.1\n",
    "no method": b"/ HTTP/1.1\r\n",
    "no target": b"GET HTTP/1.1\r\n",
    "no version (HTTP/0.9)": b"GET /\r\n",
    "method not a token": b"G(T / HTTP/1.1\r\n",
    "method with colon": b"GET: / HTTP/1.1\r\n",
    "method 8 bit": b"G\xc3\x89T / HTTP/1.1\r\n",
    "version lower case": b"GET / http/1.1\r\n",
    "version without digits": b"GET / HTTP/x.y\r\n",
    "version of two digits": b"GET / HTTP/1.10\r\n",
    "version leading zero": b"GET / HTTP/01.1\r\n",
    "version without dot": b"GET / HTTP/11\r\n",
    "version without minor": b"GET / HTTP/1\r\n",
    "version spaced": b"GET / HTTP/ 1.1\r\n",
    "version comma": b"GET / HTTP/1,1\r\n",
    "other protocol": b"GET / HTTPS/1.1\r\n",
    "rtsp": b"GET / RTSP/1.0\r\n",
    "target without slash": b"GET index.html HTTP/1.1\r\n",
    "target asterisk on get": b"GET * HTTP/1.1\r\n",
    "target authority on get": b"GET example.test:80 HTTP/1.1\r\n",
    "target with fragment": b"GET /a#b HTTP/1.1\r\n",
    "target 8 bit": b"GET /\xc3\xa9 HTTP/1.1\r\n",
    "target nul": b"GET /\x00 HTTP/1.1\r\n",
    "target control character": b"GET /\x01 HTTP/1.1\r\n",
    "target del": b"GET /\x7f HTTP/1.1\r\n",
    "absolute without host": b"GET http:///a HTTP/1.1\r\n",
    "absolute with userinfo": b"GET http://u:p@example.test/ HTTP/1.1\r\n",
    "absolute with bad port": b"GET http://example.test:x/ HTTP/1.1\r\n",
}


@pytest.mark.parametrize("line", REQUEST_LINES.values(), ids=REQUEST_LINES.keys())
def test_bad_request_line_is_refused(site: Site, line: bytes) -> None:
    """400 with a correlation ID although nothing was parsed, and the connection closed."""
    refused(site, line + HOST + b"\r\n")


@pytest.mark.parametrize("version", [b"2.0", b"3.0", b"0.9", b"9.9"])
def test_unknown_major_version_is_refused(site: Site, version: bytes) -> None:
    """400 or 505 (RFC 9110 §15.6.6)."""
    refused(site, b"GET / HTTP/" + version + b"\r\n" + HOST + b"\r\n", statuses=(400, 505))


def test_http2_preface_is_refused(site: Site) -> None:
    """Prior-knowledge HTTP/2 gets a readable refusal, not silence."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    refused(site, preface, statuses=(400, 505))


def test_tls_hello_on_a_plain_port_is_refused(site: Site) -> None:
    """A TLS handshake sent to the plain port is answered or closed at once, never left hanging."""
    hello = bytes.fromhex("16030100a5010000a10303") + bytes(range(32)) * 5
    with site.connect() as client:
        client.send_lenient(hello + b"\r\n\r\n")
        text = client.rest()
    assert text == b"" or text.startswith(b"HTTP/1.1 400 ")
    assert site.upstream.requests == []


@pytest.mark.parametrize(
    "start", [b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03", b"SSH-2.0-OpenSSH\r\n", b"\x00"]
)
def test_what_is_no_http_gets_its_answer_at_once(site: Site, start: bytes) -> None:
    """A client of another protocol, which waits for us, is refused, not kept until a time-out."""
    with site.connect() as client:
        client.send_lenient(start)
        assert client.rest().startswith(b"HTTP/1.1 400 ")
    assert site.upstream.requests == []


def test_minor_version_beyond_ours_is_never_a_500(site: Site) -> None:
    """HTTP/1.2 is read as 1.1 (RFC 9110 §2.5) or refused; both are honest."""
    assert site.ask(b"GET / HTTP/1.2\r\n" + HOST + b"\r\n").status in (200, 400, 505)


FIELDS = {
    "nul in value": b"X-A: a\x00b\r\n",
    "nul in name": b"X\x00A: a\r\n",
    "control character in value": b"X-A: a\x01b\r\n",
    "escape in value": b"X-A: \x1b[2J\r\n",
    "del in value": b"X-A: a\x7fb\r\n",
    "bare cr in value": b"X-A: a\rb\r\n",
    "cr before crlf": b"X-A: a\r\r\n",
    "bare lf behind value": b"X-A: a\nX-B: b\r\n",
    "folded with space": b"X-A: a\r\n b\r\n",
    "folded with tab": b"X-A: a\r\n\tb\r\n",
    "no colon": b"X-A\r\n",
    "no name": b": a\r\n",
    "only a colon": b":\r\n",
    "space in name": b"X A: a\r\n",
    "space before colon": b"X-A : a\r\n",
    "tab before colon": b"X-A\t: a\r\n",
    "space before name": b" X-A: a\r\n",
    "name with parenthesis": b"X(A): a\r\n",
    "name with slash": b"X/A: a\r\n",
    "name with at": b"X@A: a\r\n",
    "name with quote": b'X"A: a\r\n',
    "name with brackets": b"X[A]: a\r\n",
    "name 8 bit": b"X-\xc3\x84: a\r\n",
    "name with del": b"X\x7fA: a\r\n",
    "empty line by lf": b"X-A: a\r\n\n",
}


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS.keys())
@pytest.mark.parametrize("first", [True, False], ids=["before host", "after host"])
def test_bad_field_is_refused(site: Site, field: bytes, first: bool) -> None:
    """400, wherever in the header section the bad line stands."""
    fields = field + HOST if first else HOST + field
    refused(site, b"GET / HTTP/1.1\r\n" + fields + b"\r\n")


def test_head_made_of_bare_line_feeds_is_refused(site: Site) -> None:
    """LF alone ends no line here (RFC 9112 §2.2 lets a recipient choose)."""
    refused(site, b"GET / HTTP/1.1\nHost: example.test\n\n")


HOSTS = {
    "missing": b"",
    "empty": b"Host: \r\n",
    "twice equal": HOST + HOST,
    "twice unequal": HOST + b"Host: other.test\r\n",
    "twice mixed case": HOST + b"hOST: other.test\r\n",
    "userinfo": b"Host: user@example.test\r\n",
    "userinfo with password": b"Host: user:pass@example.test\r\n",
    "path": b"Host: example.test/path\r\n",
    "query": b"Host: example.test?q\r\n",
    "fragment": b"Host: example.test#f\r\n",
    "scheme": b"Host: http://example.test\r\n",
    "comma": b"Host: example.test, other.test\r\n",
    "comma without space": b"Host: example.test,other.test\r\n",
    "inner space": b"Host: example.test other.test\r\n",
    "backslash": b"Host: example.test\\other\r\n",
    "port not a number": b"Host: example.test:8a\r\n",
    "two ports": b"Host: example.test:80:81\r\n",
    "only a port": b"Host: :80\r\n",
    "open bracket": b"Host: [::1\r\n",
    "text behind bracket": b"Host: [::1]x\r\n",
    "ipv6 without brackets": b"Host: ::1\r\n",
    "quoted": b'Host: "example.test"\r\n',
    "angle brackets": b"Host: <example.test>\r\n",
    "8 bit": b"Host: ex\xe4mple.test\r\n",
}


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS.keys())
def test_bad_host_is_refused(site: Site, host: bytes) -> None:
    """Exactly one valid `Host` in HTTP/1.1 (RFC 9112 §3.2)."""
    refused(site, b"GET / HTTP/1.1\r\n" + host + b"X-A: a\r\n\r\n")


@pytest.mark.parametrize("host", ["", "user@h", "a/b", "a\r\nHost: b"])
def test_bad_host_is_refused_beside_an_absolute_target(site: Site, host: str) -> None:
    """An absolute target does not excuse an invalid `Host` field."""
    refused(site, f"GET http://example.test/ HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())


def test_missing_host_is_refused_beside_an_absolute_target(site: Site) -> None:
    """HTTP/1.1 without `Host` is 400 even when the target names one (RFC 9112 §3.2)."""
    refused(site, b"GET http://example.test/ HTTP/1.1\r\n\r\n")


@pytest.mark.parametrize(
    "host", ["example.test:8080", "EXAMPLE.test", "127.0.0.1", "[::1]", "[::1]:8080", "a_b.test"]
)
def test_good_host_is_preserved(site: Site, host: str) -> None:
    """`Host` reaches the upstream as the client wrote it (contract A3)."""
    assert site.ask(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()).status == 200
    assert site.upstream.only.get("Host") == host


GOOD_FIELDS = {
    "8 bit value": (b"X-A: caf\xc3\xa9 \xff\r\n", b"caf\xc3\xa9 \xff"),
    "empty value": (b"X-A:\r\n", b""),
    "no space": (b"X-A:a\r\n", b"a"),
    "spaces and tabs around": (b"X-A: \t a \t \r\n", b"a"),
    "tab inside": (b"X-A: a\tb\r\n", b"a\tb"),
    "colons inside": (b"X-A: a:b: c\r\n", b"a:b: c"),
    "long value": (b"X-A: " + b"a" * 16000 + b"\r\n", b"a" * 16000),
}


@pytest.mark.parametrize(("line", "value"), GOOD_FIELDS.values(), ids=GOOD_FIELDS.keys())
def test_unusual_but_valid_field_passes_untouched(site: Site, line: bytes, value: bytes) -> None:
    """What the grammar allows is passed on, bytes beyond ASCII included (RFC 9110 §5.5)."""
    assert site.ask(b"GET / HTTP/1.1\r\n" + HOST + line + b"\r\n").status == 200
    assert dict(site.upstream.only.fields)[b"X-A"] == value


def test_every_token_character_may_stand_in_a_name(site: Site) -> None:
    """A field name of all token characters passes (RFC 9110 §5.6.2)."""
    assert site.ask(get("/", "!#$%&'*+.^_`|~9: a")).status == 200
    assert site.upstream.only.get("!#$%&'*+.^_`|~9") == "a"


def test_repeated_fields_keep_number_and_order(site: Site) -> None:
    """Repeated fields are neither merged nor reordered among themselves."""
    assert site.ask(get("/", "X-A: 1", "X-B: 2", "X-A: 3", "Cookie: a=1")).status == 200
    assert site.upstream.only.all("X-A") == ["1", "3"]
    assert site.upstream.only.all("X-B") == ["2"]


@pytest.mark.parametrize(
    "target",
    [
        "/%zz", "/%", "/%0", "/%00", "/%ff", "/..", "/../../etc/passwd", "/%2e%2e/x", "//x",
        "/a//b", "/?", "/??", "/?a=b&c", "/;x", "/a%2fb", "/%0d%0aX-A:%20b", "/|", "/\\", '/"',
        "/{a}", "/<>",
    ],
)  # fmt: skip
def test_odd_targets_pass_raw_or_are_refused(site: Site, target: str) -> None:
    """No odd target is ever a 500, and what passes is byte for byte what was sent."""
    response = site.ask(f"GET {target} HTTP/1.1\r\n".encode() + HOST + b"\r\n")
    assert response.status in (200, 400, 404)
    assert site.upstream.targets in ([], [target])


def test_empty_lines_before_a_request_are_forgiven(site: Site) -> None:
    """A CRLF before the request line is ignored (RFC 9112 §2.2), also between two requests."""
    with site.connect() as client:
        client.send(b"\r\n" + get("/first"))
        assert client.response().status == 200
        client.send(b"\r\n" + get("/second"))
        assert client.response().status == 200
    assert site.upstream.targets == ["/first", "/second"]


def test_endless_empty_lines_are_not_forgiven(site: Site) -> None:
    """A megabyte of CRLF is no request: refused or closed, not swallowed for ever."""
    with site.connect() as client:
        client.send_lenient(b"\r\n" * 500_000)
        text = client.rest()
    assert text == b"" or text.startswith(b"HTTP/1.1 4")
    assert site.upstream.requests == []


LIMITS = {
    "request line": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n" + HOST, 414, "uri_too_long"),
    "request line without end": (b"GET /" + b"a" * 100_000, 414, "uri_too_long"),
    "one field": (b"X-A: " + b"a" * 40_000 + b"\r\n", 431, "header_too_large"),
    "field without end": (b"X-A: " + b"a" * 200_000, 431, "header_too_large"),
    "field name without end": (b"A" * 200_000, 431, "header_too_large"),
    "sum of fields": ((b"X-A: " + b"a" * 990 + b"\r\n") * 40, 431, "header_too_large"),
    "number of fields": (b"X-A: a\r\n" * 200, 431, "header_too_large"),
}


@pytest.mark.parametrize(("raw", "status", "code"), LIMITS.values(), ids=LIMITS.keys())
def test_limits_are_refused_readably(site: Site, raw: bytes, status: int, code: str) -> None:
    """414 for the line, 431 for the fields; the client gets the answer although it still sends."""
    line = b"" if raw.startswith(b"GET") else b"GET / HTTP/1.1\r\n" + HOST
    with site.connect() as client:
        client.send_lenient(line + raw + b"\r\n")
        response = client.response()
        assert_problem(response, status, code)
        assert not response.keeps_alive
    assert site.upstream.requests == []


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (get("/" + "a" * 150), 200),
        (get("/" + "a" * 250), 414),
        (get("/", "X-A: " + "a" * 1700), 200),
        (get("/", "X-A: " + "a" * 2100), 431),
        (get("/", *["X-A: a"] * 120), 200),
        (get("/", *["X-A: a"] * 130), 431),
    ],
    ids=["line under", "line over", "bytes under", "bytes over", "count under", "count over"],
)
def test_limits_follow_the_config(site: Site, raw: bytes, status: int) -> None:
    """The listener's own limits hold: 200 bytes of line, 2,000 of fields; and 128 fields."""
    assert site.ask(raw, "small").status == status


def test_head_byte_by_byte(site: Site) -> None:
    """A head in segments of one byte reads like one in a single segment."""
    raw = get("/slow?q=1", "X-A: a")
    with site.connect() as client:
        for at in range(len(raw)):
            client.send(raw[at : at + 1])
        assert client.response().body == b"GET /slow?q=1 0"
    assert site.upstream.only.get("X-A") == "a"
