"""What a breaker owes the fleet, and which transitions it has counted there. Pure.

1. Outcomes that the fleet must know go into one `Report`, until sync.py takes it.
2. A transition decided here while Redis is reachable is `provisional`: it has taken effect, but is
   counted only once Redis has confirmed it, or cannot (`settle`).
3. A transition is counted once in the fleet, by the process that made it. The IDs of those counted
   here are remembered, because the reply that confirmed one may have been lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from proxy.resilience.circuit.messages import Failure, Report, SharedState, Transition

#: Transitions counted here whose IDs are remembered.
_REMEMBERED = 64


class Reports:
    """Those of one breaker in the process `owner`. `count` gets every transition once: those made
    here, and those learned of."""

    def __init__(self, owner: str, count: Callable[[Transition], None]) -> None:
        self.pending: Report | None = None
        self.provisional: Transition | None = None
        self._owner = owner
        self._count = count
        self._counted: deque[str] = deque(maxlen=_REMEMBERED)
        self._serial = 0

    def new_tid(self) -> str:
        """A unique ID for one message to Redis and the transition that it may cause."""
        self._serial += 1
        return f"{self._owner}:{self._serial}"

    def open(self, generation: int, epoch: int) -> Report:
        """The report that collects outcomes of this generation."""
        if self.pending is None or self.pending.generation != generation:
            self.pending = Report(generation, self.new_tid(), epoch)
        return self.pending

    def take(self) -> Report | None:
        """The report to send now."""
        report, self.pending = self.pending, None
        return report

    def made(self, transition: Transition) -> None:
        """A transition was made here without Redis: count it now."""
        self.remember(transition.tid)
        self._count(transition)

    def remember(self, tid: str) -> None:
        """The transition `tid` is counted here, also if Redis makes it later."""
        self._counted.append(tid)

    def settle(self, tid: str) -> None:
        """Redis has not replied to the report `tid`: the provisional transition stands, whether
        Redis knows of it or not, and is counted."""
        if self.provisional is not None:
            transition, self.provisional = self.provisional, None
            self.remember(tid)
            self._count(transition)

    def outdated(self, seen: SharedState, generation: int, answers: Report | None) -> bool:
        """Whether `seen` is older than the provisional transition. Otherwise Redis has made that
        one, and its log shows it, or has refused it."""
        if self.provisional is None:
            return False
        confirms = answers is not None and answers.tid == self.provisional.tid
        if not confirms and seen.generation == generation:
            return True
        self.provisional = None
        return False

    def announce(self, seen: SharedState, known: int, failures: tuple[Failure, ...]) -> None:
        """Count the transitions in Redis' log: those made here that are not counted yet, and those
        of others after the generation `known`."""
        for entry in seen.log:
            mine = entry.by == self._owner and not entry.restored and entry.tid not in self._counted
            if mine:
                self.remember(entry.tid)
            elif entry.generation <= known:
                continue
            self._count(
                Transition(
                    entry.from_state,
                    entry.to_state,
                    entry.reason,
                    entry.generation,
                    mine,
                    entry.by,
                    entry.tid,
                    entry.restored,
                    seen.remaining if entry.generation == seen.generation else 0.0,
                    failures,
                )
            )
