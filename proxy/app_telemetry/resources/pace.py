"""How a long job in a thread stays unnoticed: it rests after every little piece of work.

A thread that works on takes a core, and the interpreter's lock with it, 5 ms at a time. One that
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
    """The rests of one thread. `share` of a core is what it may take; `cpu_time` is the processor
    time of the calling thread in seconds."""

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
        """Rest as long as the work since the last rest has earned. Raises `Stopped`."""
        worked = max(0.0, self._cpu_time() - self._since)
        self.wait(min(_LONGEST_REST, worked * self._factor))
        self._since = self._cpu_time()

    def wait(self, seconds: float) -> None:
        """Do nothing for so long. Raises `Stopped`, at once when it is time."""
        if self._stopping.wait(seconds):
            raise Stopped
