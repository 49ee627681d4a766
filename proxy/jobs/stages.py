"""The stages of a job document, in both formats of the service, as one timeline. Pure.

1. The current shape has stages with times. The older one has stages with a duration at most, and
   for most jobs none at all: there the status itself names the stage, and the times are those at
   which the mirror saw it change.
2. Whatever a document holds, the result is bounded: `MOST` stages, short texts, known states.
3. A stage that was under way when its job failed is the one that failed, whatever its own status.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from proxy.jobs.document import FINISHED, WAITING, finite, to_timestamp

MOST = 32
NAME_LIMIT = 80  # characters
ERROR_LIMIT = 600  # characters

#: The app begins its errors with the job's ID, which stands beside them anyway.
_OWN_NAME = re.compile(r"^\[Job: [^\]]{1,128}\] ")

StageState = Literal["pending", "running", "done", "failed", "skipped", "retrying", "unknown"]

_STATES: dict[object, StageState] = {
    "pending": "pending",
    "queued": "pending",
    "processing": "running",
    "in_progress": "running",
    "running": "running",
    "completed": "done",
    "done": "done",
    "failed": "failed",
    "skipped": "skipped",
    "cancelled": "skipped",
    "waiting_retry": "retrying",
}
#: Statuses of a job that are no stage of it.
_NO_STAGE = FINISHED | WAITING | {"processing", "unknown"}


@dataclass(frozen=True, slots=True)
class Stage:
    """Times are Unix seconds; `seconds` is how long it took, or None while nobody knows."""

    name: str
    title: str
    state: StageState
    started_at: float | None = None
    ended_at: float | None = None
    seconds: float | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class StageTimeline:
    """The stages in order, and why the job failed, if it says so."""

    stages: tuple[Stage, ...] = ()
    error: str | None = None


def read_timeline(raw: bytes, status: str, seen: Iterable[tuple[float, str]] = ()) -> StageTimeline:
    """The stages of a job whose value is `raw`. `seen`: when the mirror saw which status, in order.

    Never raises, whatever the bytes are.
    """
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return StageTimeline()
    if not isinstance(document, dict):
        return StageTimeline()
    stages = document.get("stages")
    found = [
        _stage(str(name), value)
        for name, value in (list(stages.items())[:MOST] if isinstance(stages, dict) else ())
        if isinstance(value, dict)
    ]
    if not found:
        found = _from_statuses(list(seen), status)
    if status == "failed" and not any(stage.state == "failed" for stage in found):
        found = [
            Stage(s.name, s.title, "failed", s.started_at, s.ended_at, s.seconds, s.error)
            if s.state == "running"
            else s
            for s in found
        ]
    return StageTimeline(tuple(found), _error(document))


def _stage(name: str, value: dict[str, Any]) -> Stage:
    started, ended = to_timestamp(value.get("started_at")), to_timestamp(value.get("completed_at"))
    seconds = None
    if started is not None and ended is not None:
        seconds = max(0.0, ended - started)
    elif (duration := finite(value.get("duration"))) is not None and duration >= 0:
        seconds = duration
    title = value.get("display_name")
    status = value.get("status")
    return Stage(
        bounded(name, NAME_LIMIT),
        bounded(title, NAME_LIMIT) if isinstance(title, str) and title else readable(name),
        _STATES.get(status, "unknown") if isinstance(status, str) else "unknown",
        started,
        ended,
        seconds,
        _text(value.get("error_message")) or _text(value.get("error")),
    )


def _from_statuses(seen: Sequence[tuple[float, str]], status: str) -> list[Stage]:
    """Each status that names a stage, from when it was first seen to when another one was. The
    older app's status goes back at times: what comes again goes on."""
    begun: dict[str, float] = {}
    ended: dict[str, float] = {}
    before = ""
    for moment, now in seen:
        if before != now and before in begun:
            ended[before] = moment
        if now not in _NO_STAGE and len(begun) < MOST:
            begun.setdefault(now, moment)
            ended.pop(now, None)
        before = now
    if not begun and status not in _NO_STAGE:
        return [Stage(bounded(status, NAME_LIMIT), readable(status), "running")]
    stages = []
    for name, start in begun.items():
        end = ended.get(name)
        state: StageState = "running" if end is None else "done"
        last = end is not None and end == max(ended.values())
        if last and status in ("failed", "cancelled"):
            state = "failed" if status == "failed" else "skipped"
        seconds = None if end is None else end - start
        stages.append(Stage(bounded(name, NAME_LIMIT), readable(name), state, start, end, seconds))
    return stages


def _error(document: dict[str, Any]) -> str | None:
    error = document.get("error")
    if isinstance(error, dict):
        error = error.get("message") or error.get("type")
    return _text(error) or _text(document.get("error_message"))


def _text(value: object) -> str | None:
    if not isinstance(value, str) or not value:
        return None
    return bounded(_OWN_NAME.sub("", value, count=1), ERROR_LIMIT)


def readable(name: str) -> str:
    """`analyze_audio` as `Analyze audio`."""
    words = bounded(name, NAME_LIMIT).replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def bounded(text: str, limit: int) -> str:
    """At most `limit` characters, none of which UTF-8 cannot write (a lone surrogate)."""
    short = text if len(text) <= limit else text[: limit - 1] + "…"
    return short.encode("utf-8", "replace").decode()
