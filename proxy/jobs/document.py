"""Parses job documents in both formats of the service, and decides which of two is newer.

1. A value is untrusted: it may not be JSON or UTF-8, be nested without end, or have invalid dates.
   Such a value is kept byte for byte; its oddities are listed, never raised.
2. The current shape has `id` and stage times with an offset, and no `updated_at`. The older shape
   has `job_id` and naive UTC times; its `updated_at` is stale in some final versions and its status
   moves backwards at times. So neither status nor `updated_at` alone orders two versions: the
   latest time found anywhere in the document does (`JobDocument.activity`).
3. Order matters only after a gap (a restart, an old snapshot). While the mirror watches, the last
   write is the newest, whatever its content.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from proxy.core.clock import parse_iso

Shape = Literal["current", "older", "opaque"]

JOB_ID = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9_.:-]{1,128}")
"""What may be a job id: part of a Redis key, a segment of a URL. `.` and `..` would be paths."""

FINISHED = frozenset({"completed", "failed", "cancelled"})
WAITING = frozenset({"queued", "pending"})

UNKNOWN_STATUS = "unknown"
_MAX_STATUS = 64
_MAX_STAGES = 256
_EARLIEST = 0.0
LATEST = 7_258_118_400.0
"""The year 2200, Unix seconds: later dates are mistakes (milliseconds, mostly)."""


def valid_job_id(text: str) -> bool:
    """Whether `text` may become part of a Redis key."""
    return JOB_ID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class KeyPattern:
    """`make_video:job:{job_id}` both ways. `prefix` is what every key of the family begins with."""

    prefix: str
    suffix: str

    @classmethod
    def parse(cls, template: str) -> KeyPattern:
        """Raises `ValueError` when `{job_id}` is not there exactly once behind a beginning."""
        prefix, hole, suffix = template.partition("{job_id}")
        if not hole or not prefix or "{job_id}" in suffix:
            raise ValueError(f"expected {{job_id}} once in {template!r}")
        return cls(prefix, suffix)

    def key(self, job_id: str) -> str:
        return f"{self.prefix}{job_id}{self.suffix}"

    def job_id(self, key: bytes) -> str | None:
        """The id inside `key`; None when the key is not of this family or the id is not valid."""
        try:
            text = key.decode("ascii")
        except UnicodeDecodeError:
            return None
        if not text.startswith(self.prefix) or not text.endswith(self.suffix):
            return None
        job_id = text[len(self.prefix) : len(text) - len(self.suffix)]
        return job_id if valid_job_id(job_id) else None

    def glob(self) -> str:
        """The pattern for SCAN, its own special characters escaped."""
        return f"{_escape_glob(self.prefix)}*{_escape_glob(self.suffix)}"


def _escape_glob(text: str) -> str:
    return re.sub(r"([*?\[\]\\^])", r"\\\1", text)


@dataclass(frozen=True, slots=True)
class JobDocument:
    """One version of a job as Redis held it.

    Times are Unix seconds or None. `activity` is the latest time in the document, by which two
    versions are ordered. `oddities` are fixed tokens: `not_json`, `not_utf8`, `no_id`, `other_id`,
    `bad_date`, `bad_status`. `document` is the parsed value, None when it is no JSON object.
    """

    job_id: str
    raw: bytes
    digest: bytes
    shape: Shape
    status: str
    progress: float
    created_at: float | None
    updated_at: float | None
    completed_at: float | None
    expires_at: float | None
    activity: float | None
    oddities: tuple[str, ...]
    document: dict[str, Any] | None = field(default=None, repr=False, compare=False)


def digest_of(raw: bytes) -> bytes:
    """16 bytes that stand for a value: equal digests are equal versions."""
    return hashlib.blake2b(raw, digest_size=16).digest()


def parse(job_id: str, raw: bytes) -> JobDocument:
    """Read a value as a job. Never raises, whatever the bytes are."""
    document, oddity = _load(raw)
    if document is None:
        return JobDocument(
            job_id, raw, digest_of(raw), "opaque", UNKNOWN_STATUS, 0.0,
            None, None, None, None, None, (oddity,),
        )  # fmt: skip
    oddities: list[str] = []
    shape: Shape = "older" if "job_id" in document and "id" not in document else "current"
    own_id = document.get("job_id" if shape == "older" else "id")
    if own_id is None:
        oddities.append("no_id")
    elif own_id != job_id:
        oddities.append("other_id")
    times: dict[str, float | None] = {}
    for name in ("created_at", "updated_at", "started_at", "completed_at", "expires_at"):
        value = document.get(name)
        times[name] = to_timestamp(value)
        if times[name] is None and value not in (None, ""):
            oddities.append("bad_date")
    status = document.get("status")
    if not isinstance(status, str) or not 0 < len(status) <= _MAX_STATUS:
        oddities.append("bad_status")
        status = UNKNOWN_STATUS
    known = [times[name] for name in ("created_at", "updated_at", "started_at", "completed_at")]
    known.extend(_stage_times(document.get("stages")))
    return JobDocument(
        job_id=job_id,
        raw=raw,
        digest=digest_of(raw),
        shape=shape,
        # A lone surrogate passes JSON but not SQLite.
        status=status.encode("utf-8", "replace").decode(),
        progress=_progress(document.get("progress")),
        created_at=times["created_at"],
        updated_at=times["updated_at"],
        completed_at=times["completed_at"],
        expires_at=times["expires_at"],
        activity=max((moment for moment in known if moment is not None), default=None),
        oddities=tuple(dict.fromkeys(oddities)),
        document=document,
    )


def _load(raw: bytes) -> tuple[dict[str, Any] | None, str]:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return None, "not_utf8"
    try:
        # Deep nesting ends in RecursionError, a number of 5,000 digits in ValueError.
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None, "not_json"
    return (document, "") if isinstance(document, dict) else (None, "not_json")


def _progress(value: object) -> float:
    return min(100.0, max(0.0, finite(value) or 0.0))


def _stage_times(stages: object) -> list[float | None]:
    if not isinstance(stages, dict):
        return []
    found: list[float | None] = []
    for stage in list(stages.values())[:_MAX_STAGES]:
        if isinstance(stage, dict):
            found.append(to_timestamp(stage.get("started_at")))
            found.append(to_timestamp(stage.get("completed_at")))
    return found


def finite(value: object) -> float | None:
    """A number of a document; None for anything else, also for NaN, infinities and what no float
    can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def to_timestamp(value: object) -> float | None:
    """Unix seconds of an ISO 8601 date (without an offset: UTC) or of a plain number.

    None for anything else, and for moments outside 1970..2200.
    """
    moment: float
    if isinstance(value, str) and len(value) >= 8:
        date = parse_iso(value)
        if date is None:
            return None
        try:
            moment = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            return None
    else:
        number = finite(value)
        if number is None:
            return None
        moment = number
    return moment if _EARLIEST < moment < LATEST else None


def sql_time(moment: float) -> str:
    """SQLite's own form, UTC: `2026-11-23 16:21:42.670528`.

    So that `expires_at < datetime('now')` is a true comparison of texts.
    """
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


def is_newer(one: JobDocument, other: JobDocument) -> bool:
    """Whether `one` is surely a later version than `other` (rule 2).

    A strict order among documents of known shape: latest time in the document, then finished before
    unfinished, then progress. Equal, or of unknown shape on either side: False both ways, as
    nothing is sure.
    """
    if one.activity is None or other.activity is None:
        return False
    return _rank(one) > _rank(other)


def _rank(snapshot: JobDocument) -> tuple[float, bool, float]:
    return (snapshot.activity or 0.0, snapshot.status in FINISHED, snapshot.progress)


# --- answers in the app's own form --------------------------------------------------------------

_JOB_MEMBERS = ("status", "progress", "stages", "result", "error", "created_at")


def job_body(snapshot: JobDocument) -> bytes | None:
    """What the app of that version answers to `GET /jobs/{id}`; None for an opaque value.

    The older app gives the document as it is; the current one eight members of it, with
    `updated_at` always empty.
    """
    if snapshot.shape == "older":
        return as_json(snapshot.raw)
    document = _load_finite(snapshot.raw)
    if document is None:
        return None
    answer: dict[str, Any] = {"job_id": snapshot.job_id}
    answer.update((name, document.get(name)) for name in _JOB_MEMBERS)
    answer["updated_at"] = ""
    return _encode(answer)


def list_body(shape: Shape, values: list[bytes]) -> bytes:
    """What the app answers to `GET /jobs`: the raw documents, made `as_json`, spliced without
    parsing them."""
    head = b"{" if shape == "older" else b'{"status":"success",'
    jobs = b",".join(values)
    return head + b'"total":%d,"jobs":[' % len(values) + jobs + b"]}"


def deleted_body(shape: Shape, job_id: str) -> bytes:
    """What the app answers to a `DELETE /jobs/{id}` that worked."""
    if shape == "older":
        return _encode({"message": "Job deleted successfully", "job_id": job_id})
    message = "Job e arquivos associados removidos com sucesso"
    return _encode({"status": "deleted", "job_id": job_id, "message": message})


def not_found_body(shape: Shape) -> bytes:
    """What the app answers, with 404, for a job that it does not have."""
    if shape == "older":
        return _encode({"detail": "Job not found"})
    return _encode({"error": "HTTP_ERROR", "message": "Job not found"})


def as_json(raw: bytes) -> bytes:
    """A document as it is, unless it has what Python writes for numbers that JSON does not know
    (RFC 8259 §6): a browser would refuse all of the answer for it. Such a number becomes null."""
    if b"NaN" not in raw and b"Infinity" not in raw:
        return raw
    document = _load_finite(raw)
    return raw if document is None else _encode(document)


def _load_finite(raw: bytes) -> dict[str, Any] | None:
    """A document that was parsed before, with null for what is no finite number."""
    if _load(raw)[0] is None:
        return None
    document: dict[str, Any] = json.loads(raw, parse_constant=_no_number, parse_float=_finite)
    return document


def _no_number(_name: str) -> None:
    return None


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _encode(document: dict[str, Any]) -> bytes:
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")
