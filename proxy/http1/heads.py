"""HTTP/1.1 message heads: bytes to `RequestHead` and `ResponseHead`, strictly, without I/O.

Rules (RFC 9112 unless stated otherwise). A message that breaks one is rejected, never repaired: the
next parser in the chain might repair it differently, which is request smuggling.

 1. Lines end in CRLF. A bare CR or LF anywhere in a head is an error (§2.2). One empty line before
    a request line is skipped.
 2. The request line is METHOD SP TARGET SP HTTP/1.x, single spaces, visible ASCII (§3).
 3. A field line is NAME ":" VALUE: a token, no space before the colon (§5.1), no obsolete folding
    (§5.2), no control characters but tab in the value (RFC 9110 §5.5).
 4. `Content-Length` appears at most once, digits only. `Transfer-Encoding` appears at most once and
    is exactly `chunked`. Both together are an error, although §6.1 allows repairing it.
 5. A request has exactly one valid `Host` (§3.2); HTTP/1.0 may omit it.
 6. `Transfer-Encoding` in HTTP/1.0 is an error (§6.1).
 7. CGI and WSGI do not distinguish `_` from `-` in field names. The fields that the proxy acts on
    are dropped when spelled with `_`.

One regular expression matches all fields of a head in C, and the matches are counted against the
line ends; only if the counts differ does slower code look for the offending line. Fields that the
proxy acts on are extracted, the others are kept as the lines they arrived in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from proxy.core.headers import (
    FORWARDED,
    HOP_BY_HOP,
    METHOD_OVERRIDES,
    NOT_IN_TRAILERS,
    NOT_NOMINABLE,
    is_authority,
    list_members,
    with_underscores,
)

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_VALUE = rb"(?:[^\x00-\x20\x7f](?:[^\x00-\x08\x0a-\x1f\x7f]*[^\x00-\x20\x7f])?)?"

_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/1\.([0-9])(?=\r\n)")
_REQUEST_LINE_BEGUN = re.compile(
    rb"(?:" + _TOKEN + rb"(?: (?:[\x21-\x7e]+(?: [HTP/1.0-9]{0,8})?)?)?)?\r?"
)
_BEGUN = 1024  # bytes of an unfinished request line that are looked at, each time some come
_STATUS_LINE = re.compile(
    rb"HTTP/1\.([0-9]) ([1-5][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?(?=\r\n)"
)
# (whole line without outer white space, name, value); anchored at the line end before it.
_FIELDS = re.compile(rb"\r\n((" + _TOKEN + rb"):[ \t]*(" + _VALUE + rb"))[ \t]*(?=\r\n)")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_CONTENT_LENGTH = re.compile(rb"[0-9]{1,18}")

_BARE = (204, 304)  # statuses that end with their head (RFC 9110 §6.4.1)

_MEMO = 1024
_MEMO_HEAD = 1024

(
    _HOST,
    _CONNECTION,
    _LENGTH,
    _TRANSFER_ENCODING,
    _TE,
    _UPGRADE,
    _EXPECT,
    _CORRELATION,
    _FORWARDED,
    _MAX_FORWARDS,
    _OVERRIDE,
    _DATE,
    _DROP,
) = range(13)

_REQUEST_FIELDS: dict[bytes, int] = {
    **dict.fromkeys(HOP_BY_HOP, _DROP),
    **dict.fromkeys(FORWARDED, _FORWARDED),
    b"host": _HOST,
    b"connection": _CONNECTION,
    b"content-length": _LENGTH,
    b"transfer-encoding": _TRANSFER_ENCODING,
    b"te": _TE,
    b"upgrade": _UPGRADE,
    b"expect": _EXPECT,
    b"x-correlation-id": _CORRELATION,
    b"max-forwards": _MAX_FORWARDS,
    **dict.fromkeys(METHOD_OVERRIDES, _OVERRIDE),
}
# Rule 7: an application might read these as the fields that we act on, or take out.
for _name, _kind in [
    *_REQUEST_FIELDS.items(),
    (b"content-type", _DROP),
    (b"content-encoding", _DROP),
]:
    for _other in with_underscores(_name):
        _REQUEST_FIELDS[_other] = _OVERRIDE if _kind == _OVERRIDE else _DROP
_RESPONSE_FIELDS: dict[bytes, int] = {
    **dict.fromkeys(HOP_BY_HOP, _DROP),
    b"connection": _CONNECTION,
    b"content-length": _LENGTH,
    b"transfer-encoding": _TRANSFER_ENCODING,
    b"upgrade": _UPGRADE,
    b"date": _DATE,
    b"x-correlation-id": _DROP,  # ours goes out instead
}


class ProtocolError(Exception):
    """The input is not HTTP/1.1 as accepted here. `kind`: `syntax`, `uri` or `header` (limits)."""

    def __init__(self, detail: str, kind: str = "syntax") -> None:
        super().__init__(detail)
        self.detail = detail
        self.kind = kind


class RequestHead:
    """A parsed request head. `lines` are the fields that pass, unchanged; `passing` is all of them,
    each preceded by CRLF. Immutable by convention: heads are shared (`HeadMemo`).

    `content_length` is None without the field; it and `chunked` exclude each other. `target` is in
    origin-form or `*`; for absolute-form, the authority has replaced `host`. `forwarded` holds the
    fields that only a trusted proxy may send. `correlation` holds every X-Correlation-ID received.
    `overrides` are the methods requested by method-override fields.
    """

    __slots__ = (
        "chunked",
        "content_length",
        "correlation",
        "expects_continue",
        "forwarded",
        "host",
        "keep_alive",
        "lines",
        "max_forwards",
        "method",
        "minor",
        "overrides",
        "passing",
        "target",
        "te_trailers",
        "upgrade",
    )

    def __init__(self, method: str, target: str, minor: int) -> None:
        self.method = method
        self.target = target
        self.minor = minor
        self.host: bytes | None = None
        self.content_length: int | None = None
        self.chunked = False
        self.keep_alive = minor >= 1
        self.lines: list[bytes] = []
        self.forwarded: list[tuple[bytes, bytes]] | None = None
        self.correlation: list[bytes] | None = None
        self.overrides: list[bytes] | None = None
        self.upgrade: bytes | None = None
        self.expects_continue = False
        self.te_trailers = False
        self.max_forwards: bytes | None = None
        self.passing = b""

    @property
    def has_body(self) -> bool:
        return self.chunked or bool(self.content_length)

    def values(self, name: bytes) -> list[bytes]:
        """The values of all passing fields of that lower-case name."""
        parts = (line.partition(b":") for line in self.lines)
        return [value.strip(b" \t") for found, _, value in parts if found.lower() == name]

    def passing_with(self, ours: Mapping[bytes, bytes | None]) -> bytes:
        """`passing` with the fields of these lower-case names replaced by one each, or none."""
        kept = [line for line in self.lines if line.partition(b":")[0].lower() not in ours]
        kept += [name.title() + b": " + value for name, value in ours.items() if value is not None]
        return b"\r\n" + b"\r\n".join(kept) if kept else b""  # an empty line would end the head


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


def find_head_end(data: bytes, line_limit: int, head_limit: int, scanned: int = 0) -> int:
    """Index of the empty line that ends the head in `data`, or -1 while it has not arrived.

    Raises `ProtocolError` as soon as the head is certain to break rule 1 or a limit, so that a
    client that sends bare LF gets an error instead of a timeout. The first `scanned` bytes have
    been scanned before and do not contain the end.
    """
    end = data.find(b"\r\n\r\n", max(0, scanned - 3), head_limit + 4)
    if end >= 0:
        if end > line_limit and data.find(b"\r\n", 0, line_limit + 2) < 0:
            raise ProtocolError(f"request line is over {line_limit} bytes", "uri")
        return end
    if _BARE_LF.search(data, scanned, head_limit):
        raise ProtocolError("a line ends in LF without CR")
    if len(data) > line_limit and data.find(b"\r\n", 0, line_limit + 2) < 0:
        raise ProtocolError(f"request line is over {line_limit} bytes", "uri")
    if len(data) > head_limit:
        raise ProtocolError(f"header section is over {head_limit} bytes", "header")
    return -1


def reject_non_http(data: bytes, line_limit: int) -> bool:
    """Raise `ProtocolError` if an incomplete head cannot become valid because its request line is
    already wrong, as in a TLS handshake or another protocol. Whether the line is complete."""
    end = data.find(b"\r\n", 0, line_limit + 2)
    if end < 0:
        if _REQUEST_LINE_BEGUN.fullmatch(data[:_BEGUN]) is None:
            raise ProtocolError(_blame_request_line(data[:_BEGUN]))
        return False
    if _REQUEST_LINE.match(data) is None:
        raise ProtocolError(_blame_request_line(data[:end]))
    return True


def parse_request(data: bytes, end: int, max_fields: int) -> RequestHead:
    """The head that ends at `end` (from `find_head_end`) in `data`. Raises `ProtocolError`."""
    first = _REQUEST_LINE.match(data)
    if first is None:
        raise ProtocolError(_blame_request_line(data[: data.find(b"\r\n")]))
    method, target, minor = first.groups()
    fields = _fields(data, first.end(), end, max_fields)
    head = RequestHead(method.decode(), target.decode(), int(minor))
    kinds, lines = _REQUEST_FIELDS, head.lines
    nominated: list[bytes] | None = None
    for line, name, value in fields:
        kind = kinds.get(name.lower())
        if kind is None:
            lines.append(line)
        elif kind == _CONNECTION:
            nominated = (nominated or []) + list_members(value)
        else:
            _note_field(head, kind, line, name, value)
    _finish_request(head, nominated)
    return head


def _note_field(head: RequestHead, kind: int, line: bytes, name: bytes, value: bytes) -> None:
    """Record a field that the proxy acts on. Raises `ProtocolError`."""
    if kind == _HOST:
        if head.host is not None:
            raise ProtocolError("Host comes more than once")
        if not is_authority(value):
            raise ProtocolError("Host is not a host with an optional port")
        head.host = value
    elif kind == _LENGTH:
        head.content_length = _content_length(value, head.content_length)
    elif kind == _TRANSFER_ENCODING:
        head.chunked = _chunked(value, head.chunked, head.minor)
    elif kind == _CORRELATION:
        head.correlation = [*(head.correlation or ()), value]
    elif kind == _FORWARDED:
        head.forwarded = [*(head.forwarded or ()), (name.lower(), value)]
    elif kind == _TE:
        head.te_trailers = head.te_trailers or b"trailers" in list_members(value)
    elif kind == _UPGRADE:
        head.upgrade = value.lower() if head.upgrade is None else b","  # several: none we know
    elif kind == _EXPECT and value.lower() == b"100-continue":
        head.expects_continue = True
    elif kind == _EXPECT:
        head.lines.append(line)  # for the upstream to judge (RFC 9110 §10.1.1)
    elif kind == _MAX_FORWARDS:
        head.max_forwards = value
    elif kind == _OVERRIDE:
        head.overrides = [*(head.overrides or ()), value]
        head.lines.append(line)


def _finish_request(head: RequestHead, nominated: list[bytes] | None) -> None:
    """Check and evaluate the fields together; `nominated` are the members of Connection, None
    without it. Raises `ProtocolError`."""
    if head.chunked and head.content_length is not None:
        raise ProtocolError("both Transfer-Encoding and Content-Length")
    if head.host is None and head.minor >= 1:
        raise ProtocolError("Host is missing")
    target = head.target.encode()
    if target[:1] != b"/":
        _other_target_form(head, target)
    if nominated is not None:
        _apply_connection(head, nominated)
    else:
        head.upgrade = None  # Upgrade must be listed in Connection (RFC 9110 §7.8)
    if b"#" in target:
        raise ProtocolError("request target has a fragment")
    if head.lines:
        head.passing = b"\r\n" + b"\r\n".join(head.lines)


def parse_response(data: bytes, end: int, max_fields: int) -> ResponseHead:
    """The response head that ends at `end` in `data`. Raises `ProtocolError`."""
    first = _STATUS_LINE.match(data)
    if first is None:
        raise ProtocolError("status line is malformed")
    minor_digit, status, reason = first.groups()
    minor = int(minor_digit)
    fields = _fields(data, first.end(), end, max_fields)
    head = ResponseHead(int(status), reason or b"", minor)
    kinds = _RESPONSE_FIELDS
    lines = head.lines
    nominated: list[bytes] | None = None
    for line, name, value in fields:
        kind = kinds.get(name.lower())
        if kind is None:
            lines.append(line)
        elif kind == _LENGTH:
            head.content_length = _content_length(value, head.content_length)
        elif kind == _CONNECTION:
            nominated = (nominated or []) + list_members(value)
        elif kind == _TRANSFER_ENCODING:
            head.chunked = _chunked(value, head.chunked, minor)
        elif kind == _UPGRADE:
            head.upgrade = value.lower()
        elif kind == _DATE:
            head.dated = True
            lines.append(line)
    if head.chunked and head.content_length is not None:
        raise ProtocolError("both Transfer-Encoding and Content-Length")
    if nominated is not None:
        if b"close" in nominated:
            head.keep_alive = False
        elif minor == 0 and b"keep-alive" in nominated:
            head.keep_alive = True
        head.lines = _without(lines, nominated)
    head.passing = b"\r\n".join((b"HTTP/1.1 %d %b" % (head.status, head.reason), *head.lines, b""))
    length = head.content_length
    if length is not None and head.keep_alive and head.status >= 200 and head.status not in _BARE:
        head.before_id = head.passing + b"X-Correlation-ID: "
        head.after_id = b"\r\nContent-Length: %d\r\n\r\n" % length
    return head


Head = TypeVar("Head", RequestHead, ResponseHead)


class HeadMemo(Generic[Head]):
    """A memo of recently parsed heads.

    Polling clients send the same head again and again, and upstreams answer with few different
    ones; a lookup costs a tenth of parsing. Parsing is a pure function of the bytes, so the memo
    changes nothing but the time. Holds up to `_MEMO` heads of `_MEMO_HEAD` bytes, and is cleared
    when full.
    """

    __slots__ = ("_known", "_parse")

    def __init__(self, parse: Callable[[bytes, int, int], Head]) -> None:
        self._parse: Callable[[bytes, int, int], Head] = parse
        self._known: dict[bytes, Head] = {}

    def read(self, data: bytes, end: int, max_fields: int) -> Head:
        """The head that ends at `end` in `data`. Raises `ProtocolError`."""
        raw = data[:end]
        head = self._known.get(raw)
        if head is None:
            head = self._parse(data, end, max_fields)
            if end <= _MEMO_HEAD:
                if len(self._known) >= _MEMO:
                    self._known.clear()
                self._known[raw] = head
        return head


def parse_trailers(data: bytes, max_fields: int) -> list[bytes]:
    """The trailer lines that may pass; `data` is the section without its final empty line.

    Fields that are not allowed in trailers are dropped (RFC 9110 §6.5.1). Raises `ProtocolError`.
    """
    section = b"\r\n" + data
    fields = _fields(section, 0, len(section) - 2, max_fields)
    dashed = ((line, name.lower().replace(b"_", b"-")) for line, name, _ in fields)  # rule 7
    return [line for line, name in dashed if name not in NOT_IN_TRAILERS]


def _fields(data: bytes, start: int, end: int, most: int) -> list[tuple[bytes, bytes, bytes]]:
    """(line, name, value) of every field line from the CRLF at `start` to the CRLF at `end`."""
    fields: list[tuple[bytes, bytes, bytes]] = _FIELDS.findall(data, start, end + 2)
    expected = data.count(b"\r\n", start, end)
    if len(fields) != expected:
        raise ProtocolError(_blame_fields(data[start + 2 : end]))
    if expected > most:
        raise ProtocolError(f"more than {most} header fields", "header")
    return fields


def _content_length(value: bytes, earlier: int | None) -> int:
    if earlier is not None:
        raise ProtocolError("Content-Length comes more than once")
    if not _CONTENT_LENGTH.fullmatch(value):
        raise ProtocolError("Content-Length is not a plain number")
    return int(value)


def _chunked(value: bytes, earlier: bool, minor: int) -> bool:
    if earlier:
        raise ProtocolError("Transfer-Encoding comes more than once")
    if value.lower() != b"chunked":
        raise ProtocolError("Transfer-Encoding is not exactly 'chunked'")
    if minor == 0:
        raise ProtocolError("Transfer-Encoding in HTTP/1.0")
    return True


def _other_target_form(head: RequestHead, target: bytes) -> None:
    """Absolute-form (RFC 9112 §3.2.2), authority-form of CONNECT, or `*` of OPTIONS."""
    if head.method == "CONNECT":
        if not is_authority(target):
            raise ProtocolError("CONNECT without host and port")
        return
    if target == b"*" and head.method == "OPTIONS":
        return
    scheme, mark, rest = target.partition(b"://")
    if not mark or scheme.lower() not in (b"http", b"https"):
        raise ProtocolError("request target is neither a path nor an http URI")
    split = min((i for i in (rest.find(b"/"), rest.find(b"?")) if i >= 0), default=len(rest))
    authority, path = rest[:split], rest[split:]
    if not is_authority(authority):
        raise ProtocolError("request target has no valid authority")
    head.host = authority  # the field is to be ignored, §3.2.2
    if not path:
        head.target = "*" if head.method == "OPTIONS" else "/"  # §3.2.4
    else:
        head.target = (path if path[:1] == b"/" else b"/" + path).decode()


def _apply_connection(head: RequestHead, nominated: list[bytes]) -> None:
    """`Connection`: persistence, upgrade, and the fields that end here (RFC 9110 §7.6.1)."""
    if b"close" in nominated:
        head.keep_alive = False
    elif head.minor == 0:
        head.keep_alive = b"keep-alive" in nominated
    if b"upgrade" not in nominated or head.minor == 0:
        head.upgrade = None
    head.lines = _without(head.lines, nominated)


def _without(lines: list[bytes], nominated: list[bytes]) -> list[bytes]:
    """`lines` without the fields listed in `Connection`, except those that it must not remove."""
    gone = {name for name in nominated if name not in NOT_NOMINABLE}
    if not gone:
        return lines
    return [line for line in lines if line[: line.index(b":")].lower() not in gone]


def _blame_request_line(line: bytes) -> str:
    if b"\r" in line or b"\n" in line:
        return "request line contains CR or LF"
    parts = line.split(b" ")
    if len(parts) == 3 and re.fullmatch(rb"HTTP/\d+\.\d+", parts[2]) and parts[2][:7] != b"HTTP/1.":
        return "HTTP version is not 1.x"
    if len(parts) == 3 and re.search(rb"[^\x21-\x7e]", parts[1]):
        return "request target has characters outside visible ASCII"
    return "request line is not METHOD SP TARGET SP HTTP/1.x"


def _blame_fields(section: bytes) -> str:
    for number, line in enumerate(section.split(b"\r\n"), 1):
        if line[:1] in (b" ", b"\t"):
            return f"header line {number} is folded (obsolete line folding)"
        name, colon, value = line.partition(b":")
        if not colon:
            return f"header line {number} has no colon"
        if name != name.rstrip(b" \t"):
            return f"header line {number} has white space before the colon"
        if not re.fullmatch(_TOKEN, name):
            return f"header line {number} has a name that is not a token"
        if re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", value):
            return f"header line {number} has a control character in its value"
    return "header section is malformed"
