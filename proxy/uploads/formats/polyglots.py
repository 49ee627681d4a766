"""Foreign formats hidden in an audio file: archives, documents, programs and web pages.

Rules:
1. Where sound should begin, the bytes must not begin like another common format, and must not be
   plain text (`starts_foreign`).
2. Bytes that no decoder reads are searched for foreign formats at every offset (`refuse_foreign`).
   A signature and the fields after it make 45 bits or more, so that noise and pictures do not
   match.
3. ZIP readers look for the directory from the end of the file backwards, whatever follows it. So
   the end of every file is searched, sound or not (`refuse_polyglot`).
4. Sound is not searched, since samples can be any bytes (except in FLAC, see measure.py). Nor are
   tags: their pictures and texts may quote anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from proxy.uploads.probe.refused import NotAudio
from proxy.uploads.probe.source import Prefixed, Source

_SIGNATURES = (
    rb"PK\x03\x04|%PDF-|\x7fELF|\x89PNG\r\n|GIF8[79]a|\xff\xd8\xff[\xdb\xe0-\xef]|Rar!\x1a\x07"
    rb"|7z\xbc\xaf\x27\x1c|\x1f\x8b\x08[\0-\x1f]|BZh[1-9]1AY|\xfd7zXZ\0|\xd0\xcf\x11\xe0\xa1\xb1"
    rb"|<(?:!doctype|html|script|svg|\?xml|\?php)|#!\s*/|OggS|fLaC|\xca\xfe\xba\xbe"
    rb"|MZ.{58}..\0\0"
)
_AT_START = re.compile(rb"\s*(?:" + _SIGNATURES + rb")", re.IGNORECASE | re.DOTALL)
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e]{512,}")  # 64 ms of 8 kHz PCM that never crosses silence

_BINARY: Final = re.compile(
    rb"PK\x03\x04[\x0a-\x3f][\0-\x0a]..[\0\x08\x09\x0c\x0e\x5d\x5f\x60\x63]\0"
    rb"|PE\0\0(?:\x4c\x01|\x64\x86|\xc4\x01|\x64\xaa).{18}\x0b[\x01\x02]"
    rb"|(?<=%)PDF-[12]\.\d"
    rb"|\x7fELF[\x01\x02][\x01\x02]\x01"
    rb"|\xfa\xed\xfe(?:\x07|\x0c)\0\0[\0\x01]"
    rb"|Rar!\x1a\x07[\0\x01]"
    rb"|7z\xbc\xaf\x27\x1c\0",
    re.DOTALL,
)
_MEDIA_TYPES: Final = {  # by the first two bytes of what matched
    b"PK": "application/zip",
    b"PE": "application/x-dosexec",
    b"PD": "application/pdf",
    b"\x7fE": "application/x-executable",
    b"\xfa\xed": "application/x-mach-binary",
    b"Ra": "application/x-rar",
    b"7z": "application/x-7z-compressed",
}
# Four times as fast as a search for each of the seven: every byte is translated to its position (1,
# 2 or 3) in the first three bytes of any signature, and `_BINARY` is tried where 1, 2, 3 are in a
# row: in noise, at one byte in 80,000.
_POSITIONS: Final = bytes(
    next((n for n, those in enumerate((b"P\x7f\xfaR7", b"KED\xedaz", b"\x03\0FL\xfer\xbc"), 1)
          if byte in those), 0)
    for byte in range(256)
)  # fmt: skip
_IN_A_ROW: Final = re.compile(rb"\x01\x02\x03")
_PAGE = re.compile(rb"<(?:!doctype\s|html[\s>]|script[\s>]|\?php\s)", re.IGNORECASE)
_PIECE = 1024 * 1024
OVERLAP = 64  # bytes, more than the longest pattern matches

_DIRECTORY_END: Final = b"PK\x05\x06"
_DIRECTORY_END_SIZE = 22
_FARTHEST = 65_535 + _DIRECTORY_END_SIZE  # bytes from the end of a file: APPNOTE §4.3.16


def starts_foreign(data: bytes) -> bool:
    """Whether `data` begins like another format, or is all text."""
    return bool(_AT_START.match(data) or _TEXT.fullmatch(data))


def find_foreign(data: bytes) -> str | None:
    """The media type of a foreign format that begins anywhere in `data`, or None."""
    for candidate in _IN_A_ROW.finditer(data.translate(_POSITIONS)):
        if found := _BINARY.match(data, candidate.start()):
            return _MEDIA_TYPES[found[0][:2]]
    return "text/html" if _PAGE.search(data) else None


def refuse_foreign(source: Source, ranges: Iterable[tuple[int, int]]) -> None:
    """Raise `NotAudio` if a foreign format begins in those ranges (start, end). Searches them as
    they arrive."""
    for start, end in ranges:
        at = start
        while at < end and (data := source.at(at, min(_PIECE + OVERLAP, end - at))):
            if what := find_foreign(data):
                raise NotAudio(what)
            at += _PIECE


class Searched:
    """A file for FFmpeg that is searched as it is read, since searching a large file at its end
    would delay the verdict. `read` raises `NotAudio` if a foreign format begins."""

    def __init__(self, file: Prefixed) -> None:
        self._file = file
        self._before = b""

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, empty at the end."""
        data = self._file.read(size)
        seam = self._before + data[:OVERLAP]
        if what := find_foreign(seam) or find_foreign(data):
            raise NotAudio(what)
        self._before = (seam if len(data) <= OVERLAP else data)[-OVERLAP:]
        return data


def refuse_polyglot(source: Source, head: bytes) -> None:
    """Raise `NotAudio` if the file is also a ZIP archive (rule 3), or a PDF document, which readers
    accept if it begins in the first KiB."""
    tail = source.at(max(0, source.received - 2 * _FARTHEST), 2 * _FARTHEST)
    at = tail.rfind(_DIRECTORY_END)
    while at >= 0:
        if _ends_directory(source, tail, at):
            raise NotAudio("application/zip")
        at = tail.rfind(_DIRECTORY_END, 0, at)
    if b"%PDF-" in head[:1024] and b"%%EOF" in tail:
        raise NotAudio("application/pdf")


def _ends_directory(source: Source, tail: bytes, at: int) -> bool:
    """Whether a ZIP directory ends at `at`. Sound has its four letters now and then."""
    end = tail[at : at + _DIRECTORY_END_SIZE]
    if len(end) < _DIRECTORY_END_SIZE or end[4:8] != bytes(4) or end[8:10] != end[10:12]:
        return False
    if tail[max(0, at - 20) : at].startswith(b"PK\x06\x07"):  # ZIP64: the sizes are elsewhere
        return True
    size = int.from_bytes(end[12:16], "little")
    start = source.received - len(tail) + at - size
    return size >= 46 and start >= 0 and source.at(start, 4) == b"PK\x01\x02"
