"""One request and what became of it: the record that every part of the pipeline writes into and
that the sinks (access log, metrics) read when it is over."""

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
from proxy.http1.heads import RequestHead, ResponseHead
from proxy.http1.pace import Pace
from proxy.resilience.bulkhead import BulkheadTicket as Place
from proxy.spool import SpooledBody

if TYPE_CHECKING:
    from proxy.core.errors import ProxyError, UpstreamUnreachable
    from proxy.forward.outcome import Unwatched
    from proxy.forward.routing.client_shares import ClientShare
    from proxy.forward.routing.plan import ListenerPlan, Reply, RoutePlan
    from proxy.http1.upstream.pool import UpstreamStream

logger = logging.getLogger(__name__)

_NO_BODY = NoBody()


class BodyFilter(Protocol):
    """What stands between a request's body and the upstream, and has the last word on it.

    `content_type` replaces the client's upstream; None leaves it. `stale` are the fields, in lower
    case, that are not true of the body any more where it does. `forward_length` is the length of
    what `feed` and `finish` will give in all; None makes us chunk. When something changes without
    the engine's doing (not `blocked` any more, an early refusal), the filter notifies the client's
    stream.
    """

    @property
    def content_type(self) -> bytes | None: ...

    @property
    def stale(self) -> Collection[bytes]: ...

    @property
    def forward_length(self) -> int | None: ...

    @property
    def blocked(self) -> bool:
        """Whether `feed` should get no more for now."""
        ...

    def feed(self, data: bytes) -> list[bytes]:
        """The next bytes of the body, `b""` just to ask; what may go upstream now. The upstream
        gets its request when this first gives something. Raises the `ProxyError` that refuses the
        request."""
        ...

    async def finish(self) -> list[bytes] | SpooledBody:
        """After the last byte: what was held back, or all of the body where the filter has kept it
        and has given nothing. Raises the `ProxyError` that refuses it."""
        ...

    def close(self) -> None:
        """The exchange is over, however it ended."""
        ...


class Tee:
    """A copy of a response's body, up to `limit` bytes and as long as `memory` has room for it.
    `complete` once the body has ended."""

    __slots__ = ("complete", "limit", "memory", "pieces", "size")

    def __init__(self, limit: int, memory: Holding) -> None:
        self.limit = limit
        self.memory = memory
        self.pieces: list[bytes] = []
        self.size = 0
        self.complete = False

    def add(self, pieces: list[bytes]) -> None:
        """Keep these too; past the limit everything is dropped and `complete` stays False."""
        size = sum(map(len, pieces))
        self.size += size
        if self.size <= self.limit and self.memory.try_grow(size):
            self.pieces += pieces
        else:
            self.limit = -1
            self.close()

    def close(self) -> None:
        """Nobody wants it any more."""
        self.pieces.clear()
        self.memory.clear()

    def end(self) -> None:
        """The body is complete."""
        self.complete = self.size <= self.limit


@dataclass(slots=True)
class FailedAttempt:
    """An attempt that failed, or several in a row that failed alike. Times are Unix seconds; `kind`
    is `connect`, `reset`, `timeout` or the status."""

    kind: str
    target: str | None
    at: float
    until: float
    count: int = 1


#: Failed attempts that are remembered of one exchange.
_FAILURES = 20


class Exchange:
    """A request in progress, afterwards the facts about it.

    Times: `started_at` is Unix seconds, `started` monotonic seconds, all durations seconds.
    `status` is what the client got (499: it left); `code`, `reason` and `detail` are set when the
    answer, or the lack of one, was our own doing. `bytes_in` and `bytes_out` count content, not
    framing. `extra` are facts that stages add to the access line.
    """

    # Defaults stand here, once, and not in `__init__`: most exchanges change few of them.
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
    job_id: str | None = None  # for which a worker makes this call, where that is certain
    client_correlation_id: str | None = None
    route = "-"
    continue_sent = False
    replied = False  # a final response head has been written to the client
    retries = 0  # how often the request was sent again (`X-Retry-Count`)
    filter: BodyFilter | None = None  # what looks at the request body, if anything does
    buffered: SpooledBody | None = None  # what has been read of its body and may be sent again
    body_whole = True  # nothing of it has been sent that is not in `buffered`
    parameters: Mapping[str, str] = {}  # of the path, where the route wants them
    place: Place | None = None  # at the upstream's bulkhead
    ends_by_close = False  # the response's end is that of its connection
    held: bytes | None = None  # the upstream's answer, where somebody must read it first
    pace: Pace | None = None  # how fast its body comes, where there is a minimum
    holding: Holding | None = None  # what that takes of the memory budget
    added = b""  # field lines for the client beside the upstream's, a CRLF before each
    asked_again = False  # a rescuer has used its one `AskAgain`
    away: ProxyError | None = None  # why rescuers are to be asked before the upstream
    on_refused: Callable[[Exchange], None] | None = None  # all targets refuse connections
    see_through = False  # goes on without its client, who will ask for the answer again
    instead: Reply | None = None  # an answer that was found while we wait for another
    deadline = NEVER  # monotonic: when there must be a response head, whatever it takes
    avoid: tuple[str, ...] = ()  # targets that failed an earlier attempt
    waited_at: float | None = None  # monotonic: when the upstream first said that it is full
    response: ResponseHead | None = None  # what was passed on
    tee: Tee | None = None  # keeps a copy of the response's body
    silence: float | None = None  # how long the upstream had said nothing when the client left
    unfinished: float | None = None  # how long it had been sending its response by then
    gone_in: str | None = None  # what was under way when the client left: `PHASES` of the tally
    head_after: float | None = None  # of a stream without an end: its head came so long after ours
    # Where the fast path has begun the attempt: on which connection, when, and who counts its end.
    sent_on: UpstreamStream | None = None
    sent_at = 0.0
    outcome: Unwatched | None = None
    defect: Exception | None = None  # or what went wrong before that
    share: ClientShare | None = None  # what the client has of the listener, where that is limited
    uploads = False  # counts in it as an upload
    extension: object = None  # what the stages of others share of it
    span: ExchangeTrace | None = None  # its place in a distributed trace, where spans are sent
    trace_id: str | None = None  # of that
    unreachable: UpstreamUnreachable | None = None  # why the last try to connect failed
    failures: list[FailedAttempt] | None = None  # attempts that failed, though we may have gone on

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
        """Whether a collector gets its spans."""
        return self.span is not None and self.span.sampled

    def drop_body(self) -> None:
        """Nobody will ask for the request's body again."""
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
        """Remember an attempt that failed now; what repeats itself is counted."""
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
    """The exchange is over: tell the sinks. None of them may harm the next one."""
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
