"""Links a worker's calls to their job: its ID in the log, its creation's correlation ID upstream.

Only if a single job can be meant (`active_jobs.py`), and never overriding an ID from the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from proxy.forward.exchange import Exchange
from proxy.forward.routing.binding import Binding
from proxy.forward.routing.plan import Hooks
from proxy.jobs.mirror import Mirror
from proxy.jobs.redis.active_jobs import ActiveJob


class JobContext:
    """Binds to the routes of egress listeners, if there is a mirror."""

    def __init__(self, mirrors: Callable[[], Iterable[Mirror]]) -> None:
        self._mirrors = mirrors

    def bind(self, binding: Binding) -> Hooks | None:
        """Nothing without a mirror, which knows the jobs."""
        active = [mirror.active for mirror in self._mirrors()]
        if binding.listener.direction != "egress" or not active:
            return None

        def started(exchange: Exchange) -> None:
            found: ActiveJob | None = None
            for jobs in active:
                one = jobs.of_call(exchange.path)
                if one is not None and found is not None:
                    return  # jobs of two services match, so the call is ambiguous
                found = one or found
            if found is None:
                return
            exchange.job_id = found.job_id
            assert exchange.head is not None
            if found.correlation_id is not None and exchange.head.correlation is None:
                exchange.correlation_id = found.correlation_id

        return Hooks(started=started)
