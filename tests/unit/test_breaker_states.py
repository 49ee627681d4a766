"""The transition table: every (state, event) pair, one by one."""

from __future__ import annotations

import itertools

import pytest

from proxy.resilience.circuit.states import CircuitEvent, State, next_state

C, O, H = State.CLOSED, State.OPEN, State.HALF_OPEN  # noqa: E741
FO, FC = State.FORCED_OPEN, State.FORCED_CLOSED

# Written by state, where the code is written by event: a slip in one shows against the other.
CHANGES = {
    (C, CircuitEvent.TRIP): O,
    (C, CircuitEvent.FORCE_OPEN): FO,
    (C, CircuitEvent.FORCE_CLOSE): FC,
    (O, CircuitEvent.TIME_OVER): H,
    (O, CircuitEvent.FORCE_OPEN): FO,
    (O, CircuitEvent.FORCE_CLOSE): FC,
    (O, CircuitEvent.RESET): C,
    (H, CircuitEvent.PROBES_PASSED): C,
    (H, CircuitEvent.PROBE_FAILURE): O,
    (H, CircuitEvent.FORCE_OPEN): FO,
    (H, CircuitEvent.FORCE_CLOSE): FC,
    (H, CircuitEvent.RESET): C,
    (FO, CircuitEvent.TIME_OVER): H,
    (FO, CircuitEvent.FORCE_CLOSE): FC,
    (FO, CircuitEvent.RESET): C,
    (FC, CircuitEvent.TIME_OVER): C,
    (FC, CircuitEvent.FORCE_OPEN): FO,
    (FC, CircuitEvent.RESET): C,
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, CircuitEvent)))
def test_every_pair_leads_where_it_should(state: State, event: CircuitEvent) -> None:
    """Each of the 55 pairs either changes the state as listed or leaves it as it is."""
    assert next_state(state, event) is CHANGES.get((state, event), state)


def test_gauge_values_are_those_of_the_contract() -> None:
    """0 closed, 1 open, 2 half-open; forced states count as what they do."""
    assert [state.gauge for state in (C, O, H, FO, FC)] == [0, 1, 2, 1, 0]
