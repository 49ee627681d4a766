"""HTTP/1.1 message heads: where a head ends, and a memo of parsed ones. Strict, without I/O.

request_head.py and response_head.py parse the two kinds, fields.py what they share.

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
from collections.abc import Callable
from typing import Generic, TypeVar

from proxy.http1.fields import ProtocolError
from proxy.http1.request_head import RequestHead
from proxy.http1.response_head import ResponseHead

_BARE_LF = re.compile(rb"(?<!\r)\n")
_MEMO = 1024
_MEMO_HEAD = 1024


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
