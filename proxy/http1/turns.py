"""Shares the event loop among connections, so that no flood of input starves the others.

A turn of the event loop serves every connection that has input. Two rules keep it short:

 1. A connection runs for `HEADS_PER_TURN` requests or its time slice, then it queues.
 2. All connections together get `SHARE` seconds per turn of the loop. Later ones queue.

The queue is served in order, with slices that shrink as it grows: a thousand flooding connections
get one request each.

 3. Occasional requests do not wait behind heavy users: connections that have not been greedy for
    `GREEDY` seconds are served first, like the new flows of FQ-CoDel (RFC 8290 §4.2). At least one
    greedy connection still runs in every turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from proxy.core.clock import Clock

#: Seconds per turn of the loop for all connections, and the longest slice for one of them.
SHARE, _SLICE = 0.004, 0.001

#: Requests served for one connection in one slice.
HEADS_PER_TURN = 32

#: Seconds for which a connection that had more than one slice of work counts as greedy.
GREEDY = 0.25


class Turns:
    """The queue of connections that run later. All times are monotonic seconds."""

    __slots__ = (
        "_clock",
        "_first",
        "_loop",
        "_measuring",
        "_queue",
        "_serving",
        "_slice_until",
        "_until",
    )

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._first: deque[Callable[[], None]] = deque()  # not greedy
        self._queue: deque[Callable[[], None]] = deque()  # greedy
        self._loop: asyncio.AbstractEventLoop | None = None
        self._measuring = False  # within a measured turn of the loop
        self._serving = False  # the queue will be served in the next turn of the loop
        self._until = 0.0  # when this turn's share is used up
        self._slice_until = 0.0

    def __len__(self) -> int:
        """The number of connections that queue."""
        return len(self._first) + len(self._queue)

    def start(self) -> None:
        """Start sharing the running loop; before that, every connection runs at once."""
        self._loop = asyncio.get_running_loop()

    def begin(self) -> bool:
        """Start a slice if this turn of the loop has time left; whether it has."""
        if self._loop is None:
            return True
        now = self._clock.monotonic()
        if not self._measuring:
            self._measuring = True
            self._until = now + SHARE
            self._loop.call_soon(self._turn_over)
        elif now >= self._until:
            return False
        self._slice_until = now + _SLICE / (1 + len(self))
        return True

    def over(self) -> bool:
        """Whether the current slice is used up."""
        return self._clock.monotonic() >= self._slice_until

    def later(self, go_on: Callable[[], None], *, greedy: bool = True) -> None:
        """Call `go_on` when its turn comes, in a later turn of the loop."""
        (self._queue if greedy else self._first).append(go_on)
        self._serve_soon()

    def greedy_until(self) -> float:
        """Until when a connection that has used up its slice now counts as greedy."""
        return self._clock.monotonic() + GREEDY

    def before(self, until: float) -> bool:
        """Whether it is before `until`."""
        return self._clock.monotonic() < until

    def _serve_soon(self) -> None:
        if not self._serving:
            self._serving = True
            asyncio.get_running_loop().call_soon(self._serve)

    def _turn_over(self) -> None:
        self._measuring = False

    def _serve(self) -> None:
        """Run those that queue now, as long as the turn lasts: one greedy connection first, then
        the others."""
        self._serving = False
        first, queue = self._first, self._queue
        turns = [queue] * min(1, len(queue)) + [first] * len(first) + [queue] * (len(queue) - 1)
        try:
            for one in turns:
                if not self.begin():
                    break
                one.popleft()()
        finally:
            if first or queue:
                self._serve_soon()
