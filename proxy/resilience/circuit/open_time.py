"""How long a circuit stays open: doubled with each opening in a row, bounded, jittered. Pure."""

from __future__ import annotations

import random

from proxy.config.upstreams import Breaker as BreakerRules

#: The share of a grown open time that is added at most, so that fleets do not probe in step.
JITTER = 0.1


class OpenTime:
    """The open times of one breaker, in seconds."""

    def __init__(self, rules: BreakerRules, rng: random.Random) -> None:
        self.rules = rules
        self._random = rng

    def of(self, opens: int) -> float:
        """For the `opens`-th opening in a row."""
        grown = min(self.rules.open_for * 2.0 ** min(opens - 1, 30), self._bound)
        return grown * self.jitter() if grown > self.rules.open_for else grown

    @property
    def longest(self) -> float:
        """The longest, whoever sets it."""
        return self._bound * (1.0 + JITTER)

    def jitter(self) -> float:
        """A random factor for a grown open time, from 1 to 1 + `JITTER`."""
        return 1.0 + JITTER * self._random.random()

    @property
    def _bound(self) -> float:
        return max(self.rules.open_for, self.rules.max_open_for or 0.0)
