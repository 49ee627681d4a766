"""How long does it play: each family's way to find out, and what the answer must withstand.

Rules:
1. Every packet counts, and none that is not there: what a header claims is compared, not believed
   (packets.py). The largest of several measures wins.
2. The walk ends as soon as it is past the limit.
3. Where frames, an index or plain samples can be followed without FFmpeg's demuxer, they are
   (mp3.py, mp4.py, wav.py): exactly as far as that gives the same result.
4. What no decoder reads is searched for other content (foreign.py).
"""

from __future__ import annotations

from proxy.upload.families import FLAC, MP4, MPEG, OGG, WAV, WEBM, Family
from proxy.upload.foreign import refuse_foreign
from proxy.upload.mp3 import measure_mp3
from proxy.upload.mp4 import measure_mp4
from proxy.upload.ogg import measure_ogg
from proxy.upload.packets import (
    GRACE,
    MAX_ENTRIES,
    Walk,
    audio_streams,
    open_container,
    refuse_video,
    walk_packets,
)
from proxy.upload.refused import PastLimit, Undecodable
from proxy.upload.source import Source
from proxy.upload.view import ENDLESS, View
from proxy.upload.wav import measure_wav

_STREAM_INFO = 38  # bytes of FLAC's first block, with its header


def measure(source: Source, family: Family, limit: float | None) -> float:
    """Seconds that the file plays, from the source's position on, where its tags end. Raises
    `NotAudio`, `Undecodable` or `PastLimit`."""
    if family is OGG:
        seconds = sum(walk.seconds() for walk in measure_ogg(source, limit))
    else:
        if family is MPEG:
            walks = [measure_mp3(source, limit)]
        elif family is WAV:
            walks = [measure_wav(source, limit)]
        elif family is MP4:
            walks = measure_mp4(source, limit)
        else:
            walks = _measure_frames(source, family, limit)
        seconds = max(walk.seconds() for walk in walks)
        if limit is not None and seconds > limit + GRACE:
            raise PastLimit(seconds)
        best = max(walks, key=lambda walk: (walk.decodes, walk.seconds()))
        best.require_sound()
    source.drain()
    if limit is not None and seconds > limit + GRACE:
        raise PastLimit(seconds)
    return seconds


def _measure_frames(source: Source, family: Family, limit: float | None) -> list[Walk]:
    """FLAC, AAC and WebM: all that there is goes through the demuxer."""
    start = source.position
    before = _flac_head(source) if family is FLAC else b""
    sound = source.position
    view = View(source, before, iter([(sound, ENDLESS)]))
    with open_container(view, family) as container:
        streams = audio_streams(container, family)
        walks = [Walk(float(stream.time_base or 1)) for stream in streams]
        walk_packets(container, streams, walks, family, limit)
        refuse_video(container, family)
    source.drain()
    if family is WEBM:
        covered = sum(walk.size for walk in walks)
        slack = covered // 8 + 4096  # headers of blocks
        much = source.received - start > covered + slack
        refuse_foreign(source, [(start if much else source.received - slack, source.received)])
    else:
        shift = sound - len(before)
        gaps = [*walks[0].gaps, (walks[0].end - walks[0].last_size, ENDLESS)]
        refuse_foreign(source, [(start + shift, end + shift) for start, end in gaps])
    return walks


def _flac_head(source: Source) -> bytes:
    """The one block of metadata that a decoder needs; `source` goes to the first frame."""
    magic = source.peek(4 + _STREAM_INFO)
    if magic[4] & 0x7F != 0:
        return b""  # FFmpeg's to judge
    at = source.position + 4
    for _ in range(MAX_ENTRIES):
        header = source.at(at, 4)
        at += 4 + int.from_bytes(header[1:], "big")
        if len(header) < 4 or header[0] & 0x80:
            source.skip_to(at)
            return magic[:4] + bytes((0x80,)) + magic[5:]
    raise Undecodable("entries")
