"""What one mirror has counted of the pipeline: bounded, persistent, changed as a whole. No I/O.

1. Totals are changed by a `Draft`: it is written to the store together with what it counts, and
   taken over only when that is committed. What a scrape sees is what survives a crash.
2. A series is never changed in place, so a scrape in another thread sees each of them whole.
3. Label values come from documents. Declared stages are always taken; of anything else the first
   few distinct ones are, and the rest is `other`. They stay bounded over restarts too, as what was
   taken before is in the stored series.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from proxy.jobs.video_metrics.events import (
    DRIFT,
    INPUT_DURATION,
    JOBS,
    OTHER,
    SEGMENTS,
    SHORTS,
    STAGE_DURATION,
    STAGE_ERRORS,
    UNKNOWN,
    VALIDATIONS,
)

MOST_STAGES = 32  # beside those declared
MOST_ERROR_TYPES = 32
MOST_ERROR_CODES = 64
MOST_ERROR_SERIES = 256
EXEMPLAR_ID = 122  # characters: OpenMetrics allows 128 for names and values of an exemplar's labels


@dataclass(frozen=True, slots=True)
class TotalFamily:
    """A metric of the pipeline; `buckets` are the upper bounds of a histogram."""

    name: str
    kind: Literal["counter", "histogram"]
    about: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_COUNTS = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0)

FAMILIES = {
    family.name: family
    for family in (
        TotalFamily(
            STAGE_DURATION,
            "histogram",
            "How long a stage of a job took, by the job's own times; stages that completed",
            ("stage",),
            (
                0.05,
                0.1,
                0.25,
                0.5,
                1.0,
                2.5,
                5.0,
                10.0,
                20.0,
                30.0,
                60.0,
                120.0,
                300.0,
                600.0,
                1800.0,
            ),
        ),
        TotalFamily(
            STAGE_ERRORS,
            "counter",
            "Failed attempts at a stage of a job",
            ("stage", "error_type", "error_code"),
        ),
        TotalFamily(JOBS, "counter", "Jobs that reached a final status", ("status",)),
        TotalFamily(
            INPUT_DURATION,
            "histogram",
            "How long the audio of finished jobs plays",
            (),
            (5.0, 10.0, 30.0, 60.0, 120.0, 180.0, 300.0, 600.0, 1800.0, 3600.0),
        ),
        TotalFamily(SHORTS, "histogram", "Shorts used in finished jobs", (), _COUNTS),
        TotalFamily(
            SEGMENTS,
            "histogram",
            "Subtitle segments of finished jobs",
            (),
            (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0),
        ),
        TotalFamily(
            DRIFT,
            "histogram",
            "How far audio and picture or subtitles of finished jobs are apart",
            (),
            (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
        ),
        TotalFamily(VALIDATIONS, "counter", "Results of validations in finished jobs", ("result",)),
    )
}


@dataclass(frozen=True, slots=True)
class Example:
    """The latest job that was counted in a place; `at` is when it happened, Unix seconds."""

    job_id: str
    value: float
    at: float


@dataclass(frozen=True, slots=True)
class Total:
    """One series. A counter has its count in `value`; a histogram its sum, and `counts` with one
    place per bound and one above the last. `examples` by place, 0 for a counter."""

    value: float = 0.0
    counts: tuple[int, ...] = ()
    examples: tuple[tuple[int, Example], ...] = ()


Key = tuple[str, tuple[str, ...]]
"""A family's name and the values of its labels."""


def empty(family: TotalFamily) -> Total:
    """A series in which nothing was counted yet."""
    return Total(counts=(0,) * (len(family.buckets) + 1) if family.buckets else ())


def added(family: TotalFamily, total: Total, value: float, example: Example | None) -> Total:
    """The series with one more value in it."""
    place, counts = 0, total.counts
    if family.buckets:
        place = bisect_left(family.buckets, value)
        counts = (*counts[:place], counts[place] + 1, *counts[place + 1 :])
    examples = total.examples
    if example is not None:
        examples = (*(one for one in examples if one[0] != place), (place, example))
    return Total(total.value + value, counts, examples)


def merged(family: TotalFamily, totals: Iterable[Total]) -> Total:
    """The sum of series of several mirrors, with the latest example of each place."""
    value, counts = 0.0, [0] * len(empty(family).counts)
    examples: dict[int, Example] = {}
    for total in totals:
        value += total.value
        counts = [mine + theirs for mine, theirs in zip(counts, total.counts, strict=True)]
        for place, example in total.examples:
            if place not in examples or examples[place].at < example.at:
                examples[place] = example
    return Total(value, tuple(counts), tuple(examples.items()))


class Totals:
    """The series of one mirror. `declared`: stages that always have one; `results`: those of
    validations."""

    def __init__(self, declared: Iterable[str], results: Iterable[str] = ()) -> None:
        self._declared = frozenset(declared)
        self._stages: set[str] = set()
        self._types: set[str] = set()
        self._codes: set[str] = set()
        self._errors: set[tuple[str, ...]] = set()
        self.series: Mapping[Key, Total] = {}
        # There from the start, at zero: `rate` does not see the first value of a new series.
        known: dict[Key, Total] = {}
        for stage in sorted(self._declared):
            known[STAGE_DURATION, (stage,)] = empty(FAMILIES[STAGE_DURATION])
        for status in ("completed", "failed", "cancelled"):
            known[JOBS, (status,)] = Total()
        for result in sorted({"passed", "failed", *results}):
            known[VALIDATIONS, (result,)] = Total()
        for name in (INPUT_DURATION, SHORTS, SEGMENTS, DRIFT):
            known[name, ()] = empty(FAMILIES[name])
        self.series = known

    def load(self, rows: Iterable[tuple[str, str]]) -> None:
        """Take over what was stored; series that mean something else by now begin anew."""
        stored = dict(self.series)
        for series, text in rows:
            loaded = _read(series, text)
            if loaded is not None:
                key, total = loaded
                self._admitted(*key)
                stored[key] = total
        self.series = stored

    def draft(self) -> Draft:
        """Begin a change."""
        return Draft(self)

    def rows(self) -> list[tuple[str, object]]:
        """All series in the form in which they are stored."""
        return [_row(key, total) for key, total in self.series.items()]

    # --- label values ----------------------------------------------------------------------------

    def _admitted(self, family: str, labels: tuple[str, ...]) -> tuple[str, ...]:
        """The labels under which a value of `family` is counted (rule 3)."""
        if family == STAGE_DURATION:
            return (self._stage(labels[0]),)
        if family != STAGE_ERRORS:
            return labels
        stage, kind, code = labels
        stage = self._stage(stage)
        taken = (
            stage,
            _one_of(self._types, kind, MOST_ERROR_TYPES),
            _one_of(self._codes, code, MOST_ERROR_CODES),
        )
        if taken not in self._errors:
            if len(self._errors) >= MOST_ERROR_SERIES:
                return (stage, OTHER, OTHER)
            self._errors.add(taken)
        return taken

    def _stage(self, name: str) -> str:
        return name if name in self._declared else _one_of(self._stages, name, MOST_STAGES)


class Draft:
    """A change that is not committed yet."""

    def __init__(self, totals: Totals) -> None:
        self._totals = totals
        self._changed: dict[Key, Total] = {}

    def count(self, name: str, labels: tuple[str, ...], value: float, example: Example) -> None:
        """Count one event."""
        family = FAMILIES[name]
        key = (name, self._totals._admitted(name, labels))
        before = self._changed.get(key) or self._totals.series.get(key) or empty(family)
        exemplar = example if len(example.job_id) <= EXEMPLAR_ID else None
        self._changed[key] = added(family, before, value, exemplar)

    def rows(self) -> list[tuple[str, object]]:
        """The changed series in the form in which they are stored."""
        return [_row(key, total) for key, total in self._changed.items()]

    def adopt(self) -> None:
        """The change is committed: it can be seen from now on."""
        self._totals.series = {**self._totals.series, **self._changed}


def _one_of(taken: set[str], value: str, most: int) -> str:
    if value in (OTHER, UNKNOWN) or value in taken:
        return value
    if len(taken) >= most:
        return OTHER
    taken.add(value)
    return value


def _row(key: Key, total: Total) -> tuple[str, object]:
    family = FAMILIES[key[0]]
    stored: dict[str, object] = {"value": total.value}
    if family.buckets:
        stored.update(counts=total.counts, bounds=family.buckets)
    return json.dumps([key[0], *key[1]]), stored


def _read(series: str, text: str) -> tuple[Key, Total] | None:
    """A stored series; None when it is of another release's form, or none at all."""
    try:
        name, *labels = json.loads(series)
        stored = json.loads(text)
        family = FAMILIES[name]
        total = Total(float(stored["value"]), tuple(map(int, stored.get("counts", ()))))
        sound = (
            len(labels) == len(family.labels)
            and all(isinstance(label, str) for label in labels)
            and len(total.counts) == len(empty(family).counts)
            and tuple(stored.get("bounds", ())) == family.buckets
        )
    except (ValueError, TypeError, KeyError):
        return None
    return ((name, tuple(labels)), total) if sound else None
