"""The stand-in worker's statsd client, against the real listener."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from proxy.app_telemetry.statsd.line import Result
from proxy.app_telemetry.statsd.listener import StatsdListener
from proxy.app_telemetry.statsd.series import StatsdSeries
from proxy.config.telemetry import Statsd
from proxy.demo import media
from proxy.demo.make_video.reports import Receiver, Reports, receiver_from
from tests.http1 import PATIENCE


async def test_its_reports_are_understood(tmp_path: Path) -> None:
    """A video searched for text, and operations that end well or not: every line is accepted."""
    config = Statsd.model_validate({"bind": "127.0.0.1:0"})
    series = StatsdSeries(config)
    listener = StatsdListener(config, series)
    listener.start()
    assert listener.address is not None
    reports = Reports(Receiver(*listener.address))
    media.make_clip(tmp_path / "clip.mp4", 15.0, 1)
    certainties = media.search_text(tmp_path / "clip.mp4")
    reports.text_search(0.25, certainties)
    with reports.operation("trim"):
        pass
    with pytest.raises(ValueError, match="boom"), reports.operation("compose"):
        raise ValueError("boom")
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while series.lines[Result.ACCEPTED] < 6:
        assert asyncio.get_running_loop().time() < deadline, series.lines
        await asyncio.sleep(0.01)
    reported = {
        (sample.name, *sample.labels.values()): sample.value
        for family in series.collect()
        for sample in family.samples
    }
    assert reported["ocr_frames_processed_total",] == len(certainties) == 150
    assert reported["ocr_processing_duration_seconds_sum",] == 0.25
    assert reported["ocr_confidence_score_count",] == 150
    assert reported["ocr_confidence_score_sum",] == pytest.approx(sum(certainties), abs=0.01)
    assert reported["video_processing_duration_seconds_count", "trim"] == 1
    assert reported["video_processing_duration_seconds_count", "compose"] == 1
    assert sum(series.lines.values()) == 6
    reports.close()
    listener.stop()


def test_without_a_receiver_nothing_happens() -> None:
    """As where `STATSD_HOST` is not set; and nobody listening is no failure either."""
    assert receiver_from({}) is None
    assert receiver_from({"STATSD_HOST": "127.0.0.1"}) == Receiver("127.0.0.1", 8125)
    for receiver in (None, Receiver("127.0.0.1", 9)):
        reports = Reports(receiver)
        for _ in range(3):
            reports.text_search(1.0, [0.5])
        reports.close()
