"""Job documents and response bodies of the make-video service, version 2.0.0. No I/O.

Every stage is listed in the document. A job's own `progress` jumps from 0.0 to 100.0, and a failed
job never gets a `completed_at`. `now` is in Unix seconds; documents are changed in place.
"""

from __future__ import annotations

import secrets
import string
from datetime import datetime, timedelta, timezone
from typing import Any

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


EXTENSIONS = (".wav", ".ogg", ".m4a", ".mp3")


def new_id() -> str:
    """A random ID."""
    return "mv_" + "".join(secrets.choice(_ALPHABET) for _ in range(10))


def new_job(job_id: str, form: Document, now: float) -> Document:
    """The document of a job that was just accepted."""
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


def started(job: Document, now: float) -> None:
    """A worker has taken the job."""
    job["status"] = "processing"


def stage_started(job: Document, stage: str, now: float) -> None:
    """A stage begins."""
    job["stages"][stage].update(
        status="processing", progress=STAGES[stage][1], started_at=_iso(now)
    )


def stage_done(job: Document, stage: str, now: float) -> None:
    """A stage is done."""
    job["stages"][stage].update(status="completed", progress=100.0, completed_at=_iso(now))


def downloading(job: Document, progress: float, now: float) -> None:
    """A download makes progress; it has no stages."""
    job.update(status="processing", progress=progress)


def completed(job: Document, result: Document, now: float) -> None:
    """The job is done."""
    moment = datetime.fromtimestamp(now, _SAO_PAULO)
    job.update(
        status="completed",
        progress=100.0,
        completed_at=moment.isoformat(),
        expires_at=(moment + _LIFETIME).isoformat(),
        result=result,
    )


def failed(job: Document, stage: str | None, message: str, kind: str, now: float) -> None:
    """The job failed, in `stage` if it was in one."""
    if stage is not None:
        job["stages"][stage].update(
            status="failed", progress=0.0, completed_at=_iso(now), error_message=message
        )
    job.update(status="failed", error={"message": message, "type": kind})


def accepted(job: Document, filename: str | None) -> Document:
    """The answer to a creation; `filename` None: of a download."""
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


def status(job: Document) -> Document:
    """The answer to `GET /jobs/{id}`."""
    names = ("status", "progress", "stages", "result", "error", "created_at")
    return {"job_id": job["id"], **{name: job[name] for name in names}, "updated_at": ""}


def listing(jobs: list[Document]) -> Document:
    """The answer to `GET /jobs`."""
    return {"status": "success", "total": len(jobs), "jobs": jobs}


def deleted(job_id: str) -> Document:
    """The answer to a deletion."""
    message = "Job e arquivos associados removidos com sucesso"
    return {"status": "deleted", "job_id": job_id, "message": message}


def error(message: str, kind: str, details: list[Document] | None) -> Document:
    """The answer for an error."""
    body: Document = {"error": kind, "message": message}
    return body if details is None else {**body, "details": details}


def _iso(now: float) -> str:
    return datetime.fromtimestamp(now, _SAO_PAULO).isoformat()
