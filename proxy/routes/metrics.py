"""Requests, durations and bytes per route: `http_*` for ingress, `external_api_*` for egress."""

from __future__ import annotations

from proxy.forward.exchange import Exchange
from proxy.forward.routing.binding import Binding
from proxy.forward.routing.plan import Hooks
from proxy.telemetry.metrics.registry import Metrics


class RouteMetrics:
    """Binds a tally, labelled once, to every route."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def bind(self, binding: Binding) -> Hooks:
        """Labels are looked up here, once per load."""
        tally = self._metrics.route(
            binding.listener_name,
            binding.route_name,
            binding.listener.direction,
            binding.route.upstream if binding.route is not None else "-",
        )

        if binding.route is not None:
            return Hooks(started=tally.begin, finished=tally.record)

        def unrouted(exchange: Exchange) -> None:
            tally.begin()
            tally.record(exchange)

        return Hooks(finished=unrouted)
