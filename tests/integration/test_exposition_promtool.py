"""Prometheus's own parser reads what we show of others."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.app_telemetry.resources.pace import Pace
from proxy.app_telemetry.resources.sampler import ResourceSampler
from proxy.app_telemetry.scrape.external_metrics import ExternalMetrics, Fetched
from proxy.app_telemetry.scrape.page import BadPage, read_page
from proxy.app_telemetry.statsd.series import StatsdSeries
from proxy.config.telemetry import Resources, Statsd
from proxy.core.clock import ManualClock, SystemClock
from proxy.telemetry.metrics.registry import Metrics
from tests.unit.test_app_scrape import RECORDED, pieces

PROMTOOL = shutil.which("promtool")

pytestmark = pytest.mark.skipif(PROMTOOL is None, reason="promtool (Debian: prometheus) is missing")


def parsed(metrics: Metrics) -> str:
    """What promtool says about a scrape; fails if Prometheus could not parse it. What it says about
    the choice of names is no failure: those are the sprint document's."""
    assert PROMTOOL is not None
    body, _ = metrics.exposition("text/plain")
    done = subprocess.run(
        [PROMTOOL, "check", "metrics"], input=body, capture_output=True, timeout=120, check=False
    )
    complaints = done.stderr.decode()
    assert done.returncode in (0, 3), complaints
    assert "error while linting" not in complaints
    return complaints


def test_everything_that_comes_from_elsewhere(tmp_path: Path) -> None:
    """Statsd with hostile lines, the recorded page of the app, and resources."""
    metrics = Metrics("1")
    series = StatsdSeries(Statsd.model_validate({"bind": "127.0.0.1:0"}))
    for line in (
        b"ocr.confidence:0.5:1e15|h",
        b'video.processing:1|ms|#operation:"}\\',
        b"x:nan|g",
    ):
        series.line(line)
    metrics.registry.register(series)
    config = Resources.model_validate({"directories": {"here": str(tmp_path), "none": "/nowhere"}})
    sampler = ResourceSampler(config, SystemClock())
    for part in ("processes", "directories"):
        sampler.sample(part, Pace(1.0, threading.Event()))  # type: ignore[arg-type]
    metrics.registry.register(sampler)
    external = ExternalMetrics(ManualClock(), 60.0)
    families, unsound = read_page(RECORDED, 100)
    external.fetched(Fetched.OK, 0.1, families, unsound)
    metrics.external.append(external.families)
    parsed(metrics)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(pieces, max_size=40).map("".join))
def test_pages_of_nonsense(page: str) -> None:
    """What the strict reader lets through, Prometheus takes."""
    try:
        families, unsound = read_page(page.encode(), 1000)
    except BadPage:
        return
    metrics = Metrics("1")
    external = ExternalMetrics(ManualClock(), 60.0)
    external.fetched(Fetched.OK, 0.1, families, unsound)
    metrics.external.append(external.families)
    parsed(metrics)
