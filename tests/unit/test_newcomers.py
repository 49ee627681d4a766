"""Connections that wait to be served: clients take turns, and the greediest loses first."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from proxy.server.newcomers import Newcomers


def drained(waiting: Newcomers[str]) -> list[str]:
    """All, in the order in which they are served."""
    return [waiting.next() for _ in range(len(waiting))]


def test_clients_take_turns() -> None:
    """One connection each, oldest first, however many a client has opened before the others."""
    waiting = Newcomers[str](100)
    for one in ("a1", "a2", "a3", "a4", "b1", "b2", "c1"):
        assert waiting.add(one[0], one) is None
    assert drained(waiting) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_who_comes_late_waits_for_one_round() -> None:
    """A client that arrives while others are served is behind one connection of each."""
    waiting = Newcomers[str](100)
    for one in ("a1", "a2", "a3", "b1", "b2"):
        waiting.add(one[0], one)
    assert waiting.next() == "a1"
    waiting.add("c", "c1")
    assert drained(waiting) == ["b1", "a2", "c1", "b2", "a3"]


def test_the_greediest_loses_its_newest() -> None:
    """Even when it is another client's connection that finds no room."""
    waiting = Newcomers[str](4)
    for one in ("b1", "a1", "a2", "a3"):
        assert waiting.add(one[0], one) is None
    assert not waiting.full
    assert waiting.add("c", "c1") == "a3"
    assert waiting.add("a", "a4") == "a4"
    assert drained(waiting) == ["b1", "a1", "c1", "a2"]


def test_who_is_alone_loses_none() -> None:
    """One gateway's burst waits in the kernel: no more are accepted."""
    waiting = Newcomers[str](2)
    waiting.add("a", "a1")
    assert not waiting.full
    waiting.add("a", "a2")
    assert waiting.full
    waiting.next()
    assert not waiting.full


@given(
    st.lists(st.one_of(st.integers(0, 4), st.none()), max_size=80),
    st.integers(min_value=2, max_value=10),
)
def test_it_counts_right(steps: list[int | None], most: int) -> None:
    """Whatever comes and goes: nothing is lost or served twice, there are never more than allowed,
    and a client with fewest loses none."""
    waiting = Newcomers[tuple[int, int]](most)
    here: Counter[int] = Counter()
    for number, who in enumerate(steps):
        if who is None:
            if len(waiting):
                here[waiting.next()[0]] -= 1
        elif not waiting.full:
            lost = waiting.add(who, (who, number))
            here[who] += 1
            if lost is not None:
                assert here[lost[0]] == max(here.values())
                here[lost[0]] -= 1
        assert len(waiting) == here.total() <= most
    assert Counter(who for who, _ in [waiting.next() for _ in range(len(waiting))]) == +here
