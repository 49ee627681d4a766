"""Accepted connections that are not served yet, fair between clients. Pure.

Rules
1. Clients take turns: one connection of each per round, oldest first. So a client that opens
   thousands of connections delays only itself.
2. When `most` connections wait, the client with the most waiting loses its newest one. A client
   that is alone loses none: the caller stops accepting, and its connections wait in the kernel.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Newcomers(Generic[T]):
    """The connections of one listener that wait for their first turn."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: dict[object, deque[T]] = {}  # by client, in the order of their turns
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def full(self) -> bool:
        """Whether the caller should accept no more for now (rule 2)."""
        return self._count >= self._most and len(self._waiting) == 1

    def add(self, who: object, one: T) -> T | None:
        """Add a connection of the client `who`. Returns the one that loses its place, if any."""
        self._waiting.setdefault(who, deque()).append(one)
        self._count += 1
        if self._count <= self._most:
            return None
        most = max(self._waiting, key=lambda client: len(self._waiting[client]))
        self._count -= 1
        return self._of(most).pop()

    def next(self) -> T:
        """The connection whose turn it is. Raises `StopIteration` if none waits."""
        who = next(iter(self._waiting))
        self._count -= 1
        one = self._of(who).popleft()
        if (rest := self._waiting.pop(who, None)) is not None:
            self._waiting[who] = rest  # behind the others
        return one

    def _of(self, who: object) -> deque[T]:
        """The connections of `who`, of which one is about to be removed."""
        connections = self._waiting[who]
        if len(connections) == 1:
            del self._waiting[who]
        return connections
