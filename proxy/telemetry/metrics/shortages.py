"""Detects that the process has no descriptor left to accept connections.

The event loop (libuv) closes such connections at once and reports nothing, so this file checks
regularly whether a descriptor is available.
"""

from __future__ import annotations

import asyncio

from proxy.core.process.shortage import DESCRIPTORS, Shortages, descriptors_left

#: Seconds between two checks, which take some microseconds each.
INTERVAL = 0.25


async def watch_shortages(shortages: Shortages, interval: float = INTERVAL) -> None:
    """Check regularly, and end the episodes that are over, until cancelled."""
    while True:
        if not descriptors_left():
            shortages.seen(DESCRIPTORS, "accepting connections")
        shortages.settle()
        await asyncio.sleep(interval)
