"""What `compile` makes of the config: everything that can be known before a request is known.

A plan is immutable once built. A reload builds new ones; exchanges in progress keep theirs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Protocol

from proxy.config.upstreams import OverloadAnswer
from proxy.core.errors import ProxyError
from proxy.core.vitals import Vitals
from proxy.forward.exchange import BodyFilter, Exchange
from proxy.forward.routing.client_shares import ClientShares, trusted
from proxy.forward.routing.header_edits import FieldEdits
from proxy.forward.routing.router import RouteTable
from proxy.http1.client import Limits
from proxy.http1.deadlines import NEVER
from proxy.http1.heads import RequestHead, ResponseHead
from proxy.http1.upstream.pool import Upstream
from proxy.resilience.bulkhead import Bulkhead
from proxy.resilience.circuit.circuit import CircuitBreaker
from proxy.resilience.outlier_ejection import TargetHealth
from proxy.resilience.retry import RetryPolicy
from proxy.spool import Spool

#: Statuses by which an upstream says that it failed, where its breaker does not say otherwise.
FAILING = frozenset({500, 502, 503, 504})

Observer = Callable[[Exchange], None]
Check = Callable[[Exchange], Coroutine[Any, Any, None] | None]
FilterFactory = Callable[[Exchange], BodyFilter | None]
HeadObserver = Callable[[Exchange, ResponseHead], None]
Admission = Callable[[Exchange], Awaitable["Reply | None"]]


@dataclass(frozen=True, slots=True)
class UpstreamPlan:
    """An upstream's connections and how long each step with it may take, in seconds."""

    name: str
    upstream: Upstream
    response_timeout: float
    idle_timeout: float
    tunnel_timeout: float
    queue_timeout: float
    connect_patience: float
    preserve_host: bool
    spool: Spool
    vitals: Vitals
    buffer_request: bool = False
    buffer_response: bool = False
    breaker: CircuitBreaker | None = None
    retry: RetryPolicy | None = None
    bulkhead: Bulkhead | None = None
    unbuffered: Bulkhead | None = None
    """Where bodies are buffered: half of the connections, for those that the spool refuses."""
    health: TargetHealth | None = None
    failing: frozenset[int] = FAILING
    answer_timeout: float = NEVER
    """The shorter of `response_timeout` and the deadline of all attempts."""
    reuse_for_all: bool = True
    """Whether requests that may not be repeated use kept connections as well."""
    overload: OverloadAnswer | None = None
    resend_unread: bool = False
    abandoned_after: float | None = None
    """Seconds of silence after which a client that leaves counts as a failure; None: never."""
    replay_limit: int = 64 * 1024
    """Bytes of a request body that are kept for a second sending."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A response of our own making. `lines` are its field lines, without framing."""

    status: int
    lines: tuple[bytes, ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class AskAgain:
    """The upstream may have a better answer now. `lines` are added to it."""

    lines: tuple[bytes, ...]


#: Why a rescue is asked for: an error of ours, or the head of the upstream's response.
Trouble = ProxyError | ResponseHead


class FallbackSource(Protocol):
    """What may have a better answer than the upstream, or must look at its answer first."""

    #: Whether `rescue` reads the upstream's answer: then it is in `x.held`, if it is not too long.
    needs_body: bool

    def wants(self, exchange: Exchange, trouble: Trouble) -> bool:
        """Whether to ask `rescue`; decided at once."""
        ...

    async def rescue(self, exchange: Exchange, trouble: Trouble) -> Reply | AskAgain | None:
        """The better answer, or None to let things take their course. Raises the `ProxyError` that
        is to be the answer."""
        ...


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a stage does on a route; what it leaves empty costs nothing.

    Those of `proxy.extend.Hooks` have the same names here.

    `started`: the route is known. `request`: raises the `ProxyError` that refuses the request
    before anything of its body is read, or returns a coroutine that does, and is awaited first.
    `filter`: makes what checks the request's body, or raises the `ProxyError` that refuses the
    request unread. `admit`: is awaited when all of the body is there and the upstream knows nothing
    of it; gives the answer that makes asking unnecessary, or raises the `ProxyError` that refuses
    the request. `rescuer`: is asked when the upstream has no good
    answer. `response`: sees the head of the upstream's answer before it is passed on, and may raise
    the `ProxyError` to answer with instead. `finished`: the record is complete. `adopted`: the plan
    is in force; binding changes nothing outside the plan, as the config may yet be refused: what is
    to change changes here.
    `traced`: `started` gives each exchange its `span`.
    """

    started: Observer | None = None
    request: Check | None = None
    filter: FilterFactory | None = None
    admit: Admission | None = None
    fallback_source: FallbackSource | None = None
    response: HeadObserver | None = None
    finished: Observer | None = None
    adopted: Callable[[], None] | None = None
    traced: bool = False


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """A route, ready to be taken. `upstream` is None only for requests that no route matched."""

    name: str
    upstream: UpstreamPlan | None
    started: tuple[Observer, ...]
    checks: tuple[Check, ...]
    filter: FilterFactory | None
    admissions: tuple[Admission, ...]  # with one, the body is read whole first
    fallback_sources: tuple[FallbackSource, ...]
    guards: bool  # no spelling of its path may get around it
    reads_answers: bool  # some rescuer needs the body of some answers
    max_body: int | None  # bytes
    body_timeout: float  # between two pieces of a body, in seconds
    finished: tuple[Observer, ...]
    request_edits: FieldEdits | None = None
    response_edits: FieldEdits | None = None
    repeatable: bool = False  # whatever the method
    min_rate: int | None = None  # bytes a second, of a client
    answered: tuple[HeadObserver, ...] = ()
    traced: bool = False  # the upstream is given our span as its parent


@dataclass(frozen=True, slots=True)
class FastRequest:
    """A request for the fast path, the parameters of its path where the route wants them, and
    what goes upstream for it: `start`, the correlation ID, the client's forwarding fields, `end`.
    """

    head: RequestHead
    route: RoutePlan
    upstream: UpstreamPlan
    parameters: Mapping[str, str]
    start: bytes
    end: bytes


@dataclass(frozen=True, slots=True)
class ListenerPlan:
    """A listener's routes and limits. Times are seconds. `plain` remembers requests; `shares` is
    None where clients are not limited each."""

    name: str
    table: RouteTable[RoutePlan]
    unrouted: RoutePlan
    limits: Limits
    header_timeout: float
    body_timeout: float
    idle_timeout: float
    max_connections: int
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...]
    plain: dict[bytes, FastRequest] = field(default_factory=dict)
    shares: ClientShares | None = None

    def trusts(self, peer: str) -> bool:
        """Whether what a client at that address says about `X-Forwarded-*` is believed."""
        return trusted(peer, self.trusted_proxies)
