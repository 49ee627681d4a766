"""HTTP/1.1 message bodies: decoding and encoding their framing, without I/O (RFC 9112 §6, §7).

A decoder is fed bytes from the socket and returns (pieces of content, remaining bytes). `done`
means that the body is complete; `trailers` are the trailer lines that pass. A decoder buffers only
an incomplete chunk-size line or trailer section, both bounded.
"""

from __future__ import annotations

import re
from typing import Protocol

from proxy.http1.fields import ProtocolError, parse_trailers

LAST_CHUNK = b"0\r\n\r\n"

# chunk-size, then extensions, which are ignored: `;name`, `;name=token` or `;name="text"`, with
# white space around `;` and `=` (§7.1.1). Anything that another parser might read differently is
# rejected.
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*+"'
_EXTENSION = (
    rb"[ \t]*+;[ \t]*+" + _TOKEN + rb"(?:[ \t]*+=[ \t]*+(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?"
)
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:" + _EXTENSION + rb")*+\r\n")
_CHUNK_LINE_LIMIT = 1024
#: Limit for excess bytes in chunk-size lines over a whole body: a line may have `_LINE_FREE` bytes
#: plus two for each byte of its chunk, the rest is excess. Extensions take a hundred times as long
#: to parse as data, and nobody needs many (Go and Node limit them too).
_LINES_EXCESS, _LINE_FREE = 16 * 1024, 16
#: Pieces of content decoded in one turn, about half a millisecond. Without this limit, a full inbox
#: of one-byte chunks would block the event loop for 30 ms and more.
PIECES_PER_TURN = 512
_TRAILER_LIMIT = 8 * 1024
_TRAILER_FIELDS = 64


class Decoder(Protocol):
    """Decodes the framing of one body."""

    done: bool
    trailers: list[bytes]

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """(content, rest): `rest` is what follows the end of the body or, while not `done`, what is
        left for the next turn of the event loop."""
        ...


class NoBody:
    """A message that ends with its head."""

    __slots__ = ("done", "trailers")

    def __init__(self) -> None:
        self.done = True
        self.trailers: list[bytes] = []

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        return [], data


class LengthBody:
    """`Content-Length: remaining` bytes."""

    __slots__ = ("done", "remaining", "trailers")

    def __init__(self, length: int) -> None:
        self.remaining = length
        self.done = length == 0
        self.trailers: list[bytes] = []

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        size = len(data)
        if size < self.remaining:
            self.remaining -= size
            return [data], b""
        rest = b"" if size == self.remaining else data[self.remaining :]
        content = data[: self.remaining] if rest else data
        self.remaining = 0
        self.done = True
        return [content], rest


class UntilClose:
    """A response body that ends with its connection; the caller sets `done` at EOF."""

    __slots__ = ("done", "trailers")

    def __init__(self) -> None:
        self.done = False
        self.trailers: list[bytes] = []

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        return [data], b""


class ChunkedBody:
    """`Transfer-Encoding: chunked`."""

    __slots__ = ("_excess", "_in_trailers", "_kept", "_left", "_needs_end", "done", "trailers")

    def __init__(self) -> None:
        self.done = False
        self.trailers: list[bytes] = []
        self._kept = b""  # an unfinished line
        self._left = 0  # bytes of the current chunk still to come
        self._excess = 0
        self._needs_end = False  # the CRLF behind a chunk's data is still to come
        self._in_trailers = False

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        content: list[bytes] = []
        if self._kept:
            data = self._kept + data
            self._kept = b""
        at, size = 0, len(data)
        while at < size:
            if len(content) >= PIECES_PER_TURN:
                return content, data[at:]
            if self._left:
                piece = data[at : at + self._left]
                content.append(piece)
                at += len(piece)
                self._left -= len(piece)
            elif self._needs_end:
                if data[at : at + 2] != b"\r\n":
                    if data[at:] == b"\r":
                        break
                    raise ProtocolError("chunk data is not followed by CRLF")
                at += 2
                self._needs_end = False
            elif self._in_trailers:
                end = self._end_of_trailers(data, at)
                if end < 0:
                    break
                self.done = True
                return content, data[end:]
            else:
                line = _CHUNK_LINE.match(data, at)
                if line is None:
                    self._check_unfinished_line(data, at)
                    break
                start, at = at, line.end()
                if at - start > _CHUNK_LINE_LIMIT:
                    raise ProtocolError("chunk extension is too long")
                length = int(line[1], 16)
                excess = self._excess + at - start - _LINE_FREE - 2 * length
                if excess > 0 or self._excess:
                    self._excess = max(0, excess)
                    if excess > _LINES_EXCESS:
                        raise ProtocolError("chunk extensions are more than the content")
                end = at + length
                if length and data[end : end + 2] == b"\r\n":  # all of it is here: the usual case
                    content.append(data[at:end])
                    at = end + 2
                else:
                    self._left = length
                    self._in_trailers = length == 0
                    self._needs_end = length > 0
        self._kept = data[at:]
        return content, b""

    def _end_of_trailers(self, data: bytes, at: int) -> int:
        """Index after the empty line that ends the body, or -1 while it has not arrived."""
        if data.startswith(b"\r\n", at):
            return at + 2
        end = data.find(b"\r\n\r\n", at)
        if end < 0:
            if len(data) - at > _TRAILER_LIMIT:
                raise ProtocolError("trailer section is too long")
            if re.search(rb"(?<!\r)\n", data[at:]):
                raise ProtocolError("a trailer line ends in LF without CR")
            return -1
        if end - at > _TRAILER_LIMIT:
            raise ProtocolError("trailer section is too long")
        self.trailers = parse_trailers(data[at : end + 2], _TRAILER_FIELDS)
        return end + 4

    @staticmethod
    def _check_unfinished_line(data: bytes, at: int) -> None:
        """Raise `ProtocolError` if no further input can make this a valid chunk-size line."""
        start = data[at : at + _CHUNK_LINE_LIMIT + 2]
        if b"\n" in start or len(start) > _CHUNK_LINE_LIMIT:
            raise ProtocolError("chunk size line is malformed")
        if not re.fullmatch(
            rb"[0-9A-Fa-f]{1,15}(?:[ \t]*|[ \t]*;[\t\x20-\x7e\x80-\xff]*)\r?", start
        ):
            raise ProtocolError("chunk size line is malformed")


def chunk(pieces: list[bytes]) -> list[bytes]:
    """`pieces` encoded as one chunk, in parts to be written together; empty for no content."""
    size = sum(map(len, pieces))
    return [b"%x\r\n" % size, *pieces, b"\r\n"] if size else []


def last_chunk(trailers: list[bytes]) -> bytes:
    """The end of a chunked body, with its trailer lines."""
    if not trailers:
        return LAST_CHUNK
    return b"0\r\n" + b"\r\n".join(trailers) + b"\r\n\r\n"
