"""The worker's calls carry the job: its ID in the log, its creation's correlation ID upstream.

Only where one job can be meant (`active_jobs.py`), and never over an ID that the caller sends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from proxy.forward.exchange import Exchange
from proxy.forward.routing.binding import Binding
from proxy.forward.routing.plan import Hooks
from proxy.jobs.mirror import Mirror
from proxy.jobs.redis.active_jobs import ActiveJob


class JobContext:
    """Binds to the routes of egress listeners, where there is a mirror to ask."""

    def __init__(self, mirrors: Callable[[], Iterable[Mirror]]) -> None:
        self._mirrors = mirrors

    def bind(self, binding: Binding) -> Hooks | None:
        """Nothing where no job is known."""
        active = [mirror.active for mirror in self._mirrors()]
        if binding.listener.direction != "egress" or not active:
            return None

        def started(exchange: Exchange) -> None:
            found: ActiveJob | None = None
            for jobs in active:
                one = jobs.of_call(exchange.path)
                if one is not None and found is not None:
                    return  # two services' jobs: nobody knows whose call it is
                found = one or found
            if found is None:
                return
            exchange.job_id = found.job_id
            assert exchange.head is not None
            if found.correlation_id is not None and exchange.head.correlation is None:
                exchange.correlation_id = found.correlation_id

        return Hooks(started=started)
