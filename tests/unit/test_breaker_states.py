"""The transition table: every (state, event) pair, one by one."""

from __future__ import annotations

import itertools

import pytest

from proxy.resilience.circuit.states import Event, State, next_state

C, O, H = State.CLOSED, State.OPEN, State.HALF_OPEN  # noqa: E741
FO, FC = State.FORCED_OPEN, State.FORCED_CLOSED

# Written by state, where the code is written by event: a slip in one shows against the other.
CHANGES = {
    (C, Event.TRIP): O,
    (C, Event.FORCE_OPEN): FO,
    (C, Event.FORCE_CLOSE): FC,
    (O, Event.TIME_OVER): H,
    (O, Event.FORCE_OPEN): FO,
    (O, Event.FORCE_CLOSE): FC,
    (O, Event.RESET): C,
    (H, Event.PROBES_PASSED): C,
    (H, Event.PROBE_FAILURE): O,
    (H, Event.FORCE_OPEN): FO,
    (H, Event.FORCE_CLOSE): FC,
    (H, Event.RESET): C,
    (FO, Event.TIME_OVER): H,
    (FO, Event.FORCE_CLOSE): FC,
    (FO, Event.RESET): C,
    (FC, Event.TIME_OVER): C,
    (FC, Event.FORCE_OPEN): FO,
    (FC, Event.RESET): C,
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_pair_leads_where_it_should(state: State, event: Event) -> None:
    """Each of the 55 pairs either changes the state as listed or leaves it as it is."""
    assert next_state(state, event) is CHANGES.get((state, event), state)


def test_gauge_values_are_those_of_the_contract() -> None:
    """0 closed, 1 open, 2 half-open; forced states count as what they do."""
    assert [state.gauge for state in (C, O, H, FO, FC)] == [0, 1, 2, 1, 0]
