"""Limits the processor time of a long job in a thread: it rests after every small piece of work.

A thread that never rests takes a core, and the interpreter's lock for 5 ms at a time. One that
rests for nine times as long as it worked takes a tenth of a core, however much there is to do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_LONGEST_REST = 1.0  # seconds


class Stopped(Exception):
    """The owner wants the thread to end."""


class Pace:
    """The pace of one thread, which may use this `share` of a core; `cpu_time` returns the
    processor time of the calling thread in seconds."""

    def __init__(
        self,
        share: float,
        stopping: threading.Event,
        cpu_time: Callable[[], float] = time.thread_time,
    ) -> None:
        self._factor = 1 / share - 1
        self._stopping = stopping
        self._cpu_time = cpu_time
        self._since = cpu_time()

    def rest(self) -> None:
        """Rest in proportion to the work since the last rest. Raises `Stopped`."""
        worked = max(0.0, self._cpu_time() - self._since)
        self.wait(min(_LONGEST_REST, worked * self._factor))
        self._since = self._cpu_time()

    def wait(self, seconds: float) -> None:
        """Sleep for so long. Raises `Stopped` as soon as the thread is to end."""
        if self._stopping.wait(seconds):
            raise Stopped
