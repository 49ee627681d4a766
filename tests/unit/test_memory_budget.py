"""The process' memory budget: what is counted, what is refused, who gets how much."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.memory.budget import (
    DEFAULT_LIMIT,
    LEAST,
    MOST,
    SLOW_AT,
    Holding,
    Level,
    MemoryBudget,
    default_limit,
)
from proxy.core.memory.cgroup import memory_limit

MIB = 1024 * 1024


class Client:
    """Someone to answer for what is held."""

    held = 0


def test_levels_are_entered_and_left_at_different_marks() -> None:
    """A budget that hovers around a mark does not flap, and each change is notified once."""
    budget = MemoryBudget(100 * MIB)
    seen: list[tuple[Level, Level]] = []
    budget.changed.append(lambda level, before: seen.append((level, before)))
    for size in (69, 2, 13, 3, -3, -8, -3, -13, -20):
        (budget.reserve if size > 0 else budget.release)(abs(size) * MIB)
    slow, shed, normal = Level.SLOW, Level.SHED, Level.NORMAL
    assert seen == [(slow, normal), (shed, slow), (slow, shed), (normal, slow)]
    assert Level.SHED.label == "shed"


def test_what_can_be_done_without_is_refused_first() -> None:
    """An optional copy gets no room beyond the first mark; what is here already is counted."""
    budget = MemoryBudget(100 * MIB)
    copies = budget.account("replay")
    assert copies.try_reserve(60 * MIB)
    assert not copies.try_reserve(11 * MIB)
    budget.account("inboxes").reserve(30 * MIB)
    assert not copies.try_reserve(1)
    used = {name: size for name, size in budget.accounts().items() if size}
    assert used == {"replay": 60 * MIB, "inboxes": 30 * MIB}
    copies.release(60 * MIB)
    assert budget.used == 30 * MIB
    assert copies.try_reserve(1)


def test_a_holding_answers_to_its_owner_and_is_given_back_once() -> None:
    """What a holding has is its owner's, and clearing it twice changes nothing."""
    budget, client = MemoryBudget(), Client()
    one, other = (Holding(budget.account(name), client) for name in ("replay", "held_answers"))
    one.grow(100)
    other.set(50)
    other.set(20)
    other.set(30)
    assert one.try_grow(5)
    assert (client.held, budget.used) == (135, 135)
    one.clear()
    one.clear()
    other.shrink(30)
    other.clear()
    assert (client.held, budget.used, one.size) == (0, 0, 0)


def test_a_refused_holding_stays_as_it_was() -> None:
    """Growing beyond the first mark is refused whole."""
    budget, client = MemoryBudget(16 * MIB), Client()
    holding = Holding(budget.account("replay"), client)
    assert holding.try_grow(MIB)
    assert not holding.try_grow(int(16 * MIB * SLOW_AT))
    assert (holding.size, client.held, budget.used) == (MIB, MIB, MIB)


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=200), st.integers(16, 512))
def test_any_order_of_reservations_adds_up(sizes: list[int], limit: int) -> None:
    """Level and allowance follow from what is used, by whatever way it came about."""
    budget = MemoryBudget(limit * MIB)
    account = budget.account("inboxes")
    for size in sizes:
        account.reserve(size * 100_000)
        assert LEAST <= budget.allowance <= MOST
        if budget.used > budget.limit * 0.86:
            assert budget.level is Level.SHED
    for size in reversed(sizes):
        account.release(size * 100_000)
    assert (budget.used, budget.level) == (0, Level.NORMAL)


@pytest.mark.parametrize("streams", [10, 100, 1_000, 5_000])
def test_many_who_take_all_they_may_stay_below_the_limit(streams: int) -> None:
    """However many fill what they are allowed, the limit is not reached."""
    budget = MemoryBudget(256 * MIB)
    held = [0] * streams
    for _ in range(40):
        for number in range(streams):
            if held[number] < budget.allowance:
                held[number] += 8 * 1024
                budget.reserve(8 * 1024)
    assert budget.used < budget.limit


def test_another_limit_counts_at_once() -> None:
    """A reload may change the limit: level and allowance follow."""
    budget = MemoryBudget(100 * MIB)
    budget.reserve(50 * MIB)
    budget.resize(55 * MIB)
    assert budget.level is Level.SHED
    budget.resize(400 * MIB)
    assert (budget.level, budget.allowance) == (Level.NORMAL, MOST)


@pytest.mark.parametrize(
    ("allowed", "limit"),
    [(None, DEFAULT_LIMIT), (512 * MIB, 256 * MIB), (20 * MIB, 32 * MIB), (1 << 40, 1024 * MIB)],
)
def test_the_default_is_half_of_what_the_cgroup_allows(allowed: int | None, limit: int) -> None:
    """Half, within bounds; 256 MiB where there is no limit."""
    assert default_limit(allowed) == limit


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/", {"memory.max": "536870912\n"}, 512 * MIB),
        ("0::/", {"memory.max": "max\n"}, None),
        ("0::/", {"memory.max": "max", "memory.high": "1048576"}, MIB),
        ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": "2097152"}, 2 * MIB),
        ("0::/../x", {"memory.max": "1048576"}, None),
        ("4:memory:/", {"memory/memory.limit_in_bytes": "1048576"}, MIB),
        ("4:memory:/p", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("4:memory:/p", {"memory/p/memory.limit_in_bytes": "3145728"}, 3 * MIB),
        ("4:cpu,memory:/", {"cpu,memory/memory.limit_in_bytes": "1048576"}, MIB),
        ("4:memory:/\n0::/", {"memory/memory.limit_in_bytes": "1048576"}, MIB),
        ("nonsense", {}, None),
    ],
)
def test_limits_of_both_cgroup_versions_are_read(
    tmp_path: Path, groups: str, files: dict[str, str], limit: int | None
) -> None:
    """The smallest limit of the own group and those above it; no limit and no file are the same."""
    own = tmp_path / "proc/self/cgroup"
    own.parent.mkdir(parents=True)
    own.write_text(groups + "\n")
    for name, content in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    assert memory_limit(tmp_path) == limit


def test_a_machine_without_cgroups_has_no_limit(tmp_path: Path) -> None:
    """Nothing to read is no limit."""
    assert memory_limit(tmp_path) is None
