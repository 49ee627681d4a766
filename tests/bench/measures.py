"""What is measured, and the samples of a run. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.bench.stats import Summary

CONNECTIONS = (1, 32, 256)
PARALLEL = (1, 4)
SIZES_MB = (1, 50, 500)
# Percent of the proxy's core that other programs may use before its figures are worth a warning.
QUIET = 5.0
DIRECT = "direct"  # no proxy between: what the load generator and the upstream can do


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure per contender. `key` names it in the JSON."""

    key: str
    title: str
    decimals: int = 0


@dataclass(frozen=True, slots=True)
class Group:
    """Measures that share a table. `reading` is a sentence on how to read them; `ratios`: whether
    ours over each makes sense."""

    title: str
    reading: str
    measures: tuple[Measure, ...]
    ratios: bool = True


def _per_connections(kind: str, decimals: int) -> tuple[Measure, ...]:
    return tuple(
        Measure(f"get{count}.{kind}", f"{count} connection{'s' * (count > 1)}", decimals)
        for count in CONNECTIONS
    )


GROUPS = (
    Group("Small GET: requests per second", "Higher is better.", _per_connections("rps", 0)),
    Group("Small GET: median latency, ms", "Lower is better.", _per_connections("p50_ms", 2)),
    Group("Small GET: 99th percentile, ms", "Lower is better.", _per_connections("p99_ms", 2)),
    Group(
        "Small GET: CPU time of the proxy per request, µs",
        "Lower is better. Hardly disturbed by the load generator, unlike the rate.",
        _per_connections("cpu_us", 1),
    ),
    Group(
        "Small GET: share of its core that the proxy used, %",
        "Well under 100 with many connections: the load generator or a neighbour was the limit.",
        _per_connections("busy", 0),
        ratios=False,
    ),
    Group(
        "Added latency at a fixed 100 requests per second, µs",
        "Lower is better.",
        (Measure("added.p50_us", "median"), Measure("added.p99_us", "99th percentile")),
    ),
    Group(
        "Bodies of 50 MB: MB/s",
        "Higher is better.",
        tuple(
            Measure(f"{way}{count}.mbps", f"{way}load, {count} at a time")
            for way in ("up", "down")
            for count in PARALLEL
        ),
    ),
    Group(
        "Memory (resident, peak): MB",
        "Lower is better.",
        (
            Measure("memory.idle", "idle"),
            Measure("memory.slow_clients", "slow uploads in flight"),
            Measure("memory.slow_upstream", "uploads into a slow upstream"),
        ),
    ),
    Group(
        "Memory (resident, peak) after one body of each size: MB",
        "Lower is better.",
        tuple(
            Measure(f"memory.{way}{size}", f"{size} MB {way}")
            for way in ("up", "down")
            for size in SIZES_MB
        ),
    ),
)


@dataclass(slots=True)
class Results:
    """Samples by contender and measure, in the order in which they were taken, and remarks."""

    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def add(self, contender: str, key: str, value: float) -> None:
        """One more sample."""
        self.samples.setdefault(contender, {}).setdefault(key, []).append(value)

    def remark(self, contender: str, text: str) -> None:
        """A remark for the table's foot, once however often it is made."""
        notes = self.notes.setdefault(contender, [])
        if text not in notes:
            notes.append(text)

    def summary(self, contender: str, key: str) -> Summary | None:
        """None when it was not measured."""
        return Summary.of(self.samples.get(contender, {}).get(key, []))

    def median(self, contender: str, key: str) -> float | None:
        """None when it was not measured."""
        found = self.summary(contender, key)
        return None if found is None else found.median

    def subtract(self, base: str, kind: str, into: str) -> None:
        """For every measure `KIND.x` of the others, samples of `INTO.x`: less the median of
        `base`. The median, because one disturbed round of `base` would shift all the others."""
        for name, measured in self.samples.items():
            for key in [key for key in measured if key.startswith(f"{kind}.")]:
                least = self.median(base, key)
                if name != base and least is not None:
                    measured[key.replace(kind, into, 1)] = [v - least for v in measured[key]]

    def disturbed(self) -> dict[str, float]:
        """Contenders whose core other programs used too much, and how much: median percent."""
        shares = {name: self.median(name, "get32.others") or 0.0 for name in self.samples}
        return {name: share for name, share in shares.items() if share > QUIET}

    def ratio(self, ours: str, other: str, key: str) -> float | None:
        """Median of `ours` over that of `other`; None unless both were measured and positive."""
        mine, theirs = self.median(ours, key), self.median(other, key)
        if mine is None or theirs is None or mine <= 0 or theirs <= 0:
            return None
        return mine / theirs
