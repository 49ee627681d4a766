"""Compiles the config to plans, once per load, so that none of this work is done per request.

Upstreams that a reload does not change keep their connections. The others get new ones, and the old
connections end with the exchanges that use them.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from random import Random

from proxy.config.listeners import Listener
from proxy.config.schema import Config
from proxy.config.schema import Trace as TraceSettings
from proxy.config.upstreams import Bulkhead as BulkheadRules
from proxy.config.upstreams import Retry as RetryRules
from proxy.config.upstreams import Upstream as UpstreamConfig
from proxy.core.clock import Clock
from proxy.core.memory.budget import MemoryBudget
from proxy.core.vitals import Vitals
from proxy.forward.routing.binding import Binding, Stage
from proxy.forward.routing.client_shares import ClientShares
from proxy.forward.routing.plan import (
    FAILING,
    ListenerPlan,
    UpstreamPlan,
)
from proxy.forward.routing.route import compile_route
from proxy.forward.routing.router import RouteTable
from proxy.http1.client import Limits
from proxy.http1.deadlines import NEVER, Sweeper
from proxy.http1.upstream.balancer import Upstream
from proxy.http1.upstream.pool import TargetPool
from proxy.http1.upstream.target import Target
from proxy.resilience.bulkhead import Bulkhead
from proxy.resilience.circuit.circuit import CircuitBreaker
from proxy.resilience.outlier_ejection import TargetHealth
from proxy.resilience.retry import RetryPolicy
from proxy.spool import Spool

#: Header fields of a request: no client sends half as many, and each costs time to check.
MOST_FIELDS = 128


@dataclass(frozen=True)
class Plans:
    """Everything that a config compiles to, by name."""

    listeners: dict[str, ListenerPlan]
    upstreams: dict[str, UpstreamPlan]
    #: TLS contexts of https upstreams, loaded from the files again even where the plan is kept.
    tls: dict[str, ssl.SSLContext]
    #: Called when these plans come into force (`Hooks.adopted`).
    adopted: tuple[Callable[[], None], ...]


@dataclass(frozen=True)
class Engine:
    """What every plan of one proxy runs on."""

    clock: Clock
    sweeper: Sweeper
    memory: MemoryBudget
    spool: Spool
    random: Random
    vitals: Vitals = field(default_factory=Vitals)


class Compiler:
    """Compiles one config after another. `on_connect(upstream)` returns a callback that takes the
    seconds of each connect, `breaker_of(upstream)` the upstream's breaker."""

    def __init__(
        self,
        stages: Sequence[Stage],
        engine: Engine,
        on_connect: Callable[[str], Callable[[float], None]],
        breaker_of: Callable[[str], CircuitBreaker | None],
    ) -> None:
        self._stages = stages
        self._engine = engine
        self._on_connect = on_connect
        self._breaker_of = breaker_of
        #: By listener; kept across reloads, so that what each client has used is not forgotten.
        self.shares: dict[str, ClientShares] = {}

    def compile(
        self,
        config: Config,
        before: tuple[Config, Plans] | None = None,
        connections: Mapping[str, int] | None = None,
    ) -> Plans:
        """Plans for `config`; what has not changed since `before` is reused. `connections` are the
        connection limits by listener, where descriptors are too few for the configured ones.

        Raises `OSError` (`ssl.SSLError` is one) when a certificate file cannot be loaded.
        """
        upstreams: dict[str, UpstreamPlan] = {}
        tls: dict[str, ssl.SSLContext] = {}
        adopted: list[Callable[[], None]] = []
        for name, wanted in config.upstreams.items():
            context = client_tls(wanted)
            if context is not None:
                tls[name] = context
            if before is not None and before[0].upstreams.get(name) == wanted:
                upstreams[name] = before[1].upstreams[name]
            else:
                old = (
                    (before[0].upstreams[name], before[1].upstreams[name])
                    if before is not None and name in before[0].upstreams
                    else None
                )
                upstreams[name] = self._upstream(name, wanted, old, context)
        listeners = {
            name: self._listener(
                name,
                listener,
                config.upstreams,
                upstreams,
                (connections or {}).get(name, listener.limits.connections),
                adopted,
                config.trace,
            )
            for name, listener in config.listeners.items()
        }
        return Plans(listeners, upstreams, tls, tuple(adopted))

    def settle(self, config: Config, plans: Plans) -> None:
        """The plans are in force: apply the new rules to the state that outlives a reload."""
        for name, listener in plans.listeners.items():
            per_client = config.listeners[name].limits.per_client
            if listener.shares is not None and per_client is not None:
                self.shares[name] = listener.shares
                listener.shares.configure(per_client, listener.trusted_proxies)
        for adopt in plans.adopted:
            adopt()
        for name, plan in plans.upstreams.items():
            for pool in plan.upstream.pools:
                pool.target.tls = plans.tls.get(name)
            rules = config.upstreams[name]
            if plan.bulkhead is not None and rules.bulkhead is not None:
                plan.bulkhead.configure(rules.bulkhead)
            if plan.unbuffered is not None:
                plan.unbuffered.configure(_half(rules))
            if plan.retry is not None and rules.retry is not None:
                plan.retry.configure(rules.retry)

    def _upstream(
        self,
        name: str,
        config: UpstreamConfig,
        old: tuple[UpstreamConfig, UpstreamPlan] | None,
        tls: ssl.SSLContext | None,
    ) -> UpstreamPlan:
        """A new plan. Bulkheads and retry budgets are those of the `old` plan: a reload must not
        hand out the same places and retries twice."""
        retry = old[1].retry if old is not None else None
        bulkhead = old[1].bulkhead if old is not None else None
        unbuffered = old[1].unbuffered if old is not None else None
        health = None
        if old is not None and _same_targets(old[0], config):
            health = old[1].health
        elif config.ejection or config.health:
            labels = [str(address) for address in config.targets]
            health = TargetHealth(labels, config.ejection, config.health)
        pools = [
            TargetPool(
                Target(address, config.timeouts.connect, tls, config.tls.server_name),
                config.pool,
                self._engine.clock,
                self._engine.sweeper,
                self._engine.memory,
                self._on_connect(name),
            )
            for address in config.targets
        ]
        return UpstreamPlan(
            name=name,
            upstream=Upstream(name, pools, self._engine.random),
            response_timeout=config.timeouts.response,
            idle_timeout=config.timeouts.idle,
            tunnel_timeout=config.timeouts.tunnel,
            queue_timeout=config.pool.queue_timeout,
            connect_patience=config.connect_patience,
            preserve_host=config.host == "preserve",
            spool=self._engine.spool,
            vitals=self._engine.vitals,
            buffer_request=config.buffering.request,
            buffer_response=config.buffering.response,
            breaker=self._breaker_of(name) if config.breaker else None,
            retry=(retry or RetryPolicy(config.retry, self._engine.random))
            if config.retry
            else None,
            bulkhead=(bulkhead or Bulkhead(name, config.bulkhead)) if config.bulkhead else None,
            unbuffered=(unbuffered or Bulkhead(name, _half(config), "unbuffered requests"))
            if config.buffering.request
            else None,
            health=health,
            failing=_failing(config),
            abandoned_after=_abandoned_after(config),
            answer_timeout=min(
                config.timeouts.response, config.retry.deadline if config.retry else NEVER
            ),
            reuse_for_all=config.pool.reuse == "always",
            overload=config.overload_answer,
            resend_unread=config.resend_unread,
            replay_limit=(config.retry or RetryRules()).buffer,
        )

    def _listener(
        self,
        name: str,
        config: Listener,
        configs: dict[str, UpstreamConfig],
        upstreams: dict[str, UpstreamPlan],
        connections: int,
        adopted: list[Callable[[], None]],
        trace: TraceSettings | None,
    ) -> ListenerPlan:
        routes = [
            (
                route.methods,
                route.path,
                compile_route(
                    self._stages,
                    Binding(name, config, route, configs[route.upstream], trace, upstreams),
                    upstreams[route.upstream],
                    adopted,
                ),
            )
            for route in config.routes
        ]
        per_client = config.limits.per_client
        shares = self.shares.get(name) if per_client is not None else None
        if shares is None and per_client is not None:
            shares = ClientShares(name, per_client, config.trusted_proxies)
        return ListenerPlan(
            name=name,
            table=RouteTable(routes, guards=attrgetter("guards")),
            unrouted=compile_route(
                self._stages, Binding(name, config, None, None, trace), None, adopted
            ),
            limits=Limits(
                config.limits.request_line,
                config.limits.header,
                MOST_FIELDS,
                config.timeouts.min_rate,
            ),
            header_timeout=config.timeouts.header,
            body_timeout=config.timeouts.body,
            idle_timeout=config.timeouts.idle,
            max_connections=connections,
            trusted_proxies=config.trusted_proxies,
            shares=shares,
        )


def _half(config: UpstreamConfig) -> BulkheadRules:
    """Bulkhead rules for bodies that could not be buffered: half of the connections."""
    pool = config.pool
    most = max(1, pool.max_connections * len(config.targets) // 2)
    return BulkheadRules.model_construct(
        max_concurrent=most, queue=pool.queue, queue_timeout=pool.queue_timeout
    )


def _same_targets(old: UpstreamConfig, new: UpstreamConfig) -> bool:
    """Whether the targets' health records are still valid."""
    return (old.targets, old.ejection, old.health) == (new.targets, new.ejection, new.health)


def client_tls(config: UpstreamConfig) -> ssl.SSLContext | None:
    """The TLS context for https targets, None for others. Verifies unless the config says not
    to."""
    if config.targets[0].scheme != "https":
        return None
    context = ssl.create_default_context(cafile=config.tls.ca)
    context.set_alpn_protocols(["http/1.1"])
    if not config.tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _failing(config: UpstreamConfig) -> frozenset[int]:
    """The statuses that count as failures."""
    if config.breaker is None:
        return FAILING
    return frozenset(kind for kind in config.breaker.failure_on if kind != "abandoned")


def _abandoned_after(config: UpstreamConfig) -> float | None:
    """Seconds of upstream silence after which a client that leaves counts as a failure; None:
    never."""
    if config.breaker is None or "abandoned" not in config.breaker.failure_on:
        return None
    return config.breaker.slow_call
