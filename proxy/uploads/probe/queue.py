"""Uploads that wait for a probe process, fair between clients. Pure.

Rules
1. Complete files come first, then those that have had a turn, then those that still arrive.
2. Within each of these, clients take turns: each has one file per round (start-time fair queueing).
   So a client with hundreds of uploads delays another client's by one of its own.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from operator import attrgetter
from typing import Protocol

#: The first part of a place: see rule 1.
WHOLE, HAD_A_TURN, GROWING = 0, 1, 2

Place = tuple[int, int, int]  # one of the above, the round, and the order of arrival


class Waiting(Protocol):
    """`client`: whose file it is; `place` is set by the queue and None outside it."""

    place: Place | None

    @property
    def client(self) -> object: ...


class ProbeQueue:
    """Waiting uploads in the order of their places."""

    def __init__(self) -> None:
        self._waiting: list[Waiting] = []
        self._rounds = [0, 0, 0]  # of those served last, by class
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._waiting)

    def enter(self, one: Waiting, kind: int) -> None:
        """Queue `one` among those of its `kind`; it must not be queued already."""
        latest = self._rounds[kind]
        for other in self._waiting:
            if other.client == one.client and other.place is not None and other.place[0] == kind:
                latest = max(latest, other.place[1])
        self._arrivals += 1
        one.place = (kind, latest + 1, self._arrivals)
        insort(self._waiting, one, key=attrgetter("place"))

    def first(self) -> Waiting | None:
        """Whose turn it is."""
        return self._waiting[0] if self._waiting else None

    def serve(self, one: Waiting) -> None:
        """Remove `one`, which has its turn now."""
        assert one.place is not None
        kind, turn, _ = one.place
        self._rounds[kind] = max(self._rounds[kind], turn)
        self.leave(one)

    def leave(self, one: Waiting) -> None:
        """Remove `one` if it is here."""
        if one.place is not None:
            one.place = None
            self._waiting.remove(one)
