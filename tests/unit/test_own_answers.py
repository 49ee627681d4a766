"""Answers of our own count in the memory budget before they are made."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy.core.errors import Overloaded
from proxy.core.memory.budget import MemoryBudget
from proxy.forward.exchange import Exchange
from proxy.forward.fallbacks import reserve

MIB = 1024 * 1024


def exchange(memory: MemoryBudget) -> Exchange:
    """One that has an answer to give."""
    stream = SimpleNamespace(memory=memory, held=0)
    return cast(Exchange, SimpleNamespace(stream=stream, holding=None))


def test_answers_in_the_making_leave_room_for_others() -> None:
    """Lists of jobs count on their client's account before they are read; where there is no room,
    they are refused, and what was counted is free with the exchange."""
    memory = MemoryBudget(20 * MIB)
    first, second, small = (exchange(memory) for _ in range(3))
    reserve(first, 8 * MIB)
    reserve(first, 4 * MIB)
    held: Any = first.stream
    assert memory.used == held.held == 12 * MIB
    with pytest.raises(Overloaded) as refused:
        reserve(second, 4 * MIB)
    assert refused.value.retry_after == 1
    reserve(small, 1000)  # however full it is
    assert memory.used == 12 * MIB
    assert first.holding is not None
    first.holding.clear()
    reserve(second, 4 * MIB)
    assert memory.accounts()["own_answers"] == 4 * MIB
