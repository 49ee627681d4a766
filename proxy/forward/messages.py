"""Writes heads: requests to the upstream, responses to the client, and the proxy's own replies.

Framing is never copied: `Content-Length`, `Transfer-Encoding` and `Connection` are generated here
from what the codec parsed, whatever the peer wrote (RFC 9112 §6).
"""

from __future__ import annotations

from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

from proxy.core.clock import Clock
from proxy.core.errors import (
    PROBLEM_CONTENT_TYPE,
    ProxyError,
    TooManyRequests,
    problem_body,
    retry_after_seconds,
)
from proxy.core.trace_context import parse_traceparent
from proxy.forward.exchange import Exchange
from proxy.forward.routing.plan import ListenerPlan, Reply, UpstreamPlan
from proxy.http1.client import ClientStream
from proxy.http1.request_head import RequestHead
from proxy.http1.response_head import ResponseHead
from proxy.http1.upstream.pool import TargetPool

_PHRASES = {status.value: status.phrase for status in HTTPStatus}

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

VIA = b"\r\nVia: 1.1 reliability-proxy"
_VIA_OLD = b"\r\nVia: 1.0 reliability-proxy"


def request_head(
    exchange: Exchange, listener: ListenerPlan, plan: UpstreamPlan, pool: TargetPool
) -> bytes:
    """The request head to send upstream for `exchange`, over a connection of `pool`."""
    head = exchange.head
    assert head is not None
    host = head.host if plan.preserve_host else None
    if host is None:
        host = pool.target.address.authority.encode()
    parts = [
        _start_of_request(head, host, _passing(exchange, head, pool)),
        exchange.correlation_id.encode(),
        VIA if head.minor else _VIA_OLD,
        _forwarded(exchange.stream, head, listener),
    ]
    if head.max_forwards is not None:
        parts.append(b"\r\nMax-Forwards: " + _one_hop_less(head.method, head.max_forwards))
    length = request_length(exchange)
    if length is not None:
        parts.append(b"\r\nContent-Length: %d" % length)
    elif head.chunked or exchange.filter is not None:
        parts.append(b"\r\nTransfer-Encoding: chunked")
    if wants_websocket(head):
        parts.append(b"\r\nConnection: Upgrade\r\nUpgrade: websocket")
    elif head.te_trailers:
        parts.append(b"\r\nTE: trailers\r\nConnection: TE")
    parts.append(b"\r\n\r\n")
    return b"".join(parts)


def fast_request_frame(
    head: RequestHead, plan: UpstreamPlan, *, traced: bool = False
) -> tuple[bytes, bytes]:
    """The parts of a fast-path request's head (fast_path.py, rules 1 and 2) before the correlation
    ID and after `forwarded_for`; without `traceparent` where the proxy writes its own."""
    host = head.host
    assert host is not None
    shown = host if plan.preserve_host else plan.upstream.pools[0].target.address.authority.encode()
    passing = head.passing
    if traced:
        given = head.values(b"traceparent")
        stale: dict[bytes, bytes | None] = {b"traceparent": None}
        if parse_traceparent(given) is None:
            stale[b"tracestate"] = None
        if given or head.values(b"tracestate"):
            passing = head.passing_with(stale)
    start = _start_of_request(head, shown, passing)
    return start, b"\r\nX-Forwarded-Host: %b\r\n\r\n" % host


def _start_of_request(head: RequestHead, host: bytes, passing: bytes) -> bytes:
    line = f"{head.method} {head.target} HTTP/1.1\r\nHost: ".encode()
    return b"%b%b%b\r\nX-Correlation-ID: " % (line, host, passing)


def request_length(exchange: Exchange) -> int | None:
    """The length of the request's body as it goes upstream; None if it is chunked or absent. A
    fully buffered body has a length, unless it has trailers, which need chunked framing."""
    body = exchange.buffered
    if body is not None and body.complete and not exchange.body.trailers:
        return body.length
    if exchange.filter is not None:
        return exchange.filter.forward_length
    return exchange.head.content_length if exchange.head is not None else None


def _passing(exchange: Exchange, head: RequestHead, pool: TargetPool) -> bytes:
    """The client's fields, adjusted. If the filter rewrites the body, it replaces `Content-Type`
    and removes fields that no longer apply. A retry gets `X-Retry-Count`, a response that a stage
    must read is requested uncompressed, and where spans are sent `traceparent` is ours."""
    edits, span = exchange.plan.request_edits, exchange.span
    unchanged = exchange.filter is None and not exchange.retries and not exchange.plan.reads_answers
    if unchanged and edits is None and span is None:
        return head.passing
    ours: dict[bytes, bytes | None] = {}
    if exchange.filter is not None and exchange.filter.content_type is not None:
        ours = dict.fromkeys(exchange.filter.stale)
        ours[b"content-type"] = exchange.filter.content_type
    if exchange.retries:
        ours[b"x-retry-count"] = b"%d" % exchange.retries
    if exchange.plan.reads_answers:
        ours[b"accept-encoding"] = b"identity"
    if span is not None:
        ours[b"traceparent"] = span.begin_attempt(pool.label, exchange.stream.clock.time())
        if not span.remote:
            ours[b"tracestate"] = None
    passing = head.passing_with(ours) if ours else head.passing
    return passing if edits is None else edits.of_request(passing)


def _one_hop_less(method: str, hops: bytes) -> bytes:
    """`Max-Forwards` for the next hop; decremented for OPTIONS only (RFC 9110 §7.6.2)."""
    return b"%d" % (int(hops[:9]) - 1) if method == "OPTIONS" and hops.isdigit() else hops


def wants_websocket(head: RequestHead) -> bool:
    """Whether this is a WebSocket handshake (RFC 6455 §4.1), the only upgrade allowed. Any other,
    above all h2c, would let a client bypass the proxy's checks in a protocol that it cannot
    read."""
    return head.upgrade == b"websocket" and head.method == "GET" and not head.has_body


def forwarded_for(stream: ClientStream) -> bytes:
    """`X-Forwarded-For` and `X-Forwarded-Proto` for the client's connection."""
    proto = b"https" if stream.secure else b"http"
    peer = (stream.host_ip or "unknown").encode()
    return b"\r\nX-Forwarded-For: %b\r\nX-Forwarded-Proto: %b" % (peer, proto)


def _forwarded(stream: ClientStream, head: RequestHead, listener: ListenerPlan) -> bytes:
    """`X-Forwarded-*`: our own, and the client's only if the listener trusts its address."""
    peer = stream.host_ip or "unknown"
    proto = b"https" if stream.secure else b"http"
    host = head.host
    if head.forwarded is None or not listener.trusts(stream.host_ip):
        ours = forwarded_for(stream)
        return ours if host is None else ours + b"\r\nX-Forwarded-Host: " + host
    chain = [value for name, value in head.forwarded if name == b"x-forwarded-for" and value]
    lines = {
        b"x-forwarded-for": b", ".join([*chain, peer.encode()]),
        b"x-forwarded-proto": proto,
    }
    if host is not None:
        lines[b"x-forwarded-host"] = host
    for name, value in head.forwarded:
        if name != b"x-forwarded-for":
            lines[name] = value
    return b"".join(b"\r\n" + name.title() + b": " + value for name, value in lines.items())


def response_head(exchange: Exchange, head: ResponseHead, framing: bytes) -> bytes:
    """The head to send to the client for the upstream's `head`, with our own `framing` fields."""
    edits = exchange.plan.response_edits
    return b"%bX-Correlation-ID: %b%b%b%b\r\n\r\n" % (
        head.passing if edits is None else edits.of_response(head.passing),
        exchange.correlation_id.encode(),
        b"" if head.dated else date_field(exchange.stream.clock),
        framing + exchange.added,
        connection_field(exchange),
    )


def interim_head(exchange: Exchange, head: ResponseHead) -> bytes:
    """The head of a relayed 1xx response."""
    return b"%bX-Correlation-ID: %b\r\n\r\n" % (head.passing, exchange.correlation_id.encode())


def upgrade_head(exchange: Exchange, head: ResponseHead) -> bytes:
    """The 101 of a tunnel."""
    return response_head(exchange, head, b"\r\nConnection: Upgrade\r\nUpgrade: websocket")


def connection_field(exchange: Exchange) -> bytes:
    """The `Connection` field for the client (RFC 9112 §9.3, §9.6)."""
    assert exchange.head is not None or not exchange.keep_alive
    if not exchange.keep_alive:
        return b"\r\nConnection: close" if exchange.status != 101 else b""
    return (
        b"" if exchange.head is not None and exchange.head.minor else b"\r\nConnection: keep-alive"
    )


def problem_reply(exchange: Exchange, error: ProxyError) -> bytes:
    """A complete error response: RFC 9457 problem details."""
    fields = ""
    if error.retry_after is not None:
        fields += f"\r\nRetry-After: {retry_after_seconds(error.retry_after)}"
    if error.allow is not None:
        fields += f"\r\nAllow: {error.allow}"
    if error.challenge is not None:
        fields += f"\r\nWWW-Authenticate: {error.challenge}"
    if isinstance(error, TooManyRequests):
        policy, state = error.rate_limit
        fields += f"\r\nRateLimit-Policy: {policy}\r\nRateLimit: {state}"
    return own_reply(
        exchange,
        error.status,
        PROBLEM_CONTENT_TYPE,
        problem_body(error, exchange.correlation_id),
        fields,
    )


def own_reply(
    exchange: Exchange, status: int, content_type: str, body: bytes, fields: str = ""
) -> bytes:
    """A complete response of our own; without the body if the method is HEAD."""
    content = f"\r\nContent-Type: {content_type}" if body else ""
    length = "" if status == 204 else f"\r\nContent-Length: {len(body)}"
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nDate: {_date(exchange.stream.clock)}"
        f"{content}{length}\r\nX-Correlation-ID: {exchange.correlation_id}{fields}"
    )
    return b"".join(
        (
            head.encode(),
            b"" if exchange.plan.response_edits is None else exchange.plan.response_edits.added,
            connection_field(exchange),
            b"\r\n\r\n",
            b"" if exchange.method == "HEAD" else body,
        )
    )


def made_reply(exchange: Exchange, reply: Reply) -> list[bytes]:
    """A fallback's response: its head, and its body if it has one."""
    phrase = _PHRASES.get(reply.status, "")  # a config may use a status without one
    status = f"HTTP/1.1 {reply.status} {phrase}".encode()
    framing = b"" if reply.status in (204, 304) else b"\r\nContent-Length: %d" % len(reply.body)
    lines = reply.lines
    if not any(line[:5].lower() == b"date:" for line in lines):
        lines = (f"Date: {_date(exchange.stream.clock)}".encode(), *lines)
    edits = exchange.plan.response_edits
    head = b"%b\r\nX-Correlation-ID: %b%b%b\r\n\r\n" % (
        b"\r\n".join((status, *lines))
        if edits is None
        else b"\r\n".join((status, *edits.keep(lines))) + edits.added,
        exchange.correlation_id.encode(),
        framing,
        connection_field(exchange),
    )
    bodiless = not reply.body or exchange.method == "HEAD" or reply.status in (204, 304)
    return [head] if bodiless else [head, reply.body]


def date_field(clock: Clock) -> bytes:
    """The `Date` field added to a response that has none (RFC 9110 §6.6.1)."""
    return b"\r\nDate: " + _date(clock).encode()


def _date(clock: Clock) -> str:
    """The current value of `Date` (RFC 9110 §6.6.1)."""
    return _date_of(int(clock.time()))


@lru_cache(maxsize=2)
def _date_of(second: int) -> str:
    return formatdate(second, usegmt=True)
