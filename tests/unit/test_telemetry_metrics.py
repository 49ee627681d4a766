"""What is counted, under which names, and that scrapers understand it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_text
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from proxy.telemetry.metrics.counters import BUCKETS, Distribution
from proxy.telemetry.metrics.exposition import wants_openmetrics, write_out
from proxy.telemetry.metrics.loop_lag import sample_loop_lag
from proxy.telemetry.metrics.registry import Metrics
from tests.http1 import PATIENCE
from tests.telemetry_facts import Facts

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def filled() -> Metrics:
    """Metrics after a few exchanges in both directions."""
    metrics = Metrics("1.2.3")
    metrics.upstream("make-video").connected(0.0004)
    ingress = metrics.route("ingress", "job-status", "ingress", "make-video")
    for facts in (
        Facts(),
        Facts(status=404),
        Facts(method="BREW", status=405, code="method_not_allowed", upstream_time=None),
        Facts(status=499, code="client_left", upstream_time=None),
    ):
        ingress.begin(facts)
        ingress.record(facts)
    ingress.begin()
    egress = metrics.route("youtube-search", "all", "egress", "youtube-search")
    egress.begin()
    egress.record(Facts(attempts=3, upstream="youtube-search"))
    client = metrics.listener("ingress")
    client.opened()
    client.opened()
    client.closed()
    metrics.upstream_connections = lambda: [("make-video", 2, 1)]
    metrics.log_lines_dropped = lambda: 7
    metrics.reloaded("refused")
    metrics.loop_lag.observe(0.003)
    return metrics


def samples(families: Iterable[Metric]) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """All samples by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.mark.parametrize("accept", ["text/plain", OPENMETRICS])
def test_every_count_reaches_a_scraper(accept: str) -> None:
    """Both formats parse with prometheus_client's own parsers and tell the same."""
    body, content_type = filled().exposition(accept)
    assert content_type.startswith(accept.partition(";")[0])
    parse = parse_openmetrics if accept == OPENMETRICS else parse_text
    found = samples(parse(body.decode()))

    def value(name: str, **labels: str) -> float:
        return found[name, frozenset(labels.items())]

    on_route = {"endpoint": "job-status"}
    assert value("http_requests_total", method="GET", status="200", **on_route) == 1
    assert value("http_requests_total", method="GET", status="499", **on_route) == 1
    assert value("http_requests_total", method="OTHER", status="405", **on_route) == 1
    seconds = "http_request_duration_seconds"
    assert value(f"{seconds}_bucket", method="GET", le="0.2", **on_route) == 0
    assert value(f"{seconds}_bucket", method="GET", le="0.5", **on_route) == 3
    assert value(f"{seconds}_bucket", method="GET", le="+Inf", **on_route) == 3
    assert value(f"{seconds}_count", method="GET", **on_route) == 3
    assert value(f"{seconds}_sum", method="GET", **on_route) == 0.75
    call = {"service": "youtube-search", "endpoint": "all"}
    assert value("external_api_calls_total", status="200", **call) == 1
    assert value("external_api_duration_seconds_count", **call) == 1
    assert value("external_api_retries_total", **call) == 2
    here = {"listener": "ingress", **on_route}
    assert value("proxy_requests_in_flight", **here) == 1
    assert value("proxy_request_body_bytes_total", **here) == 12
    assert value("proxy_response_body_bytes_total", **here) == 2048
    assert value("proxy_added_seconds_sum", **here) == 0.25
    assert value("proxy_errors_total", code="client_left", **here) == 1
    assert value("proxy_client_connections", listener="ingress") == 1
    assert value("proxy_client_connections_accepted_total", listener="ingress") == 2
    assert value("proxy_upstream_connections", upstream="make-video", state="idle") == 2
    assert value("proxy_upstream_connections", upstream="make-video", state="active") == 1
    name = "proxy_upstream_connect_seconds_bucket"
    assert value(name, upstream="make-video", le="0.0005") == 1
    assert value("proxy_upstream_response_seconds_count", upstream="make-video") == 2
    assert value("proxy_event_loop_lag_seconds_count") == 1
    assert value("proxy_log_lines_dropped_total") == 7
    assert value("proxy_config_reloads_total", result="refused") == 1
    assert value("process_open_fds") > 2
    assert any(
        name == "proxy_build_info" and ("version", "1.2.3") in labels for name, labels in found
    )


def test_buckets_reach_from_a_millisecond_to_a_minute() -> None:
    """And a bucket includes its upper bound."""
    assert (BUCKETS[0], BUCKETS[-1]) == (0.001, 60.0)
    distribution = Distribution()
    for value in (0.0, 0.001, 0.0011, 60.0, 61.0):
        distribution.observe(value)
    cumulative = dict(distribution.cumulative())
    assert (cumulative["0.001"], cumulative["0.002"]) == (2, 3)
    assert (cumulative["60.0"], cumulative["+Inf"]) == (4, 5)


def test_a_reload_keeps_the_counts() -> None:
    """The same labels give the same counters; those of routes that are gone stay exposed."""
    metrics = filled()
    again = metrics.route("ingress", "job-status", "ingress", "make-video")
    assert again.methods["GET"].statuses == {200: 1, 404: 1, 499: 1}
    assert metrics.upstream("make-video") is metrics.upstream("make-video")
    moved = metrics.route("ingress", "job-status", "ingress", "other-upstream")
    moved.begin()
    moved.record(Facts())
    found = samples(metrics.families())
    labels = frozenset({("method", "GET"), ("endpoint", "job-status"), ("status", "200")})
    assert found["http_requests_total", labels] == 2


def test_clients_cannot_make_series() -> None:
    """A thousand invented methods are one series."""
    counters = Metrics("1").route("ingress", "other", "ingress", "make-video")
    for number in range(1000):
        counters.record(Facts(method=f"M{number}"))
    assert list(counters.methods) == ["OTHER"]


def test_a_sampled_trace_is_the_exemplar_of_its_bucket() -> None:
    """The latest of each bucket, on OpenMetrics alone; what no collector has is not named."""
    metrics = Metrics("1")
    metrics.upstream("make-video")
    counters = metrics.route("ingress", "job-status", "ingress", "make-video")
    for trace_id, sampled, duration in (
        ("a" * 32, True, 0.25),
        ("b" * 32, False, 0.26),
        ("c" * 32, True, 0.27),
        ("d" * 32, True, 3.0),
        (None, False, 0.28),
    ):
        counters.begin()
        facts = Facts(trace_id=trace_id, trace_sampled=sampled, duration=duration)
        counters.record(facts)
    text = metrics.exposition("application/openmetrics-text")[0].decode()
    found = {
        (sample.name, sample.labels["le"]): sample.exemplar
        for family in parse_openmetrics(text)
        for sample in family.samples
        if sample.exemplar is not None
    }
    assert {key: example.labels["trace_id"] for key, example in found.items()} == {
        ("http_request_duration_seconds_bucket", "0.5"): "c" * 32,
        ("http_request_duration_seconds_bucket", "5.0"): "d" * 32,
        ("proxy_upstream_response_seconds_bucket", "0.2"): "d" * 32,
    }
    assert found["http_request_duration_seconds_bucket", "0.5"].value == 0.27
    assert "trace_id" not in metrics.exposition("")[0].decode()


def test_ordinary_metrics_with_exemplars_share_the_registry() -> None:
    """Other parts register what they like; OpenMetrics shows their exemplars."""
    metrics = filled()
    stages = Histogram(
        "pipeline_stage_duration_seconds", "Stages", ["stage"], registry=metrics.registry
    )
    stages.labels("analyze_audio").observe(1.5, {"job_id": "mv_1"})
    Counter("proxy_extra", "Extra", registry=metrics.registry).inc()
    body, _ = metrics.exposition(OPENMETRICS)
    exemplars = [
        sample.exemplar.labels
        for family in parse_openmetrics(body.decode())
        for sample in family.samples
        if sample.exemplar is not None
    ]
    assert exemplars == [{"job_id": "mv_1"}]


@pytest.mark.parametrize(
    ("accept", "wants"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        (OPENMETRICS, True),
        ("application/openmetrics-text;version=abc", True),
        ("application/openmetrics-text;q=0", False),
        ("text/plain;q=0.9, application/openmetrics-text;q=0.5", False),
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
            "application/openmetrics-text;version=0.0.1;q=0.5,"
            "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,"
            "*/*;q=0.2",
            True,
        ),
    ],
)
def test_the_format_follows_accept(accept: str, wants: bool) -> None:
    """OpenMetrics when it is asked for at least as much as plain text."""
    assert wants_openmetrics(accept) is wants


@given(st.text(alphabet="aptq/x;=,. 01-"))
def test_any_accept_is_answered(accept: str) -> None:
    """A strange `Accept` is no reason to fail."""
    assert wants_openmetrics(accept) in (True, False)


async def test_scrapes_while_counting() -> None:
    """A thread may write everything out while the loop goes on adding series."""
    metrics = filled()
    scrapes = asyncio.gather(
        *(asyncio.to_thread(metrics.exposition, OPENMETRICS) for _ in range(3))
    )
    number = 0
    while not scrapes.done():
        number += 1
        counters = metrics.route("ingress", f"r{number % 50}", "ingress", "make-video")
        counters.record(Facts(status=200 + number % 300))
        await asyncio.sleep(0)
    for body, _ in await scrapes:
        assert body.endswith(b"# EOF\n")


async def test_loop_lag_is_sampled() -> None:
    """A timer's delay is counted, again and again."""
    distribution = Distribution()
    sampling = asyncio.create_task(sample_loop_lag(distribution, interval=0.001))
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while sum(distribution.counts) < 2:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.001)
    sampling.cancel()


@pytest.mark.parametrize("accept", ["text/plain", OPENMETRICS])
@pytest.mark.parametrize("number", [0, 49, 50, 51, 500])
def test_a_large_family_is_one_family(accept: str, number: int) -> None:
    """Written out in pieces, it has the same text as from the library in one go, help included."""
    calls = CounterMetricFamily("calls", 'Calls, "of" any\nkind', labels=["path"])
    for path in range(number):
        calls.add_metric([f"/{path}"], path)
    one = cast(CollectorRegistry, SimpleNamespace(collect=lambda: [calls]))
    whole = openmetrics_text(one) if accept is OPENMETRICS else generate_latest(one)
    assert write_out(iter([calls]), accept)[0] == whole
