"""Response heads: the status line and the fields that the proxy acts on (rules in heads.py)."""

from __future__ import annotations

import re

from proxy.core.headers import (
    HOP_BY_HOP,
    list_members,
)
from proxy.http1.fields import (
    CONNECTION,
    DATE,
    DROP,
    LENGTH,
    TRANSFER_ENCODING,
    UPGRADE,
    ProtocolError,
    parse_content_length,
    parse_transfer_encoding,
    read_fields,
    without_nominated,
)

_STATUS_LINE = re.compile(
    rb"HTTP/1\.([0-9]) ([1-5][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?(?=\r\n)"
)

_BARE = (204, 304)  # statuses that end with their head (RFC 9110 §6.4.1)

_RESPONSE_FIELDS: dict[bytes, int] = {
    **dict.fromkeys(HOP_BY_HOP, DROP),
    b"connection": CONNECTION,
    b"content-length": LENGTH,
    b"transfer-encoding": TRANSFER_ENCODING,
    b"upgrade": UPGRADE,
    b"date": DATE,
    b"x-correlation-id": DROP,  # ours goes out instead
}


class ResponseHead:
    """A parsed response head. `lines` are the fields that pass, unchanged; `passing` is the status
    line and all of them, each followed by CRLF. Immutable by convention; only `media_type` is
    computed on first use and cached.

    `before_id` and `after_id` are the complete head for a client, before and after the correlation
    ID, for a final response with `Content-Length` on a persistent connection; else `after_id` is
    None. Neither includes a `Date` if the upstream sent none (`dated`).
    """

    __slots__ = (
        "_media_type",
        "after_id",
        "before_id",
        "chunked",
        "content_length",
        "dated",
        "keep_alive",
        "lines",
        "minor",
        "passing",
        "reason",
        "status",
        "upgrade",
    )

    def __init__(self, status: int, reason: bytes, minor: int) -> None:
        self.status = status
        self.reason = reason
        self.minor = minor
        self.content_length: int | None = None
        self.chunked = False
        self.keep_alive = minor >= 1
        self.lines: list[bytes] = []
        self.upgrade: bytes | None = None
        self.dated = False
        self.passing = b""
        self.before_id = b""
        self.after_id: bytes | None = None
        self._media_type: str | None = None

    @property
    def media_type(self) -> str:
        """The media type in `Content-Type`, lower case and without parameters; "" if absent."""
        if self._media_type is None:
            found = b""
            for line in self.lines:
                name, _, value = line.partition(b":")
                if name.lower() == b"content-type":
                    found = value.partition(b";")[0].strip().lower()
                    break
            self._media_type = found.decode("latin-1")
        return self._media_type


def parse_response(data: bytes, end: int, max_fields: int) -> ResponseHead:
    """The response head that ends at `end` in `data`. Raises `ProtocolError`."""
    first = _STATUS_LINE.match(data)
    if first is None:
        raise ProtocolError("status line is malformed")
    minor_digit, status, reason = first.groups()
    minor = int(minor_digit)
    fields = read_fields(data, first.end(), end, max_fields)
    head = ResponseHead(int(status), reason or b"", minor)
    kinds = _RESPONSE_FIELDS
    lines = head.lines
    nominated: list[bytes] | None = None
    for line, name, value in fields:
        kind = kinds.get(name.lower())
        if kind is None:
            lines.append(line)
        elif kind == LENGTH:
            head.content_length = parse_content_length(value, head.content_length)
        elif kind == CONNECTION:
            nominated = (nominated or []) + list_members(value)
        elif kind == TRANSFER_ENCODING:
            head.chunked = parse_transfer_encoding(value, head.chunked, minor)
        elif kind == UPGRADE:
            head.upgrade = value.lower()
        elif kind == DATE:
            head.dated = True
            lines.append(line)
    if head.chunked and head.content_length is not None:
        raise ProtocolError("both Transfer-Encoding and Content-Length")
    if nominated is not None:
        if b"close" in nominated:
            head.keep_alive = False
        elif minor == 0 and b"keep-alive" in nominated:
            head.keep_alive = True
        head.lines = without_nominated(lines, nominated)
    head.passing = b"\r\n".join((b"HTTP/1.1 %d %b" % (head.status, head.reason), *head.lines, b""))
    length = head.content_length
    if length is not None and head.keep_alive and head.status >= 200 and head.status not in _BARE:
        head.before_id = head.passing + b"X-Correlation-ID: "
        head.after_id = b"\r\nContent-Length: %d\r\n\r\n" % length
    return head
