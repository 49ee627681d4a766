"""One access line per exchange, including those that no route matched."""

from __future__ import annotations

from proxy.forward.exchange import Exchange
from proxy.forward.routing.binding import Binding
from proxy.forward.routing.plan import Hooks
from proxy.telemetry.logs.access import AccessLog


class AccessLine:
    """Binds the access log to every route."""

    def __init__(self, log: AccessLog) -> None:
        self._log = log

    def bind(self, binding: Binding) -> Hooks:
        """The constant part of the line is encoded here, once per load."""
        log = self._log.bind(binding.listener_name, binding.route_name)
        if binding.listener.direction != "egress":
            return Hooks(finished=log)

        def finished(exchange: Exchange) -> None:
            if exchange.job_id is not None:
                exchange.note(job_id=exchange.job_id)
            log(exchange)

        return Hooks(finished=finished)
