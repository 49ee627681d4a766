"""What a mirror knows about a job, and HTTP responses in the app's own format."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.jobs.document import JobDocument
from proxy.jobs.store.records import Row


@dataclass(frozen=True, slots=True)
class Known:
    """A live job as stored; `as_of` is when this version was captured, in Unix seconds."""

    snapshot: JobDocument
    row: Row
    as_of: float


@dataclass(frozen=True, slots=True)
class Tombstoned:
    """A deleted job. `deleted_at` is in Unix seconds; `origin` is `client`, or `redis` for a DEL
    that the mirror observed."""

    deleted_at: float
    origin: str


@dataclass(frozen=True, slots=True)
class Expired:
    """A job whose TTL ran out at `expired_at`, in Unix seconds."""

    expired_at: float


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """The store did not answer in time, so it may or may not have the job."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response in the app's own format."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
