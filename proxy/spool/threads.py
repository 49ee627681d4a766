"""The threads that touch the disk, so that the event loop never waits for one.

They are daemons: a disk that never answers cannot keep the process from ending. They are started
when there is work for the first time, and wait without waking up when there is none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

#: A slow write must not hold up a read of another body, so there is more than one.
THREADS = 4


class DiskThreads:
    """Runs blocking work in order of submission, on a few threads."""

    def __init__(self, threads: int = THREADS) -> None:
        self._limit = threads
        self._threads = 0
        self._idle = 0  # threads that wait for work, less what is queued for them
        self._lock = threading.Lock()
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def submit(self, work: Callable[[], _Result], done: Callable[[_Result], None]) -> None:
        """Do `work` on a thread, then call `done` with its result from the running event loop.
        `work` must not raise. Where the loop is closed by then, `done` is not called."""
        loop = asyncio.get_running_loop()

        def run() -> None:
            result = work()
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(done, result)

        self._put(run)

    def soon(self, done: Callable[[], None]) -> None:
        """Call `done` from the running event loop, as if a thread had done some work."""
        asyncio.get_running_loop().call_soon(done)

    def run(self, work: Callable[[], None]) -> None:
        """Do `work` on a thread; nobody waits for it."""
        self._put(work)

    def _put(self, run: Callable[[], None]) -> None:
        with self._lock:
            self._idle -= 1
            start = self._idle < 0 and self._threads < self._limit
            if start:
                self._threads += 1
                self._idle += 1
        self._work.put(run)
        if start:
            threading.Thread(target=self._serve, name="spool-disk", daemon=True).start()

    def _serve(self) -> None:
        while True:
            run = self._work.get()
            try:
                run()
            except Exception:
                logger.exception("disk thread")
            del run  # holds the pieces it wrote
            with self._lock:
                self._idle += 1
