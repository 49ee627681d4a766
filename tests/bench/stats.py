"""Medians, ranges and quantiles. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Summary:
    """Several samples of one measure: their median and their extremes."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Summary | None:
        """None without samples."""
        if not samples:
            return None
        return cls(statistics.median(samples), min(samples), max(samples))


def quantile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least `share` (0..1) of the samples do not exceed (nearest rank:
    always a value that was really measured). Raises ValueError without samples."""
    if not samples:
        raise ValueError("no samples")
    return sorted(samples)[max(0, math.ceil(share * len(samples)) - 1)]
