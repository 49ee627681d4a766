"""What the tests of the pipeline's metrics share: documents, and what was counted."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry

from proxy.config.mirrors import JobFields
from proxy.jobs.document import JobDocument, parse
from proxy.jobs.video_metrics.events import EventReader, PipelineEvent
from tests.jobs_kit import PREFIX, recording

STAGES = ("analyze_audio", "load_approved", "assemble_video")


def iso(moment: float) -> str:
    """A time as the current app writes it."""
    return datetime.fromtimestamp(moment, UTC).isoformat()


def stage(
    status: str = "completed", start: float | None = None, end: float | None = None, **more: Any
) -> dict[str, Any]:
    """A stage of the current shape."""
    return {
        "status": status,
        "started_at": iso(start) if start is not None else None,
        "completed_at": iso(end) if end is not None else None,
        "error_message": None,
        "metadata": {},
        **more,
    }


def document(job_id: str, status: str, created: float, **more: Any) -> bytes:
    """A job of the current shape, created at a time of its own."""
    value = {
        "id": job_id,
        "status": status,
        "progress": 0.0,
        "created_at": iso(created),
        "completed_at": None,
        "stages": {},
        "error": None,
        "result": None,
        **more,
    }
    return json.dumps(value, separators=(",", ":")).encode()


def all_versions(job_id: str, began: float) -> list[bytes]:
    """Every version of a job of three stages that completes: 1, 2 and 3 seconds long."""
    versions = [document(job_id, "queued", began)]
    stages: dict[str, Any] = {}
    at = began
    for seconds, name in enumerate(STAGES, 1):
        stages[name] = stage("processing", at)
        versions.append(document(job_id, "processing", began, stages=stages))
        stages[name] = stage("completed", at, at + seconds)
        at += seconds
        versions.append(document(job_id, "processing", began, stages=stages))
    result = {"shorts_used": 4, "subtitle_segments": 7}
    versions.append(
        document(job_id, "completed", began, stages=stages, result=result, completed_at=iso(at))
    )
    return versions


def recorded(name: str) -> list[JobDocument]:
    """Every version of a recorded life, as the mirror reads it."""
    return [
        parse(entry["key"].removeprefix(PREFIX), json.dumps(entry["value"]).encode())
        for entry in recording(name)
        if "value" in entry and entry["value"] is not None
    ]


def distinct(
    snapshots: Iterable[JobDocument], fields: JobFields | None = None
) -> dict[tuple[str, str], PipelineEvent]:
    """All events of all versions by job and name; the surest of each."""
    reader = EventReader(fields or JobFields())
    found: dict[tuple[str, str], PipelineEvent] = {}
    for snapshot in snapshots:
        for event in reader.events(snapshot):
            before = found.get((snapshot.job_id, event.name))
            if before is None or (event.sure and not before.sure):
                found[snapshot.job_id, event.name] = event
    return found


def counted(registry: CollectorRegistry, name: str, **labels: str) -> float:
    """The value of a sample; 0 where there is none."""
    return registry.get_sample_value(name, labels) or 0.0
