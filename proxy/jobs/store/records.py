"""The store's records, and the pace at which values are moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """A stored job. Times are in Unix seconds; `created_at` comes from the app."""

    job_id: str
    status: str
    progress: float
    raw: bytes
    created_at: str
    captured_at: float
    deadline: float | None
    digest: bytes
    version: int
    first_seen: float


@dataclass(frozen=True, slots=True)
class Overview:
    """The newest jobs, the newest failed jobs, and the stranded jobs, longest unchanged first."""

    recent: list[Row]
    failed: list[Row]
    stranded: list[Row]


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A deleted job. `held`: it must not come back; `pass_on`: the app does not know yet."""

    job_id: str
    deleted_at: float
    origin: str
    held: bool
    pass_on: bool


@dataclass(frozen=True, slots=True)
class Head:
    """What capture needs of a job before it writes: the newest digest and the tombstone."""

    digest: bytes | None
    deadline: float | None
    deleted: bool
    held: bool
    pass_on: bool
    first_seen: float | None


NO_HEAD = Head(None, None, False, False, False, None)


def read_row(row: Any) -> Row:
    """Read a row with the columns that `sql.GET` and the like select."""
    job_id, status, progress, data, created_at, captured_at, deadline, digest, version, seen = row
    raw = data.encode("utf-8") if isinstance(data, str) else bytes(data)
    return Row(
        job_id, status, progress, raw, created_at, captured_at, deadline, digest, version, seen
    )


class Pace:
    """How many values to move at once, so that a batch of large values stays bounded in bytes.

    Starts low; doubles up to `most` after batches below a quarter of `limit` bytes, halves after
    batches above `limit`.
    """

    def __init__(self, most: int, limit: int = 4 * 1024 * 1024) -> None:
        self.size = min(most, 16)
        self._most = most
        self._limit = limit

    def moved(self, size: int) -> None:
        """Adapt to a batch of so many bytes."""
        if size > self._limit:
            self.size = max(1, self.size // 2)
        elif size < self._limit // 4:
            self.size = min(self._most, self.size * 2)
