"""What the store gives when asked, and how much of it at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """A job as the store holds it. Times are Unix seconds; `created_at` is what the app says."""

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
    """The newest jobs, the newest failed ones, and the stranded ones, the longest unchanged
    first."""

    recent: list[Row]
    failed: list[Row]
    stranded: list[Row]


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A job that was deleted. `held`: it must not come back; `pass_on`: the app does not know."""

    job_id: str
    deleted_at: float
    origin: str
    held: bool
    pass_on: bool


@dataclass(frozen=True, slots=True)
class Head:
    """What a capture must know of a job before it writes: its newest digest and its tombstone."""

    digest: bytes | None
    deadline: float | None
    buried: bool
    held: bool
    pass_on: bool
    first_seen: float | None


NO_HEAD = Head(None, None, False, False, False, None)


def read_row(row: Any) -> Row:
    """A row of the columns that `sql.GET` and its kin select."""
    job_id, status, progress, data, created_at, captured_at, deadline, digest, version, seen = row
    raw = data.encode("utf-8") if isinstance(data, str) else bytes(data)
    return Row(
        job_id, status, progress, raw, created_at, captured_at, deadline, digest, version, seen
    )


class Pace:
    """How many values to move at once, so that a batch of huge ones stays bounded in bytes.

    Starts low and doubles up to `most` while batches stay under a quarter of `limit` bytes; halves
    above `limit`.
    """

    def __init__(self, most: int, limit: int = 4 * 1024 * 1024) -> None:
        self.size = min(most, 16)
        self._most = most
        self._limit = limit

    def moved(self, size: int) -> None:
        """A batch had so many bytes."""
        if size > self._limit:
            self.size = max(1, self.size // 2)
        elif size < self._limit // 4:
            self.size = min(self._most, self.size * 2)
