"""Pipeline events in a job document, each of which can be counted once. No I/O.

1. An event is a final fact: a stage ended, a job reached a final status, a finished job has so many
   shorts. Its `name` follows from the document alone, so every sidecar derives the same events, no
   matter how often and in which order it reads the versions.
2. `started_at` distinguishes the attempts at a stage, or `completed_at` if that is missing. A stage
   with neither has one attempt. A failed attempt that waits for its retry is the same attempt.
3. A job counts at most once for each final status, however often it reaches it, and its result is
   read once. The status may go backwards meanwhile; what has ended stays ended.
4. The type of a stage's error is in the job's own `error`, which is written slightly later. An
   event that a later version may make more precise is not `sure`; a sure one replaces it.
5. Documents are untrusted. Labels are well-formed tokens or `other`; numbers are finite and in a
   sane range, or ignored.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from proxy.config.mirrors import JobFields
from proxy.jobs.document import FINISHED, JobDocument, finite, to_timestamp

STAGE_DURATION = "pipeline_stage_duration_seconds"
STAGE_ERRORS = "pipeline_stage_errors"
JOBS = "pipeline_jobs"
INPUT_DURATION = "video_processing_input_duration_seconds"
SHORTS = "video_processing_shorts_count"
SEGMENTS = "subtitle_segments_count"
DRIFT = "subtitle_sync_drift_seconds"
VALIDATIONS = "validation_results"

UNKNOWN = "unknown"
OTHER = "other"

MOST_EVENTS = 256  # of one job; a sound one has about twenty
_MOST_STAGES = 64
_LONGEST = 7 * 86400.0  # seconds that a stage or an input may last
_MOST = 1_000_000.0  # of anything that is counted
_MESSAGE = 2000  # characters of an error message in which a code is looked for

_INPUT = "v:input"  # the name of the event
_TOKEN = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_CODE_IN_MESSAGE = re.compile(r"\[([A-Z][A-Z0-9_]{2,63})\]")

RESULTS = {
    True: "passed",
    False: "failed",
    "completed": "passed",
    "passed": "passed",
    "success": "passed",
    "valid": "passed",
    "ok": "passed",
    "failed": "failed",
    "invalid": "failed",
    "error": "failed",
    "skipped": "skipped",
}
_NO_RESULT = frozenset({"pending", "queued", "processing", "in_progress", "running", ""})


@dataclass(frozen=True, slots=True)
class PipelineEvent:
    """One thing to count: `value` is observed by a histogram, added to a counter.

    `at`: when it happened by the job's own clock (Unix seconds), None if the document is silent.
    """

    name: str
    family: str
    labels: tuple[str, ...]
    value: float
    at: float | None
    sure: bool = True


def measured_input(seconds: float, at: float) -> PipelineEvent | None:
    """How long a job's input plays, as measured when it was uploaded at `at`: the event that its
    document may contain as well, so it is counted once. None for an impossible duration."""
    if not 0 <= seconds <= _LONGEST:
        return None
    return PipelineEvent(_INPUT, INPUT_DURATION, (), seconds, at)


def token(value: object) -> str:
    """A value as a label: itself if it is well-formed, `unknown` if there is none, else `other`."""
    if value is None or value == "":
        return UNKNOWN
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 99_999:
        return str(value)
    return value if isinstance(value, str) and _TOKEN.fullmatch(value) else OTHER


def lookup(document: Any, path: tuple[str, ...]) -> Any:
    """What stands under a path of member names (and list indices); None where there is nothing."""
    for name in path:
        if isinstance(document, dict):
            document = document.get(name)
        elif isinstance(document, list) and name.isdecimal() and int(name) < len(document):
            document = document[int(name)]
        else:
            return None
    return document


class _Path:
    """A compiled path; one that ends in `_ms` holds milliseconds."""

    __slots__ = ("names", "unit")

    def __init__(self, text: str) -> None:
        self.names = tuple(text.split("."))
        self.unit = 0.001 if text.endswith("_ms") else 1.0


Paths = tuple[_Path, ...]


def _compile(paths: tuple[str, ...]) -> Paths:
    return tuple(_Path(text) for text in paths)


class EventReader:
    """Reads events from documents, by the paths of one mirror's `job_metrics`."""

    def __init__(self, fields: JobFields) -> None:
        self._error_type = _compile(fields.error_type)
        self._error_code = _compile(fields.error_code)
        self._input_duration = _compile(fields.input_duration)
        self._shorts = _compile(fields.shorts_count)
        self._segments = _compile(fields.subtitle_segments)
        self._drift = _compile(fields.sync_drift)
        self._validation = _compile(fields.validation)
        self._validation_counts = {
            result: _compile(paths) for result, paths in fields.validation_counts.items()
        }

    def events(
        self, snapshot: JobDocument, known: Mapping[str, bool] | None = None
    ) -> list[PipelineEvent]:
        """The events of one version, but for those in `known` (name to `sure`)."""
        document = snapshot.document
        if document is None:
            return []
        found: list[PipelineEvent] = []
        blamed = self._stages(snapshot, document, found)
        if snapshot.status in FINISHED:
            at = snapshot.completed_at or snapshot.activity
            found.append(PipelineEvent(f"f:{snapshot.status}", JOBS, (snapshot.status,), 1.0, at))
            if snapshot.status == "failed" and not blamed:
                found.append(self._error("e:", {}, document, lookup(document, _STAGE), at))
            self._result(document, at, found)
        if known:
            return [
                event
                for event in found
                if event.name not in known or (event.sure and not known[event.name])
            ][: max(0, MOST_EVENTS - len(known))]
        return found[:MOST_EVENTS]

    # --- stages ----------------------------------------------------------------------------------

    def _stages(
        self, snapshot: JobDocument, document: dict[str, Any], found: list[PipelineEvent]
    ) -> bool:
        """Adds what has ended; returns whether any stage is to blame for an error."""
        stages = document.get("stages")
        if not isinstance(stages, dict):
            return False
        blamed = False
        for name, stage in list(stages.items())[:_MOST_STAGES]:
            if not isinstance(stage, dict):
                continue
            status = stage.get("status")
            if status == "completed":
                event = _duration(name, stage, snapshot.activity)
                if event is not None:
                    found.append(event)
            elif status == "failed" or (status == "waiting_retry" and _message(stage)):
                blamed = True
                started, ended = _times(stage)
                at = ended or started or snapshot.activity
                final = snapshot.status in FINISHED
                job = document if snapshot.status == "failed" else {}
                event_name = f"e:{_ident(name)}:{_attempt(started, ended)}"
                found.append(self._error(event_name, stage, job, name, at, final=final))
        return blamed

    def _error(
        self,
        event_name: str,
        stage: dict[str, Any],
        document: dict[str, Any],
        stage_name: object,
        at: float | None,
        *,
        final: bool = True,
    ) -> PipelineEvent:
        """The stage's own words first, then the job's (an empty `document`: they are not there)."""
        kind = _first(stage, self._error_type)
        sure = final or kind is not None
        if kind is None:
            kind = _first(document, self._error_type)
        code = (
            _first(stage, self._error_code)
            or _code_in(_message(stage))
            or _first(document, self._error_code)
            or _code_in(_message(document))
        )
        labels = (token(stage_name), token(kind), token(code))
        return PipelineEvent(event_name, STAGE_ERRORS, labels, 1.0, at, sure)

    # --- what a finished job says of its result --------------------------------------------------

    def _result(
        self, document: dict[str, Any], at: float | None, found: list[PipelineEvent]
    ) -> None:
        def observe(name: str, family: str, value: float | None) -> None:
            if value is not None:
                found.append(PipelineEvent(name, family, (), value, at))

        observe(_INPUT, INPUT_DURATION, _number(document, self._input_duration, _LONGEST))
        observe("v:shorts", SHORTS, _number(document, self._shorts, _MOST))
        observe("v:segments", SEGMENTS, _number(document, self._segments, _MOST))
        # Audio may be early or late: how far apart the two are is what counts.
        observe("v:drift", DRIFT, _number(document, self._drift, _LONGEST, either_way=True))
        result = self._verdict(document)
        if result is not None:
            found.append(PipelineEvent("v:validation", VALIDATIONS, (result,), 1.0, at))
        for name, paths in self._validation_counts.items():
            count = _number(document, paths, _MOST)
            if count:
                found.append(PipelineEvent(f"n:{name}", VALIDATIONS, (name,), count, at))

    def _verdict(self, document: dict[str, Any]) -> str | None:
        for path in self._validation:
            value = lookup(document, path.names)
            if isinstance(value, str):
                value = value.strip().lower()[:64]
                if value in _NO_RESULT:
                    continue
                return RESULTS.get(value, OTHER)
            if isinstance(value, bool):
                return RESULTS[value]
        return None


# --- reading hostile values -----------------------------------------------------------------------

_STAGE = ("error", "stage")


def _first(document: dict[str, Any], paths: Paths) -> Any:
    for path in paths:
        value = lookup(document, path.names)
        if value is not None and value != "":
            return value
    return None


def _number(
    document: dict[str, Any], paths: Paths, most: float, *, either_way: bool = False
) -> float | None:
    """The first value from 0 to `most` (a list counts by its length)."""
    for path in paths:
        number = _as_number(lookup(document, path.names))
        if number is None:
            continue
        number *= path.unit
        if either_way:
            number = abs(number)
        if 0 <= number <= most:
            return number
    return None


def _as_number(value: object) -> float | None:
    if isinstance(value, list):
        return float(len(value))
    return finite(value)


def _times(stage: dict[str, Any]) -> tuple[float | None, float | None]:
    return to_timestamp(stage.get("started_at")), to_timestamp(stage.get("completed_at"))


def _attempt(started: float | None, ended: float | None) -> str:
    return f"{started or ended or 0:.3f}"


def _ident(name: str) -> str:
    """A stage's name as part of an event's: itself, or what stands for an ill-formed one."""
    if _TOKEN.fullmatch(name):
        return name
    return "~" + hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=8).hexdigest()


def _duration(name: str, stage: dict[str, Any], activity: float | None) -> PipelineEvent | None:
    """How long a completed stage took; None if the document does not contain it."""
    started, ended = _times(stage)
    seconds = ended - started if started is not None and ended is not None else None
    if seconds is None or not 0 <= seconds <= _LONGEST:
        seconds = _as_number(stage.get("duration"))
        if seconds is None or not 0 <= seconds <= _LONGEST:
            return None
    event_name = f"d:{_ident(name)}:{_attempt(started, ended)}"
    return PipelineEvent(event_name, STAGE_DURATION, (token(name),), seconds, ended or activity)


def _message(holder: dict[str, Any]) -> str:
    """The text of an error, in any of the places where the two shapes keep it."""
    error = holder.get("error")
    if isinstance(error, dict):
        error = error.get("message")
    for text in (error, holder.get("error_message")):
        if isinstance(text, str) and text:
            return text[:_MESSAGE]
    return ""


def _code_in(message: str) -> str | None:
    match = _CODE_IN_MESSAGE.search(message)
    return match[1] if match else None
