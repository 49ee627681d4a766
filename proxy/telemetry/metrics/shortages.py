"""Notices that the process has no descriptor left to accept connections with.

The event loop (libuv) closes such connections at once and tells nobody, so it is asked here: can a
descriptor be had at this moment?
"""

from __future__ import annotations

import asyncio

from proxy.core.process.shortage import DESCRIPTORS, descriptors_left
from proxy.core.tasks import Supervised
from proxy.core.vitals import Vitals

#: Seconds between two looks, of some microseconds each.
INTERVAL = 0.25


class ShortageWatch:
    """Looks now and then, and ends the episodes that are over."""

    def __init__(self, vitals: Vitals, *, interval: float = INTERVAL) -> None:
        self._shortages = vitals.shortages
        self._interval = interval
        self._looking = Supervised("shortage-watch", self._watch, vitals.tasks)

    def start(self) -> None:
        """Begin; needs a running loop."""
        self._looking.start()

    async def stop(self) -> None:
        """End it."""
        await self._looking.stop()

    def look(self) -> None:
        """One look."""
        if not descriptors_left():
            self._shortages.seen(DESCRIPTORS, "accepting connections")
        self._shortages.settle()

    async def _watch(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(self._interval)
