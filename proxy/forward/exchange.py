"""The record of one request: every part of the pipeline writes to it, and the sinks (access log,
metrics, trace) read it when the exchange is over."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from proxy.core.headers import is_correlation_id, new_correlation_id
from proxy.core.memory.budget import Holding
from proxy.core.trace_context import ExchangeTrace
from proxy.http1.bodies import ChunkedBody, Decoder, LengthBody, NoBody
from proxy.http1.client import ClientStream
from proxy.http1.deadlines import NEVER
from proxy.http1.pace import Pace
from proxy.http1.request_head import RequestHead
from proxy.http1.response_head import ResponseHead
from proxy.resilience.bulkhead import BulkheadTicket as Place
from proxy.spool import SpooledBody

if TYPE_CHECKING:
    from proxy.core.errors import ProxyError, UpstreamUnreachable
    from proxy.forward.outcome import NoOpOutcome
    from proxy.forward.routing.client_shares import ClientShare
    from proxy.forward.routing.plan import ListenerPlan, Reply, RoutePlan
    from proxy.http1.upstream.connection import UpstreamStream

logger = logging.getLogger(__name__)

_NO_BODY = NoBody()


class BodyFilter(Protocol):
    """Checks, and may rewrite, a request's body before the upstream gets it.

    `content_type` replaces the client's; None keeps it. `stale` are the names, in lower case, of
    fields that no longer describe the body once it has been rewritten. `forward_length` is the
    total length of what `feed` and `finish` return; None means chunked. When its state changes on
    its own (no longer `blocked`, an early refusal), the filter notifies the client's stream.
    """

    @property
    def content_type(self) -> bytes | None: ...

    @property
    def stale(self) -> Collection[bytes]: ...

    @property
    def forward_length(self) -> int | None: ...

    @property
    def blocked(self) -> bool:
        """Whether `feed` must not be given more data for now."""
        ...

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the body (`b""` to poll) and return what may go upstream now. The
        upstream gets the request once this returns something. Raises the `ProxyError` that refuses
        the request."""
        ...

    async def finish(self) -> list[bytes] | SpooledBody:
        """After the last byte, return what was held back, or the whole body if the filter has kept
        it and released nothing. Raises the `ProxyError` that refuses the request."""
        ...

    def close(self) -> None:
        """The exchange is over, however it ended."""
        ...


class Tee:
    """A copy of a response's body, up to `limit` bytes and while `memory` has room. `complete` is
    set once the body has ended."""

    __slots__ = ("complete", "limit", "memory", "pieces", "size")

    def __init__(self, limit: int, memory: Holding) -> None:
        self.limit = limit
        self.memory = memory
        self.pieces: list[bytes] = []
        self.size = 0
        self.complete = False

    def add(self, pieces: list[bytes]) -> None:
        """Keep `pieces`. Past the limit, everything is dropped and `complete` stays False."""
        size = sum(map(len, pieces))
        self.size += size
        if self.size <= self.limit and self.memory.try_grow(size):
            self.pieces += pieces
        else:
            self.limit = -1
            self.close()

    def close(self) -> None:
        """Drop the copy."""
        self.pieces.clear()
        self.memory.clear()

    def end(self) -> None:
        """The body is complete."""
        self.complete = self.size <= self.limit


@dataclass(slots=True)
class FailedAttempt:
    """A failed attempt, or several in a row that failed the same way. Times are Unix seconds;
    `kind` is `connect`, `reset`, `timeout` or the status."""

    kind: str
    target: str | None
    at: float
    until: float
    count: int = 1


#: Failed attempts kept for one exchange.
_FAILURES = 20


class Exchange:
    """A request in progress, and later the record of it.

    Times: `started_at` is in Unix seconds, `started` in monotonic seconds, all durations in
    seconds. `status` is what the client got (499: it left). `code`, `reason` and `detail` are set
    when the proxy itself answered or failed to. `bytes_in` and `bytes_out` count content, not
    framing. `extra` holds fields that stages add to the access line.
    """

    # Defaults are class attributes because most exchanges change few of them.
    duration = 0.0
    status = 0
    code: str | None = None
    reason: str | None = None
    detail: str | None = None
    upstream: str | None = None
    target: str | None = None
    connect_time: float | None = None
    upstream_time: float | None = None
    attempts = 0
    bytes_in = 0
    bytes_out = 0
    extra: dict[str, object] | None = None
    job_id: str | None = None  # the job that a worker makes this call for, if that is certain
    client_correlation_id: str | None = None
    route = "-"
    continue_sent = False
    replied = False  # a final response head has been written to the client
    retries = 0  # how often the request was sent again (`X-Retry-Count`)
    filter: BodyFilter | None = None  # checks the request body
    buffered: SpooledBody | None = None  # the part of the body that can be sent again
    body_whole = True  # everything sent of the body is in `buffered`
    parameters: Mapping[str, str] = {}  # path parameters, where the route uses them
    place: Place | None = None  # in the upstream's bulkhead
    ends_by_close = False  # the response's body ends with its connection
    response_body: bytes | None = None  # the response's body, where a stage must read it first
    pace: Pace | None = None  # the sending rate of its body, where a minimum is set
    holding: Holding | None = None  # memory reserved for buffered responses and own replies
    added = b""  # extra field lines for the client, each preceded by CRLF
    asked_again = False  # the one `AskAgain` of a fallback has been used
    away: ProxyError | None = None  # set to try the fallbacks before the upstream
    on_refused: Callable[[Exchange], None] | None = (
        None  # called when all targets refuse connections
    )
    see_through = False  # continues without its client, which will ask again
    fallback_reply: Reply | None = None  # found while waiting for the upstream
    deadline = NEVER  # monotonic: latest time for a response head, over all attempts
    avoid: tuple[str, ...] = ()  # targets that failed earlier attempts
    waited_at: float | None = None  # monotonic: when the upstream first reported itself full
    response: ResponseHead | None = None  # the head that was relayed
    tee: Tee | None = None  # keeps a copy of the response's body
    silence: float | None = None  # seconds since the request was sent when the client left
    unfinished: float | None = None  # seconds since the response began when the client left
    gone_in: str | None = None  # the phase in which the client left (`PHASES` of the tally)
    head_after: float | None = None  # for an endless stream: seconds until its head came
    # Set by the fast path when it has begun the attempt: connection, time, outcome.
    sent_on: UpstreamStream | None = None
    sent_at = 0.0
    outcome: NoOpOutcome | None = None
    defect: Exception | None = None  # or the exception that stopped it
    share: ClientShare | None = (
        None  # the client's share of the listener, where clients are limited
    )
    uploads = False  # counts as an upload in that share
    extension: object = None  # state shared by extension stages
    span: ExchangeTrace | None = None  # its span, where spans are sent
    trace_id: str | None = None  # the span's trace
    unreachable: UpstreamUnreachable | None = None  # why the last connection attempt failed
    failures: list[FailedAttempt] | None = None  # failed attempts, including those retried

    def __init__(
        self, stream: ClientStream, listener: ListenerPlan, head: RequestHead | None
    ) -> None:
        self.stream = stream
        self.head = head
        self.client = stream.address
        self.listener = listener.name
        self.plan: RoutePlan = listener.unrouted
        self.started = stream.clock.monotonic()
        self.started_at = stream.clock.time()
        if head is None:
            self.method = self.path = "-"
            self.keep_alive = False
            self.body: Decoder = _NO_BODY
            self.correlation_id = new_correlation_id()
            return
        self.method = head.method
        self.path = head.target
        self.keep_alive = head.keep_alive
        if head.chunked:
            self.body = ChunkedBody()
        elif head.content_length:
            self.body = LengthBody(head.content_length)
        else:
            self.body = _NO_BODY
        given = head.correlation
        if given is not None and len(given) == 1 and is_correlation_id(given[0]):
            self.correlation_id = given[0].decode()
        else:
            self.correlation_id = new_correlation_id()
            if given is not None:
                self.client_correlation_id = b", ".join(given).decode("latin-1")

    @property
    def trace_sampled(self) -> bool:
        """Whether its spans are exported."""
        return self.span is not None and self.span.sampled

    def drop_body(self) -> None:
        """Release the buffered request body: no further attempt needs it."""
        if self.buffered is not None:
            self.buffered.close()
            self.buffered = None

    def note(self, **facts: object) -> None:
        """Add facts to the access line."""
        if self.extra is None:
            self.extra = facts
        else:
            self.extra.update(facts)

    def failed_attempt(self, kind: str, target: str | None) -> None:
        """Record an attempt that failed now; identical failures in a row are counted together."""
        now = self.stream.clock.time()
        if self.span is not None:
            self.span.failed_attempt(kind, target, now)
        if self.failures is None:
            self.failures = []
        elif (last := self.failures[-1]).kind == kind and last.target == target:
            last.until = now
            last.count += 1
            return
        if len(self.failures) < _FAILURES:
            self.failures.append(FailedAttempt(kind, target, now, now))


def finish(exchange: Exchange) -> None:
    """End the exchange: notify the sinks and release what it holds. A failing sink does not stop
    the others."""
    exchange.duration = exchange.stream.clock.monotonic() - exchange.started
    for observe in exchange.plan.finished:
        try:
            observe(exchange)
        except Exception:
            logger.exception("sink failed", extra={"correlation_id": exchange.correlation_id})
    if exchange.buffered is not None:
        exchange.drop_body()
    if exchange.holding is not None:
        exchange.holding.clear()
    if exchange.filter is not None:
        exchange.filter.close()
    if exchange.tee is not None:
        exchange.tee.close()
