"""Message heads: what is understood, what is refused, and that nothing in between exists."""

from __future__ import annotations

import contextlib

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.http1.fields import ProtocolError
from proxy.http1.heads import find_head_end
from proxy.http1.request_head import RequestHead, parse_request, reject_non_http
from proxy.http1.response_head import ResponseHead, parse_response


def request(text: bytes) -> RequestHead:
    data = text + b"\r\n\r\n"
    return parse_request(data, find_head_end(data, 8192, 32768), 128)


def response(text: bytes) -> ResponseHead:
    data = text + b"\r\n\r\n"
    return parse_response(data, find_head_end(data, 8192, 32768), 128)


HOST = b"\r\nHost: a"


def test_passing_fields_keep_their_lines_and_order() -> None:
    """End-to-end fields come out as the lines they came in, without outer white space."""
    head = request(b"GET /x?y HTTP/1.1\r\nHost: a:80\r\nB:  2 \t\r\na: 1\r\nB: 3\r\nEmpty:")
    assert (head.method, head.target, head.minor, head.host) == ("GET", "/x?y", 1, b"a:80")
    assert head.lines == [b"B:  2", b"a: 1", b"B: 3", b"Empty:"]
    assert head.values(b"b") == [b"2", b"3"]
    assert head.passing_with({b"b": b"9", b"a": None}) == b"\r\nEmpty:\r\nB: 9"
    assert head.passing_with({b"b": b"9"}) == b"\r\na: 1\r\nEmpty:\r\nB: 9"
    assert head.keep_alive
    assert not head.has_body


def test_hop_by_hop_and_nominated_fields_do_not_pass() -> None:
    """`Connection` and what it names end here, but it has no say over framing or Host."""
    head = request(
        b"GET / HTTP/1.1" + HOST + b"\r\nConnection: close, X-Secret, host, content-length\r\n"
        b"Keep-Alive: 5\r\nProxy-Authorization: x\r\nX-Secret: 1\r\nContent-Length: 3\r\nX-Kept: 2"
    )
    assert head.lines == [b"X-Kept: 2"]
    assert not head.keep_alive
    assert head.content_length == 3
    assert head.host == b"a"


@pytest.mark.parametrize(
    ("target", "host", "expected_target", "expected_host"),
    [
        (b"http://b:81/p?q", b"a", "/p?q", b"b:81"),
        (b"HTTP://b", b"a", "/", b"b"),
        (b"https://b?q", b"a", "/?q", b"b"),
        (b"/http://b/", b"a", "/http://b/", b"a"),
    ],
)
def test_absolute_form_replaces_host(
    target: bytes, host: bytes, expected_target: str, expected_host: bytes
) -> None:
    """RFC 9112 §3.2.2: the authority of the target counts, whatever Host says."""
    head = request(b"GET " + target + b" HTTP/1.1\r\nHost: " + host)
    assert (head.target, head.host) == (expected_target, expected_host)


def test_options_of_the_whole_server() -> None:
    """`*` is for OPTIONS only, also when it came as an absolute URI without a path."""
    assert request(b"OPTIONS * HTTP/1.1" + HOST).target == "*"
    assert request(b"OPTIONS http://b HTTP/1.1" + HOST).target == "*"
    with pytest.raises(ProtocolError):
        request(b"GET * HTTP/1.1" + HOST)


REFUSED_REQUESTS = {
    "two spaces": b"GET  / HTTP/1.1" + HOST,
    "tab": b"GET\t/ HTTP/1.1" + HOST,
    "no version": b"GET /" + HOST,
    "lower-case version": b"GET / http/1.1" + HOST,
    "HTTP/2.0": b"GET / HTTP/2.0" + HOST,
    "version with two digits": b"GET / HTTP/1.10" + HOST,
    "method not a token": b"G(T / HTTP/1.1" + HOST,
    "non-ASCII target": b"GET /\xc3\xa9 HTTP/1.1" + HOST,
    "fragment": b"GET /#x HTTP/1.1" + HOST,
    "relative target": b"GET x HTTP/1.1" + HOST,
    "other scheme": b"GET ftp://a/ HTTP/1.1" + HOST,
    "no host": b"GET / HTTP/1.1",
    "two hosts": b"GET / HTTP/1.1" + HOST + HOST,
    "empty host": b"GET / HTTP/1.1\r\nHost:",
    "host with userinfo": b"GET / HTTP/1.1\r\nHost: u@a",
    "host with path": b"GET / HTTP/1.1\r\nHost: a/b",
    "host with comma": b"GET / HTTP/1.1\r\nHost: a, b",
    "host with bad port": b"GET / HTTP/1.1\r\nHost: a:8x",
    "absolute target with userinfo": b"GET http://u@b/ HTTP/1.1" + HOST,
    "absolute target without host": b"GET http:/// HTTP/1.1" + HOST,
    "folded": b"GET / HTTP/1.1" + HOST + b"\r\nA: 1\r\n 2",
    "fold at once": b"GET / HTTP/1.1\r\n Host: a",
    "space before colon": b"GET / HTTP/1.1" + HOST + b"\r\nA : 1",
    "no colon": b"GET / HTTP/1.1" + HOST + b"\r\nA",
    "empty name": b"GET / HTTP/1.1" + HOST + b"\r\n: 1",
    "name not a token": b"GET / HTTP/1.1" + HOST + b"\r\nA(b: 1",
    "NUL in value": b"GET / HTTP/1.1" + HOST + b"\r\nA: \x00",
    "bare CR in value": b"GET / HTTP/1.1" + HOST + b"\r\nA: 1\r2",
    "bare LF ends a line": b"GET / HTTP/1.1\nHost: a",
    "vertical tab before value": b"GET / HTTP/1.1" + HOST + b"\r\nContent-Length:\x0b5",
    "length with sign": b"POST / HTTP/1.1" + HOST + b"\r\nContent-Length: +5",
    "length negative": b"POST / HTTP/1.1" + HOST + b"\r\nContent-Length: -5",
    "length hex": b"POST / HTTP/1.1" + HOST + b"\r\nContent-Length: 0x5",
    "length list": b"POST / HTTP/1.1" + HOST + b"\r\nContent-Length: 5, 5",
    "length empty": b"POST / HTTP/1.1" + HOST + b"\r\nContent-Length:",
    "length overflow": b"POST / HTTP/1.1" + HOST + b"\r\nContent-Length: " + b"9" * 30,
    "length twice": b"POST / HTTP/1.1" + HOST + b"\r\nContent-Length: 5" * 2,
    "coding unknown": b"POST / HTTP/1.1" + HOST + b"\r\nTransfer-Encoding: gzip",
    "coding list": b"POST / HTTP/1.1" + HOST + b"\r\nTransfer-Encoding: gzip, chunked",
    "coding identity": b"POST / HTTP/1.1" + HOST + b"\r\nTransfer-Encoding: identity",
    "coding twice": b"POST / HTTP/1.1" + HOST + b"\r\nTransfer-Encoding: chunked" * 2,
    "coding empty": b"POST / HTTP/1.1" + HOST + b"\r\nTransfer-Encoding:",
    "coding quoted": b"POST / HTTP/1.1" + HOST + b'\r\nTransfer-Encoding: "chunked"',
    "coding and length": b"POST / HTTP/1.1"
    + HOST
    + b"\r\nTransfer-Encoding: chunked\r\nContent-Length: 5",
    "coding in HTTP/1.0": b"POST / HTTP/1.0" + HOST + b"\r\nTransfer-Encoding: chunked",
}


@pytest.mark.parametrize("text", REFUSED_REQUESTS.values(), ids=REFUSED_REQUESTS.keys())
def test_refused_request(text: bytes) -> None:
    """Whatever two parsers might read differently is refused, and the refusal says why."""
    with pytest.raises(ProtocolError) as refusal:
        request(text)
    assert refusal.value.detail


REFUSED_RESPONSES = {
    "not HTTP": b"hello",
    "no status": b"HTTP/1.1 OK",
    "status of two digits": b"HTTP/1.1 20 OK",
    "status out of range": b"HTTP/1.1 600 x",
    "HTTP/2": b"HTTP/2 200 OK",
    "length twice": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1",
    "length and coding": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked",
    "coding repeated": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked",
    "folded": b"HTTP/1.1 200 OK\r\nA: 1\r\n b",
    "NUL": b"HTTP/1.1 200 OK\r\nA: \x00",
    "control character in reason": b"HTTP/1.1 200 O\x01K",
    "coding in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked",
}


@pytest.mark.parametrize("text", REFUSED_RESPONSES.values(), ids=REFUSED_RESPONSES.keys())
def test_refused_response(text: bytes) -> None:
    """Upstreams are read as strictly as clients."""
    with pytest.raises(ProtocolError):
        response(text)


def test_response_fields() -> None:
    """A response loses hop-by-hop fields, what `Connection` names, and an upstream's own ID."""
    head = response(
        b"HTTP/1.1 404 Not Found\r\nConnection: X-Hop\r\nX-Hop: 1\r\nX-Correlation-ID: z\r\n"
        b"Content-Length: 7\r\nSet-Cookie: a=b\r\nKeep-Alive: timeout=5"
    )
    assert (head.status, head.reason, head.content_length) == (404, b"Not Found", 7)
    assert head.lines == [b"Set-Cookie: a=b"]
    assert head.keep_alive
    assert response(b"HTTP/1.1 200").reason == b""
    assert not response(b"HTTP/1.0 200 OK").keep_alive
    assert response(b"HTTP/1.0 200 OK\r\nConnection: keep-alive").keep_alive


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"GET /" + b"x" * 200, "uri"),
        (b"GET /" + b"x" * 200 + b" HTTP/1.1\r\n\r\n", "uri"),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 2000, "header"),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 2000 + b"\r\n\r\n", "header"),
        (b"GET / HTTP/1.1\nA: b", "syntax"),
    ],
)
def test_limits_are_enforced_before_the_head_is_complete(data: bytes, kind: str) -> None:
    """A head over a limit, or beyond repair, is refused as soon as that is certain."""
    with pytest.raises(ProtocolError) as refusal:
        find_head_end(data, 100, 1000)
    assert refusal.value.kind == kind


@pytest.mark.parametrize(
    "data",
    [
        *(b"\x16\x03\x01\x02", b"\x00", b"\x80", b"SSH-2.0-x\r\n", b"<?xml", b'{"a":', b"GET\t"),
        *(b"GET / HTTP/1.1 \r\n", b"GET  /", b"GET / FTP", b"GET / HTTP/2.0\r\n", b" GET"),
        *(b"\n", b"GET / HTTP/1.1\rA", b"@RSYNCD: 31.0\n", b"HELO x\r\n", b"*1\r\n$4\r\nPING\r\n"),
    ],
)  # fmt: skip
def test_what_is_no_http_is_refused_at_once(data: bytes) -> None:
    """Nobody waits for the end of a head that cannot become one."""
    with pytest.raises(ProtocolError):
        reject_non_http(data, 8192)


def test_the_beginning_of_a_head_is_no_reason_to_refuse() -> None:
    """Wherever a good head is cut, the rest may still come."""
    head = b"M-SEARCH http://a/b?c=d HTTP/1.1\r\nHost: a\r\n\r\n"
    for end in range(len(head)):
        reject_non_http(head[:end], 8192)
    reject_non_http(b"\r", 8192)
    reject_non_http(b"GET /" + b"a" * 5000, 8192)


def test_too_many_fields() -> None:
    """The number of fields has a limit of its own."""
    with pytest.raises(ProtocolError) as refusal:
        request(b"GET / HTTP/1.1" + HOST + b"\r\nA: 1" * 128)
    assert refusal.value.kind == "header"


def test_upgrade_needs_connection() -> None:
    """An `Upgrade` that `Connection` does not name is void (RFC 9110 §7.8)."""
    upgrade = b"\r\nUpgrade: WebSocket"
    assert request(b"GET / HTTP/1.1" + HOST + upgrade).upgrade is None
    both = HOST + upgrade + b"\r\nConnection: keep-alive, Upgrade"
    assert request(b"GET / HTTP/1.1" + both).upgrade == b"websocket"
    assert request(b"GET / HTTP/1.0" + both).upgrade is None


_name = st.from_regex(rb"\A[A-Za-z][A-Za-z0-9-]{0,8}\Z")
_value = st.binary(max_size=12)
_line = st.one_of(
    st.tuples(_name, _value).map(lambda pair: pair[0] + b": " + pair[1]),
    st.sampled_from(
        [
            b"Content-Length: 5",
            b"Content-Length: 5 5",
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: xchunked",
            b"Connection: close",
            b" folded",
            b"Host: b",
        ]
    ),
    st.binary(max_size=16),
)


class _LlhttpEvents:
    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))


@given(st.lists(_line, max_size=5))
def test_what_we_accept_llhttp_reads_the_same(lines: list[bytes]) -> None:
    """A head that passes means the same to another strict parser (llhttp): no field is hidden."""
    data = b"\r\n".join([b"GET / HTTP/1.1", b"Host: a", *lines, b"", b""])
    try:
        end = find_head_end(data, 8192, 32768)
        head = parse_request(data, end, 128)
    except ProtocolError:
        return
    events = _LlhttpEvents()
    httptools.HttpRequestParser(events).feed_data(data[: end + 4])
    theirs = [(name.lower(), value) for name, value in events.headers]
    ours = {line.split(b":", 1)[0].lower() for line in head.lines}
    assert ours <= {name for name, _ in theirs}
    lengths = [int(value) for name, value in theirs if name == b"content-length"]
    assert lengths == ([] if head.content_length is None else [head.content_length])
    assert head.chunked == any(name == b"transfer-encoding" for name, _ in theirs)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_never_surprise(data: bytes) -> None:
    """Any bytes are a head, an incomplete head, or a `ProtocolError`; never another exception."""
    for parse in (parse_request, parse_response):
        with contextlib.suppress(ProtocolError):
            end = find_head_end(data, 64, 128)
            if end >= 0:
                parse(data, end, 8)


@pytest.mark.parametrize("limit", [64, 100])
def test_a_head_of_exactly_the_limit_passes(limit: int) -> None:
    """Counted up to the empty line; one byte more is refused, though it has arrived complete."""
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX: "
    fits = head + b"a" * (limit - len(head))
    assert find_head_end(fits + b"\r\n\r\n", 64, limit) == limit
    with pytest.raises(ProtocolError, match="header section is over"):
        find_head_end(fits + b"a\r\n\r\n", 64, limit)


@pytest.mark.parametrize("limit", [24, 40])
def test_a_request_line_of_exactly_the_limit_passes(limit: int) -> None:
    """Counted without its line end; one byte more is refused, though the head is complete."""
    line = b"GET /" + b"a" * (limit - 14) + b" HTTP/1.1"
    rest = b"\r\nHost: a\r\n\r\n"
    assert find_head_end(line + rest, limit, 1000) == limit + 9
    with pytest.raises(ProtocolError, match="request line is over"):
        find_head_end(b"A" + line + rest, limit, 1000)
