"""How far off a job's estimated end is: recordings of the service, replayed.

    python -m tests.bench.forecast

For each recorded job the proxy has learned only from the other one of its kind, and from
variations of that: every stage longer or shorter by about a quarter, the whole job by about a
third. The target is replayed as it was recorded, and also larger and smaller by up to a half. From
the first stage on the estimate is looked at with every version and once a second; its error is
counted against the time that the job really had left.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from prometheus_client import CollectorRegistry

from proxy.config.mirrors import Forecast
from proxy.core.clock import ManualClock
from proxy.jobs.document import FINISHED, parse
from proxy.jobs.metrics import JobMetrics
from proxy.jobs.queue.forecast import JobDuration
from proxy.jobs.queue.queue import JobQueue

FIXTURES = Path(__file__).parent.parent / "fixtures"

#: Two of each kind where there are two: the file, and the job in it.
RECORDED = {
    "success": ("job-life-success.jsonl", "mv_DwpPyH49Yr"),
    "deleted midway": ("job-life-deleted-midway.jsonl", "mv_JSUtZcMLZg"),
}

Version = tuple[float, dict[str, Any]]


def versions(name: str) -> list[Version]:
    """What Redis held of a recorded life: seconds since its creation, and the document."""
    file, job_id = RECORDED[name]
    found: list[Version] = []
    start = 0.0
    for line in (FIXTURES / file).read_text().splitlines():
        entry = json.loads(line)
        if entry.get("value") and entry["key"].endswith(job_id):
            start = start or entry["t"]
            found.append((entry["t"] - start, entry["value"]))
    return found


def duration_of(found: list[Version]) -> JobDuration:
    """The recorded life itself, by the moments at which Redis got its versions."""
    starts: list[tuple[str, float]] = []
    for at, document in found:
        for stage, value in document["stages"].items():
            if value["status"] == "processing" and stage not in [one for one, _ in starts]:
                starts.append((stage, at))
    first = starts[0][1]
    return JobDuration(tuple((name, at - first) for name, at in starts), found[-1][0] - first)


def varied(one: JobDuration, dice: random.Random) -> JobDuration:
    """Another job of the same kind."""
    size = dice.lognormvariate(0, 0.3)
    ends = [at for _, at in one.starts[1:]] + [one.total]
    starts, now = [], 0.0
    for (name, at), end in zip(one.starts, ends, strict=True):
        starts.append((name, now))
        now += (end - at) * size * dice.lognormvariate(0, 0.25)
    return JobDuration(tuple(starts), now)


def stretched(document: dict[str, Any], began: float, scale: float) -> dict[str, Any]:
    """A version with the dates that it would have in a job that takes `scale` times as long."""
    copy: dict[str, Any] = json.loads(json.dumps(document))
    for holder in (copy, *copy["stages"].values()):
        for field in ("started_at", "completed_at"):
            at = parse("x", json.dumps({"created_at": holder.get(field)}).encode()).created_at
            if at is not None:
                holder[field] = began + (at - began) * scale
    copy["created_at"] = began
    return copy


def errors(target: list[Version], known: list[JobDuration], scale: float = 1.0) -> Iterator[float]:
    """The error of every estimate from the first stage on, as a share of what was left."""
    began = parse("x", json.dumps(target[0][1]).encode()).created_at or 0.0
    clock = ManualClock(began)
    queue = JobQueue(Forecast(), clock, JobMetrics(CollectorRegistry()).for_mirror("m").queue(),
                     lambda: 1)  # fmt: skip
    for one in known:
        queue.durations.learn(one)
    end = began + target[-1][0] * scale
    for number, (at, document) in enumerate(target):
        clock.advance(max(0.0, began + at * scale - clock.time()))
        value = stretched(document, began, scale)
        queue.changed(parse("mv_1", json.dumps(value).encode()))
        if document["status"] in FINISHED or not any(
            stage["started_at"] for stage in document["stages"].values()
        ):
            continue
        until = began + target[number + 1][0] * scale
        while True:
            done = queue.estimate("mv_1")
            left = end - clock.time()
            if done is not None and left > 0.5:  # less is the second that we show
                yield abs(done - end) / left
            if clock.time() + 1 >= until:
                break
            clock.advance(1.0)


def measure(seed: int = 1, histories: int = 10) -> dict[str, list[float]]:
    """All errors, by what was replayed."""
    dice = random.Random(seed)
    found: dict[str, list[float]] = {"as recorded": [], "half to one and a half times": []}
    recordings = {name: versions(name) for name in RECORDED}
    for name, target in recordings.items():
        (other,) = (duration_of(one) for key, one in recordings.items() if key != name)
        for _ in range(histories):
            known = [varied(other, dice) for _ in range(9)] + [other]
            found["as recorded"] += errors(target, known)
            scale = dice.uniform(0.5, 1.5)
            found["half to one and a half times"] += errors(target, known, scale)
    return found


def main() -> None:
    """Print the errors."""
    for name, all_errors in measure().items():
        ninth = quantiles(all_errors, n=10)[-1]
        print(f"{name}: median {median(all_errors):.1%}, P90 {ninth:.1%}, n {len(all_errors)}")


if __name__ == "__main__":
    main()
