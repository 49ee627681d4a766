"""Threads for disk operations, so that the event loop never waits for a disk.

They are daemons, so that a hung disk cannot keep the process from exiting. They start with
the first work, and sleep while there is none.
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

#: More than one, so that a slow write does not delay reads of other bodies.
THREADS = 4


class DiskThreads:
    """Runs blocking work in order of submission, on a few threads."""

    def __init__(self, threads: int = THREADS) -> None:
        self._limit = threads
        self._threads = 0
        self._idle = 0  # idle threads, minus queued work
        self._lock = threading.Lock()
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def submit(self, work: Callable[[], _Result], done: Callable[[_Result], None]) -> None:
        """Run `work` on a thread, then call `done` with its result from the running event loop,
        unless that is closed by then. `work` must not raise."""
        loop = asyncio.get_running_loop()

        def run() -> None:
            result = work()
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(done, result)

        self._put(run)

    def soon(self, done: Callable[[], None]) -> None:
        """Call `done` from the running event loop, as after work on a thread."""
        asyncio.get_running_loop().call_soon(done)

    def run(self, work: Callable[[], None]) -> None:
        """Run `work` on a thread; its result is dropped."""
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
            del run  # it refers to the bytes that it wrote
            with self._lock:
                self._idle += 1
