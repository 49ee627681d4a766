"""Clocks, injected: every component that needs the time takes one of these."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Protocol


class Clock(Protocol):
    """Two clocks in one: a monotonic one for intervals, and one for dates."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never goes back. For intervals and deadlines."""
        ...

    def time(self) -> float:
        """Seconds since the Unix epoch; may jump. For dates that leave the process."""
        ...


class SystemClock:
    """The machine's clocks."""

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)


class ManualClock:
    """A clock that moves only by `advance`: for tests and for replaying a recording."""

    def __init__(self, start: float = 1_000_000.0) -> None:
        self._now = start

    def monotonic(self) -> float:
        return self._now

    def time(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Move both clocks forward by `seconds`."""
        self._now += seconds


def parse_iso(value: object) -> datetime | None:
    """An ISO 8601 date of at most 40 characters, with or without an offset; None for anything
    else."""
    if not isinstance(value, str) or len(value) > 40:
        return None
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        return None


def parse_http_date(value: str) -> float | None:
    """The Unix seconds of a date as in `Date` or `Retry-After` (RFC 9110 §5.6.7); None if it cannot
    be read."""
    try:
        return parsedate_to_datetime(value).timestamp()
    except (ValueError, IndexError, TypeError, OverflowError):
        return None


def iso_utc(timestamp: float) -> str:
    """`1795450757.9695` as `2026-11-23T16:19:17.969Z`: ISO 8601, UTC, milliseconds."""
    moment = datetime.fromtimestamp(timestamp, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
