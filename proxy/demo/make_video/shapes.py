"""Job documents and response bodies of the two versions of the make-video service.

1. The current version lists every stage in the document. A job's own `progress` jumps from 0.0 to
   100.0, and a failed job never gets a `completed_at`.
2. The older version has one status per stage, which sometimes moves backwards, and naive UTC times.
3. There is no I/O: a `Shape` creates and changes plain dictionaries.
"""

from __future__ import annotations

import secrets
import string
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Protocol

Document = dict[str, Any]

STAGES = {
    # name: (display name, progress while it runs)
    "analyze_audio": ("Analyzing audio", 5.0),
    "load_approved": ("Loading approved videos", 15.0),
    "select_shorts": ("Selecting shorts", 70.0),
    "assemble_video": ("Assembling video", 75.0),
    "generate_subtitles": ("Generating subtitles", 80.0),
    "final_composition": ("Final composition", 85.0),
    "trim_video": ("Trimming video", 92.0),
    "validate_av_sync": ("Validating A/V sync", 96.0),
}
FORM_DEFAULTS: Document = {
    "max_shorts": 10,
    "subtitle_language": "pt",
    "subtitle_style": "static",
    "aspect_ratio": "9:16",
    "crop_position": "center",
}
TERMINAL = frozenset({"completed", "failed", "cancelled"})

_ALPHABET = string.ascii_letters + string.digits
_LIFETIME = timedelta(hours=24)
_SAO_PAULO = timezone(timedelta(hours=-3))


class Shape(Protocol):
    """What differs between the versions. `now`: Unix seconds; documents are changed in place."""

    name: str
    id_key: str
    extensions: tuple[str, ...]

    def new_id(self) -> str: ...
    def new_job(self, job_id: str, form: Document, now: float) -> Document: ...
    def started(self, job: Document, now: float) -> None: ...
    def stage_started(self, job: Document, stage: str, now: float) -> bool: ...
    def stage_done(self, job: Document, stage: str, now: float) -> bool: ...
    def downloading(self, job: Document, progress: float, now: float) -> None: ...
    def completed(self, job: Document, result: Document, now: float) -> None: ...
    def failed(
        self, job: Document, stage: str | None, message: str, kind: str, now: float
    ) -> None: ...
    def accepted(self, job: Document, filename: str | None) -> Document: ...
    def status(self, job: Document) -> Document: ...
    def listing(self, jobs: list[Document]) -> Document: ...
    def deleted(self, job_id: str) -> Document: ...
    def error(self, message: str, kind: str, details: list[Document] | None) -> Document: ...


class CurrentShape:
    """Version 2.0.0 of the service."""

    name = "current"
    id_key = "id"
    extensions: tuple[str, ...] = (".wav", ".ogg", ".m4a", ".mp3")

    def new_id(self) -> str:
        return "mv_" + "".join(secrets.choice(_ALPHABET) for _ in range(10))

    def new_job(self, job_id: str, form: Document, now: float) -> Document:
        moment = datetime.fromtimestamp(now, _SAO_PAULO)
        return {
            "id": job_id,
            "status": "queued",
            "progress": 0.0,
            "progress_message": None,
            "created_at": moment.isoformat(),
            "started_at": None,
            "completed_at": None,
            "expires_at": (moment + _LIFETIME).isoformat(),
            "error_message": None,
            "error_type": None,
            "correlation_id": None,
            "retry_count": 0,
            "stages": {
                name: {
                    "name": name,
                    "display_name": display_name,
                    "status": "pending",
                    "progress": 0.0,
                    "progress_message": None,
                    "started_at": None,
                    "completed_at": None,
                    "error_message": None,
                    "metadata": {},
                }
                for name, (display_name, _) in STAGES.items()
            },
            "audio_file": form.get("audio_file"),
            "query": form.get("query"),
            **{name: form.get(name, default) for name, default in FORM_DEFAULTS.items()},
            "hook_text": form.get("hook_text"),
            "burn_subtitles": form.get("burn_subtitles", True),
            "audio_duration": None,
            "target_video_duration": None,
            "error": None,
            "result": None,
            "output_file": None,
            "output_url": None,
        }

    def started(self, job: Document, now: float) -> None:
        job["status"] = "processing"

    def stage_started(self, job: Document, stage: str, now: float) -> bool:
        job["stages"][stage].update(
            status="processing", progress=STAGES[stage][1], started_at=self._iso(now)
        )
        return True

    def stage_done(self, job: Document, stage: str, now: float) -> bool:
        job["stages"][stage].update(status="completed", progress=100.0, completed_at=self._iso(now))
        return True

    def downloading(self, job: Document, progress: float, now: float) -> None:
        job.update(status="processing", progress=progress)

    def completed(self, job: Document, result: Document, now: float) -> None:
        moment = datetime.fromtimestamp(now, _SAO_PAULO)
        job.update(
            status="completed",
            progress=100.0,
            completed_at=moment.isoformat(),
            expires_at=(moment + _LIFETIME).isoformat(),
            result=result,
        )

    def failed(self, job: Document, stage: str | None, message: str, kind: str, now: float) -> None:
        if stage is not None:
            job["stages"][stage].update(
                status="failed", progress=0.0, completed_at=self._iso(now), error_message=message
            )
        job.update(status="failed", error={"message": message, "type": kind})

    def accepted(self, job: Document, filename: str | None) -> Document:
        if filename is None:
            return {
                "status": "accepted",
                "message": "Pipeline de download iniciado",
                "job_id": job["id"],
                "query": job["query"],
                "max_shorts": job["max_shorts"],
            }
        return {
            "status": "accepted",
            "message": "Processamento de vídeo iniciado",
            "job_id": job["id"],
            "audio_filename": filename,
            **{name: job[name] for name in FORM_DEFAULTS},
        }

    def status(self, job: Document) -> Document:
        names = ("status", "progress", "stages", "result", "error", "created_at")
        return {"job_id": job["id"], **{name: job[name] for name in names}, "updated_at": ""}

    def listing(self, jobs: list[Document]) -> Document:
        return {"status": "success", "total": len(jobs), "jobs": jobs}

    def deleted(self, job_id: str) -> Document:
        message = "Job e arquivos associados removidos com sucesso"
        return {"status": "deleted", "job_id": job_id, "message": message}

    def error(self, message: str, kind: str, details: list[Document] | None) -> Document:
        body: Document = {"error": kind, "message": message}
        return body if details is None else {**body, "details": details}

    @staticmethod
    def _iso(now: float) -> str:
        return datetime.fromtimestamp(now, _SAO_PAULO).isoformat()


class OlderShape:
    """Version 1.0.0, which the sprint document describes."""

    name = "older"
    id_key = "job_id"
    extensions: tuple[str, ...] = (".flac", ".wav", ".ogg", ".m4a", ".aac", ".mp3")

    # What each stage writes when it begins and when it ends. `analyze_audio` really falls back to
    # `queued`: it saves a copy of the job that it loaded before.
    _BEGIN = {  # noqa: RUF012 (never changed)
        "analyze_audio": ("analyzing_audio", 5.0),
        "load_approved": ("fetching_shorts", 15.0),
        "select_shorts": ("downloading_shorts", 60.0),
        "assemble_video": ("assembling_video", 75.0),
        "generate_subtitles": ("generating_subtitles", 80.0),
        "final_composition": ("final_composition", 85.0),
    }
    _END = {  # noqa: RUF012
        "analyze_audio": ("queued", 0.0),
        "load_approved": ("downloading_shorts", 25.0),
        "select_shorts": ("selecting_shorts", 70.0),
        "generate_subtitles": ("generating_subtitles", 82.0),
        "final_composition": ("final_composition", 92.0),
    }

    def new_id(self) -> str:
        return "".join(secrets.choice(_ALPHABET) for _ in range(22))

    def new_job(self, job_id: str, form: Document, now: float) -> Document:
        query = form.get("query")
        pipeline = {
            "status": "pending",
            "progress": 0.0,
            "duration": None,
            "error": None,
            "metadata": {"query": query, "max_shorts": form.get("max_shorts", 10)},
        }
        return {
            "job_id": job_id,
            "status": "queued",
            "progress": 0.0,
            "query": query,
            "audio_duration": None,
            "target_video_duration": None,
            **{name: form.get(name, default) for name, default in FORM_DEFAULTS.items()},
            "stages": {} if query is None else {"download_pipeline": pipeline},
            "result": None,
            "error": None,
            "created_at": self._iso(now),
            "updated_at": self._iso(now),
            "completed_at": None,
            "expires_at": None,
        }

    def started(self, job: Document, now: float) -> None:
        self._set(job, "analyzing_audio", 5.0, now)

    def stage_started(self, job: Document, stage: str, now: float) -> bool:
        return self._apply(self._BEGIN, job, stage, now)

    def stage_done(self, job: Document, stage: str, now: float) -> bool:
        return self._apply(self._END, job, stage, now)

    def downloading(self, job: Document, progress: float, now: float) -> None:
        status = "fetching_shorts" if progress < 10.0 else "downloading_shorts"
        self._set(job, status, progress, now)
        job["stages"]["download_pipeline"].update(status="processing", progress=progress)

    def completed(self, job: Document, result: Document, now: float) -> None:
        self._set(job, "completed", 100.0, now)
        job["result"] = result
        job["completed_at"] = self._iso(now)
        job["expires_at"] = self._iso(now + _LIFETIME.total_seconds())
        if pipeline := job["stages"].get("download_pipeline"):
            pipeline.update(status="completed", progress=100.0)

    def failed(self, job: Document, stage: str | None, message: str, kind: str, now: float) -> None:
        self._set(job, "failed", 100.0, now)
        job["error"] = {"message": message, "type": kind}
        job["completed_at"] = self._iso(now)
        if pipeline := job["stages"].get("download_pipeline"):
            pipeline.update(status="failed", error=message)

    def accepted(self, job: Document, filename: str | None) -> Document:
        common = {"job_id": job["job_id"], "status": "queued"}
        if filename is None:
            return {
                **common,
                "message": "Download pipeline job queued successfully"
                " (resilient mode with heartbeat)",
                "query": job["query"],
                "max_shorts": job["max_shorts"],
                "monitor_url": f"/jobs/{job['job_id']}",
                "estimated_duration_minutes": 5.0,
            }
        return {
            **common,
            "message": "Video creation job queued successfully",
            "max_shorts": job["max_shorts"],
            "aspect_ratio": job["aspect_ratio"],
        }

    def status(self, job: Document) -> Document:
        health = {
            "duration_seconds": 0,
            "duration_human": "0s",
            "last_update_seconds": 0,
            "is_stale": False,
        }
        return {**job, "health": health, "message": None}

    def listing(self, jobs: list[Document]) -> Document:
        return {"total": len(jobs), "jobs": jobs}

    def deleted(self, job_id: str) -> Document:
        return {"message": "Job deleted successfully", "job_id": job_id}

    def error(self, message: str, kind: str, details: list[Document] | None) -> Document:
        return {"detail": message if details is None else details}

    def _apply(
        self, table: dict[str, tuple[str, float]], job: Document, stage: str, now: float
    ) -> bool:
        entry = table.get(stage)
        if entry is None:
            return False
        self._set(job, *entry, now)
        return True

    def _set(self, job: Document, status: str, progress: float, now: float) -> None:
        job.update(status=status, progress=progress, updated_at=self._iso(now))

    @staticmethod
    def _iso(now: float) -> str:
        return datetime.fromtimestamp(now, UTC).replace(tzinfo=None).isoformat()


SHAPES: dict[str, Shape] = {"current": CurrentShape(), "older": OlderShape()}
