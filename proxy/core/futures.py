"""Coroutines that are driven without a task: how they wait for a future."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


def when_done(future: asyncio.Future[Any], resume: Callable[[object], object]) -> None:
    """Call `resume(future)` once `future` is done, which a coroutine has just yielded.

    `await` marks a pending future as being waited for, and fails on one that is marked. A task
    takes the mark off when it gets the future, and whoever stands in for a task has to do the
    same, or no second coroutine could wait for it. asyncio has no public way to do that.
    """
    future._asyncio_future_blocking = False
    future.add_done_callback(resume)
