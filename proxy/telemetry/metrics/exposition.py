"""How all metrics are written out: the format that the scraper asks for, in small steps."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.samples import Sample

_SAMPLES_AT_ONCE = 50  # about half a millisecond
_PAUSE = 0.0001  # seconds
_END = b"# EOF\n"  # of an OpenMetrics page


def write_out(families: Iterator[Metric], accept: str) -> tuple[bytes, str]:
    """The families as text, and its content type: OpenMetrics if `Accept` asks for it, else the
    Prometheus format.

    Takes milliseconds: call it in a thread. It pauses every 50 samples, because the interpreter
    would switch threads only every 5 ms. A pause of zero would not do: the thread would have the
    interpreter's lock back before another one wakes up.
    """
    if wants_openmetrics(accept):
        text = b"".join(_pieces(families, _openmetrics))
        return text + _END, openmetrics.CONTENT_TYPE_LATEST
    return b"".join(_pieces(families, _prometheus)), CONTENT_TYPE_PLAIN_0_0_4


def _pieces(families: Iterator[Metric], write: Callable[[Metric], bytes]) -> Iterator[bytes]:
    """The text of all families, those with many samples in pieces, with a pause after each."""
    for family in families:
        if len(family.samples) <= _SAMPLES_AT_ONCE:
            yield write(family)
            continue
        time.sleep(_PAUSE)  # it took its time to make, too
        head = write(_part(family, []))
        yield head
        for start in range(0, len(family.samples), _SAMPLES_AT_ONCE):
            samples = family.samples[start : start + _SAMPLES_AT_ONCE]
            yield write(_part(family, samples)).removeprefix(head)
            time.sleep(_PAUSE)


def _part(family: Metric, samples: list[Sample]) -> Metric:
    part = Metric(family.name, family.documentation, family.type, family.unit)
    part.samples = samples
    return part


def _openmetrics(family: Metric) -> bytes:
    text: bytes = openmetrics.generate_latest(_Single(family))  # type: ignore[no-untyped-call]
    return text.removesuffix(_END)


def _prometheus(family: Metric) -> bytes:
    return generate_latest(_Single(family))


class _Single:
    """One family, in the shape in which the library takes them."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> list[Metric]:
        return [self._family]


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
