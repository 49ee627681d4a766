"""How late the event loop runs its timers: the first sign of a blocked or overloaded process."""

from __future__ import annotations

import asyncio

from proxy.core.tasks import Supervised, Tasks
from proxy.telemetry.metrics.counters import Distribution

INTERVAL = 0.5  # seconds between two samples: two wake-ups a second cost nothing noticeable


class LoopLag:
    """Samples the delay of a timer into a distribution. uvloop's timers have a resolution of 1 ms,
    so delays up to that are normal."""

    def __init__(
        self, distribution: Distribution, tasks: Tasks, *, interval: float = INTERVAL
    ) -> None:
        self._distribution = distribution
        self._interval = interval
        self._sampling = Supervised("loop-lag", self._sample, tasks)

    def start(self) -> None:
        """Start sampling; needs a running loop."""
        self._sampling.start()

    async def stop(self) -> None:
        """Stop sampling, and wait for the end."""
        await self._sampling.stop()

    async def _sample(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + self._interval
            await asyncio.sleep(self._interval)
            self._distribution.observe(max(0.0, loop.time() - due))
