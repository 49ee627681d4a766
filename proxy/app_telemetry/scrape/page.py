"""A strict parser of the Prometheus text format, which returns the families that may be shown.

1. A page with a malformed line is refused as a whole, as by Prometheus: the rest of a broken page
   cannot be trusted.
2. A page with more samples than allowed is refused as a whole: nobody knows which ones matter.
3. A family with correct syntax but invalid content (a histogram whose buckets shrink, a negative
   counter, the same series twice) is left out alone. The families shown must also be valid as
   OpenMetrics, whose parsers check all of this and refuse the whole scrape for one invalid family.
   So bounds are written canonically (`1.0`, not `1`), and the samples of a series are adjacent.
4. Timestamps of samples are dropped: the scraper uses the time of its scrape. `_created` gauges,
   which prometheus_client adds for every counter and histogram, are dropped, as our own are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import pairwise

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from proxy.config.metric_names import LABEL, NAME

_BATCH = 50  # lines between two calls of `pause`
_MOST_LABELS = 30
_LONGEST_VALUE = 512
_LONGEST_HELP = 400
_LONGEST_NUMBER = 64

_INNER = {"histogram": "le", "summary": "quantile"}  # labels inside one series
_TYPES = {"counter", "gauge", "histogram", "summary", "untyped"}
_SAMPLE_NAME = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]*")
_PAIR = re.compile(
    r"[ \t]*([A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*"
    r'"([^"\\]*(?:\\[\\"n][^"\\]*)*)"[ \t]*(?:,|(?=\}))'
)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_SPECIAL = re.compile(r"[+-]?(?:inf|infinity)|nan", re.IGNORECASE)
_TIME = re.compile(r"-?[0-9]{1,19}")
_ESCAPE = re.compile(r"\\(.)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class BadPage(Exception):
    """The page is refused; the text names the line and the reason, without quoting the page."""


class TooMany(BadPage):
    """The page has more samples than allowed."""


class _Family:
    """A family whose lines are being read."""

    def __init__(self, name: str, kind: str = "untyped") -> None:
        self.name = name
        self.kind = kind
        self.help = ""
        self.samples: list[Sample] = []
        self.typed = False


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
    for family in _read(text, max_samples, pause):
        looked_at += len(family.samples)
        if looked_at >= _BATCH:
            looked_at = 0
            pause()
        if not family.samples or (family.kind == "gauge" and family.name.endswith("_created")):
            continue
        if _sound(family, prefix):
            sound.append(_metric(family, prefix))
        else:
            unsound.append(family.name)
    return sound, unsound


# --- lines --------------------------------------------------------------------------------------


def _read(text: str, max_samples: int, pause: Callable[[], None]) -> list[_Family]:
    families: dict[str, _Family] = {}
    samples = start = number = 0
    while start < len(text):
        # Line by line, not with split(): a page may be one of a million empty lines.
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        line, start, number = text[start:end].strip(" \t"), end + 1, number + 1
        if number % _BATCH == 0:
            pause()
        if number > 1000 + 4 * max_samples:
            raise TooMany(f"more lines than {max_samples} samples can need")
        try:
            if line.startswith("#"):
                _comment(line, families)
            elif line:
                samples += 1
                if samples > max_samples:
                    raise TooMany(f"more than {max_samples} samples")
                sample = _sample(line)
                _family_of(sample.name, families).samples.append(sample)
        except ValueError as error:
            raise BadPage(f"line {number}: {error}") from error
    return list(families.values())


def _comment(line: str, families: dict[str, _Family]) -> None:
    words = line[1:].split(None, 2)
    if len(words) < 2 or words[0] not in ("TYPE", "HELP"):
        return
    name, rest = words[1], words[2] if len(words) > 2 else ""
    if not _SAMPLE_NAME.fullmatch(name):
        raise ValueError(f"no metric name after {words[0]}")
    family = families.setdefault(name, _Family(name))
    if words[0] == "HELP":
        family.help = _unescape(rest)
        return
    if rest not in _TYPES:
        raise ValueError("unknown type")
    if family.typed or family.samples:
        raise ValueError("TYPE repeated, or after samples")
    family.typed, family.kind = True, rest


def _sample(line: str) -> Sample:
    """Raises `ValueError`."""
    match = _SAMPLE_NAME.match(line)
    if match is None:
        raise ValueError("no metric name")
    at = match.end()
    labels: dict[str, str] = {}
    rest = line[at:].lstrip(" \t")
    if rest.startswith("{"):
        at = line.index("{", at) + 1
        while (pair := _PAIR.match(line, at)) is not None:
            if pair[1] in labels:
                raise ValueError("a repeated label")
            labels[pair[1]] = _unescape(pair[2])
            at = pair.end()
        closing = line[at:].lstrip(" \t")
        if not closing.startswith("}"):
            raise ValueError("malformed labels")
        rest = closing[1:]
    elif rest == line[at:]:
        raise ValueError("no value")
    words = rest.split()
    if not 1 <= len(words) <= 2 or (len(words) == 2 and not _TIME.fullmatch(words[1])):
        raise ValueError("expected a value and an optional timestamp")
    value = _number(words[0])
    if value is None:
        raise ValueError("a value that is not a number")
    return Sample(match[0], labels, value)


def _number(text: str) -> float | None:
    """A decimal, an infinity or NaN; None for anything else that `float` accepts."""
    if len(text) > _LONGEST_NUMBER:
        return None
    return float(text) if _NUMBER.fullmatch(text) or _SPECIAL.fullmatch(text) else None


def _family_of(name: str, families: dict[str, _Family]) -> _Family:
    """The family that a sample of this name belongs to; a new untyped one if none was declared."""
    for suffix, kinds in (
        ("_bucket", ("histogram",)),
        ("_sum", ("histogram", "summary")),
        ("_count", ("histogram", "summary")),
        ("_total", ("counter",)),
    ):
        if name.endswith(suffix):
            owner = families.get(name.removesuffix(suffix))
            if owner is not None and owner.kind in kinds:
                return owner
    return families.setdefault(name, _Family(name))


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda found: {"n": "\n"}.get(found[1], found[1]), text)


# --- families -----------------------------------------------------------------------------------


def _metric(family: _Family, prefix: str) -> Metric:
    """The family with the name, type and number format that OpenMetrics requires."""
    kind, name = family.kind, family.name
    if kind == "counter":
        # In OpenMetrics the samples of a counter end in `_total`.
        if all(sample.name.endswith("_total") for sample in family.samples):
            name = name.removesuffix("_total")
        else:
            kind = "untyped"
    about = _CONTROL.sub(" ", family.help)[:_LONGEST_HELP].strip() or "Of the app"
    metric = Metric(prefix + name, about, kind)
    inner = _INNER.get(kind, "")
    for group in _groups(family):
        for sample in group:
            labels = dict(sample.labels)
            if inner in labels:
                labels[inner] = floatToGoString(labels[inner])  # type: ignore[no-untyped-call]
            metric.samples.append(Sample(prefix + sample.name, labels, sample.value))
    return metric


def _sound(family: _Family, prefix: str) -> bool:
    seen = {(sample.name, frozenset(sample.labels.items())) for sample in family.samples}
    if len(seen) < len(family.samples):
        return False
    if not NAME.fullmatch(prefix + family.name) or family.name.startswith("__"):
        return False
    if not all(_harmless(sample.labels) for sample in family.samples):
        return False
    if family.kind == "counter":
        names = {sample.name for sample in family.samples}
        return len(names) == 1 and all(0 <= sample.value < math.inf for sample in family.samples)
    if family.kind == "histogram":
        return all(_sound_histogram(family.name, group) for group in _groups(family))
    if family.kind == "summary":
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


def _groups(family: _Family) -> list[list[Sample]]:
    """The samples by series; buckets and quantiles belong to the series of their sum."""
    inner = _INNER.get(family.kind, "")
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
    bounds = [_number(sample.labels.get("le", "")) for sample in buckets]
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


def _sound_summary(name: str, samples: list[Sample]) -> bool:
    """Quantiles from 0 to 1, a sum and an integer count, none of them negative."""
    for sample in samples:
        if sample.name == name:
            quantile = _number(sample.labels.get("quantile", ""))
            if quantile is None or not 0 <= quantile <= 1 or sample.value < 0:
                return False
            continue
        if "quantile" in sample.labels or not 0 <= sample.value < math.inf:
            return False
        if sample.name == f"{name}_count" and not sample.value.is_integer():
            return False
    return True
