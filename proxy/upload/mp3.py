"""An MP3 as nearly all of them are: frames of one kind without a gap, then tags.

FFmpeg judges the first 64 KiB: they must come out of its demuxer as whole frames, and it is tried
whether they decode. The others are counted by their headers, which takes a tenth of the time. Files
that are built otherwise (leading junk, frames of other kinds, something between them) are FFmpeg's
to walk through.
"""

from __future__ import annotations

import re
from functools import lru_cache

from proxy.upload.families import HEAD, MPEG
from proxy.upload.mpeg import SAME_KIND, frame_length, trailing_tags
from proxy.upload.packets import GRACE, Walk, walk_file
from proxy.upload.refused import NotAudio, PastLimit, Undecodable
from proxy.upload.source import Source

TAIL = 64 * 1024  # bytes at the end in which tags are looked for
_LONGEST = 1729  # bytes of a frame: layer II, 384 kbit/s at 32 kHz, padded
_PIECE = 256 * 1024


def count_frames(source: Source, limit: float | None) -> Walk | None:
    """The walk through the file from `source`'s position on, which stays; None where that is for
    FFmpeg alone. Raises `PastLimit`."""
    start, lead = source.position, source.peek(HEAD)
    header = int.from_bytes(lead[:4], "big")
    if not frame_length(header):
        return None
    frame, chain = _patterns(header & SAME_KIND)
    end = _end(chain, lead)
    walk = _try_lead(lead[:end], limit)
    if walk is None:
        return None
    seconds = walk.total * walk.tick / walk.packets
    before = walk.packets
    at = counted_from = start + end
    while data := source.at(at, _PIECE):
        end = _end(chain, data)
        if not end:
            break
        walk.packets += len(frame.findall(data, 0, end))
        at += end
        if limit is not None and walk.packets * seconds > limit + GRACE:
            raise PastLimit(walk.packets * seconds)
    source.drain()
    behind = source.received - at
    if behind > TAIL or behind - trailing_tags(source.at(at, behind)) >= _LONGEST:
        return None
    walk.total += round((walk.packets - before) * seconds / walk.tick)
    walk.size += source.received - counted_from
    walk.covered += at - counted_from
    walk.end, walk.last_size = at - start, 0
    return walk


def _try_lead(lead: bytes, limit: float | None) -> Walk | None:
    """The walk through the first frames, if they are such as FFmpeg finds. The first one plays
    nothing if it has Xing's or VBRI's table in it."""
    try:
        (walk,) = walk_file(_Pipe(lead), MPEG, limit)
    except (NotAudio, Undecodable, ValueError):
        return None
    table = frame_length(int.from_bytes(lead[:4], "big"))
    whole = walk.packets and walk.covered in (len(lead), len(lead) - table)
    return walk if whole else None


class _Pipe:
    """`data` as a file that cannot seek."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, size: int) -> bytes:
        data, self._data = self._data[:size], self._data[size:]
        return data


def _end(chain: re.Pattern[bytes], data: bytes) -> int:
    """Where the whole frames end that `data` begins with."""
    found = chain.match(data)
    return found.end() if found else 0


@lru_cache(maxsize=4)
def _patterns(kind: int) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """A frame of this version, layer and sampling rate; and as many as follow each other."""
    third_bytes: dict[int, bytes] = {}  # by the length of the frame
    for third in range(256):
        header = kind | third << 8
        length = frame_length(header) if header & SAME_KIND == kind else 0
        if length:
            third_bytes[length] = third_bytes.get(length, b"") + b"\\x%02x" % third
    second = kind >> 16 & 0xFF  # its last bit: no checksum
    frame = b"(?s:\\xff[\\x%02x\\x%02x](?:%b))" % (
        second,
        second | 1,
        b"|".join(b"[%b].{%d}" % (those, length - 3) for length, those in third_bytes.items()),
    )
    # The group that is empty: nothing is copied for a frame that is found.
    return re.compile(frame + b"()"), re.compile(b"(?:" + frame + b")*+")
