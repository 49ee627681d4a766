"""The errors for rejected uploads: one function per cause, in the sprint document's style.

Sizes are in units of 1024, called KB and MB as in the sprint document: 50 MiB is "50MB". Measured
sizes are rounded up, so that they never read the same as the limit they exceed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from proxy.core import errors

if TYPE_CHECKING:
    from proxy.uploads.probe.session import ProbeSession

#: Common names of the families that a config may accept.
_NAMES = {
    "audio/mpeg": "MP3",
    "audio/wav": "WAV",
    "audio/mp4": "M4A or MP4 with sound only",
    "audio/ogg": "Ogg",
    "audio/flac": "FLAC",
    "audio/webm": "WebM with sound only",
    "audio/aac": "AAC",
}
#: What the bytes are, by media type. Other media types are shown as they are.
_WORDS = {
    "application/pdf": "a PDF document",
    "application/zip": "a ZIP archive",
    "application/gzip": "a gzip archive",
    "application/x-rar": "a RAR archive",
    "application/x-7z-compressed": "a 7-Zip archive",
    "application/x-executable": "a program",
    "application/x-pie-executable": "a program",
    "application/x-sharedlib": "a program",
    "application/x-dosexec": "a program",
    "application/vnd.microsoft.portable-executable": "a program",
    "application/x-mach-binary": "a program",
    "application/msword": "a Word document",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "a Word document",
    "application/json": "JSON",
    "application/octet-stream": "no known format",
    "text/html": "a web page",
    "text/plain": "plain text",
    "image/jpeg": "a JPEG picture",
    "image/png": "a PNG picture",
    "image/gif": "a GIF picture",
    "audio/midi": "MIDI notes",
    "audio/amr": "AMR",
    "audio/x-aiff": "AIFF",
    "audio/x-ms-asf": "Windows Media",
    "video/x-ms-asf": "Windows Media",
    "video/x-msvideo": "an AVI film",
    "video/mp4": "an MP4 film",
    "video/quicktime": "a QuickTime film",
    "video/mpeg": "an MPEG film",
    "audio/aac": "AAC without a container",
    "audio/flac": "FLAC",
    "audio/webm": "WebM or Matroska",
    "audio/mp4": "M4A or MP4",
    "audio/ogg": "Ogg",
    "audio/mpeg": "MP3",
    "audio/wav": "WAV",
    "unreadable data": "unreadable data, perhaps cut short",
    "a wav header before other content": "a WAV header before other content",
}
#: Why there is no duration, by the probe's reason.
_REASONS = {
    "broken": "its packets cannot be read. Was it cut short?",
    "cut_short": "its index is missing, or its sound. Was it cut short?",
    "entries": "it has too many comments, boxes or parts",
    "no_audio": "it has no audio in it",
    "undecodable": "its packets do not decode",
    "junk": "too much of it is no audio",
    "memory": "it takes too much memory to read",
    "crashed": "it cannot be read",
    "slow": "it takes too long to read",
}
_FILM, _SILENT = " with a video track", " without audio"


def _in_words(found: str) -> str:
    """`application/pdf` as `a PDF document (application/pdf)`."""
    for ending, kind in ((_FILM, "a film"), (_SILENT, "a file without sound")):
        if found.endswith(ending):
            name = _NAMES.get(found.removesuffix(ending), "").partition(" ")[0]
            return f"{kind} ({name}{ending})" if name else f"{kind} ({found})"
    words = _WORDS.get(found)
    if words is None or "/" not in found:
        return words or found
    return f"{words} ({found})"


def _what_to_do(found: str) -> str:
    """A sentence after a space, or nothing if there is no advice."""
    if found.endswith(_FILM):
        return " Save its sound alone, as MP3 or M4A."
    if found == "audio/aac":
        return " Convert it to M4A."
    if found.startswith("audio/") and not found.endswith(_SILENT):
        return " Convert it to MP3, M4A or WAV."
    return ""


def size_text(size: int, *, measured: bool = False) -> str:
    """52428800 as `50MB`, 64172851 as `61.2MB`, 65536 as `64KB`, 100 as `100B`."""
    for unit, name in ((2**20, "MB"), (2**10, "KB")):
        if size >= unit:
            tenths = math.ceil(size * 10 / unit) if measured else round(size * 10 / unit)
            return f"{tenths / 10:.1f}".removesuffix(".0") + name
    return f"{size}B"


def duration_text(seconds: float) -> str:
    """600 as `10min`, 90 as `1min 30s`, 4.5 as `4.5s`, 10800 as `3h`."""
    if seconds < 60:
        return f"{seconds:.1f}".removesuffix(".0") + "s"
    whole = round(seconds)
    units = ((whole // 3600, "h"), (whole // 60 % 60, "min"), (whole % 60, "s"))
    return " ".join(f"{value}{name}" for value, name in units if value)


def too_large(
    measured: int | None, limit: int, field: str | None, what: str = "Audio file"
) -> errors.UploadTooLarge:
    """`measured` bytes; None if the rest was not read once the limit was reached. `what`: the
    file, here and below, if it is not the audio (`beside`)."""
    found = size_text(measured or limit, measured=True)
    if found == size_text(limit):
        found = f"over {found}"
    return errors.UploadTooLarge(
        f"{what} too large: {found} (max: {size_text(limit)})",
        limit=limit,
        measured=measured,
        field=field,
    )


def beside(field: str) -> str:
    """A file beside the audio, in words."""
    return f"File in field {field}"


def too_long(seconds: float, limit: float, field: str | None) -> errors.UploadTooLong:
    """Measuring stopped at `seconds`, just past the limit; the full duration is unknown."""
    return errors.UploadTooLong(
        f"Audio file too long: over {duration_text(limit)} (max: {duration_text(limit)})",
        limit=limit,
        measured=round(seconds, 3),
        field=field,
    )


def type_rejected(
    found: str, accepted: Iterable[str], field: str | None
) -> errors.UploadTypeRejected:
    """`found`: what the bytes are, in words or as a media type."""
    names = list(accepted)
    good = ", ".join(_NAMES.get(name, name) for name in names)
    return errors.UploadTypeRejected(
        f"Audio file type not accepted: {_in_words(found)} (accepted: {good}).{_what_to_do(found)}",
        limit=names,
        measured=found,
        field=field,
    )


def duration_unknown(reason: str, field: str | None) -> errors.UploadDurationUnknown:
    """`reason`: a key of `_REASONS`."""
    return errors.UploadDurationUnknown(
        f"Audio file duration unknown: {_REASONS[reason]}", field=field, reason=reason
    )


def missing(field: str) -> errors.UploadMissing:
    """No file part of the configured name."""
    return errors.UploadMissing(f"Audio file missing: no file in field {field}", field=field)


def empty(field: str | None, what: str = "Audio file") -> errors.UploadEmpty:
    """A file of no bytes."""
    return errors.UploadEmpty(f"{what} empty: 0 bytes", measured=0, field=field)


def malformed(why: str, field: str | None, *, reason: str = "multipart") -> errors.UploadMalformed:
    """`why` in half a sentence, lower case."""
    return errors.UploadMalformed(f"Upload malformed: {why}", field=field, reason=reason)


def attachment_rejected(accepted: Iterable[str], field: str) -> errors.UploadTypeRejected:
    """A file beside the audio that has none of the `accepted` types."""
    names = list(accepted)
    return errors.UploadTypeRejected(
        f"{beside(field)} is not of an accepted type (accepted: {', '.join(names)})",
        limit=names,
        field=field,
    )


def overloaded(reason: str) -> errors.Overloaded:
    """Not the upload's fault: no probe process could examine it (`upload_probe`), or the spool had
    no room (`upload_spool`). The cause is in the log."""
    return errors.Overloaded(
        "The upload cannot be checked now, try again", retry_after=2, reason=reason
    )


def refusal(
    session: ProbeSession, accepted: Sequence[str], max_duration: float | None, field: str | None
) -> errors.ProxyError | None:
    """The rejection that follows from the probe's answers so far, or None. No answer is trusted:
    the probe has read hostile bytes."""
    if session.lost is not None:
        return overloaded("upload_probe")
    if session.kind is not None and session.kind["type"] not in accepted:
        return duration_unknown("crashed", field)
    match session.verdict:
        case None:
            return None
        case {"refused": "type", "what": str(what)}:
            return type_rejected(what, accepted, field)
        case {"refused": "long", "duration": float(seconds)}:
            return too_long(seconds, max_duration or 0.0, field)
        case {"refused": "unknown", "why": str(why)} if why in _REASONS:
            return duration_unknown(why, field)
        case {"duration": float()} if session.kind is not None:
            return None
    return duration_unknown("crashed", field)
