"""From the config to plans: done once per load, so that nothing of it is done per request.

Upstreams that a reload leaves as they were keep their connections; the others get new ones, and the
old ones end with the exchanges that use them.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from proxy.clock import Clock
from proxy.config.schema import Config, Listener, Route
from proxy.config.schema import Upstream as UpstreamConfig
from proxy.pipeline.plan import (
    FilterFactory,
    Hooks,
    ListenerPlan,
    Observer,
    RoutePlan,
    UpstreamPlan,
)
from proxy.pipeline.router import RouteTable
from proxy.wire.client import Limits
from proxy.wire.deadlines import Sweeper
from proxy.wire.pool import TargetPool, Upstream


@dataclass(frozen=True)
class Binding:
    """Where a stage is asked to take part. `route` is None for requests that no route matched."""

    listener_name: str
    listener: Listener
    route: Route | None

    @property
    def route_name(self) -> str:
        """The metric label `endpoint`."""
        return self.route.name if self.route is not None else "-"


class Stage(Protocol):
    """What a route can be asked to do."""

    def bind(self, binding: Binding) -> Hooks | None:
        """Its hooks on that route, or None where the route does not ask for it."""
        ...


@dataclass(frozen=True)
class Plans:
    """All that a config compiles to, by name."""

    listeners: dict[str, ListenerPlan]
    upstreams: dict[str, UpstreamPlan]


class Compiler:
    """Compiles configs one after the other. `on_connect(upstream)` gives what is told each
    connect's seconds."""

    def __init__(
        self,
        stages: Sequence[Stage],
        clock: Clock,
        sweeper: Sweeper,
        random: Random,
        on_connect: Callable[[str], Callable[[float], None]],
    ) -> None:
        self._stages = stages
        self._clock = clock
        self._sweeper = sweeper
        self._random = random
        self._on_connect = on_connect

    def compile(self, config: Config, before: tuple[Config, Plans] | None = None) -> Plans:
        """Plans for `config`; what did not change since `before` is taken over.

        Raises `OSError` (`ssl.SSLError` is one) when a certificate file cannot be loaded.
        """
        upstreams: dict[str, UpstreamPlan] = {}
        for name, wanted in config.upstreams.items():
            if before is not None and before[0].upstreams.get(name) == wanted:
                upstreams[name] = before[1].upstreams[name]
            else:
                upstreams[name] = self._upstream(name, wanted)
        listeners = {
            name: self._listener(name, listener, upstreams)
            for name, listener in config.listeners.items()
        }
        return Plans(listeners, upstreams)

    def _upstream(self, name: str, config: UpstreamConfig) -> UpstreamPlan:
        tls = _client_tls(config) if config.targets[0].scheme == "https" else None
        pools = [
            TargetPool(
                address,
                config.pool,
                config.timeouts.connect,
                self._clock,
                self._sweeper,
                self._on_connect(name),
                tls,
                config.tls.server_name,
            )
            for address in config.targets
        ]
        return UpstreamPlan(
            name=name,
            upstream=Upstream(name, pools, self._random),
            response_timeout=config.timeouts.response,
            idle_timeout=config.timeouts.idle,
            tunnel_timeout=config.timeouts.tunnel,
            queue_timeout=config.pool.queue_timeout,
            connect_patience=config.connect_patience,
            preserve_host=config.host == "preserve",
        )

    def _listener(
        self, name: str, config: Listener, upstreams: dict[str, UpstreamPlan]
    ) -> ListenerPlan:
        routes = [
            (route.methods, route.path, self._route(name, config, route, upstreams))
            for route in config.routes
        ]
        return ListenerPlan(
            name=name,
            table=RouteTable(routes),
            unrouted=self._route(name, config, None, upstreams),
            limits=Limits(
                config.limits.request_line, config.limits.header, config.limits.header_count
            ),
            header_timeout=config.timeouts.header,
            body_timeout=config.timeouts.body,
            idle_timeout=config.timeouts.idle,
            max_connections=config.limits.connections,
            trusted_proxies=config.trusted_proxies,
        )

    def _route(
        self,
        listener_name: str,
        listener: Listener,
        route: Route | None,
        upstreams: dict[str, UpstreamPlan],
    ) -> RoutePlan:
        started: list[Observer] = []
        filters: list[FilterFactory] = []
        finished: list[Observer] = []
        for stage in self._stages:
            hooks = stage.bind(Binding(listener_name, listener, route))
            if hooks is None:
                continue
            if hooks.started is not None:
                started.append(hooks.started)
            if hooks.filter is not None:
                filters.append(hooks.filter)
            if hooks.finished is not None:
                finished.append(hooks.finished)
        if len(filters) > 1:
            raise ValueError("two stages filter the body of one route")
        return RoutePlan(
            name=route.name if route is not None else "-",
            upstream=upstreams[route.upstream] if route is not None else None,
            started=tuple(started),
            filter=filters[0] if filters else None,
            finished=tuple(finished),
        )


def _client_tls(config: UpstreamConfig) -> ssl.SSLContext:
    """Verification is on unless the config turned it off."""
    context = ssl.create_default_context(cafile=config.tls.ca)
    context.set_alpn_protocols(["http/1.1"])
    if not config.tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
