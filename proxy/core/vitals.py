"""What one running proxy knows about itself, handed to every part that adds to it.

Each proxy of a process has its own: what one goes through is no news about another. Parts that are
made without, as in tests, keep theirs to themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from proxy.core.clock_skew import ClockSkews
from proxy.core.process.shortage import Shortages
from proxy.core.tasks import Tasks


@dataclass(frozen=True, slots=True)
class Vitals:
    """`tasks`: its background tasks. `skews`: how far the clocks around it are from ours.
    `shortages`: where it lacked descriptors, ports or memory. These are the process', but what
    fails for the lack of them, and is logged and counted, is each proxy's own."""

    tasks: Tasks = field(default_factory=Tasks)
    skews: ClockSkews = field(default_factory=ClockSkews)
    shortages: Shortages = field(default_factory=Shortages)
