"""An exchange's place in a distributed trace: W3C Trace Context, and its attempts. Pure.

1. A well-formed `traceparent` is continued; without one, or with several, a new trace begins. The
   caller's flag decides whether the trace is sampled; a new trace is sampled at random.
2. `tracestate` is passed on unchanged if the trace is continued. It is meaningless without its
   `traceparent`, so it is dropped when a new trace begins (W3C Trace Context §3.3).
3. Each attempt has a span of its own, whose id is the parent that the upstream is given.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED, _RANDOM = 1, 2
MOST_ATTEMPTS = 20  # recorded per exchange

_bits = Random().getrandbits  # noqa: S311 (names a span, guards nothing)


@dataclass(slots=True)
class Attempt:
    """One attempt. Times are Unix seconds; `error` is `connect`, `reset`, `timeout` or a status."""

    span_id: str
    target: str | None
    began: float
    ended: float | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Parent:
    """The parent of our span. `remote`: it belongs to another process."""

    trace_id: str
    span_id: str
    flags: int
    remote: bool = True


class ExchangeTrace:
    """The span of one exchange. `parent_id` is None where the trace begins here."""

    __slots__ = ("attempts", "flags", "parent_id", "remote", "span_id", "trace_id")

    def __init__(self, parent: Parent | None, *, sampled: bool) -> None:
        self.span_id = new_span_id()
        self.attempts: list[Attempt] = []
        if parent is None:
            self.trace_id = f"{_bits(128) or 1:032x}"
            self.parent_id: str | None = None
            self.flags = _RANDOM | (_SAMPLED if sampled else 0)
            self.remote = False
        else:
            self.trace_id, self.parent_id = parent.trace_id, parent.span_id
            self.flags, self.remote = parent.flags, parent.remote

    @property
    def sampled(self) -> bool:
        """Whether its spans are wanted."""
        return bool(self.flags & _SAMPLED)

    @property
    def parent(self) -> Parent:
        """The parent of spans below this one."""
        return Parent(self.trace_id, self.span_id, self.flags, remote=False)

    def begin_attempt(self, target: str | None, now: float) -> bytes:
        """Begin an attempt and return the `traceparent` that goes with it."""
        self.end_attempt(now, "reset")  # an attempt that is still open was resent without a report
        span_id = new_span_id()
        if len(self.attempts) < MOST_ATTEMPTS:
            self.attempts.append(Attempt(span_id, target, now))
        return f"00-{self.trace_id}-{span_id}-{self.flags:02x}".encode()

    def end_attempt(self, now: float, error: str | None) -> None:
        """End the current attempt; `error` is None if it was answered."""
        if self.attempts and self.attempts[-1].ended is None:
            self.attempts[-1].ended, self.attempts[-1].error = now, error

    def failed_attempt(self, error: str, target: str | None, now: float) -> None:
        """Record a failed attempt, even one that failed before anything was sent."""
        if self.attempts and self.attempts[-1].ended is None:
            self.end_attempt(now, error)
        elif len(self.attempts) < MOST_ATTEMPTS:
            self.attempts.append(Attempt(new_span_id(), target, now, now, error))


def new_span_id() -> str:
    """16 hexadecimal digits, not all of them zero."""
    return f"{_bits(64) or 1:016x}"


def parse_traceparent(values: Sequence[bytes]) -> Parent | None:
    """The caller's span; None for none, several, or one that is malformed (§3.2.2.3)."""
    if len(values) != 1:
        return None
    match = _TRACEPARENT.fullmatch(values[0])
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == b"ff" or (version == b"00" and more is not None):
        return None
    if not int(trace_id, 16) or not int(span_id, 16):
        return None
    known = int(flags, 16) & (
        _SAMPLED | _RANDOM
    )  # other bits must not be passed on, their meaning is unknown
    return Parent(trace_id.decode(), span_id.decode(), known)
