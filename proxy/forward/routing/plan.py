"""The plans that `compile` builds from the config: everything that can be decided before a request.

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
from proxy.http1.request_head import RequestHead
from proxy.http1.response_head import ResponseHead
from proxy.http1.upstream.balancer import Upstream
from proxy.resilience.bulkhead import Bulkhead
from proxy.resilience.circuit.circuit import CircuitBreaker
from proxy.resilience.outlier_ejection import TargetHealth
from proxy.resilience.retry import RetryPolicy
from proxy.spool import Spool

#: Statuses that count as failures unless the upstream's breaker configures others.
FAILING = frozenset({500, 502, 503, 504})

Observer = Callable[[Exchange], None]
Check = Callable[[Exchange], Coroutine[Any, Any, None] | None]
FilterFactory = Callable[[Exchange], BodyFilter | None]
HeadObserver = Callable[[Exchange, ResponseHead], None]
Admission = Callable[[Exchange], Awaitable["Reply | None"]]


@dataclass(frozen=True, slots=True)
class UpstreamPlan:
    """An upstream's connections, and its time limits in seconds."""

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
    """With request buffering: places for bodies that the spool does not take, half of the
    connections."""
    health: TargetHealth | None = None
    failing: frozenset[int] = FAILING
    answer_timeout: float = NEVER
    """The shorter of `response_timeout` and the deadline for all attempts."""
    reuse_for_all: bool = True
    """Whether requests that may not be repeated use idle connections too."""
    overload: OverloadAnswer | None = None
    resend_unread: bool = False
    abandoned_after: float | None = None
    """Seconds of silence after which a client that leaves counts as a failure; None: never."""
    replay_limit: int = 64 * 1024
    """Bytes of a request body that are kept for a retry."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A response made by the proxy. `lines` are its field lines, without framing."""

    status: int
    lines: tuple[bytes, ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class AskAgain:
    """Ask the upstream again; `lines` are added to the response."""

    lines: tuple[bytes, ...]


#: Why a fallback is asked for: an error of our own, or the head of the upstream's response.
Trouble = ProxyError | ResponseHead


class FallbackSource(Protocol):
    """A stage that may have a better answer than the upstream, or must read its response first."""

    #: Whether `fallback` reads the response's body: then it is in `exchange.response_body`, unless
    #: too long.
    needs_body: bool

    def wants(self, exchange: Exchange, trouble: Trouble) -> bool:
        """Whether to ask `fallback`; decided at once."""
        ...

    async def fallback(self, exchange: Exchange, trouble: Trouble) -> Reply | AskAgain | None:
        """The better answer, or None to decline. Raises the `ProxyError` to answer with."""
        ...


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a stage does on a route. A hook left empty costs nothing.

    The hooks of `proxy.extend.Hooks` have the same names.

    - `started`: the route is known.
    - `request`: may raise the `ProxyError` that refuses the request before its body is read, or
      return a coroutine that may; that is awaited first.
    - `filter`: makes the body filter, or raises the `ProxyError` that refuses the request unread.
    - `admit`: awaited when the whole body has been read and the upstream has not been contacted.
      Returns a reply that makes the call unnecessary, or None, or raises the `ProxyError` that
      refuses the request.
    - `fallback_source`: asked when the upstream has no good answer.
    - `response`: sees the response's head before it is relayed, and may raise the `ProxyError` to
      answer with instead.
    - `finished`: the record is complete.
    - `adopted`: the plan is in force. Binding must not change anything outside the plan, because
      the config may still be rejected; such changes belong here.
    - `traced`: `started` sets each exchange's `span`.
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
    """A compiled route. `upstream` is None only for requests that no route matched."""

    name: str
    upstream: UpstreamPlan | None
    started: tuple[Observer, ...]
    checks: tuple[Check, ...]
    filter: FilterFactory | None
    admissions: tuple[Admission, ...]  # if any, the whole body is read first
    fallback_sources: tuple[FallbackSource, ...]
    guards: bool  # no spelling of its path may bypass it
    reads_answers: bool  # some fallback needs the body of some responses
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
    """A request prepared for the fast path. `parameters` are those of its path, where the route
    uses them. The upstream gets `start`, correlation ID, forwarding fields and `end`, in this
    order.
    """

    head: RequestHead
    route: RoutePlan
    upstream: UpstreamPlan
    parameters: Mapping[str, str]
    start: bytes
    end: bytes


@dataclass(frozen=True, slots=True)
class ListenerPlan:
    """A listener's routes and limits; times in seconds. `fast_requests` is the fast path's memo, by
    the request's bytes. `shares` is None where there are no limits per client."""

    name: str
    table: RouteTable[RoutePlan]
    unrouted: RoutePlan
    limits: Limits
    header_timeout: float
    body_timeout: float
    idle_timeout: float
    max_connections: int
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...]
    fast_requests: dict[bytes, FastRequest] = field(default_factory=dict)
    shares: ClientShares | None = None

    def trusts(self, peer: str) -> bool:
        """Whether `X-Forwarded-*` fields from that address are trusted."""
        return trusted(peer, self.trusted_proxies)
