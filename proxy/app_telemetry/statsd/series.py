"""The metric families that statsd clients fill, and their bounds.

1. Only declared names are counted, and only readings of the family's type.
2. A label value is one that the config lists, or one of the first `MOST_VALUES` that arrived and
   consist of harmless characters; every other one becomes `other`. So the config bounds the number
   of series whatever is sent, and `MOST_SERIES` bounds their total.
3. The event loop's thread counts, a scrape's thread only reads.
"""

from __future__ import annotations

import logging
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from proxy.app_telemetry.statsd.line import (
    Result,
    StatsdSample,
    name_of,
    read,
    refuse_name,
    tag_values,
)
from proxy.config.telemetry import Statsd, StatsdLabel, StatsdMetric
from proxy.telemetry.metrics.counters import Distribution

_log = logging.getLogger(__name__)

OTHER = "other"
MOST_VALUES = 32  # of a label whose values the config does not list
MOST_SERIES = 2000  # of all families; Prometheus scrapes as many in a few milliseconds
_VALUE = re.compile(rb"[A-Za-z0-9_./:@+ -]{1,64}")
_MOST_LOGGED = 20

Labels = tuple[str, ...]

_KINDS = {
    "counter": frozenset({"c"}),
    "gauge": frozenset({"g"}),
    "histogram": frozenset({"ms", "h", "d"}),
}
_SCALES = {"milliseconds": 0.001, "percent": 0.01, "seconds": 1.0, "none": 1.0}


class _Label:
    """One label of a family: maps a tag's value, as sent, to the label's value."""

    __slots__ = ("default", "known", "room", "tag")

    def __init__(self, name: str, rules: StatsdLabel) -> None:
        self.tag = name.encode()
        self.known = {value.encode(): value for value in rules.values}
        self.room = 0 if rules.values else MOST_VALUES
        self.default = rules.default

    def value(self, sent: bytes | None) -> str:
        """The label's value; `other` if the sent value is not allowed."""
        if not sent:
            return self.default
        known = self.known.get(sent)
        if known is None:
            if len(self.known) >= self.room or not _VALUE.fullmatch(sent):
                return OTHER
            known = self.known[sent] = sent.decode()
        return known


class StatsdFamily:
    """One declared family and its series. `replaced` counts label values that became `other`."""

    __slots__ = ("_about", "_bounds", "_labels", "_name", "_rules", "_signed_is_value", "_type",
                 "counts", "distributions", "kinds", "replaced")  # fmt: skip

    def __init__(self, name: str, rules: StatsdMetric) -> None:
        self._name = name
        self._about = rules.help or "Reported by the app through statsd"
        self._type = rules.type
        self._rules = rules
        self._bounds = rules.buckets
        self._signed_is_value = rules.signed == "value"
        self._labels = [_Label(label, label_rules) for label, label_rules in rules.labels.items()]
        self.kinds = _KINDS[rules.type]
        self.counts: dict[Labels, float] = {}
        self.distributions: dict[Labels, Distribution] = {}
        self.replaced = 0
        if not self._labels:  # start at zero, so that rates see the first reading
            self._make(())

    def labels(self, tags: bytes, from_name: tuple[bytes, bytes] | None) -> Labels:
        """The label values of a reading with these tags; one may come from its name."""
        if not self._labels:
            return ()
        sent = tag_values(tags)
        if from_name is not None:
            sent[from_name[0]] = from_name[1]
        values = tuple([label.value(sent.get(label.tag)) for label in self._labels])
        self.replaced += values.count(OTHER)
        return values

    @property
    def takes_labels(self) -> bool:
        """Whether the family has labels."""
        return bool(self._labels)

    def has(self, labels: Labels) -> bool:
        """Whether the series exists."""
        return labels in self.counts or labels in self.distributions

    def count(self, labels: Labels, reading: StatsdSample) -> Result:
        """Count all values of a reading, or none of them."""
        if self._type != "gauge" and min(reading.values) < 0:
            return Result.VALUE  # a decreasing sum looks like a restart
        if not self.has(labels):
            self._make(labels)
        unit = self._rules.unit or ("milliseconds" if reading.kind == "ms" else "none")
        scale = _SCALES[unit]
        if self._type == "histogram":
            distribution = self.distributions[labels]
            # Rounded, because a histogram's counts are integers in OpenMetrics.
            weight = round(reading.weight)
            for value in reading.values:
                scaled = value * scale
                distribution.counts[bisect_left(self._bounds, scaled)] += weight
                distribution.total += scaled * weight
        elif self._type == "counter":
            self.counts[labels] += sum(reading.values) * scale * reading.weight
        else:
            for value, signed in zip(reading.values, reading.signed, strict=True):
                changes = signed and not self._signed_is_value
                before = self.counts[labels] if changes else 0.0
                self.counts[labels] = before + value * scale
        return Result.ACCEPTED

    def metric(self) -> Metric:
        """The family for the registry."""
        names = [label.tag.decode() for label in self._labels]
        if self._type == "histogram":
            histogram = HistogramMetricFamily(self._name, self._about, labels=names)
            for labels, distribution in list(self.distributions.items()):
                histogram.add_metric(labels, distribution.cumulative(), distribution.total)
            return histogram
        kind = CounterMetricFamily if self._type == "counter" else GaugeMetricFamily
        family = kind(self._name, self._about, labels=names)
        for labels, value in list(self.counts.items()):
            family.add_metric(labels, value)
        return family

    def _make(self, labels: Labels) -> None:
        if self._type == "histogram":
            self.distributions[labels] = Distribution(self._bounds)
        else:
            self.counts[labels] = 0.0


class StatsdSeries:
    """All readings of statsd clients, and the outcomes of their lines. A collector for the
    registry. `dropped` returns how many packets the kernel has dropped."""

    def __init__(self, config: Statsd) -> None:
        self._families = [StatsdFamily(name, rules) for name, rules in config.families.items()]
        self._exact: dict[bytes, StatsdFamily] = {}
        self._patterns: dict[bytes, tuple[StatsdFamily, bytes]] = {}
        for family, (name, rules) in zip(self._families, config.families.items(), strict=True):
            for sent in rules.names or (name,):
                beginning, hole, label = sent.partition("{")
                if hole:
                    self._patterns[beginning[:-1].encode()] = family, label[:-1].encode()
                else:
                    self._exact[sent.encode()] = family
        self._series = sum(family.has(()) for family in self._families)
        self._names = list(config.families)
        self.lines = dict.fromkeys(Result, 0)
        self.packets: dict[tuple[str, str], int] = {}
        self.throttled = 0
        self.dropped: Callable[[], int] = int
        self._logged: set[bytes] = set()

    def line(self, line: bytes) -> None:
        """Count one line of a packet. Never raises."""
        self.lines[self._count(line)] += 1

    def _count(self, line: bytes) -> Result:
        name = name_of(line)
        from_name = None
        family = self._exact.get(name)
        if family is None:
            beginning, _, end = name.rpartition(b".")
            pattern = self._patterns.get(beginning)
            if pattern is None or not end:
                return self._refuse(name)
            family, label = pattern
            from_name = (label, end)
        reading = read(line)
        if isinstance(reading, Result):
            return reading
        if reading.kind not in family.kinds:
            return Result.TYPE
        labels = family.labels(reading.tags, from_name)
        if not family.has(labels):
            if self._series >= MOST_SERIES:
                return Result.SERIES
            result = family.count(labels, reading)
            self._series += family.has(labels)
            return result
        return family.count(labels, reading)

    def _refuse(self, name: bytes) -> Result:
        result = refuse_name(name)
        if (
            result is Result.UNDECLARED
            and len(self._logged) < _MOST_LOGGED
            and name not in self._logged
        ):
            # Only the first few: this helps with misspelt names, not with floods of invented ones.
            self._logged.add(name)
            _log.warning("statsd name not declared", extra={"statsd_name": name.decode()[:100]})
        return result

    def families(self) -> Iterator[Metric]:
        """Every declared family."""
        for family in self._families:
            yield family.metric()

    def collect(self) -> Iterator[Metric]:
        """Every declared family, then the metrics of the listener itself."""
        yield from self.families()
        lines = CounterMetricFamily(
            "proxy_statsd_lines",
            "Lines of statsd packets by outcome",
            labels=["result"],
        )
        for result, number in self.lines.items():
            lines.add_metric([result.value], number)
        yield lines
        packets = CounterMetricFamily(
            "proxy_statsd_packets", "Statsd packets received", labels=["transport", "result"]
        )
        for labels, number in list(self.packets.items()):
            packets.add_metric(labels, number)
        yield packets
        replaced = CounterMetricFamily(
            "proxy_statsd_labels_replaced",
            "Label values that were not allowed, or too many, and became other",
            labels=["metric"],
        )
        for name, family in zip(self._names, self._families, strict=True):
            if family.takes_labels:
                replaced.add_metric([name], family.replaced)
        yield replaced
        yield CounterMetricFamily(
            "proxy_statsd_packets_dropped",
            "UDP packets that the kernel dropped because we read too slowly",
            value=self.dropped(),
        )
        yield CounterMetricFamily(
            "proxy_statsd_throttled",
            "Times that reading paused because a turn's share of lines was used up",
            value=self.throttled,
        )
        yield GaugeMetricFamily("proxy_statsd_series", "Series of statsd", value=self._series)
