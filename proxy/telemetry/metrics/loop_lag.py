"""How late the event loop runs its timers: the first sign of a blocked or overloaded process."""

from __future__ import annotations

import asyncio

from proxy.telemetry.metrics.counters import Distribution

INTERVAL = 0.5  # seconds between two samples: two wake-ups a second cost nothing noticeable


async def sample_loop_lag(lag: Distribution, interval: float = INTERVAL) -> None:
    """Sample the delay of a timer into `lag` until cancelled. uvloop's timers have a resolution of
    1 ms, so delays up to that are normal."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + interval
        await asyncio.sleep(interval)
        lag.observe(max(0.0, loop.time() - due))
