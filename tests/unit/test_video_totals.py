"""What is counted of the pipeline: bounded, stored and read back, shown with exemplars."""

from __future__ import annotations

import json
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from proxy.jobs.video_metrics.events import JOBS, SHORTS, STAGE_DURATION, STAGE_ERRORS
from proxy.jobs.video_metrics.metrics import Counted, PipelineMetrics
from proxy.jobs.video_metrics.totals import (
    FAMILIES,
    MOST_ERROR_CODES,
    MOST_ERROR_SERIES,
    MOST_ERROR_TYPES,
    MOST_STAGES,
    Example,
    Totals,
)
from proxy.telemetry.metrics.registry import Metrics

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def example(job_id: str = "mv_1", value: float = 1.0, at: float = 100.0) -> Example:
    return Example(job_id, value, at)


def count(
    totals: Totals, name: str, labels: tuple[str, ...], value: float = 1.0, **more: Any
) -> None:
    """One event, committed."""
    draft = totals.draft()
    draft.count(name, labels, value, example(value=value, **more))
    draft.adopt()


def stored(totals: Totals) -> list[tuple[str, str]]:
    """All series as the store gives them back."""
    return [(series, json.dumps(total)) for series, total in totals.rows()]


def series_of(totals: Totals, name: str) -> dict[tuple[str, ...], float]:
    return {labels: total.value for (family, labels), total in totals.series.items()
            if family == name}  # fmt: skip


def exposed(totals: Totals, accept: str) -> str:
    """A scrape of one mirror's totals."""
    metrics = Metrics("1")
    PipelineMetrics(metrics.registry).show("m", Counted(totals))
    return metrics.exposition(accept)[0].decode()


def test_series_that_are_there_from_the_start() -> None:
    """Declared stages, final statuses and results are 0, so that a first event is an increase."""
    totals = Totals(("a", "b"), ("approved",))
    assert series_of(totals, STAGE_DURATION) == {("a",): 0.0, ("b",): 0.0}
    assert set(series_of(totals, JOBS)) == {("completed",), ("failed",), ("cancelled",)}
    assert ("approved",) in series_of(totals, "validation_results")


def test_a_draft_is_not_seen_before_it_is_adopted() -> None:
    """Nor is anything of one that never is."""
    totals = Totals(("a",))
    draft = totals.draft()
    draft.count(JOBS, ("failed",), 1.0, example())
    draft.count(JOBS, ("failed",), 1.0, example())
    assert series_of(totals, JOBS)["failed",] == 0
    draft.adopt()
    assert series_of(totals, JOBS)["failed",] == 2
    totals.draft().count(JOBS, ("failed",), 1.0, example())
    assert series_of(totals, JOBS)["failed",] == 2


def test_what_is_stored_is_read_back() -> None:
    """Sums, buckets and counts; and counting goes on from there."""
    totals = Totals(("a",))
    for seconds in (0.07, 3.0, 4000.0):
        count(totals, STAGE_DURATION, ("a",), seconds)
    count(totals, STAGE_ERRORS, ("a", "T", "C"))
    again = Totals(("a",))
    again.load(stored(totals))
    assert series_of(again, STAGE_ERRORS) == {("a", "T", "C"): 1.0}
    before = totals.series[STAGE_DURATION, ("a",)]
    after = again.series[STAGE_DURATION, ("a",)]
    assert (after.value, after.counts) == (before.value, before.counts)
    assert sum(after.counts) == 3
    assert after.counts[-1] == 1
    count(again, STAGE_DURATION, ("a",), 3.0)
    assert sum(again.series[STAGE_DURATION, ("a",)].counts) == 4


@pytest.mark.parametrize(
    "row",
    [
        ("no json", "{}"),
        ('["unheard_of"]', '{"value": 1}'),
        (f'["{SHORTS}"]', '{"value": 1, "counts": [1], "bounds": [5]}'),
        (f'["{JOBS}"]', '{"value": 1}'),
        (f'["{JOBS}", 7]', '{"value": 1}'),
        (f'["{JOBS}", "failed"]', '{"value": "x"}'),
        (f'["{JOBS}", "failed"]', "[]"),
        ("7", "{}"),
    ],
)
def test_stored_series_of_another_form_begin_anew(row: tuple[str, str]) -> None:
    """Another release's buckets, or damage, cost that series' past and nothing else."""
    totals = Totals(("a",))
    untouched = totals.series
    totals.load([row])
    assert totals.series == untouched


def test_labels_are_bounded_over_restarts_too() -> None:
    """Stages, types, codes and their combinations; declared stages always have a place."""
    totals = Totals(("mine",))
    for number in range(500):
        count(totals, STAGE_DURATION, (f"s{number}",))
        count(totals, STAGE_ERRORS, (f"s{number}", f"T{number % 7}", f"C{number % 90}"))
        if number % 100 == 0:
            again = Totals(("mine",))
            again.load(stored(totals))
            totals = again
    count(totals, STAGE_DURATION, ("mine",))
    durations, errors = series_of(totals, STAGE_DURATION), series_of(totals, STAGE_ERRORS)
    assert len(durations) == 1 + MOST_STAGES + 1
    assert durations["mine",] == 1
    assert durations["other",] == 500 - MOST_STAGES
    assert sum(errors.values()) == 500
    assert len({code for _, _, code in errors}) <= MOST_ERROR_CODES + 1
    assert len({kind for _, kind, _ in errors}) <= MOST_ERROR_TYPES + 1
    assert len(errors) <= MOST_ERROR_SERIES + MOST_STAGES + 2


def test_combinations_within_one_draft_are_bounded() -> None:
    """A batch that is not committed yet counts towards the limit."""
    totals = Totals(("a",))
    draft = totals.draft()
    for kind in range(MOST_ERROR_TYPES):
        for code in range(MOST_ERROR_CODES):
            draft.count(STAGE_ERRORS, ("a", f"T{kind}", f"C{code}"), 1.0, example())
    draft.adopt()
    errors = series_of(totals, STAGE_ERRORS)
    assert len(errors) == MOST_ERROR_SERIES + 1
    assert sum(errors.values()) == MOST_ERROR_TYPES * MOST_ERROR_CODES


def test_job_ids_are_exemplars_of_openmetrics_only() -> None:
    """The latest job of each bucket and counter; plain text has none; none is a label."""
    totals = Totals(("a",))
    count(totals, STAGE_DURATION, ("a",), 0.06, job_id="mv_old", at=1.0)
    count(totals, STAGE_DURATION, ("a",), 0.07, job_id="mv_new", at=1795450902.6712)
    count(totals, STAGE_DURATION, ("a",), 50.0, job_id="mv_slow")
    count(totals, JOBS, ("failed",), job_id="mv_bad")
    text = exposed(totals, OPENMETRICS)
    assert (
        'pipeline_stage_duration_seconds_bucket{le="0.1",stage="a"} 2.0 '
        '# {job_id="mv_new"} 0.07 1795450902.671' in text
    )
    assert 'pipeline_jobs_total{status="failed"} 1.0 # {job_id="mv_bad"} 1.0 100.0' in text
    assert "mv_old" not in text
    families = list(text_string_to_metric_families(text))
    assert not [s for family in families for s in family.samples if "job_id" in s.labels]
    assert "mv_" not in exposed(totals, "text/plain")


def test_an_id_too_long_for_an_exemplar_is_left_out() -> None:
    """OpenMetrics allows 128 characters; the value is counted all the same."""
    totals = Totals(("a",))
    count(totals, JOBS, ("failed",), job_id="m" * 128)
    text = exposed(totals, OPENMETRICS)
    assert 'pipeline_jobs_total{status="failed"} 1.0\n' in text


def test_several_mirrors_are_added_up() -> None:
    """The names know no mirror; active jobs are of those that count."""
    registry = CollectorRegistry()
    metrics = PipelineMetrics(registry)
    for name, active in (("one", 2), ("two", 3), ("three", None)):
        totals = Totals(("a",))
        count(totals, STAGE_DURATION, ("a",), 1.0, job_id=name, at=float(len(name)))
        shown = Counted(totals)
        shown.counting, shown.active = active is not None, active
        metrics.show(name, shown)
    assert registry.get_sample_value("pipeline_stage_duration_seconds_count", {"stage": "a"}) == 3
    assert registry.get_sample_value("pipeline_jobs_active") == 5
    assert registry.get_sample_value("proxy_pipeline_counting", {"mirror": "three"}) == 0
    (bucket,) = (
        sample
        for family in registry.collect()
        for sample in family.samples
        if sample.exemplar is not None
    )
    assert bucket.exemplar is not None
    assert bucket.exemplar.labels == {"job_id": "three"}


def test_every_family_can_be_read_by_a_parser() -> None:
    """Both forms, with values in each family."""
    totals = Totals(("a",))
    for family in FAMILIES.values():
        count(totals, family.name, ("a", "T", "C")[: len(family.labels)], 1.5)
    names = {family.name for family in text_string_to_metric_families(exposed(totals, OPENMETRICS))}
    assert set(FAMILIES) <= names
    assert 'subtitle_segments_count_bucket{le="2.0"} 1.0' in exposed(totals, "text/plain")
