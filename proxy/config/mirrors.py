"""The config's `mirrors`: families of job keys in Redis that are kept in SQLite as well."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from proxy.config.values import Duration, FilePath, Model, Secret, TimeOfDay

QueueName = Annotated[str, Field(min_length=1, max_length=200)]


class Requeue(Model):
    """A message follows its job: Celery messages and bindings that were lost are put back, and
    jobs that nobody works on are given a message again.

    `queues` are the lists that workers pop from; bindings, `unacked` and `unacked_index` are found
    by kombu's naming, behind `global_keyprefix` where the broker has one. `attempts`: messages
    pushed for one job at most; `spacing`: between the first two of them, then twice as long each
    time, up to eight times: outages kill the same job again, and it must still finish in minutes.
    `settle`: how long a job must be unchanged before it can be found abandoned. `enabled: false`
    turns it off.
    """

    enabled: bool = True
    queues: Annotated[tuple[QueueName, ...], Field(min_length=1, max_length=16)] = (
        "make_video_queue",
    )
    global_keyprefix: Annotated[str, Field(max_length=200)] | None = None
    attempts: Annotated[int, Field(ge=1, le=100)] = 10
    spacing: Annotated[Duration, Field(ge=1)] = 20.0
    settle: Annotated[Duration, Field(gt=0)] = 10.0


def _check_job_path(path: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,64}){0,7}", path):
        raise ValueError(
            "expected up to eight names of a job document's members, joined by dots, as in "
            f"result.shorts_used, found {path[:80]!r}"
        )
    return path


JobPaths = tuple[
    Annotated[
        str,
        AfterValidator(_check_job_path),
        WithJsonSchema({"type": "string", "pattern": r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"}),
    ],
    ...,
]
Token = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,63}$")]


class JobFields(Model):
    """Which members of a job document feed which metric.

    Each is a list of dotted paths; the first one under which the document has a value that will do
    is used. The defaults know both shapes of the service's documents.
    """

    stages: Annotated[tuple[Token, ...], Field(max_length=64)] = (
        "analyze_audio",
        "load_approved",
        "select_shorts",
        "assemble_video",
        "generate_subtitles",
        "final_composition",
        "trim_video",
        "validate_av_sync",
        "download_pipeline",
    )
    error_type: JobPaths = ("error.type", "error_type")
    error_code: JobPaths = ("error.code", "error_code")
    input_duration: JobPaths = ("audio_duration", "stages.analyze_audio.metadata.audio_duration")
    shorts_count: JobPaths = ("result.shorts_used", "result.shorts_list")
    subtitle_segments: JobPaths = ("result.subtitle_segments",)
    sync_drift: JobPaths = (
        "result.sync_drift",
        "result.sync_drift_ms",
        "stages.validate_av_sync.metadata.drift",
        "stages.validate_av_sync.metadata.drift_seconds",
        "stages.validate_av_sync.metadata.drift_ms",
    )
    validation: JobPaths = ("stages.validate_av_sync.status",)
    validation_counts: Annotated[dict[Token, JobPaths], Field(max_length=16)] = {
        "approved": (
            "result.approved_count",
            "stages.download_pipeline.metadata.stats.approved",
        ),
        "rejected": (
            "result.rejected_count",
            "stages.download_pipeline.metadata.stats.rejected",
        ),
    }


class Forecast(Model):
    """Each job's place in the queue and when it will be done, for callers, and the metrics of the
    queue.

    `slots`: how many jobs the workers work on at a time; by default one a worker, or as many as
    were seen.
    """

    slots: Annotated[int, Field(ge=1, le=10_000)] | None = None


class Mirror(Model):
    """One family of job keys, kept in SQLite as well.

    `key` holds `{job_id}` once, behind a fixed beginning. `keep_for`: how long an expired job and a
    tombstone stay known. `app_breaker`: how long the app's own Redis breaker may stay open after
    Redis is back (60 s, read in the app). `confirm_within`: how long a creation may wait for the
    answer of a slow Redis; after that the app's own answer stands. `hold_deletes`: a key that a
    worker writes again after a DELETE is removed again. `stranded_after`: an unfinished job without
    a change for this long is reported, and started again where a worker is idle. `requeue`: see
    there. `job_metrics`: where the pipeline's metrics are read from; null turns them off.
    `forecast`: places in the queue and estimated times; null turns them off. `api_key`: what the
    app wants as `X-API-Key`; the mirror then answers for the app only who sends it.
    """

    key: str
    index: str | None = None
    sqlite: FilePath
    sync_every: Annotated[Duration, Field(ge=1)] = 900.0
    cleanup_at: TimeOfDay = (3, 0)
    keep_for: Annotated[Duration, Field(ge=60)] = 7 * 86400.0
    app_breaker: Duration = 60.0
    confirm_within: Annotated[Duration, Field(ge=0.5, le=60)] = 5.0
    hold_deletes: bool = True
    stranded_after: Annotated[Duration, Field(gt=0)] = 1800.0
    requeue: Requeue | None = None
    job_metrics: JobFields | None = JobFields()
    forecast: Forecast | None = Forecast()
    api_key: Annotated[Secret, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _key_has_one_hole(self) -> Mirror:
        head, hole, tail = self.key.partition("{job_id}")
        if not hole or "{job_id}" in tail or not head:
            raise ValueError(
                f"key: expected a name with {{job_id}} once, as in app:job:{{job_id}}, "
                f"found {self.key!r}"
            )
        return self

    @property
    def requeued(self) -> Requeue | None:
        """`requeue`; None where it is off."""
        return self.requeue if self.requeue is not None and self.requeue.enabled else None
