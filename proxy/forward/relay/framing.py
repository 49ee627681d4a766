"""How a response is delimited, on the upstream connection and for the client. Pure."""

from __future__ import annotations

from proxy.forward.exchange import Exchange
from proxy.http1.bodies import (
    ChunkedBody,
    Decoder,
    LengthBody,
    NoBody,
    UntilClose,
)
from proxy.http1.response_head import ResponseHead


def framing(exchange: Exchange, head: ResponseHead) -> tuple[Decoder, bytes, bool]:
    """How the response's body is delimited: (its decoder, our framing fields, whether we chunk).

    Follows the order of RFC 9112 §6.3.
    """
    assert exchange.head is not None
    length = head.content_length
    if exchange.method == "HEAD" or head.status in (204, 304):
        shown = length is not None and head.status != 204  # RFC 9110 §8.6
        return (
            NoBody(),
            b"\r\nContent-Length: %d" % length if shown and length is not None else b"",
            False,
        )
    if length is not None:
        return LengthBody(length), b"\r\nContent-Length: %d" % length, False
    body: Decoder = ChunkedBody() if head.chunked else UntilClose()
    if exchange.head.minor:
        return body, b"\r\nTransfer-Encoding: chunked", True
    return body, b"", False


def date_of(head: ResponseHead) -> str:
    """The value of `Date`."""
    for line in head.lines:
        name, _, value = line.partition(b":")
        if name.lower() == b"date":
            return value.strip().decode("latin-1")
    return ""


def is_event_stream(head: ResponseHead) -> bool:
    """Whether the response is a stream of server-sent events."""
    return head.media_type == "text/event-stream"


def has_an_end(head: ResponseHead, body: Decoder) -> bool:
    """Whether the response may be read faster than the client takes it (rule 3)."""
    if isinstance(body, UntilClose) or is_event_stream(head):
        return False
    for line in head.lines:
        name, _, value = line.partition(b":")
        name = name.lower()
        if name == b"x-accel-buffering" and value.strip().lower() == b"no":
            return False
    return True
