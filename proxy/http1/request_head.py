"""Request heads: the request line and the fields that the proxy acts on (rules in heads.py)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from proxy.core.headers import (
    FORWARDED,
    HOP_BY_HOP,
    METHOD_OVERRIDES,
    is_authority,
    list_members,
    with_underscores,
)
from proxy.http1.fields import (
    CONNECTION,
    CORRELATION,
    DROP,
    EXPECT,
    FORWARDING,
    HOST,
    LENGTH,
    MAX_FORWARDS,
    OVERRIDE,
    TE,
    TOKEN,
    TRANSFER_ENCODING,
    UPGRADE,
    ProtocolError,
    parse_content_length,
    parse_transfer_encoding,
    read_fields,
    without_nominated,
)

_REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([\x21-\x7e]+) HTTP/1\.([0-9])(?=\r\n)")

_REQUEST_LINE_BEGUN = re.compile(
    rb"(?:" + TOKEN + rb"(?: (?:[\x21-\x7e]+(?: [HTP/1.0-9]{0,8})?)?)?)?\r?"
)

_BEGUN = 1024  # bytes of an incomplete request line that are checked on each read

_REQUEST_FIELDS: dict[bytes, int] = {
    **dict.fromkeys(HOP_BY_HOP, DROP),
    **dict.fromkeys(FORWARDED, FORWARDING),
    b"host": HOST,
    b"connection": CONNECTION,
    b"content-length": LENGTH,
    b"transfer-encoding": TRANSFER_ENCODING,
    b"te": TE,
    b"upgrade": UPGRADE,
    b"expect": EXPECT,
    b"x-correlation-id": CORRELATION,
    b"max-forwards": MAX_FORWARDS,
    **dict.fromkeys(METHOD_OVERRIDES, OVERRIDE),
}

# Rule 7: an application might read these as fields that the proxy acts on or removes.
for _name, _kind in [
    *_REQUEST_FIELDS.items(),
    (b"content-type", DROP),
    (b"content-encoding", DROP),
]:
    for _other in with_underscores(_name):
        _REQUEST_FIELDS[_other] = OVERRIDE if _kind == OVERRIDE else DROP


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
    fields = read_fields(data, first.end(), end, max_fields)
    head = RequestHead(method.decode(), target.decode(), int(minor))
    kinds, lines = _REQUEST_FIELDS, head.lines
    nominated: list[bytes] | None = None
    for line, name, value in fields:
        kind = kinds.get(name.lower())
        if kind is None:
            lines.append(line)
        elif kind == CONNECTION:
            nominated = (nominated or []) + list_members(value)
        else:
            _note_field(head, kind, line, name, value)
    _finish_request(head, nominated)
    return head


def _note_field(head: RequestHead, kind: int, line: bytes, name: bytes, value: bytes) -> None:
    """Record a field that the proxy acts on. Raises `ProtocolError`."""
    if kind == HOST:
        if head.host is not None:
            raise ProtocolError("Host comes more than once")
        if not is_authority(value):
            raise ProtocolError("Host is not a host with an optional port")
        head.host = value
    elif kind == LENGTH:
        head.content_length = parse_content_length(value, head.content_length)
    elif kind == TRANSFER_ENCODING:
        head.chunked = parse_transfer_encoding(value, head.chunked, head.minor)
    elif kind == CORRELATION:
        head.correlation = [*(head.correlation or ()), value]
    elif kind == FORWARDING:
        head.forwarded = [*(head.forwarded or ()), (name.lower(), value)]
    elif kind == TE:
        head.te_trailers = head.te_trailers or b"trailers" in list_members(value)
    elif kind == UPGRADE:
        head.upgrade = value.lower() if head.upgrade is None else b","  # several: none we know
    elif kind == EXPECT and value.lower() == b"100-continue":
        head.expects_continue = True
    elif kind == EXPECT:
        head.lines.append(line)  # for the upstream to judge (RFC 9110 §10.1.1)
    elif kind == MAX_FORWARDS:
        head.max_forwards = value
    elif kind == OVERRIDE:
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
    head.lines = without_nominated(head.lines, nominated)


def _blame_request_line(line: bytes) -> str:
    if b"\r" in line or b"\n" in line:
        return "request line contains CR or LF"
    parts = line.split(b" ")
    if len(parts) == 3 and re.fullmatch(rb"HTTP/\d+\.\d+", parts[2]) and parts[2][:7] != b"HTTP/1.":
        return "HTTP version is not 1.x"
    if len(parts) == 3 and re.search(rb"[^\x21-\x7e]", parts[1]):
        return "request target has characters outside visible ASCII"
    return "request line is not METHOD SP TARGET SP HTTP/1.x"
