"""Uploads that wait for a probe process: complete ones first, and clients take turns."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from proxy.uploads.probe.queue import GROWING, HAD_A_TURN, WHOLE, Place, ProbeQueue


@dataclass(eq=False)
class File:
    """One upload."""

    name: str
    place: Place | None = None

    @property
    def client(self) -> str:
        """Whose it is."""
        return self.name[0]


def served(queue: ProbeQueue) -> list[str]:
    """All, in the order of their turns."""
    names = []
    while (one := queue.first()) is not None:
        assert isinstance(one, File)
        names.append(one.name)
        queue.serve(one)
    return names


def queued(*names: str) -> ProbeQueue:
    """Complete files."""
    queue = ProbeQueue()
    for name in names:
        queue.enter(File(name), WHOLE)
    return queue


def test_clients_take_turns() -> None:
    """However many files one has, another's comes after one of them."""
    assert served(queued("a1", "a2", "a3", "a4", "b1", "c1")) == [
        "a1",
        "b1",
        "c1",
        "a2",
        "a3",
        "a4",
    ]


def test_who_comes_later_is_not_behind_what_was_served() -> None:
    """A newcomer joins the present round, and an old client gains nothing from having waited."""
    queue = queued("a1", "a2", "a3")
    for _ in range(2):
        first = queue.first()
        assert first is not None
        queue.serve(first)
    queue.enter(File("b1"), WHOLE)
    queue.enter(File("a4"), WHOLE)
    assert served(queue) == ["a3", "b1", "a4"]


def test_complete_files_come_first() -> None:
    """Then those that have had a turn, then those that still arrive; fair in each."""
    queue = ProbeQueue()
    for name, kind in (("a1", GROWING), ("a2", HAD_A_TURN), ("a3", HAD_A_TURN), ("b1", HAD_A_TURN)):
        queue.enter(File(name), kind)
    queue.enter(File("a4"), WHOLE)
    assert served(queue) == ["a4", "a2", "b1", "a3", "a1"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2), st.booleans()), max_size=40))
def test_nobody_is_lost(steps: list[tuple[str, int, bool]]) -> None:
    """Whoever leaves is gone, all others are served once."""
    queue, files = ProbeQueue(), []
    for number, (client, kind, _) in enumerate(steps):
        files.append(File(f"{client}{number}"))
        queue.enter(files[-1], kind)
    left = [file for file, (_, _, leaves) in zip(files, steps, strict=True) if leaves]
    for file in left:
        queue.leave(file)
        queue.leave(file)
    stay = {file.name for file in files if file not in left}
    assert len(queue) == len(stay)
    names = served(queue)
    assert set(names) == stay
    assert len(names) == len(stay)
