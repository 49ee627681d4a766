"""What every part of one mirror works with, and where it reports its events (for the trace)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from proxy.config.mirrors import Mirror as MirrorConfig
from proxy.core.clock import Clock
from proxy.core.vitals import Vitals
from proxy.jobs.metrics import MirrorMetrics

#: Receives each event of interest to an operator: its kind (`redis_lost`, ...) and facts.
EventSink = Callable[[str, dict[str, object]], None]


def discard_event(kind: str, facts: dict[str, object]) -> None:
    """The sink for mirrors whose events nobody records."""


@dataclass(frozen=True, slots=True)
class MirrorContext:
    """The mirror's name and settings, its clock, where it counts, reports and logs.

    `key_prefix` stands before the proxy's own keys in Redis.
    """

    name: str
    settings: MirrorConfig
    clock: Clock
    metrics: MirrorMetrics
    emit: EventSink = discard_event
    key_prefix: str = ""
    vitals: Vitals = field(default_factory=Vitals)

    @property
    def family(self) -> str:
        """The job keys' name without the ID: another mirror may use the same Redis."""
        return self.settings.key.replace("{job_id}", "")
