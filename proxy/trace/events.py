"""One thing that happened, as it is recorded and as it is told. Pure.

1. What a client, an upstream or a job document said is cut and made printable before it is kept:
   a text to `TEXT` characters, the facts of an event to `FACTS` entries and `FACTS_BYTES` bytes.
2. A summary is made when an event is read (`summaries`), never when it is kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal

from proxy.core.clock import iso_utc

TEXT = 500  # characters of one text
FACTS = 48  # entries of one event
FACTS_BYTES = 16 * 1024  # of one event, as JSON
NAME = 128  # characters of an ID or a token

Source = Literal["exchange", "attempt", "breaker", "upload", "job", "restore", "mirror", "proxy"]


class Severity(IntEnum):
    """How bad it is, for whoever looks for trouble."""

    OK = 0
    WARNING = 1
    ERROR = 2

    @property
    def word(self) -> str:
        """As it is written."""
        return self.name.lower()


@dataclass(slots=True)
class TraceEvent:
    """One event. `at` is Unix seconds, `duration` seconds: for an exchange `at` is its beginning,
    for what a job says of itself the moment when the mirror saw it. `id` orders events as they were
    recorded; 0 for one that is not recorded, but made from another or from a job's versions.
    `service` is the upstream that it is about."""

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
        """When it was over."""
        return self.at + (self.duration or 0.0)

    @property
    def lane(self) -> str:
        """What it shares the bounds of the trace with: the same kind of one route, or its source
        where it is no exchange."""
        if self.source != "exchange":
            return self.source
        listener, route = self.facts.get("listener"), self.facts.get("route")
        return f"{listener}/{route}/{self.kind}"


def text(value: object, limit: int = TEXT) -> str:
    """The first `limit` characters of `value`, those that cannot be printed as `\\uNNNN`."""
    raw = value if isinstance(value, str) else str(value)
    cut = raw[:limit]
    if not cut.isprintable():
        cut = "".join(one if one.isprintable() else f"\\u{ord(one):04x}" for one in cut)[
            : limit * 6
        ]
    return cut + "…" if len(raw) > limit else cut


def bounded(facts: Mapping[str, object]) -> dict[str, Any]:
    """The facts that may be kept: without those that say nothing, cut, and only plain values."""
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
    """JSON of facts that `bounded` has let through; entries that would make it too long are left
    out, the largest first."""
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
    """The event as the admin API gives it."""
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
