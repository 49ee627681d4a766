"""What the proxy has to reach beside its peers, and whether a run did. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tests.bench.measures import PARALLEL, SIZES_MB, Results

MEMORY_MB = 120.0
# Allocators do not give back every page: growth below this is not growth with the body.
GROWTH_MB = 10.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reached` is None when the figures were not measured."""

    target: str
    found: str
    reached: bool | None

    def __str__(self) -> str:
        word = {True: "reached", False: "NOT reached", None: "not measured"}[self.reached]
        return f"{word}: {self.target}" + (f" ({self.found})" if self.found else "")


def verdicts(results: Results, ours: str) -> list[Verdict]:
    """One result per target, by the medians of the run."""
    found = [
        _ratio(results, ours, "envoy", "get32.rps", 1.3, "requests/s at 32 connections"),
        _ratio(results, ours, "aiohttp", "get32.rps", 4.0, "requests/s at 32 connections"),
        _ratio(results, ours, "nginx", "get32.rps", 0.4, "requests/s at 32 connections"),
    ]
    for way in ("up", "down"):
        for count in PARALLEL:
            key, what = f"{way}{count}.mbps", f"MB/s {way}load, {count} at a time"
            found.append(_ratio(results, ours, "nginx", key, 1.0, what))
            found.append(_ratio(results, ours, "envoy", key, 0.8, what))
    found.extend(_memory(results, ours))
    return found


def _ratio(results: Results, ours: str, other: str, key: str, least: float, what: str) -> Verdict:
    target = f"at least {least:g} × {other}, {what}"
    ratio = results.ratio(ours, other, key)
    if ratio is None:
        return Verdict(target, "", None)
    return Verdict(target, f"{ratio:.2f} ×", ratio >= least)


def _memory(results: Results, ours: str) -> Iterator[Verdict]:
    for key, what in (
        ("memory.slow_clients", "with slow uploads in flight"),
        ("memory.slow_upstream", "with uploads into a slow upstream"),
    ):
        peak = results.median(ours, key)
        target = f"under {MEMORY_MB:g} MB {what}"
        if peak is None:
            yield Verdict(target, "", None)
        else:
            yield Verdict(target, f"{peak:.0f} MB", peak < MEMORY_MB)
    for way in ("up", "down"):
        small = results.median(ours, f"memory.{way}{SIZES_MB[0]}")
        large = results.median(ours, f"memory.{way}{SIZES_MB[-1]}")
        target = f"memory does not grow with the body, {way}"
        if small is None or large is None:
            yield Verdict(target, "", None)
        else:
            change = f"{small:.0f} MB after {SIZES_MB[0]} MB, {large:.0f} after {SIZES_MB[-1]} MB"
            yield Verdict(target, change, large - small < GROWTH_MB)
