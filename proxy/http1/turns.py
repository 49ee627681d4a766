"""Turns: what the event loop spends on connections before others are heard.

A turn of the event loop serves every connection that has news. Two rules keep it short, whatever
the connections have sent:

 1. One connection goes on for `HEADS_PER_TURN` requests or its slice of time, then it queues.
 2. All of them together get `SHARE` seconds in one turn of the loop. Whoever comes later queues.

The queue is served in order, with slices that shrink as it grows: a thousand floods get one request
each.

 3. Whoever asks now and then does not wait for those who always have more: connections that have
    not been `GREEDY` lately are served first, as the new flows of FQ-CoDel (RFC 8290 §4.2) are. One
    of the others goes on in every turn all the same.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from proxy.core.clock import Clock

#: Seconds of one turn of the loop that connections get, and the longest slice of one of them.
SHARE, _SLICE = 0.004, 0.001

#: Requests that one connection may have answered in one slice.
HEADS_PER_TURN = 32

#: Seconds for which a connection that had more than one slice's work waits behind others.
GREEDY = 0.25


class Turns:
    """The queue of those who go on later. All times are monotonic seconds."""

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
        self._first: deque[Callable[[], None]] = deque()  # of those who ask for little,
        self._queue: deque[Callable[[], None]] = deque()  # and of the others
        self._loop: asyncio.AbstractEventLoop | None = None
        self._measuring = False  # within a turn of the loop
        self._serving = False  # the queue will be served in the next turn of the loop
        self._until = 0.0  # when this turn's share is used up
        self._slice_until = 0.0

    def __len__(self) -> int:
        """How many queue."""
        return len(self._first) + len(self._queue)

    def start(self) -> None:
        """Begin to share out the running loop; before that, everybody goes on at once."""
        self._loop = asyncio.get_running_loop()

    def begin(self) -> bool:
        """Whether somebody may go on in this turn of the loop: a slice begins then."""
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
        """Whether the present slice is."""
        return self._clock.monotonic() >= self._slice_until

    def later(self, go_on: Callable[[], None], *, greedy: bool = True) -> None:
        """Call `go_on` when its turn comes, in a later turn of the loop."""
        (self._queue if greedy else self._first).append(go_on)
        self._serve_soon()

    def greedy_until(self) -> float:
        """Until when somebody whose slice is used up is greedy."""
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
        """Those who queue now, as far as the turn goes: one of the greedy, then all others."""
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
