"""Notices that the process has no descriptor left to accept connections with.

The event loop (libuv) closes such connections at once and tells nobody, so it is asked here: can a
descriptor be had at this moment?
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from proxy.shortage import DESCRIPTORS, SHORTAGES, Shortages, descriptors_left

#: Seconds between two looks, of some microseconds each.
INTERVAL = 0.25


class ShortageWatch:
    """Looks now and then, and ends the episodes that are over."""

    def __init__(self, shortages: Shortages = SHORTAGES, *, interval: float = INTERVAL) -> None:
        self._shortages = shortages
        self._interval = interval
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; needs a running loop."""
        self._task = asyncio.create_task(self._watch(), name="shortage-watch")

    async def stop(self) -> None:
        """End it."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def look(self) -> None:
        """One look."""
        if not descriptors_left():
            self._shortages.seen(DESCRIPTORS, "accepting connections")
        self._shortages.settle()

    async def _watch(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(self._interval)
