"""How long does it play: FFmpeg's demuxer walks every packet, and the walk is checked.

Rules:
1. The demuxer is named, never guessed, and reads from our file object only.
2. Three measures, the largest counts: the sum of packet durations; the span of their time stamps;
   and, for codecs whose packets all play equally long, packets times the length of a decoded one.
   A header that lies about one does not change the others.
3. The walk ends at the first packet past the limit and `GRACE`. Where the whole file had to arrive
   before its index could be read (an MP4 written in one go), the rest of the walk follows that
   index instead of the packets: 8 ms instead of 55 for ten minutes of AAC, and the client waits.
4. FFmpeg finds "audio" in any bytes: it skips what it cannot parse. So an MP3 packet counts only
   when it is one whole frame of the kind of the one before, and the rest must stay a small part;
   elsewhere a quarter of the first packets must really decode.
5. PCM is any bytes at all. So samples that start like another file format, or that read as text,
   are no PCM; nor is a file that is at the same time a ZIP archive or a PDF document, whose readers
   look at the end and at the first KiB.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import IO, Any

import av
import av.error
from av.audio.codeccontext import AudioCodecContext
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition

from proxy.upload import mpeg
from proxy.upload.families import MPEG, WAV, Family
from proxy.upload.foreign import contains_foreign, starts_foreign
from proxy.upload.source import Source

_BUFFER = 256 * 1024  # bytes FFmpeg asks for at once: fewer calls into Python
# Seconds: an MP3 or AAC of exactly ten minutes comes out longer by its encoder's delay and padding,
# up to 2300 samples, at 8 kHz.
GRACE = 0.3
_TRY_DECODE = 32  # packets: the first of a cut MP3 lack their bit reservoir
# Of those tried, one in so many must decode: of random bytes one AAC packet in a thousand does.
_MUST_DECODE = 4
# Codecs with the same number of samples in every packet (the last one aside).
_CONSTANT = frozenset({"aac", "mp3", "mp3float", "mp2", "mp2float", "mp1", "mp1float", "alac"})
_HEADER = struct.Struct(">I").unpack_from
_JUNK_FLOOR = 128 * 1024  # bytes of an MP3 that may be no frames, or a twentieth of it if more


class NotAudio(Exception):
    """The bytes are something else, or more: `what` is a media type or half a sentence."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class Undecodable(Exception):
    """No sane walk through the packets; `why` is a key of the proxy's list of reasons."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class PastLimit(Exception):
    """The walk went past the limit after `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


@dataclass(slots=True)
class _Walk:
    """What one audio stream has shown so far; times in units of its time base."""

    tick: float  # seconds
    total: int = 0
    first: int | None = None
    last: int = 0
    packets: int = 0
    size: int = 0  # bytes of all packets
    end: int = 0  # where in the file the last packet ended
    framed: int = 0  # bytes of whole MPEG frames of one kind
    unframed: int = 0  # bytes since the last of them
    kind: int | None = None
    tried: int = 0
    decoded: int = 0
    packet_seconds: float = 0.0  # of the longest decoded packet; 0: not of a constant codec

    def seconds(self) -> float:
        span = self.last - self.first if self.first is not None else 0
        longest = max(self.total, span) * self.tick
        implied = self.packets * self.packet_seconds
        # Half as much again: below that it is encoder delay, padding or a short last packet.
        return implied if implied > longest * 1.5 + 1.0 else longest


def measure(
    source: Source, family: Family, limit: float | None, *, seekable: IO[bytes] | None = None
) -> float:
    """Seconds that the file plays. Raises `NotAudio`, `Undecodable` or `PastLimit`.

    `seekable` is the spooled copy of `source`, for the files whose index comes last.
    """
    try:
        container = av.open(
            seekable or source,
            "r",
            format=family.demuxer,
            options=dict(family.options),
            metadata_errors="replace",
            buffer_size=_BUFFER,
        )
    except (av.error.FFmpegError, ValueError) as error:
        raise Undecodable("broken") from error
    with container:
        _refuse_video(container, family)
        streams = list(container.streams.audio)
        if not streams:
            raise NotAudio(f"{family.media_type} without audio")
        indexed = seekable is not None and len(streams) == 1
        walks = _walk(container, streams, family, limit, indexed=indexed)
        if indexed and walks[0].tried == _TRY_DECODE:
            _follow_index(walks[0], streams[0], source.received)
        _refuse_video(container, family)  # streams may come up late, in fragments and chained files
    source.drain()
    if family is WAV:
        _count_unclaimed(walks[0], source.received)
    if family is MPEG:
        for walk in walks:
            _refuse_junk(walk, source.tail)
    longest = max(walk.seconds() for walk in walks)
    if limit is not None and longest > limit + GRACE:
        raise PastLimit(longest)
    if longest <= 0:
        raise Undecodable("no_audio")
    if not any(walk.decoded and walk.decoded * _MUST_DECODE >= walk.tried for walk in walks):
        raise Undecodable("undecodable")
    return longest


def _refuse_video(container: InputContainer, family: Family) -> None:
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            raise NotAudio(f"{family.media_type} with a video track")


def _walk(
    container: InputContainer,
    streams: list[AudioStream],
    family: Family,
    limit: float | None,
    *,
    indexed: bool,
) -> list[_Walk]:
    walks = [_Walk(float(stream.time_base or 1)) for stream in streams]
    by_index = {stream.index: walk for stream, walk in zip(streams, walks, strict=True)}
    framed = family is MPEG
    past = None if limit is None else limit + GRACE
    try:
        for packet in container.demux(streams):
            size = packet.size
            if not size:
                continue  # the flush at the end
            walk = by_index.get(packet.stream_index)
            if walk is None:
                continue
            duration, stamp = packet.duration or 0, packet.pts
            walk.packets += 1
            walk.size += size
            walk.end = (packet.pos or 0) + size
            walk.total += duration
            if stamp is not None:
                if walk.first is None:
                    walk.first = stamp
                if stamp + duration > walk.last:  # `max()` costs more than all of this
                    walk.last = stamp + duration
            if framed:
                _check_frame(walk, packet, size)
            if walk.tried < _TRY_DECODE:
                if walk.tried == 0 and family is WAV:
                    _refuse_foreign_samples(packet)
                _try_decode(walk, packet)
                if indexed and walk.tried == _TRY_DECODE:
                    break
            if past is not None and walk.total * walk.tick > past:
                raise PastLimit(walk.total * walk.tick)
    except av.error.FFmpegError as error:
        # A file cut short ends in an error; what came before it is what plays.
        if not any(walk.packets for walk in walks):
            raise Undecodable("broken") from error
    return walks


def _follow_index(walk: _Walk, stream: AudioStream, file_size: int) -> None:
    """Replace what the first packets gave by what the index says of the samples that are there."""
    stamps = [
        entry.timestamp
        for entry in stream.index_entries
        if 0 <= entry.pos <= file_size - entry.size
    ]
    if len(stamps) < walk.packets:
        raise Undecodable("broken")
    step = stamps[-1] - stamps[-2] if len(stamps) > 1 else 0
    walk.packets = len(stamps)
    played = max(stamps) - min(stamps) + max(step, 0)
    if stream.duration and abs(played - stream.duration) <= step:
        played = stream.duration  # the last packet is shorter than the one before it
    walk.total = max(walk.total, played)


def _count_unclaimed(walk: _Walk, file_size: int) -> None:
    """A WAV header may claim one second of an hour. What lies behind the claimed samples is small
    where it is metadata; more than half as much again is counted as if it were played."""
    behind = file_size - walk.end
    if walk.size and behind > max(_JUNK_FLOOR, walk.size // 2):
        walk.total += walk.total * behind // walk.size


def _check_frame(walk: _Walk, packet: Any, size: int) -> None:
    header = _HEADER(packet)[0] if size >= 4 else 0
    kind = header & mpeg.SAME_KIND
    same, walk.kind = walk.kind in (None, kind), kind
    if same and mpeg.frame_length(header & 0xFFFFFE00) == size:
        walk.framed += size
        walk.unframed = 0
    else:
        walk.unframed += size


def _refuse_junk(walk: _Walk, tail: bytes) -> None:
    """Rule 4. The demuxer skipped ID3v2 and leading junk; tags at the end are in the packets."""
    tags = trailing_tags(tail)
    junk = walk.size - walk.framed - tags
    after = walk.unframed - tags
    if after > 2048 and contains_foreign(tail[-walk.unframed : len(tail) - tags]):
        raise NotAudio("audio before other content")
    if junk > walk.framed or junk > max(_JUNK_FLOOR, walk.size // 20):
        raise Undecodable("junk")


def trailing_tags(tail: bytes) -> int:
    """Bytes of the tags that end an MP3: ID3v1 (128), Lyrics3v2 and APEv2 before it."""
    size = 0
    if tail[-128:-125] == b"TAG":
        size = 128
    rest = tail[: len(tail) - size]
    if rest.endswith(b"LYRICS200") and rest[-15:-9].isdigit():
        size += int(rest[-15:-9]) + 15
        rest = tail[: max(0, len(tail) - size)]
    if rest[-32:-24] == b"APETAGEX":  # APEv2 footer: size with footer, without header
        has_header = rest[-9] & 0x80
        size += int.from_bytes(rest[-20:-16], "little") + (32 if has_header else 0)
    return size


def _try_decode(walk: _Walk, packet: Any) -> None:
    walk.tried += 1
    context: AudioCodecContext | None = packet.stream.codec_context
    if context is None:
        return
    if not context.is_open:
        context.thread_count = 1  # the sandbox has no threads
    try:
        frames = context.decode(packet)
    except (av.error.FFmpegError, ValueError):
        return
    for frame in frames:
        if frame.samples and frame.sample_rate:
            walk.decoded += 1
            if context.name in _CONSTANT:
                walk.packet_seconds = max(walk.packet_seconds, frame.samples / frame.sample_rate)


def _refuse_foreign_samples(packet: Any) -> None:
    name = packet.stream.codec_context.name if packet.stream.codec_context else ""
    if not name.startswith("pcm_"):
        return
    if starts_foreign(bytes(memoryview(packet)[:4096])):
        raise NotAudio("a wav header before other content")


def refuse_polyglot(head: bytes, tail: bytes) -> None:
    """Raise `NotAudio` where the same bytes are also a ZIP archive (its directory ends the file,
    APPNOTE §4.3.16) or a PDF document (header in the first KiB, as its readers accept)."""
    at = tail.rfind(b"PK\x05\x06")
    if at >= 0 and at + 22 + int.from_bytes(tail[at + 20 : at + 22], "little") == len(tail):
        raise NotAudio("application/zip")
    if b"%PDF-" in head[:1024] and b"%%EOF" in tail:
        raise NotAudio("application/pdf")
