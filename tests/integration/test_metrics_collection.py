"""The pipeline's metrics as Prometheus sees them, through kills of the proxy and two proxies."""

from __future__ import annotations

import time
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from proxy.demo.redis_server import RedisServer
from tests.counting_kit import all_versions, document, stage
from tests.http1.process import wait_until
from tests.jobs_kit import PREFIX
from tests.jobs_site import JobSite

NOWHERE = "http://127.0.0.1:1"  # the app is not asked for anything here
OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


def samples(site: JobSite) -> dict[tuple[str, frozenset[tuple[str, str]]], tuple[float, str]]:
    """Value and exemplar's job of each sample of an OpenMetrics scrape."""
    url = f"http://127.0.0.1:{site.proxy.admin_port}/metrics"
    with urllib.request.urlopen(urllib.request.Request(url, headers=OPENMETRICS)) as answer:
        text = answer.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): (
            sample.value,
            sample.exemplar.labels["job_id"] if sample.exemplar else "",
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(site: JobSite, name: str, **labels: str) -> float:
    """One sample; 0 where there is none."""
    return samples(site).get((name, frozenset(labels.items())), (0.0, ""))[0]


def completed(site: JobSite) -> float:
    return value(site, "pipeline_jobs_total", status="completed")


def run_job(site: JobSite, job_id: str) -> None:
    """Write a job's whole life as the app and its worker do."""
    for raw in all_versions(job_id, time.time()):
        site.redis.set(PREFIX + job_id, raw, ex=86400)


def test_counts_and_exemplars_survive_kill_9(redis_server: RedisServer, tmp_path: Path) -> None:
    """One scrape has stages, errors and jobs, with jobs as exemplars; after kill -9 and a new
    start the counts go on where they were."""
    with JobSite(tmp_path / "a", redis_server, NOWHERE) as site:
        run_job(site, "mv_1")
        now = time.time()
        failed = {"trim_video": stage("failed", now, now + 1, error_message="[NO_DISK] full")}
        error = {"type": "IOError", "message": "no"}
        raw = document("mv_2", "failed", now, stages=failed, error=error)
        site.redis.set(PREFIX + "mv_2", raw, ex=86400)
        site.redis.set(PREFIX + "mv_3", document("mv_3", "queued", now), ex=86400)
        wait_until(lambda: completed(site) == 1, "mv_1")
        wait_until(lambda: value(site, "pipeline_jobs_total", status="failed") == 1, "mv_2")
        wait_until(lambda: value(site, "pipeline_jobs_active") == 1, "mv_3")
        seen = samples(site)
        labels = {"stage": "trim_video", "error_type": "IOError", "error_code": "NO_DISK"}
        assert seen["pipeline_stage_errors_total", frozenset(labels.items())] == (1, "mv_2")
        bucket = frozenset({"stage": "load_approved", "le": "2.5"}.items())
        assert seen["pipeline_stage_duration_seconds_bucket", bucket] == (1, "mv_1")
        assert not any("job_id" in dict(labels) for _, labels in seen)
        site.kill_proxy()
        run_job(site, "mv_4")
        site.start_proxy()
        wait_until(lambda: completed(site) == 2, "mv_4, written while nobody was there")
        assert value(site, "pipeline_jobs_total", status="failed") == 1
        assert value(site, "pipeline_stage_duration_seconds_count", stage="load_approved") == 2


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_proxies_on_one_redis(redis_server: RedisServer, tmp_path: Path) -> None:
    """One counts and says so. Killed for good, the other one takes over; over both, each job that
    completed is counted once."""
    with JobSite(tmp_path / "a", redis_server, NOWHERE) as one:
        counts = {"mirror": "make_video"}
        wait_until(lambda: value(one, "proxy_pipeline_counting", **counts) == 1, "one counts")
        with JobSite(tmp_path / "b", redis_server, NOWHERE) as other:
            for number in range(3):
                run_job(one, f"mv_{number}")
            wait_until(lambda: completed(one) == 3, "counted by one")
            assert value(other, "proxy_pipeline_counting", **counts) == 0
            assert completed(other) == 0
            one.kill_proxy()
            for number in range(3, 5):
                run_job(other, f"mv_{number}")
            wait_until(lambda: completed(other) == 2, "taken over", 90)
            one.start_proxy()
            wait_until(lambda: completed(one) == 3, "its counts are there again")
            assert value(one, "proxy_pipeline_counting", **counts) == 0
            run_job(other, "mv_9")
            wait_until(lambda: completed(other) == 3, "counted by the other one")
            assert completed(one) == 3
