"""Detects 2xx responses of an unexpected type: an error page with status 200, another service.

Rules
1. A route that creates, reads or lists jobs expects JSON; another media type on a 2xx is
   unexpected.
2. A route of an egress listener accepts any type, but a web page is unexpected if the route has got
   other types before: its caller is a program.
3. Such responses are relayed unchanged. They are counted, noted in the access line and kept in the
   trace.
"""

from __future__ import annotations

from proxy.forward.exchange import Exchange
from proxy.forward.routing.binding import Binding
from proxy.forward.routing.plan import Hooks
from proxy.telemetry.logs.redact import clean_text
from proxy.telemetry.metrics.registry import Metrics

_PAGES = frozenset({"text/html", "application/xhtml+xml"})


class AnswerTypes:
    """Binds to routes with jobs and to those of egress listeners."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def bind(self, binding: Binding) -> Hooks | None:
        """One observer of finished exchanges, with its route's tally."""
        route = binding.route
        if route is None:
            return None
        wants_json = route.job is not None and not route.job.deletes
        if not wants_json and binding.listener.direction != "egress":
            return None
        tally = self._metrics.route(
            binding.listener_name, binding.route_name, binding.listener.direction, route.upstream
        )
        others = False  # the route has got other types than web pages

        def finished(exchange: Exchange) -> None:
            nonlocal others
            head = exchange.response
            if head is None or not 200 <= head.status < 300:
                return
            found = head.media_type
            if not found or "json" in found:
                others = True
                return
            if wants_json or (others and found in _PAGES):
                tally.unexpected += 1
                tally.unexpected_type = shown = clean_text(found, 64)
                exchange.note(unexpected_type=shown)
            elif found not in _PAGES:
                others = True

        return Hooks(finished=finished)
