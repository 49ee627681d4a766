"""Detects that the process has no descriptor left to accept connections.

The event loop (libuv) closes such connections at once and reports nothing, so this file checks
regularly whether a descriptor is available.
"""

from __future__ import annotations

import asyncio

from proxy.core.process.shortage import DESCRIPTORS, descriptors_left
from proxy.core.tasks import Supervised
from proxy.core.vitals import Vitals

#: Seconds between two checks, which take some microseconds each.
INTERVAL = 0.25


class ShortageWatch:
    """Checks regularly, and ends the episodes that are over."""

    def __init__(self, vitals: Vitals, *, interval: float = INTERVAL) -> None:
        self._shortages = vitals.shortages
        self._interval = interval
        self._checking = Supervised("shortage-watch", self._watch, vitals.tasks)

    def start(self) -> None:
        """Start; needs a running loop."""
        self._checking.start()

    async def stop(self) -> None:
        """Stop it."""
        await self._checking.stop()

    def check(self) -> None:
        """Check once."""
        if not descriptors_left():
            self._shortages.seen(DESCRIPTORS, "accepting connections")
        self._shortages.settle()

    async def _watch(self) -> None:
        while True:
            self.check()
            await asyncio.sleep(self._interval)
