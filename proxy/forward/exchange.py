"""The record of one request: every phase writes its part of it, and the sinks (access log, metrics,
trace) read it when the exchange is over."""

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
    from proxy.forward.routing.client_shares import ClientShare
    from proxy.forward.routing.plan import ListenerPlan, RoutePlan

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


class Routed:
    """Phase 1, the head is checked and the route found. Set by `server/`."""

    plan: RoutePlan  # `ListenerPlan.unrouted` until a route is found
    route = "-"
    parameters: Mapping[str, str] = {}  # path parameters, where the route uses them
    share: ClientShare | None = None  # of the listener, where clients are limited
    filter: BodyFilter | None = None  # checks the request body
    correlation_id: str


class Staged:
    """Phase 2, the route's stages prepare what follows. Set by `routes/`, in hooks of any time."""

    job_id: str | None = None  # the job that a worker makes this call for, if that is certain
    span: ExchangeTrace | None = None  # its span, where spans are sent
    trace_id: str | None = None  # the span's trace
    extension: object = None  # state shared by extension stages
    uploads = False  # counts as an upload in its client's share
    tee: Tee | None = None  # keeps a copy of the response's body
    away: ProxyError | None = None  # set to try the fallbacks before the upstream
    see_through = False  # continues without its client, which will ask again
    on_refused: Callable[[Exchange], None] | None = None  # called when all targets refuse


class Attempted:
    """Phase 3, the upstream is asked. Set by `forward/` (by the fast path for the one attempt that
    it makes)."""

    upstream: str | None = None
    target: str | None = None
    attempts = 0
    retries = 0  # how often the request was sent again (`X-Retry-Count`)
    deadline = NEVER  # monotonic: latest time for a response head, over all attempts
    place: Place | None = None  # in the upstream's bulkhead
    avoid: tuple[str, ...] = ()  # targets that failed earlier attempts
    failures: list[FailedAttempt] | None = None  # failed attempts, including those retried
    unreachable: UpstreamUnreachable | None = None  # why the last connection attempt failed
    full_since: float | None = None  # monotonic: when the upstream first reported itself full
    connect_time: float | None = None
    sent_at = 0.0  # monotonic: when the request's head was last sent
    upstream_time: float | None = None
    silence: float | None = None  # seconds since the request was sent when the client left
    interruption: Exception | None = None  # ends the wait for the upstream (`interrupt`)
    # The request's body.
    bytes_in = 0
    buffered: SpooledBody | None = None  # the part of the body that can be sent again
    body_whole = True  # everything sent of the body is in `buffered`
    continue_sent = False
    pace: Pace | None = None  # the sending rate of its body, where a minimum is set
    # What the fallbacks see and have asked for.
    response_body: bytes | None = None  # the response's body, where a stage must read it first
    asked_again = False  # the one `AskAgain` of a fallback has been used


class Answered:
    """Phase 4, the client is answered. Set by whoever answers: `forward/` or `server/`."""

    keep_alive: bool
    replied = False  # a final response head has been written to the client
    status = 0
    response: ResponseHead | None = None  # the head that was relayed
    added = b""  # extra field lines for the client, each preceded by CRLF
    bytes_out = 0
    ends_by_close = False  # the response's body ends with its connection
    holding: Holding | None = None  # memory reserved for buffered responses and own replies
    head_after: float | None = None  # for an endless stream: seconds until its head came
    unfinished: float | None = None  # seconds since the response began when the client left


class Ended:
    """Phase 5, the record is completed. Set by `server/` and `finish`."""

    duration = 0.0
    code: str | None = None
    reason: str | None = None
    detail: str | None = None
    gone_in: str | None = None  # what was in progress when the client left (counters.PHASES)


class Exchange(Routed, Staged, Attempted, Answered, Ended):
    """A request in progress, and later the record of it.

    Its constructor reads the head; then it passes five phases. Each is a base class that says who
    sets its fields, and `tests/unit/test_exchange_phases.py` enforces that. Defaults are class
    attributes because most exchanges change few of them.

    Times: `started_at` is in Unix seconds, `started` in monotonic seconds, all durations in
    seconds. `status` is what the client got (499: it left). `code`, `reason` and `detail` are set
    when the proxy itself answered or failed to. `bytes_in` and `bytes_out` count content, not
    framing. `extra` holds fields for the access line, which anybody may `note`.
    """

    client_correlation_id: str | None = None
    extra: dict[str, object] | None = None

    def __init__(
        self, stream: ClientStream, listener: ListenerPlan, head: RequestHead | None
    ) -> None:
        self.stream = stream
        self.head = head
        self.client = stream.address
        self.listener = listener.name
        self.plan = listener.unrouted
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

    def interrupt(self, reason: Exception) -> None:
        """End the wait for the upstream: raise `reason` there, unless the client has been answered
        by then."""
        self.interruption = reason
        self.stream.wake()

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
