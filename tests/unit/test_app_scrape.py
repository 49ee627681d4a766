"""The app's metrics page: what is taken from it, and what its mistakes and malice cannot do."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, Summary
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from proxy.app_telemetry.scrape.external_metrics import ExternalMetrics, Fetched
from proxy.app_telemetry.scrape.page import BadPage, TooMany, read_page
from proxy.core.clock import ManualClock
from proxy.telemetry.metrics.registry import Metrics

# As recorded from the real service.
RECORDED = b"""\
# HELP makevideo_jobs_total Total jobs
# TYPE makevideo_jobs_total counter
makevideo_jobs_queued 0
makevideo_jobs_processing 0
makevideo_jobs_completed 3
makevideo_jobs_failed 0

# HELP makevideo_disk_free_gb Free disk space in GB
# TYPE makevideo_disk_free_gb gauge
makevideo_disk_free_gb {path="/tmp/make-video-temp"} 75.17

# HELP makevideo_disk_used_percent Disk usage percentage
# TYPE makevideo_disk_used_percent gauge
makevideo_disk_used_percent {path="/tmp/make-video-temp"} 10.43
"""
# And from its older version, with status 200.
RECORDED_ERROR = b"# Error generating metrics: No module named 'app.celery_tasks'"


def shown(body: bytes, accept: str, prefix: str = "") -> dict[Any, float]:
    """Samples of a page as a whole scrape of ours exposes them, in either format."""
    families, _ = read_page(body, 1000, prefix)
    metrics = Metrics("1")
    external = ExternalMetrics(ManualClock(), 60.0)
    external.fetched(Fetched.OK, 0.1, families)
    metrics.external.append(external.families)
    text, _ = metrics.exposition(accept)
    parse = parse_openmetrics if "openmetrics" in accept else parse_text
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parse(text.decode())
        for sample in family.samples
        if not sample.name.startswith(("proxy_", "process_"))
    }


FORMATS = pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text"])


@FORMATS
def test_the_real_service_s_page(accept: str) -> None:
    """A type without samples, samples without a type, a blank before labels: all as recorded."""
    path = ("path", "/tmp/make-video-temp")
    assert shown(RECORDED, accept) == {
        ("makevideo_jobs_queued",): 0,
        ("makevideo_jobs_processing",): 0,
        ("makevideo_jobs_completed",): 3,
        ("makevideo_jobs_failed",): 0,
        ("makevideo_disk_free_gb", path): 75.17,
        ("makevideo_disk_used_percent", path): 10.43,
    }
    assert read_page(RECORDED_ERROR, 1000) == ([], [])


@FORMATS
def test_round_trip_of_a_python_app(accept: str) -> None:
    """What prometheus_client writes for an app is exposed, `_created` and clashes excepted."""
    registry = CollectorRegistry()
    clips = Counter("clips", "Clips\nmade, \\ and more", ["kind"], registry=registry)
    clips.labels('a"b\\c').inc(2)
    Gauge("depth", "Depth", registry=registry).set(-1.5)
    Histogram("took_seconds", "Took", ["op"], registry=registry).labels("x").observe(0.3)
    Summary("size_bytes", "Size", registry=registry).observe(7)
    Info("version", "Version", registry=registry).info({"version": "1"})
    page = generate_latest(registry)
    assert b"# TYPE clips_created gauge" in page
    wanted = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parse_text(page.decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
    assert len(wanted) == 22
    assert shown(page, accept) == wanted
    prefixed = shown(page, accept, "app_")
    assert set(prefixed) == {(f"app_{name}", *labels) for name, *labels in wanted}


@FORMATS
def test_bounds_and_order_become_those_of_openmetrics(accept: str) -> None:
    """`le="1"` of a Go program, series in disorder, times, quantiles: told as parsers want it."""
    page = b"""\
# TYPE h histogram
h_bucket{a="1",le="1"} 1
h_bucket{a="2",le="1"} 0
h_bucket{a="1",le="+Inf"} 2
h_bucket{a="2",le="+Inf"} 0
h_sum{a="1"} 3.5
h_sum{a="2"} 0
h_count{a="1"} 2
h_count{a="2"} 0
# TYPE s summary
s{quantile="0.5"} NaN 1795450757000
s{quantile="1"} 2
s_sum 4
s_count 2
# TYPE plain counter
plain 7
"""
    text = shown(page, accept)
    assert text["h_bucket", ("a", "1"), ("le", "1.0")] == 1
    assert text["h_bucket", ("a", "2"), ("le", "+Inf")] == 0
    assert text["s", ("quantile", "1.0")] == 2
    assert text["plain_total",] == 7
    assert len(text) == 13


@pytest.mark.parametrize(
    ("page", "line"),
    [
        (b"a 1\nb\n", 2),
        (b"a 1\n\n<html>\n", 3),
        (b"{} 1", 1),
        (b"1a 1", 1),
        (b"a one", 1),
        (b"a 1_0", 1),
        (b"a 0x1p3", 1),
        (b"a 1 soon", 1),
        (b"a{ 1", 1),
        (b'a{b="c"', 1),
        (b'a{b="c" d="e"} 1', 1),
        (b'a{b="c",,d="e"} 1', 1),
        (b"a{b='c'} 1", 1),
        (b'a{__name__="b"} 1', 1),
        (b"a " + b"1" * 400, 1),
        (b"a{" + b'b="=",' * 60 + b"} 1", 1),
        (b'a{b="c",b="d"} 1', 1),
        (b'a{1b="c"} 1', 1),
        (b"# TYPE a b c", 1),
        (b"# TYPE a thing", 1),
        (b"# TYPE a-b gauge", 1),
        (b"a 1\nb 2\xff", 2),
        (b"a " + b"1" * 1000, 1),
        (b"a 1\n" + b'b{c="' + b"x" * 100_000, 2),
    ],
)
def test_a_broken_page_is_refused_as_a_whole(page: bytes, line: int) -> None:
    """With the line, and without a word of the page itself."""
    with pytest.raises(BadPage, match=rf"^line {line}: ") as caught:
        read_page(page, 1000)
    assert len(str(caught.value)) < 100


@pytest.mark.parametrize(
    "page",
    [
        b"\n".join(b"m%d 1" % number for number in range(101)),
        b"\n" * 10_000,
        b"# HELP a b\n" * 10_000,
    ],
)
def test_too_much_is_refused_as_a_whole(page: bytes) -> None:
    """More samples than allowed, or endless lines without any."""
    with pytest.raises(TooMany):
        read_page(page, 100)


@pytest.mark.parametrize(
    "family",
    [
        "# TYPE x_total counter\nx_total -1",
        "# TYPE x_total counter\nx_total NaN",
        "x 1\nx 1",
        'x{a="1",b="2"} 1\nx{b="2",a="1"} 2',
        'x{a="\u2028"} 1',
        'x{a="\x07"} 1',
        'x{a="\\n"} 1',
        'x{a="' + "v" * 513 + '"} 1',
        "x{" + ",".join(f'l{n}="v"' for n in range(31)) + "} 1",
        "__x 1",
        "x" * 129 + " 1",
        '# TYPE x histogram\nx_bucket{le="1"} 1\nx_sum 1\nx_count 1',
        '# TYPE x histogram\nx_bucket{le="+Inf"} 1\nx_sum 1\nx_count 2',
        '# TYPE x histogram\nx_bucket{le="+Inf"} 1\nx_count 1',
        '# TYPE x histogram\nx_bucket{le="1"} 3\nx_bucket{le="+Inf"} 2\nx_sum 1\nx_count 2',
        '# TYPE x histogram\nx_bucket{le="2"} 1\nx_bucket{le="1"} 1\nx_bucket{le="+Inf"} 2\n'
        "x_sum 1\nx_count 2",
        '# TYPE x histogram\nx_bucket{le="1"} 0.5\nx_bucket{le="+Inf"} 1\nx_sum 1\nx_count 1',
        '# TYPE x histogram\nx_bucket{le="-1"} 0\nx_bucket{le="+Inf"} 1\nx_sum 1\nx_count 1',
        '# TYPE x histogram\nx_bucket{le="one"} 0\nx_bucket{le="+Inf"} 1\nx_sum 1\nx_count 1',
        "# TYPE x histogram\nx_sum 1\nx_count 1",
        '# TYPE x summary\nx{quantile="1.5"} 1\nx_sum 1\nx_count 1',
        '# TYPE x summary\nx{quantile="0.5"} -1',
        "# TYPE x summary\nx 1",
        "# TYPE x summary\nx_sum NaN\nx_count 1",
        "# TYPE x summary\nx_sum 1\nx_count 1.5",
    ],
)
def test_an_unsound_family_is_left_out_alone(family: str) -> None:
    """What would make an OpenMetrics parser refuse the scrape; its neighbours are exposed."""
    page = f"before 1\n{family}\nafter 2\n".encode()
    families, unsound = read_page(page, 1000)
    assert [metric.name for metric in families] == ["before", "after"]
    assert len(unsound) == 1


WORDS = (
    "x|y_total|x_bucket|x_sum|x_count|# TYPE x |# TYPE y |# HELP x |histogram|counter|summary|gauge"
    '|{le="1"}|{le="+Inf"}|{quantile="0.5"}|{a="b"}| 1| 2| NaN|\n|\n|\n|\\|"|\x00|é'
)
pieces = st.sampled_from(WORDS.split("|"))


@settings(max_examples=300)
@given(st.binary(max_size=200) | st.lists(pieces, max_size=40).map("".join).map(str.encode))
def test_nothing_spoils_a_scrape(page: bytes) -> None:
    """Any bytes: a refusal, or families with which strict parsers still take our scrape."""
    try:
        read_page(page, 1000)
    except BadPage:
        return
    for accept in ("text/plain", "application/openmetrics-text"):
        shown(page, accept)


def test_a_long_page_gives_way() -> None:
    """The thread pauses for every fifty lines read, and again for every fifty samples checked."""
    pauses: list[int] = []
    read_page(b"\n".join(b"m%d 1" % n for n in range(500)), 500, pause=lambda: pauses.append(1))
    assert len(pauses) == 20


# --- the guest ----------------------------------------------------------------------------------


def names(external: ExternalMetrics, taken: set[str]) -> list[str]:
    """Families shown beside names that are taken, without those about the page."""
    return [f.name for f in external.families(taken) if not f.name.startswith("proxy_")]


def about(external: ExternalMetrics, name: str, **labels: str) -> float:
    """A sample of the metrics about the page."""
    for family in external.families(set()):
        for sample in family.samples:
            if sample.name == f"proxy_app_metrics_{name}" and sample.labels == labels:
                return float(sample.value)
    raise AssertionError(f"no {name}")


def gauges(*names: str) -> list[Metric]:
    """Families of one sample."""
    return [GaugeMetricFamily(name, "Of the app", 1) for name in names]


def test_names_that_are_taken_are_left_out() -> None:
    """By us, by an earlier family, by a suffix, or kept for us for ever."""
    external = ExternalMetrics(ManualClock(), 60.0)
    page = b"""\
# TYPE clips_total counter
clips_total 1
# TYPE clips gauge
clips 1
took_seconds_bucket 1
proxy_errors_total 99
process_open_fds 5
pipeline_jobs_active 5
http_requests_total 5
mine 1
"""
    families, _ = read_page(page, 100)
    external.fetched(Fetched.OK, 0.1, families)
    taken = {"took_seconds", "took_seconds_bucket", "took_seconds_sum", "took_seconds_count"}
    text = list(external.families(taken))
    assert [family.name for family in text if not family.name.startswith("proxy_")] == [
        "clips",
        "mine",
    ]
    (left_out,) = (family for family in text if family.name == "proxy_app_metrics_left_out")
    assert [sample.value for sample in left_out.samples] == [6, 0]


def test_a_prefix_avoids_clashes_but_opens_no_door() -> None:
    """A name that becomes one of ours by its prefix is left out as well."""
    external = ExternalMetrics(ManualClock(), 60.0)
    families, _ = read_page(b"errors_total 1\nup 1\n", 100, "proxy_")
    external.fetched(Fetched.OK, 0.1, families)
    assert names(external, set()) == []
    assert about(external, "left_out", reason="collision") == 2


def test_what_is_left_out_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """By name, when it changes, not at every scrape; never more than twenty names."""
    external = ExternalMetrics(ManualClock(), 60.0)
    many = gauges(*(f"proxy_{number}" for number in range(30)))
    for families, unsound in ((gauges("a", "b"), ["c"]), (gauges("b"), []), (many, [])):
        external.fetched(Fetched.OK, 0.1, families, unsound)
        for _ in range(3):
            names(external, {"a"})
    text = [vars(record) for record in caplog.records]
    assert [facts["number"] for facts in text] == [2, 30]
    assert text[0]["families"] == ["a", "c"]
    assert len(text[1]["families"]) == 20


def test_old_values_disappear() -> None:
    """A failed fetch leaves what was there, until it is too old; an empty page clears at once."""
    clock = ManualClock()
    external = ExternalMetrics(clock, stale_after=60.0)
    assert about(external, "last_success_timestamp_seconds") == 0
    external.fetched(Fetched.OK, 0.1, gauges("a", "b"))
    then = clock.time()
    clock.advance(60.0)
    external.fetched(Fetched.TIMEOUT, 5.0)
    assert names(external, set()) == ["a", "b"]
    assert (about(external, "up"), about(external, "series")) == (0, 2)
    clock.advance(0.1)
    assert names(external, set()) == []
    assert about(external, "series") == 0
    assert about(external, "last_success_timestamp_seconds") == then
    external.fetched(Fetched.OK, 0.1, gauges("a"))
    external.fetched(Fetched.EMPTY, 0.1)
    assert names(external, set()) == []
    assert about(external, "up") == 1
    assert about(external, "fetches_total", result="ok") == 2
    assert about(external, "fetch_seconds_count") == 4


def test_a_scrape_leaves_the_samples_as_they_are() -> None:
    """The families are kept from one page to the next: writing them out changes nothing."""
    metrics = Metrics("1")
    external = ExternalMetrics(ManualClock(), 60.0)
    families = gauges("a")
    external.fetched(Fetched.OK, 0.1, families)
    metrics.external.append(external.families)
    bodies = {re.sub(rb"\nprocess_cpu.*", b"", metrics.exposition("")[0]) for _ in range(3)}
    assert len(bodies) == 1
    assert type(families[0].samples) is list
