"""The top-level boxes of an MP4 file.

ISO/IEC 14496-12 §4.2: 32 bits of size and four letters; size 1 means 64 bits of size behind the
letters, size 0 "to the end of the file".
"""

from __future__ import annotations

_SHORT = 8  # bytes of a header


def is_sequential(head: bytes) -> bool:
    """Whether the index (`moov`) comes before the media (`mdat`), so that FFmpeg need not seek.
    Where `head` ends before either is seen, the answer is no: seeking always works."""
    at = 0
    while at + _SHORT <= len(head):
        size, kind = int.from_bytes(head[at : at + 4], "big"), head[at + 4 : at + 8]
        if kind in (b"moov", b"mdat"):
            return kind == b"moov"
        if size == 1:
            size = int.from_bytes(head[at + 8 : at + 16], "big")
        if size < _SHORT:
            return False
        at += size
    return False
