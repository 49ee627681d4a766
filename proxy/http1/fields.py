"""The field section of a head: its lines, and the rules that requests and responses share.

Rules 1, 3, 4, 6 and 7 of heads.py. Pure.
"""

from __future__ import annotations

import re

from proxy.core.headers import (
    NOT_IN_TRAILERS,
    NOT_NOMINABLE,
)

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_VALUE = rb"(?:[^\x00-\x20\x7f](?:[^\x00-\x08\x0a-\x1f\x7f]*[^\x00-\x20\x7f])?)?"

# (whole line without outer white space, name, value); anchored at the line end before it.
_FIELDS = re.compile(rb"\r\n((" + TOKEN + rb"):[ \t]*(" + _VALUE + rb"))[ \t]*(?=\r\n)")
_CONTENT_LENGTH = re.compile(rb"[0-9]{1,18}")

# Fields that the proxy acts on, by what it does with them.
(
    HOST,
    CONNECTION,
    LENGTH,
    TRANSFER_ENCODING,
    TE,
    UPGRADE,
    EXPECT,
    CORRELATION,
    FORWARDING,
    MAX_FORWARDS,
    OVERRIDE,
    DATE,
    DROP,
) = range(13)


class ProtocolError(Exception):
    """The input is not HTTP/1.1 as accepted here. `kind`: `syntax`, `uri` or `header` (limits)."""

    def __init__(self, detail: str, kind: str = "syntax") -> None:
        super().__init__(detail)
        self.detail = detail
        self.kind = kind


def parse_trailers(data: bytes, max_fields: int) -> list[bytes]:
    """The trailer lines that may pass; `data` is the section without its final empty line.

    Fields that are not allowed in trailers are dropped (RFC 9110 §6.5.1). Raises `ProtocolError`.
    """
    section = b"\r\n" + data
    fields = read_fields(section, 0, len(section) - 2, max_fields)
    dashed = ((line, name.lower().replace(b"_", b"-")) for line, name, _ in fields)  # rule 7
    return [line for line, name in dashed if name not in NOT_IN_TRAILERS]


def read_fields(data: bytes, start: int, end: int, most: int) -> list[tuple[bytes, bytes, bytes]]:
    """(line, name, value) of every field line from the CRLF at `start` to the CRLF at `end`."""
    fields: list[tuple[bytes, bytes, bytes]] = _FIELDS.findall(data, start, end + 2)
    expected = data.count(b"\r\n", start, end)
    if len(fields) != expected:
        raise ProtocolError(_blame_fields(data[start + 2 : end]))
    if expected > most:
        raise ProtocolError(f"more than {most} header fields", "header")
    return fields


def parse_content_length(value: bytes, earlier: int | None) -> int:
    if earlier is not None:
        raise ProtocolError("Content-Length comes more than once")
    if not _CONTENT_LENGTH.fullmatch(value):
        raise ProtocolError("Content-Length is not a plain number")
    return int(value)


def parse_transfer_encoding(value: bytes, earlier: bool, minor: int) -> bool:
    if earlier:
        raise ProtocolError("Transfer-Encoding comes more than once")
    if value.lower() != b"chunked":
        raise ProtocolError("Transfer-Encoding is not exactly 'chunked'")
    if minor == 0:
        raise ProtocolError("Transfer-Encoding in HTTP/1.0")
    return True


def without_nominated(lines: list[bytes], nominated: list[bytes]) -> list[bytes]:
    """`lines` without the fields listed in `Connection`, except those that it must not remove."""
    gone = {name for name in nominated if name not in NOT_NOMINABLE}
    if not gone:
        return lines
    return [line for line in lines if line[: line.index(b":")].lower() not in gone]


def _blame_fields(section: bytes) -> str:
    for number, line in enumerate(section.split(b"\r\n"), 1):
        if line[:1] in (b" ", b"\t"):
            return f"header line {number} is folded (obsolete line folding)"
        name, colon, value = line.partition(b":")
        if not colon:
            return f"header line {number} has no colon"
        if name != name.rstrip(b" \t"):
            return f"header line {number} has white space before the colon"
        if not re.fullmatch(TOKEN, name):
            return f"header line {number} has a name that is not a token"
        if re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", value):
            return f"header line {number} has a control character in its value"
    return "header section is malformed"
