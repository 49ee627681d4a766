"""The breaker's states, events and transition table: data, and one function that reads it.

1. closed admits calls and counts outcomes; open refuses calls; half_open admits a few probes.
2. An operator may force either: forced_open refuses, forced_closed admits without counting. Both
   expire (`TIME_OVER`): forced_open to half_open, because the upstream's health is unknown;
   forced_closed to closed.
3. Outcomes of calls admitted in an earlier state are dropped before this table: see circuit.py.
4. A cancelled call (the client left) is an event that changes no state.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """A breaker's state, as written to Redis, metrics and logs."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    FORCED_OPEN = "forced_open"
    FORCED_CLOSED = "forced_closed"

    @property
    def gauge(self) -> int:
        """The value of `circuit_breaker_state`: 0 admits calls, 1 refuses, 2 probes."""
        return _GAUGE[self]


class CircuitEvent(StrEnum):
    """What can happen to a breaker."""

    SUCCESS = "success"
    FAILURE = "failure"  # below every limit
    TRIP = "trip"  # a failure that reaches a limit, here or in the fleet
    TIME_OVER = "time_over"  # open or forced for long enough
    PROBE_SUCCESS = "probe_success"  # more are needed
    PROBES_PASSED = "probes_passed"  # the last one needed
    PROBE_FAILURE = "probe_failure"
    CANCEL = "cancel"
    FORCE_OPEN = "force_open"
    FORCE_CLOSE = "force_close"
    RESET = "reset"


_GAUGE = {
    State.CLOSED: 0,
    State.FORCED_CLOSED: 0,
    State.OPEN: 1,
    State.FORCED_OPEN: 1,
    State.HALF_OPEN: 2,
}

_C, _O, _H = State.CLOSED, State.OPEN, State.HALF_OPEN
_FO, _FC = State.FORCED_OPEN, State.FORCED_CLOSED

# Every pair has its entry. Read a row as: in this state, that event leads to ...
#                      closed  open  half  f_open  f_closed
_TABLE: dict[CircuitEvent, tuple[State, State, State, State, State]] = {
    CircuitEvent.SUCCESS: (_C, _O, _H, _FO, _FC),
    CircuitEvent.FAILURE: (_C, _O, _H, _FO, _FC),
    CircuitEvent.TRIP: (_O, _O, _H, _FO, _FC),
    CircuitEvent.TIME_OVER: (_C, _H, _H, _H, _C),
    CircuitEvent.PROBE_SUCCESS: (_C, _O, _H, _FO, _FC),
    CircuitEvent.PROBES_PASSED: (_C, _O, _C, _FO, _FC),
    CircuitEvent.PROBE_FAILURE: (_C, _O, _O, _FO, _FC),
    CircuitEvent.CANCEL: (_C, _O, _H, _FO, _FC),
    CircuitEvent.FORCE_OPEN: (_FO, _FO, _FO, _FO, _FO),
    CircuitEvent.FORCE_CLOSE: (_FC, _FC, _FC, _FC, _FC),
    CircuitEvent.RESET: (_C, _C, _C, _C, _C),
}
_COLUMN = {_C: 0, _O: 1, _H: 2, _FO: 3, _FC: 4}


def next_state(state: State, event: CircuitEvent) -> State:
    """The state after `event`; unchanged if the event does not apply."""
    return _TABLE[event][_COLUMN[state]]
