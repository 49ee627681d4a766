"""Where a mirror reports its events (for the trace), besides its log and its metrics."""

from __future__ import annotations

from collections.abc import Callable

#: Receives each event of interest to an operator: its kind (`redis_lost`, ...) and facts.
EventSink = Callable[[str, dict[str, object]], None]


def discard_event(kind: str, facts: dict[str, object]) -> None:
    """The sink for mirrors whose events nobody records."""
