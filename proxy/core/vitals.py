"""The state of one running proxy, passed to every part that contributes to it.

Each proxy in a process has its own, because the state of one says nothing about another. A part
that is built without one, as in tests, creates its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from proxy.core.clock_skew import ClockSkews
from proxy.core.process.shortage import Shortages
from proxy.core.tasks import Tasks


@dataclass(frozen=True, slots=True)
class Vitals:
    """`tasks`: its background tasks. `skews`: how far other machines' clocks are from ours.
    `shortages`: when it ran out of descriptors, ports or memory. Those belong to the process, but
    each proxy logs and counts its own failures."""

    tasks: Tasks = field(default_factory=Tasks)
    skews: ClockSkews = field(default_factory=ClockSkews)
    shortages: Shortages = field(default_factory=Shortages)
