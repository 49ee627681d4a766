"""Reads a page in the Prometheus text format, and returns the families that may be shown.

1. prometheus_client parses. Its time grows with the square of a line's length, so lines, labels and
   samples are bounded first.
2. A page with a line that it cannot parse, or with more samples than allowed, is refused as a
   whole: the rest of a broken page cannot be trusted.
3. A family with invalid content (a histogram whose buckets shrink, a negative counter, the same
   series twice) is left out alone. The families shown must also be valid as OpenMetrics, whose
   parsers check all of this and refuse the whole scrape for one invalid family. So bounds are
   written canonically (`1.0`, not `1`), and the samples of a series are adjacent.
4. Timestamps of samples are dropped: the scraper uses the time of its scrape. `_created` gauges,
   which prometheus_client adds for every counter and histogram, are dropped, as our own are.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TextIO, cast

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_fd_to_metric_families
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from proxy.config.metric_names import LABEL, NAME

_BATCH = 50  # lines or samples between two calls of `pause`
_MOST_LABELS = 30
_MOST_SIGNS = 100  # equals signs of a line: its labels, and those in their values
_LONGEST_LINE = 4096
_LONGEST_VALUE = 512
_LONGEST_HELP = 400

_INNER = {"histogram": "le", "summary": "quantile"}  # labels inside one series
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class BadPage(Exception):
    """The page is refused; the text names the line and the reason, without quoting the page."""


class TooMany(BadPage):
    """The page has more samples than allowed."""


def read_page(
    body: bytes, max_samples: int, prefix: str = "", pause: Callable[[], None] = lambda: None
) -> tuple[list[Metric], list[str]]:
    """The families that may be shown, each name with `prefix`, and the names of unsound ones.

    `pause` is called regularly, so that a thread can let others run. Raises `BadPage`.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadPage(f"line {body[: error.start].count(10) + 1}: not UTF-8") from error
    sound, unsound = [], []
    looked_at = 0
    for family in _families(_Lines(text, max_samples, pause)):
        looked_at += len(family.samples)
        if looked_at >= _BATCH:
            looked_at = 0
            pause()
        if not family.samples or (family.type == "gauge" and family.name.endswith("_created")):
            continue
        if _sound(family, prefix):
            sound.append(_metric(family, prefix))
        else:
            unsound.append(family.name)
    return sound, unsound


class _Lines:
    """The lines of a page, for the library's parser. Raises `BadPage` for one that is too long."""

    def __init__(self, text: str, max_samples: int, pause: Callable[[], None]) -> None:
        self.number = 0
        self._text = text
        self._most = max_samples
        self._pause = pause

    def __iter__(self) -> Iterator[str]:
        samples = 0
        for line in io.StringIO(self._text):
            self.number += 1
            if self.number % _BATCH == 0:
                self._pause()
            if self.number > 1000 + 4 * self._most:
                raise TooMany(f"more lines than {self._most} samples can need")
            if len(line) > _LONGEST_LINE:
                raise BadPage(f"line {self.number}: more than {_LONGEST_LINE} characters")
            if not line.isspace() and not line.lstrip().startswith("#"):
                samples += 1
                if samples > self._most:
                    raise TooMany(f"more than {self._most} samples")
                if line.count("=") > _MOST_SIGNS:
                    raise BadPage(f"line {self.number}: too many labels")
            yield line


def _families(lines: _Lines) -> list[Metric]:
    """The families. From the library, samples without a type come one by one."""
    families: dict[tuple[str, str], Metric] = {}
    try:
        for found in text_fd_to_metric_families(cast(TextIO, lines)):
            empty = Metric(found.name, found.documentation, found.type)
            family = families.setdefault((found.name, found.type), empty)
            family.samples += [
                Sample(one.name, one.labels, float(one.value)) for one in found.samples
            ]
    except (ValueError, OverflowError, IndexError) as error:
        raise BadPage(f"line {lines.number}: not in the Prometheus text format") from error
    return list(families.values())


# --- families -----------------------------------------------------------------------------------


def _metric(family: Metric, prefix: str) -> Metric:
    """The family with the prefix, and with its samples as OpenMetrics requires them."""
    about = _CONTROL.sub(" ", family.documentation)[:_LONGEST_HELP].strip() or "Of the app"
    metric = Metric(prefix + family.name, about, family.type)
    inner = _INNER.get(family.type, "")
    for group in _groups(family):
        for sample in group:
            labels = dict(sample.labels)
            if inner in labels:
                labels[inner] = floatToGoString(labels[inner])  # type: ignore[no-untyped-call]
            metric.samples.append(Sample(prefix + sample.name, labels, sample.value))
    return metric


def _sound(family: Metric, prefix: str) -> bool:
    seen = {(sample.name, frozenset(sample.labels.items())) for sample in family.samples}
    if len(seen) < len(family.samples):
        return False
    if not NAME.fullmatch(prefix + family.name) or family.name.startswith("__"):
        return False
    if not all(_harmless(sample.labels) for sample in family.samples):
        return False
    if family.type == "counter":
        names = {sample.name for sample in family.samples}
        return len(names) == 1 and all(0 <= sample.value < math.inf for sample in family.samples)
    if family.type == "histogram":
        return all(_sound_histogram(family.name, group) for group in _groups(family))
    if family.type == "summary":
        return all(_sound_summary(family.name, group) for group in _groups(family))
    return True


def _harmless(labels: dict[str, str]) -> bool:
    return len(labels) <= _MOST_LABELS and all(
        LABEL.fullmatch(name)
        and not name.startswith("__")
        and len(value) <= _LONGEST_VALUE
        and not _CONTROL.search(value)
        for name, value in labels.items()
    )


def _groups(family: Metric) -> list[list[Sample]]:
    """The samples by series; buckets and quantiles belong to the series of their sum."""
    inner = _INNER.get(family.type, "")
    groups: dict[frozenset[tuple[str, str]], list[Sample]] = {}
    for sample in family.samples:
        key = frozenset(pair for pair in sample.labels.items() if pair[0] != inner)
        groups.setdefault(key, []).append(sample)
    return list(groups.values())


def _sound_histogram(name: str, samples: list[Sample]) -> bool:
    """Buckets with ascending bounds from 0 to +Inf and integer counts that do not decrease; a sum;
    and a count equal to the last bucket's."""
    buckets = [sample for sample in samples if sample.name == f"{name}_bucket"]
    others = {sample.name: sample for sample in samples if sample.name != f"{name}_bucket"}
    if len(buckets) + 2 != len(samples) or set(others) != {f"{name}_sum", f"{name}_count"}:
        return False
    if any("le" in sample.labels for sample in others.values()) or not buckets:
        return False
    bounds = [_number(sample.labels.get("le")) for sample in buckets]
    counts = [0.0, *(sample.value for sample in buckets)]
    total, count = others[f"{name}_sum"].value, others[f"{name}_count"].value
    return (
        bounds[-1] == math.inf
        and all(
            low is not None and high is not None and 0 <= low < high
            for low, high in pairwise(bounds)
        )
        and all(few <= many < math.inf for few, many in pairwise(counts))
        and all(number.is_integer() for number in counts)
        and counts[-1] == count
        and total >= 0
    )


def _number(text: str | None) -> float | None:
    """A bound; None for what is no number."""
    try:
        return float(text or "")
    except ValueError:
        return None


def _sound_summary(name: str, samples: list[Sample]) -> bool:
    """Quantiles from 0 to 1, a sum and an integer count, none of them negative."""
    for sample in samples:
        if sample.name == name:
            quantile = _number(sample.labels.get("quantile"))
            if quantile is None or not 0 <= quantile <= 1 or sample.value < 0:
                return False
            continue
        if "quantile" in sample.labels or not 0 <= sample.value < math.inf:
            return False
        if sample.name == f"{name}_count" and not sample.value.is_integer():
            return False
    return True
