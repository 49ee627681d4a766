"""An MP3 as nearly all of them are: tags, then frames without a gap, then tags.

Rules:
1. The first 64 frames are FFmpeg's to judge: they must come out of its demuxer as whole frames, all
   of them, and it is tried whether they decode. What follows is counted (frames.py).
2. They must begin right behind the ID3v2 tags, where FFmpeg and every player begins. Anything else
   (leading junk, a tag of the wrong length, free format) is FFmpeg's from there on.
3. Where the chain breaks, and not for the tags at the end, FFmpeg goes on from some frames back.
4. FFmpeg finds "audio" in any bytes. So what is no whole frame must stay a small part of the file.
"""

from __future__ import annotations

import io
from typing import Any

from proxy.upload.families import HEAD, MPEG
from proxy.upload.foreign import refuse_foreign
from proxy.upload.frames import FrameCounter
from proxy.upload.mpeg import chain, frame_length, trailing_tags
from proxy.upload.packets import (
    GRACE,
    Walk,
    audio_streams,
    open_container,
    walk_packets,
)
from proxy.upload.refused import NotAudio, PastLimit, Undecodable
from proxy.upload.source import Source

_LEAD = 64  # frames that FFmpeg sees
_LONGEST = 1729  # bytes of a frame: layer II, 384 kbit/s at 32 kHz, padded
_TAIL = 64 * 1024  # bytes behind the last frame that are looked at here
_SEARCHED = 4096  # bytes of junk; where there is more, the whole file is searched
_JUNK_FLOOR = 128 * 1024  # bytes of an MP3 that may be no frames, or a twentieth of it if more


def measure_mp3(source: Source, limit: float | None) -> Walk:
    """The walk through the whole file. Raises the exceptions of packets.py."""
    start = source.position
    lead = _lead(source)
    walk = _try_lead(lead, limit)
    if walk is None:
        source.back(len(lead))
        walk = Walk()
        _walk_on(walk, source, limit)
    else:
        _count_on(walk, lead, source, limit)
    source.drain()
    _refuse_junk(walk, source, start)
    return walk


def _lead(source: Source) -> bytes:
    """The first frames, if there are enough of them and nothing before them."""
    data = source.peek(_LEAD * _LONGEST)
    if chain(data, 0, stop_after=_LEAD)[0] < _LEAD:
        return b""
    at = 0
    for _ in range(_LEAD):
        at += frame_length(int.from_bytes(data[at : at + 4], "big"))
    return source.read(at) if at <= len(data) else b""


def _try_lead(lead: bytes, limit: float | None) -> Walk | None:
    """Rule 1. A first frame with Xing's or VBRI's table in it plays nothing: FFmpeg skips it."""
    walk = Walk()
    try:
        _walk_on(walk, _Pipe(lead), limit)
    except (NotAudio, Undecodable):
        return None
    table = frame_length(int.from_bytes(lead[:4], "big"))
    whole = walk.framed == walk.size and walk.size in (len(lead), len(lead) - table)
    return walk if whole else None


def _count_on(walk: Walk, lead: bytes, source: Source, limit: float | None) -> None:
    """Frames that need no FFmpeg, and what stands behind the last of them."""
    counter = FrameCounter(lead[:4])
    before = walk.total * walk.tick
    past = None if limit is None else limit + GRACE
    while not counter.broken and (data := source.read()):
        counter.feed(data)
        if past is not None and before + counter.seconds > past:
            raise PastLimit(before + counter.seconds)
    behind = counter.uncounted
    rest = bytearray()
    ended = not counter.broken
    while not ended and len(rest) < _TAIL:
        data = source.read()
        rest += data
        ended = not data
    behind += len(rest)
    if ended and behind - trailing_tags(source.tail) < _LONGEST:
        _add(walk, counter)
        walk.size += behind
        walk.unframed = behind
        return
    again = counter.rest()
    _add(walk, counter)
    source.back(len(again) + len(rest))
    _walk_on(walk, source, limit)


def _add(walk: Walk, counter: FrameCounter) -> None:
    walk.packets += counter.frames
    walk.size += counter.size
    walk.framed += counter.size
    walk.total += round(counter.seconds / walk.tick)


class _Pipe:
    """`data` as a file that cannot seek."""

    def __init__(self, data: bytes) -> None:
        self.read = io.BytesIO(data).read


def _walk_on(walk: Walk, file: Any, limit: float | None) -> None:
    with open_container(file, MPEG) as container:
        streams = audio_streams(container, MPEG)[:1]
        walk.tick = float(streams[0].time_base or 1)
        walk_packets(container, streams, [walk], MPEG, limit)


def _refuse_junk(walk: Walk, source: Source, start: int) -> None:
    """Rule 4. ID3v2 and leading junk are not in the walk, tags at the end are."""
    tags = trailing_tags(source.tail)
    junk = walk.size - walk.framed - tags
    last = source.received - walk.unframed
    if junk > _SEARCHED:
        refuse_foreign(source, [(start, source.received - tags)])
    else:
        refuse_foreign(source, [(start, start + HEAD), (last, source.received - tags)])
    if junk > walk.framed or junk > max(_JUNK_FLOOR, walk.size // 20):
        raise Undecodable("junk")
