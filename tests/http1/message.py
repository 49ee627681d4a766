"""A strict reader of HTTP/1 messages from a socket.

Rules, all stricter than a real peer would be, because whatever the proxy emits must leave no peer
anything to guess:

1. Lines end in CRLF; no bare CR, bare LF, NUL or other control character in a head.
2. Field names are tokens; no space before the colon; no line folding.
3. A message has `Content-Length` (once, digits) or `Transfer-Encoding: chunked` (once, exactly),
   never both. An HTTP/1.0 message has no `Transfer-Encoding`.
4. HEAD, 1xx, 204 and 304 responses have no body (RFC 9112 §6.3).
5. The end of the connection in the middle of a message is `Truncated`, never a short message.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass, field

PATIENCE = 30.0
"""Seconds that any single read or write of a test may take."""

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_FIELD = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*")
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/(1\.[01])")
_STATUS_LINE = re.compile(rb"HTTP/(1\.[01]) ([1-5]\d\d) ([^\x00-\x08\x0a-\x1f\x7f]*)")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\x09\x20-\x7e\x80-\xff]*)?")


class Malformed(AssertionError):
    """The peer sent what is not one unambiguous HTTP/1 message."""


class Truncated(Exception):
    """The connection ended inside a message; `partial` is the body so far, `reset` says RST."""

    def __init__(self, where: str, partial: bytes = b"", *, reset: bool = False) -> None:
        super().__init__(f"connection ended in {where} after {len(partial)} body bytes")
        self.partial = partial
        self.reset = reset


@dataclass
class Message:
    """What requests and responses share. Field names keep the case they arrived in."""

    version: bytes
    fields: list[tuple[bytes, bytes]]
    raw_head: bytes
    body: bytes = b""
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        """Every value of `name`, in order."""
        wanted = name.lower().encode()
        return [value.decode("latin-1") for key, value in self.fields if key.lower() == wanted]

    def get(self, name: str) -> str | None:
        """The value of `name`; repeated fields fail the test."""
        values = self.all(name)
        if len(values) > 1:
            raise Malformed(f"{name} appears {len(values)} times: {values}")
        return values[0] if values else None

    @property
    def framing(self) -> str:
        """`chunked`, `length` or `none`, as the head announces it."""
        coding, length = self.all("Transfer-Encoding"), self.all("Content-Length")
        if coding and length:
            raise Malformed(f"both Transfer-Encoding and Content-Length: {self.raw_head!r}")
        if coding:
            if coding != ["chunked"] or self.version == b"1.0":
                raise Malformed(f"Transfer-Encoding {coding} in HTTP/{self.version.decode()}")
            return "chunked"
        if length:
            if len(length) > 1 or not re.fullmatch(r"[0-9]+", length[0]):
                raise Malformed(f"Content-Length {length}")
            return "length"
        return "none"


@dataclass
class Request(Message):
    """A request as the upstream received it. `complete` once its body has ended well."""

    method: str = ""
    target: str = ""
    complete: bool = False
    connection: int = 0


@dataclass
class Response(Message):
    """A response as the client received it."""

    status: int = 0
    reason: bytes = b""

    @property
    def keeps_alive(self) -> bool:
        """Whether the head promises another exchange on this connection (RFC 9112 §9.3)."""
        options = ",".join(self.all("Connection")).lower().replace(" ", "").split(",")
        if "close" in options:
            return False
        return self.version == b"1.1" or "keep-alive" in options


class Wire:
    """A socket with a read buffer; every read has a deadline."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        self.sock = sock
        self.buffer = bytearray()

    def send(self, data: bytes) -> None:
        """All of `data`."""
        self.sock.sendall(data)

    def half_close(self) -> None:
        """FIN, reading stays open."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """RST instead of FIN."""
        self.sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
        )
        self.sock.close()

    def close(self) -> None:
        """FIN (or RST by the kernel when unread bytes are left)."""
        self.sock.close()

    def fill(self) -> bool:
        """Read once. False at the end of the connection; RST raises `ConnectionResetError`."""
        data = self.sock.recv(262144)
        self.buffer += data
        return bool(data)

    def take(self, count: int) -> bytes:
        """The first `count` buffered bytes."""
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        return data

    def line(self, where: str, partial: bytes = b"") -> bytes:
        """One line, its CRLF removed."""
        while (end := self.buffer.find(b"\n")) < 0:
            if len(self.buffer) > 1_000_000:
                raise Malformed(f"endless line in {where}")
            self._more(where, partial)
        text = self.take(end + 1)
        if not text.endswith(b"\r\n") or b"\r" in text[:-2]:
            raise Malformed(f"line end in {where}: {text[:200]!r}")
        return text[:-2]

    def _more(self, where: str, partial: bytes) -> None:
        try:
            alive = self.fill()
        except ConnectionResetError:
            raise Truncated(where, partial, reset=True) from None
        if not alive:
            raise Truncated(where, partial)

    def read_fields(self, where: str, partial: bytes = b"") -> list[tuple[bytes, bytes]]:
        """Field lines up to the empty line."""
        fields = []
        while text := self.line(where, partial):
            match = _FIELD.fullmatch(text)
            if match is None:
                raise Malformed(f"field line in {where}: {text!r}")
            fields.append((match[1], match[2]))
        return fields

    def read_request_head(self) -> Request | None:
        """The next request, or None when the connection ended cleanly between two."""
        while not self.buffer:
            if not self.fill():
                return None
        first = self.line("request line")
        match = _REQUEST_LINE.fullmatch(first)
        if match is None:
            raise Malformed(f"request line {first!r}")
        fields = self.read_fields("request head")
        request = Request(
            version=match[3],
            fields=fields,
            raw_head=first + b"\r\n" + b"".join(n + b": " + v + b"\r\n" for n, v in fields),
            method=match[1].decode(),
            target=match[2].decode(),
        )
        if match[3] == b"1.1" and len(request.all("Host")) != 1:
            raise Malformed(f"Host fields: {request.all('Host')}")
        return request

    def read_request_body(self, request: Request) -> Request:
        """The body and trailers of `request`, kept in it."""
        if request.framing == "chunked":
            request.body, request.trailers = self.read_chunked()
        elif request.framing == "length":
            request.body = self.read_length(int(request.get("Content-Length") or 0))
        request.complete = True
        return request

    def read_response_head(self) -> Response:
        """One response head, 1xx included."""
        first = self.line("status line")
        match = _STATUS_LINE.fullmatch(first)
        if match is None:
            raise Malformed(f"status line {first!r}")
        fields = self.read_fields("response head")
        return Response(
            version=match[1],
            fields=fields,
            raw_head=first + b"\r\n" + b"".join(n + b": " + v + b"\r\n" for n, v in fields),
            status=int(match[2]),
            reason=match[3],
        )

    def read_response_body(self, response: Response, method: str = "GET") -> Response:
        """The body and trailers of `response` to a `method` request (RFC 9112 §6.3)."""
        framing = response.framing
        if method == "HEAD" or response.status < 200 or response.status in (204, 304):
            return response
        if framing == "chunked":
            response.body, response.trailers = self.read_chunked()
        elif framing == "length":
            response.body = self.read_length(int(response.get("Content-Length") or 0))
        else:
            if response.keeps_alive:
                raise Malformed(f"no framing on a kept-alive connection: {response.raw_head!r}")
            response.body = self.read_to_end()
        return response

    def read_length(self, count: int) -> bytes:
        """Exactly `count` bytes."""
        while len(self.buffer) < count:
            self._more("a body with Content-Length", bytes(self.buffer))
        return self.take(count)

    def read_chunked(self) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """A chunked body, decoded, and its trailers."""
        body = bytearray()
        while True:
            size_line = self.line("a chunked body", bytes(body))
            match = _CHUNK_SIZE.fullmatch(size_line)
            if match is None:
                raise Malformed(f"chunk size line {size_line[:200]!r}")
            size = int(match[1], 16)
            if size == 0:
                return bytes(body), self.read_fields("trailers", bytes(body))
            while len(self.buffer) < size + 2:
                self._more("a chunk", bytes(body + self.buffer))
            body += self.take(size)
            if self.take(2) != b"\r\n":
                raise Malformed("chunk data not followed by CRLF")

    def read_to_end(self) -> bytes:
        """Everything up to FIN; RST is `Truncated`."""
        try:
            while self.fill():
                pass
        except ConnectionResetError:
            raise Truncated("a close-delimited body", bytes(self.buffer), reset=True) from None
        return self.take(len(self.buffer))
