"""What `compile` makes of the config: everything that can be known before a request is known.

A plan is immutable once built. A reload builds new ones; exchanges in progress keep theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address

from proxy.pipeline.exchange import BodyFilter, Exchange
from proxy.pipeline.router import RouteTable
from proxy.wire.client import Limits
from proxy.wire.pool import Upstream

Observer = Callable[[Exchange], None]
FilterFactory = Callable[[Exchange], BodyFilter | None]


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


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a stage does on a route; what it leaves empty costs nothing.

    `started`: the route is known. `filter`: makes what checks the request's body, or raises the
    `ProxyError` that refuses the request unread. `finished`: the record is complete.
    """

    started: Observer | None = None
    filter: FilterFactory | None = None
    finished: Observer | None = None


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """A route, ready to be taken. `upstream` is None only for requests that no route matched."""

    name: str
    upstream: UpstreamPlan | None
    started: tuple[Observer, ...]
    filter: FilterFactory | None
    finished: tuple[Observer, ...]


@dataclass(frozen=True, slots=True)
class ListenerPlan:
    """A listener's routes and limits. Times are seconds."""

    name: str
    table: RouteTable[RoutePlan]
    unrouted: RoutePlan
    limits: Limits
    header_timeout: float
    body_timeout: float
    idle_timeout: float
    max_connections: int
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...]

    def trusts(self, peer: str) -> bool:
        """Whether what a client at that address says about `X-Forwarded-*` is believed."""
        if not self.trusted_proxies or not peer:
            return False
        address = ip_address(peer.partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self.trusted_proxies)
