"""What must hold for any bytes: our parsers read them, wait for more, or refuse them with the error
meant for it; and what they read, other strict parsers read in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import h11
import httptools

from proxy.http1.bodies import ChunkedBody, chunk, last_chunk
from proxy.http1.fields import ProtocolError
from proxy.http1.heads import find_head_end
from proxy.http1.request_head import RequestHead, parse_request, reject_non_http
from proxy.http1.response_head import ResponseHead, parse_response
from tests.uploads.form_readers import IN, check_form

LINE, HEAD, FIELDS = 8192, 32768, 128
Fields = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Target:
    """A property, inputs to begin with, and words worth trying."""

    check: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...]


class _Llhttp:
    """What llhttp reports of a message."""

    def __init__(self) -> None:
        self.headers: Fields = []
        self.url = b""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))


def request_head(data: bytes) -> None:
    """A request head that passes means the same to llhttp and to h11."""
    try:
        end = find_head_end(data, LINE, HEAD)
        if end < 0:
            reject_non_http(data, LINE)
            return
        head = parse_request(data, end, FIELDS)
    except ProtocolError:
        return
    assert reject_non_http(data, LINE), data
    raw = data[: end + 4]
    read = _by_llhttp(raw)
    if read is not None:
        _compare_request(head, read.headers, raw)
    event = _by_h11(h11.Connection(h11.SERVER), raw)
    if isinstance(event, h11.Request):
        _compare_request(head, [(name, value) for name, value in event.headers], raw)
        assert event.method.decode() == head.method, raw


def _by_llhttp(raw: bytes) -> _Llhttp | None:
    """None if llhttp is stricter, does not know the method, or has stopped at an upgrade."""
    read = _Llhttp()
    try:
        httptools.HttpRequestParser(read).feed_data(raw)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    return read


def _by_h11(connection: h11.Connection, raw: bytes) -> object:
    """The first event, or None if h11 is stricter."""
    connection.receive_data(raw)
    try:
        return connection.next_event()
    except h11.RemoteProtocolError:
        return None


def _compare_request(head: RequestHead, theirs: Fields, raw: bytes) -> None:
    assert _passing(head) <= {(name, value.strip(b" \t")) for name, value in theirs}, raw
    _compare_framing(head, theirs, raw)
    hosts = [value.strip(b" \t") for name, value in theirs if name == b"host"]
    assert len(hosts) == 1 or (not hosts and head.minor == 0), raw


def _compare_framing(head: RequestHead | ResponseHead, theirs: Fields, raw: bytes) -> None:
    lengths = [int(value) for name, value in theirs if name == b"content-length"]
    assert lengths == ([] if head.content_length is None else [head.content_length]), raw
    assert head.chunked == any(name == b"transfer-encoding" for name, _ in theirs), raw


def _passing(head: RequestHead | ResponseHead) -> set[tuple[bytes, bytes]]:
    parts = (line.partition(b":") for line in head.lines)
    return {(name.lower(), value.strip(b" \t")) for name, _, value in parts}


def response_head(data: bytes) -> None:
    """A response head that passes means the same to h11, and is sent on as such."""
    try:
        end = find_head_end(data, LINE, HEAD)
        if end < 0:
            return
        head = parse_response(data, end, FIELDS)
    except ProtocolError:
        return
    raw = data[: end + 4]
    event = _by_h11(_client(), raw)
    if isinstance(event, h11.Response | h11.InformationalResponse):
        assert event.status_code == head.status, raw
        theirs = [(name, value) for name, value in event.headers]
        assert _passing(head) <= {(name, value.strip(b" \t")) for name, value in theirs}, raw
        _compare_framing(head, theirs, raw)
    if head.after_id is not None:
        sent = head.before_id + b"1" + head.after_id
        again = parse_response(sent, sent.index(b"\r\n\r\n"), FIELDS + 2)
        assert (again.status, again.reason) == (head.status, head.reason), raw
        assert (again.content_length, again.chunked) == (head.content_length, False), raw
        assert again.lines == head.lines, raw


def _client() -> h11.Connection:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    return connection


def chunked_body(data: bytes) -> None:
    """A chunked body is read the same in pieces of any size, and so is what we make of it.

    The first byte gives the size of the pieces.
    """
    step, wire = (data[0] % 16 + 1, data[1:]) if data else (1, b"")
    whole = _read_chunked([wire])
    cut = _read_chunked([wire[at : at + step] for at in range(0, len(wire), step)])
    # A refusal may come earlier when the offending bytes arrive with others.
    assert whole == cut or (whole is None and cut is not None and not cut[2]), wire
    if whole is not None and whole[2]:
        content, trailers, _, _ = whole
        sent = chunk([content]) if content else []
        again = _read_chunked([b"".join([*sent, last_chunk(list(trailers))])])
        assert again == (content, trailers, True, b""), wire


def _read_chunked(pieces: list[bytes]) -> tuple[bytes, tuple[bytes, ...], bool, bytes] | None:
    """Content, trailers, whether it is complete, and what follows; None if it was refused."""
    body, content, rest = ChunkedBody(), b"", b""
    try:
        for number, piece in enumerate(pieces):
            left = piece
            while left and not body.done:
                found, left = body.feed(left)
                content += b"".join(found)
            if body.done:
                rest = left + b"".join(pieces[number + 1 :])
                break
    except ProtocolError:
        return None
    return content, tuple(body.trailers), body.done, rest


def form(data: bytes) -> None:
    """A form that passes means the same to the parsers of Starlette, Flask, Django and Bottle.

    The first byte gives the size of the pieces.
    """
    if data:
        check_form(data[1:], data[0] % 64 + 1)


_FORM = (
    b"\x06--" + IN + b'\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--' + IN + b"\r\n"
    b'Content-Disposition: form-data; name="b"; filename=""\r\nContent-Type: text/plain\r\n\r\n'
    b"\r\n--" + IN + b"--\r\n"
)

TARGETS = {
    "request-head": Target(
        request_head,
        (
            b"GET /a?b=c HTTP/1.1\r\nHost: a:80\r\nAccept: */*\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nConnection: x\r\nX: 1\r\n\r\n",
            b"PUT * HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"GET http://b/ HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
        ),
        (b"\r\n", b"\r\n ", b": ", b"Host", b"Content-Length", b"Transfer-Encoding", b"chunked",
         b"Connection", b"HTTP/1.1", b"Content_Length", b"X-HTTP-Method-Override"),
    ),
    "response-head": Target(
        response_head,
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nDate: x\r\n\r\n",
            b"HTTP/1.1 204 \r\nConnection: close\r\n\r\n",
            b"HTTP/1.0 500\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        ),
        (b"\r\n", b"\r\n ", b": ", b"Content-Length", b"Transfer-Encoding", b"chunked",
         b"Connection", b"HTTP/1.1 ", b"X-Correlation-ID", b"keep-alive"),
    ),
    "chunked-body": Target(
        chunked_body,
        (
            b"\x035\r\nhello\r\n0\r\n\r\n",
            b"\x00a;x=y\r\n0123456789\r\n0\r\nA: 1\r\n\r\nGET",
            b"\x0fFFFFFFFF\r\n",
        ),
        (b"\r\n", b"0\r\n\r\n", b";x=", b"Content-Length: 1\r\n", b"\r\n0"),
    ),
    "form": Target(
        form,
        (_FORM, b"\x00\r\n" + _FORM[1:] + b"\r\nepilogue"),
        (b"--" + IN, b"--" + IN + b"--", b"\r\n\r\n", b'name="', b'filename="', b"; ", rb"\"",
         b"Content-Type: ", b"Content-Disposition: form-data", b"filename*=utf-8''"),
    ),
}  # fmt: skip
