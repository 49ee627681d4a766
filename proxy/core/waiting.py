"""Waiting with a limit, without `asyncio.wait_for`.

Until Python 3.12 `wait_for` swallows a cancellation that arrives together with the result (CPython
issue 86296): a task that should stop would run for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any


async def happened(event: asyncio.Event, within: float | None) -> bool:
    """Whether the event is set within so many seconds; None waits without a limit."""
    try:
        async with asyncio.timeout(within):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def settled(future: asyncio.Future[Any], within: float) -> bool:
    """Whether the future is done within so many seconds; it is left alone if not."""
    if not future.done():
        await asyncio.wait((future,), timeout=within)
    return future.done()


def cancels() -> int:
    """How often the current task has been asked to cancel."""
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


def raise_swallowed_cancel(before: int) -> None:
    """Raise a cancellation that redis-py swallowed: it uses `asyncio.wait_for` (see above)."""
    if cancels() > before:
        raise asyncio.CancelledError
