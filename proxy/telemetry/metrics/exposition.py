"""How all metrics are written out: the format that the scraper asks for, in small steps."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import cast

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.samples import Sample

_SAMPLES_AT_ONCE = 50  # about half a millisecond
_PAUSE = 0.0001  # seconds


def write_out(families: Iterator[Metric], accept: str) -> tuple[bytes, str]:
    """The families as text, and its content type: OpenMetrics if `Accept` asks for it, else the
    Prometheus format.

    Takes milliseconds: call it in a thread. It yields to the event loop every 50 samples, because
    the interpreter would switch threads only every 5 ms.
    """
    source = cast(CollectorRegistry, _Yielding(families))
    if wants_openmetrics(accept):
        text: bytes = openmetrics.generate_latest(source)  # type: ignore[no-untyped-call]
        return text, openmetrics.CONTENT_TYPE_LATEST
    return generate_latest(source), CONTENT_TYPE_PLAIN_0_0_4


_QUALITY = re.compile(r";\s*q=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)\s*(?:;|$)", re.IGNORECASE)


def wants_openmetrics(accept: str) -> bool:
    """Whether an `Accept` field puts OpenMetrics, in any version, at or above plain text.

    prometheus_client's own choice fails on versions that are not numbers, and repeats the client's
    version in the answer's type.
    """
    quality = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for member in accept.split(","):
        kind = member.partition(";")[0].strip().lower()
        if kind in quality:
            match = _QUALITY.search(member)
            quality[kind] = max(quality[kind], float(match[1]) if match else 1.0)
    best = quality["application/openmetrics-text"]
    return best > 0 and best >= quality["text/plain"]


class _Yielding:
    """A registry that lets other threads run while it is written out."""

    def __init__(self, families: Iterator[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for metric in self._families:
            if len(metric.samples) > _SAMPLES_AT_ONCE:  # it took its time to make, too
                time.sleep(_PAUSE)
            metric.samples = _YieldingList(metric.samples)
            yield metric


class _YieldingList(list[Sample]):
    """Samples that pause after every few.

    The library iterates them in one go and offers no other place to yield. A pause of zero would
    not do: the thread would have the interpreter's lock back before another one wakes up."""

    def __iter__(self) -> Iterator[Sample]:
        for position, sample in enumerate(super().__iter__(), 1):
            yield sample
            if position % _SAMPLES_AT_ONCE == 0:
                time.sleep(_PAUSE)
