"""What statsd lines become: values of declared families, in a bounded number of series."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)

from proxy.app_telemetry.statsd.line import Result
from proxy.app_telemetry.statsd.series import StatsdSeries
from proxy.config.telemetry import Statsd
from proxy.telemetry.metrics.registry import Metrics

OPENMETRICS = "application/openmetrics-text"

METRICS: dict[str, Any] = {
    "jobs_seen_total": {"type": "counter", "names": ["jobs.seen"]},
    "queue_length": {"type": "gauge", "names": ["queue"]},
    "temperature": {"type": "gauge", "signed": "value"},
    "share_used": {"type": "histogram", "unit": "percent", "buckets": [0.5, 1]},
    "wait_seconds": {"type": "histogram", "unit": "seconds", "buckets": [1, 10]},
    "size_bytes": {"type": "histogram", "buckets": [10, 1000]},
    "rejected_total": {
        "type": "counter",
        "names": ["rejected", "rejected.{reason}"],
        "labels": {"reason": {"values": ["short", "broken"]}, "host": {}},
    },
}


@pytest.fixture(autouse=True)
def few_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """A label takes two values."""
    monkeypatch.setattr("proxy.app_telemetry.statsd.series.MOST_VALUES", 2)


def series() -> StatsdSeries:
    """Series of the families above, and of those that are always declared."""
    keys = {"bind": "127.0.0.1:0", "metrics": METRICS}
    return StatsdSeries(Statsd.model_validate(keys))


def exposed(series: StatsdSeries) -> dict[tuple[str, ...], float]:
    """Every sample by name and values of its labels in their order, as a scraper reads them."""
    metrics = Metrics("1")
    metrics.registry.register(series)
    body, _ = metrics.exposition(OPENMETRICS)
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in parse_openmetrics(body.decode())
        for sample in family.samples
        if not sample.name.startswith("process_")
    }


def test_counters_add_up() -> None:
    """Values, packed values and sample rates; zero is exposed before the first line."""
    counted = series()
    assert exposed(counted)["jobs_seen_total",] == 0
    for line in (b"jobs.seen:1|c", b"jobs.seen:2:3|c", b"jobs.seen:1|c|@0.1"):
        counted.line(line)
    assert exposed(counted)["jobs_seen_total",] == 16
    assert counted.lines[Result.ACCEPTED] == 3


def test_gauges_are_set_and_changed() -> None:
    """A sign changes a statsd gauge; with `signed: value` it belongs to the number."""
    counted = series()
    for line in (
        b"queue:7|g",
        b"queue:+5|g",
        b"queue:-2|g",
        b"temperature:5|g",
        b"temperature:-2|g",
    ):
        counted.line(line)
    values = exposed(counted)
    assert values["queue_length",] == 10
    assert values["temperature",] == -2


def test_units_become_the_family_s() -> None:
    """Timings are milliseconds unless declared otherwise; percents become shares."""
    counted = series()
    for line in (
        b"video.processing:1500|ms|#operation:concat",
        b"video.processing:2.5|h|#operation:concat",
        b"share_used:40|h",
        b"wait_seconds:3|ms",
        b"size_bytes:100|d|@0.5",
    ):
        counted.line(line)
    values = exposed(counted)
    assert values["video_processing_duration_seconds_sum", "concat"] == 4.0
    assert values["video_processing_duration_seconds_bucket", "2.5", "concat"] == 2
    assert values["share_used_bucket", "0.5"] == 1
    assert values["wait_seconds_sum",] == 3
    assert values["size_bytes_count",] == 2
    assert values["size_bytes_sum",] == 200


def test_labels_come_from_tags_or_from_the_name() -> None:
    """A missing tag is `unknown`, one that is not allowed or one too many `other`."""
    counted = series()
    for line in (
        b"rejected:1|c|#reason:short,host:a,ignored:x",
        b"rejected.broken:1|c|#host:b",
        b"rejected.broken:1|c|#host:c",
        b"rejected.evil:1|c|#host:a",
        b"rejected:1|c",
        b"rejected:1|c|#reason:short,host:\xff",
        b'rejected:1|c|#reason:short,host:"\n}',
    ):
        counted.line(line)
    values = {
        key[1:]: value for key, value in exposed(counted).items() if key[0] == "rejected_total"
    }
    assert values == {
        ("a", "short"): 1,
        ("b", "broken"): 1,
        ("other", "broken"): 1,
        ("a", "other"): 1,
        ("unknown", "unknown"): 1,
        ("other", "short"): 2,
    }
    assert exposed(counted)["proxy_statsd_labels_replaced_total", "rejected_total"] == 4


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"jobs.seen:-1|c", Result.VALUE),
        (b"size_bytes:-1|h", Result.VALUE),
        (b"size_bytes:1:-1|h", Result.VALUE),
        (b"jobs.seen:1|g", Result.TYPE),
        (b"queue:1|c", Result.TYPE),
        (b"size_bytes:1|c", Result.TYPE),
        (b"jobs.seen:nan|c", Result.VALUE),
        (b"jobs.seen:1|c|@2", Result.MALFORMED),
        (b"jobs.unseen:1|c", Result.UNDECLARED),
        (b"rejected.:1|c", Result.UNDECLARED),
        (b"jobs.seen.more:1|c", Result.UNDECLARED),
        (b"_e{1,1}:a|b", Result.UNSUPPORTED),
    ],
)
def test_a_refused_line_changes_nothing(line: bytes, why: Result) -> None:
    """But the count of its reason."""
    counted = series()
    before = exposed(counted)
    counted.line(line)
    after = exposed(counted)
    assert {key for key in after if after[key] != before.get(key)} == {
        ("proxy_statsd_lines_total", why.value)
    }


def test_series_are_bounded_whatever_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A label's values, and all series together; the loss is counted."""
    counted = series()
    for number in range(5000):
        counted.line(b"rejected.%d:1|c|#host:h%d" % (number, number))
    assert exposed(counted)["proxy_statsd_series",] <= 6 + 3 + 3 * 4
    monkeypatch.setattr("proxy.app_telemetry.statsd.series.MOST_SERIES", 10)
    small = series()
    for host in (b"a", b"b", b"c"):
        small.line(b"rejected:1|c|#host:" + host)
    assert small.lines[Result.SERIES] == 2
    assert exposed(small)["proxy_statsd_series",] == 10


def test_misspelt_names_are_exposed_but_not_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    """The first twenty different ones, each once."""
    counted = series()
    with caplog.at_level(logging.WARNING):
        for number in range(100):
            counted.line(b"stranger.%d:1|c" % (number // 2))
    names = [getattr(record, "statsd_name", "") for record in caplog.records]
    assert names == [f"stranger.{number}" for number in range(20)]
    assert counted.lines[Result.UNDECLARED] == 100


lines = st.binary(max_size=80) | st.builds(
    b"%b:%b|%b|#%b".__mod__,
    st.tuples(
        st.sampled_from(
            [b"jobs.seen", b"queue", b"size_bytes", b"rejected", b"rejected.x", b"ocr.confidence"]
        ),
        st.sampled_from([b"1", b"-3.5", b"1e15", b"nan", b"9:8", b"1e-300"]),
        st.sampled_from([b"c", b"g", b"h", b"ms", b"c|@0.000001"]),
        st.binary(max_size=30) | st.just(b"reason:short,host:z"),
    ),
)


@settings(max_examples=50)
@given(st.lists(lines, max_size=30))
def test_any_lines_leave_a_sound_scrape(sent: list[bytes]) -> None:
    """Whatever came in, OpenMetrics parsers take what comes out, and each line has one fate."""
    counted = series()
    for line in sent:
        counted.line(line)
    assert sum(counted.lines.values()) == len(sent)
    assert exposed(counted)["proxy_statsd_series",] <= 100
