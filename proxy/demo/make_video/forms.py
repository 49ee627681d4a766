"""Form validation of the make-video service: which fields it accepts, and its 422 details.

Pure functions: they take the fields as sent and return values, or problems in FastAPI's format.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from proxy.demo.make_video.shapes import FORM_DEFAULTS, Document

MAX_AUDIO_SIZE = 100 * 1000 * 1000
_CHOICES = {
    "subtitle_style": ("static", "dynamic", "minimal"),
    "aspect_ratio": ("9:16", "16:9", "1:1", "4:5"),
    "crop_position": ("center", "top", "bottom"),
}
_MAGIC = {
    # extension: (offset, accepted signatures); other extensions are not checked
    ".mp3": (0, (b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2", b"\xff\xfa")),
    ".wav": (0, (b"RIFF",)),
    ".ogg": (0, (b"OggS",)),
    ".m4a": (4, (b"ftyp",)),
    ".flac": (0, (b"fLaC",)),
}


def missing(place: str, name: str) -> Document:
    """The detail for a missing required field."""
    return {"type": "missing", "loc": [place, name], "msg": "Field required", "input": None}


def check_integer(place: str, name: str, text: str, low: int) -> tuple[int | None, list[Document]]:
    """The number, or the detail if it is not one or is below `low`."""
    try:
        number = int(text)
    except ValueError:
        message = "Input should be a valid integer, unable to parse string as an integer"
        return None, [{"type": "int_parsing", "loc": [place, name], "msg": message, "input": text}]
    if number < low:
        return None, [
            {
                "type": "greater_than_equal",
                "loc": [place, name],
                "msg": f"Input should be greater than or equal to {low}",
                "input": text,
                "ctx": {"ge": low},
            }
        ]
    return number, []


def check_common(fields: Mapping[str, Any]) -> tuple[Document, list[Document]]:
    """The options of both POSTs: values with defaults filled in, and all problems."""
    values: Document = {**FORM_DEFAULTS}
    problems: list[Document] = []
    if isinstance(text := fields.get("max_shorts"), str):
        number, problems = check_integer("body", "max_shorts", text, 10)
        values["max_shorts"] = number
    for name, choices in _CHOICES.items():
        text = fields.get(name)
        if not isinstance(text, str):
            continue
        values[name] = text
        if text not in choices:
            quoted = [f"'{choice}'" for choice in choices]
            expected = ", ".join(quoted[:-1]) + " or " + quoted[-1]
            problems.append(
                {
                    "type": "enum",
                    "loc": ["body", name],
                    "msg": f"Input should be {expected}",
                    "input": text,
                    "ctx": {"expected": expected},
                }
            )
    for name in ("subtitle_language", "hook_text"):
        if isinstance(text := fields.get(name), str):
            values[name] = text
    if isinstance(text := fields.get("burn_subtitles"), str):
        values["burn_subtitles"] = text.lower() in ("true", "1", "on", "yes")
    return values, problems


def check_query(fields: Mapping[str, Any]) -> list[Document]:
    """The problems with the `query` of a download."""
    query = fields.get("query")
    if not isinstance(query, str):
        return [missing("body", "query")]
    if len(query) < 3:
        return [
            {
                "type": "string_too_short",
                "loc": ["body", "query"],
                "msg": "String should have at least 3 characters",
                "input": query,
                "ctx": {"min_length": 3},
            }
        ]
    return []


def check_audio(
    filename: str, size: int, head: bytes, extensions: tuple[str, ...]
) -> tuple[int, str] | None:
    """Status and message if the file is rejected; `head`: at least its first 12 bytes."""
    extension = PurePath(filename).suffix.lower()
    if extension not in extensions:
        return 400, f"Formato de áudio não suportado. Use: {', '.join(extensions)}"
    if size == 0:
        return 400, "Audio file is empty"
    if size > MAX_AUDIO_SIZE:
        return 413, "Audio file too large. Maximum: 100MB"
    offset, beginnings = _MAGIC.get(extension, (0, (b"",)))
    if not head[offset:].startswith(beginnings):
        return 400, f"Invalid audio file. Not a valid {extension} audio file."
    return None
