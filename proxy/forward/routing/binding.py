"""What a stage sees of a route when it is bound to it, and the interface of stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from proxy.config.listeners import Listener, Route
from proxy.config.schema import Trace as TraceSettings
from proxy.config.upstreams import Upstream as UpstreamConfig
from proxy.forward.routing.plan import (
    Hooks,
    UpstreamPlan,
)
from proxy.http1.deadlines import NEVER


@dataclass(frozen=True)
class Binding:
    """The route that a stage is bound to. `route` and `upstream` are None for requests that no
    route matched."""

    listener_name: str
    listener: Listener
    route: Route | None
    upstream: UpstreamConfig | None
    trace: TraceSettings | None = None
    """The config's `trace`."""
    #: All upstreams, by name.
    upstreams: Mapping[str, UpstreamPlan] = field(default_factory=dict)

    def upstream_plan(self, name: str) -> UpstreamPlan | None:
        """An upstream's plan with this route's timeouts; None for an unknown upstream."""
        return with_timeouts(self.upstreams.get(name), self.route)

    @property
    def route_name(self) -> str:
        """The metric label `endpoint`."""
        return self.route.name if self.route is not None else "-"


class Stage(Protocol):
    """A feature that a route can use."""

    def bind(self, binding: Binding) -> Hooks | None:
        """The stage's hooks for that route, or None if the route does not use it."""
        ...


def with_timeouts(plan: UpstreamPlan | None, route: Route | None) -> UpstreamPlan | None:
    """The upstream's plan with the route's own timeouts, if it has any."""
    if plan is None or route is None:
        return plan
    times = route.timeouts
    own = {
        f"{name}_timeout": value
        for name in ("response", "idle", "tunnel")
        if (value := getattr(times, name)) is not None
    }
    if times.response is not None:
        deadline = plan.retry.rules.deadline if plan.retry is not None else NEVER
        own["answer_timeout"] = min(times.response, deadline)
    return replace(plan, **own) if own else plan
