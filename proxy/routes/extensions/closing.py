"""Closes extension stages that hold resources, such as a Redis client, once nothing uses them.

1. A stage is in use while its plan is in force, and while an exchange that began with it is in
   progress. A reload creates all stages anew, so the old ones are closed after their last exchange.
2. A stage created for a config that was then rejected never comes into force: it is closed at the
   next reload, or at the stop.
3. If closing fails or takes too long, that is logged and delays nothing.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any

logger = logging.getLogger("proxy.routes.extensions.runner")

#: Seconds that a stage has for closing.
PATIENCE = 5.0


class Held:
    """A stage that must be closed. `users` counts the exchanges that began with it."""

    __slots__ = ("close", "facts", "retired", "users")

    def __init__(self, close: Callable[[], Any], facts: dict[str, str]) -> None:
        self.close = close
        self.facts = facts
        self.users = 0
        self.retired = False


class StageClosing:
    """All stages that must be closed. `adopt` is called with the stages of each plan that comes
    into force, even if it has none."""

    def __init__(self) -> None:
        self._open: set[Held] = set()
        self._adopted: set[Held] = set()
        self._taking_over = False
        self._closing: set[asyncio.Task[None]] = set()

    def hold(self, close: Callable[[], Any], facts: dict[str, str]) -> Held:
        """Register a new stage."""
        held = Held(close, facts)
        self._open.add(held)
        return held

    def adopt(self, held: Iterable[Held] = ()) -> None:
        """Put `held` in force. Stages adopted in the same turn of the event loop add up; all others
        are retired."""
        self._adopted.update(held)
        if not self._taking_over:
            self._taking_over = True
            asyncio.get_running_loop().call_soon(self._take_over)

    def _take_over(self) -> None:
        adopted, self._adopted, self._taking_over = self._adopted, set(), False
        for held in self._open - adopted:
            self._retire(held)

    def _retire(self, held: Held) -> None:
        held.retired = True
        if not held.users:
            self._close(held)

    def release(self, held: Iterable[Held]) -> None:
        """An exchange that began with these stages is over."""
        for one in held:
            one.users -= 1
            if one.retired and not one.users:
                self._close(one)

    def _close(self, held: Held) -> None:
        self._open.discard(held)
        task = asyncio.get_running_loop().create_task(_closed(held), name="closing stage")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def stop(self) -> None:
        """Close all stages; every exchange is over."""
        for held in list(self._open):
            self._close(held)
        await asyncio.gather(*self._closing, return_exceptions=True)


async def _closed(held: Held) -> None:
    try:
        async with asyncio.timeout(PATIENCE):
            result = held.close()
            if inspect.isawaitable(result):
                await result
    except (Exception, SystemExit):
        logger.exception("stage not closed", extra=held.facts)
