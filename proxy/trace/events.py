"""One event, as it is recorded and as the API shows it. Pure.

1. Data from a client, an upstream or a job document is truncated and made printable before it is
   stored: a text to `TEXT` characters, an event's facts to `FACTS` entries and `FACTS_BYTES` bytes.
2. Summaries are created when events are read (`summaries`), never when they are stored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal

from proxy.core.clock import iso_utc
from proxy.core.text import printable

TEXT = 500  # characters of one text
FACTS = 48  # entries of one event
FACTS_BYTES = 16 * 1024  # of one event, as JSON
NAME = 128  # characters of an ID or a token

Source = Literal["exchange", "attempt", "breaker", "upload", "job", "restore", "mirror", "proxy"]


class Severity(IntEnum):
    """How bad an event is, for filtering."""

    OK = 0
    WARNING = 1
    ERROR = 2

    @property
    def word(self) -> str:
        """The name used in the API."""
        return self.name.lower()


@dataclass(slots=True)
class TraceEvent:
    """One event. `at` is in Unix seconds, `duration` in seconds. For an exchange `at` is its start,
    for a job's event the time when the mirror captured it. `id` orders events as they were
    recorded; it is 0 for events derived from another one or from a job's versions. `service` is
    the upstream concerned."""

    at: float
    source: Source
    kind: str
    severity: Severity = Severity.OK
    correlation_id: str | None = None
    job_id: str | None = None
    service: str | None = None
    duration: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    id: int = 0

    @property
    def until(self) -> float:
        """When it ended."""
        return self.at + (self.duration or 0.0)

    @property
    def lane(self) -> str:
        """The group of events with which it shares a limit: the same kind on the same route for an
        exchange, else the same source."""
        if self.source != "exchange":
            return self.source
        listener, route = self.facts.get("listener"), self.facts.get("route")
        return f"{listener}/{route}/{self.kind}"


def text(value: object, limit: int = TEXT) -> str:
    """The first `limit` characters of `value`, printable."""
    return printable(value if isinstance(value, str) else str(value), limit)


def bounded(facts: Mapping[str, object]) -> dict[str, Any]:
    """The facts fit for storing: without None values, truncated, only plain JSON types."""
    kept: dict[str, Any] = {}
    for name, value in facts.items():
        if value is None:
            continue
        if len(kept) >= FACTS:
            break
        kept[text(name, NAME)] = _plain(value, 2)
    return kept


def _plain(value: object, depth: int) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 1 << 63 else str(value)[:32]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth and isinstance(value, list | tuple):
        return [_plain(one, depth - 1) for one in value[:FACTS]]
    if depth and isinstance(value, dict):
        return {text(k, NAME): _plain(v, depth - 1) for k, v in list(value.items())[:FACTS]}
    return text(value)


def encode_facts(facts: Mapping[str, Any]) -> str:
    """JSON of facts from `bounded`; if it would be too long, the largest entries are dropped."""
    encoded = json.dumps(facts, separators=(",", ":"))
    if len(encoded) <= FACTS_BYTES:
        return encoded
    sizes = {name: len(json.dumps(value)) for name, value in facts.items()}
    total = len(encoded)
    for name in sorted(sizes, key=sizes.__getitem__, reverse=True):
        if total <= FACTS_BYTES - 32:
            break
        total -= sizes.pop(name)
    return json.dumps({name: facts[name] for name in facts if name in sizes} | {"cut": True})


def document(event: TraceEvent, summary: str) -> dict[str, Any]:
    """The event as the admin API shows it."""
    return {
        "at": iso_utc(event.at),
        "source": event.source,
        "kind": event.kind,
        "severity": event.severity.word,
        "correlation_id": event.correlation_id,
        "job_id": event.job_id,
        "summary": summary,
        "duration_ms": None if event.duration is None else round(event.duration * 1000, 3),
        "facts": ({"service": event.service} if event.service else {}) | event.facts,
    }
