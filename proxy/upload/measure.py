"""How long does it play: each family's way to find out, and what the answer must withstand.

Rules:
1. Every packet counts, and none that is not there: what a header claims is compared, not believed
   (packets.py). The largest of several measures wins.
2. The walk ends as soon as it is past the limit.
3. Where frames, an index or plain samples can be followed without FFmpeg's demuxer, they are
   (mp3.py, mp4_index.py, wav.py): exactly as far as that gives the same result.
4. A quarter of the first packets must decode.
5. PCM is any bytes at all. So samples that start like another file format, or that read as text,
   are no PCM; nor is a file that is at the same time a ZIP archive or a PDF document, whose readers
   look at the end and at the first KiB.
"""

from __future__ import annotations

from av.container import InputContainer

from proxy.upload.boxes import is_sequential
from proxy.upload.families import MP4, MPEG, WAV, Family
from proxy.upload.mp3 import measure_mp3
from proxy.upload.mp4_index import follow_index
from proxy.upload.packets import (
    GRACE,
    TRY_DECODE,
    NotAudio,
    PastLimit,
    Undecodable,
    Walk,
    audio_streams,
    open_container,
    refuse_video,
    walk_packets,
)
from proxy.upload.source import Source
from proxy.upload.wav import count_samples, find_samples

# Of the packets tried, one in so many must decode: of random bytes one AAC packet in a thousand
# does.
_MUST_DECODE = 4
_TRY_PCM = 4  # packets, of 64 KiB: one would do, all bytes decode
_METADATA = 128 * 1024  # bytes that may stand behind a WAV's samples


def measure(source: Source, head: bytes, family: Family, limit: float | None) -> float:
    """Seconds that the file plays, which begins with `head`. Raises `NotAudio`, `Undecodable` or
    `PastLimit`."""
    if family is MPEG:
        walks = [measure_mp3(source, limit)]
    else:
        seeking = family is MP4 and not is_sequential(head)
        if seeking:
            source.rewind()
        with open_container(source, family) as container:
            walks = _walk(container, source, head, family, limit, whole=seeking)
            refuse_video(container, family)
        source.drain()
    if family is WAV:
        _count_unclaimed(walks[0], source.received)
    longest = max(walk.seconds() for walk in walks)
    if limit is not None and longest > limit + GRACE:
        raise PastLimit(longest)
    if longest <= 0:
        raise Undecodable("no_audio")
    if not any(walk.decoded and walk.decoded * _MUST_DECODE >= walk.tried for walk in walks):
        raise Undecodable("undecodable")
    return longest


def _walk(
    container: InputContainer,
    source: Source,
    head: bytes,
    family: Family,
    limit: float | None,
    *,
    whole: bool,
) -> list[Walk]:
    streams = audio_streams(container, family)
    walks = [Walk(float(stream.time_base or 1)) for stream in streams]
    # Fragments have their index among the sound: there the packets tell first when it is too much.
    late = not whole and b"mvex" in head
    indexed = family is MP4 and len(streams) == 1 and not late
    context = streams[0].codec_context
    pcm = family is WAV and context is not None and context.name.startswith("pcm_")
    samples = find_samples(head) if pcm else None
    walk_packets(
        container,
        streams,
        walks,
        family,
        limit,
        stop_after=TRY_DECODE if indexed else _TRY_PCM if samples else None,
    )
    if indexed and walks[0].tried == TRY_DECODE:
        follow_index(walks[0], container, streams[0], source, limit)
    elif samples and not count_samples(walks[0], source, *samples, limit):
        walk_packets(container, streams, walks, family, limit)
    return walks


def _count_unclaimed(walk: Walk, file_size: int) -> None:
    """A WAV header may claim one second of an hour. What lies behind the claimed samples is small
    where it is metadata; more than half as much again is counted as if it were played."""
    behind = file_size - walk.end
    if walk.size and behind > max(_METADATA, walk.size // 2):
        walk.total += walk.total * behind // walk.size


def refuse_polyglot(head: bytes, tail: bytes) -> None:
    """Raise `NotAudio` where the same bytes are also a ZIP archive (its directory ends the file,
    APPNOTE §4.3.16) or a PDF document (header in the first KiB, as its readers accept)."""
    at = tail.rfind(b"PK\x05\x06")
    if at >= 0 and at + 22 + int.from_bytes(tail[at + 20 : at + 22], "little") == len(tail):
        raise NotAudio("application/zip")
    if b"%PDF-" in head[:1024] and b"%%EOF" in tail:
        raise NotAudio("application/pdf")
