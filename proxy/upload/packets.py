"""One walk through the packets of a file, as FFmpeg's demuxer finds them.

Rules:
1. The demuxer is named, never guessed, and reads from our file object only.
2. Three measures, the largest counts: the sum of packet durations; the span of their time stamps;
   and, for codecs whose packets all play equally long, packets times the length of a decoded one.
   A header that lies about one does not change the others.
3. FFmpeg finds "audio" in any bytes: it skips what it cannot parse. So an MP3 packet counts only
   when it is one whole frame of the kind of the one before; and of the first packets it is tried
   whether they decode.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
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
from proxy.upload.foreign import starts_foreign

_BUFFER = 256 * 1024  # bytes FFmpeg asks for at once: fewer calls into Python
# Seconds: an MP3 or AAC of exactly ten minutes comes out longer by its encoder's delay and padding,
# up to 2300 samples, at 8 kHz.
GRACE = 0.3
TRY_DECODE = 32  # packets: the first of a cut MP3 lack their bit reservoir
# Codecs with the same number of samples in every packet (the last one aside).
CONSTANT = frozenset({"aac", "mp3", "mp3float", "mp2", "mp2float", "mp1", "mp1float", "alac"})
_HEADER = struct.Struct(">I").unpack_from


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
class Walk:
    """What one audio stream has shown so far; times in units of its time base."""

    tick: float = 1.0  # seconds
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


def open_container(file: IO[bytes] | Any, family: Family) -> InputContainer:
    """Raises `Undecodable` where the demuxer finds nothing of its format."""
    try:
        return av.open(
            file,
            "r",
            format=family.demuxer,
            options=dict(family.options),
            metadata_errors="replace",
            buffer_size=_BUFFER,
        )
    except (av.error.FFmpegError, ValueError) as error:
        raise Undecodable("broken") from error


def audio_streams(container: InputContainer, family: Family) -> list[AudioStream]:
    """All of them. Raises `NotAudio` where there are none, or films."""
    refuse_video(container, family)
    streams = list(container.streams.audio)
    if not streams:
        raise NotAudio(f"{family.media_type} without audio")
    return streams


def refuse_video(container: InputContainer, family: Family) -> None:
    """Cover art is no video. Streams may come up late, in fragments and chained files."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            raise NotAudio(f"{family.media_type} with a video track")


def walk_packets(
    container: InputContainer,
    streams: Sequence[AudioStream],
    walks: Sequence[Walk],
    family: Family,
    limit: float | None,
    *,
    stop_after: int | None = None,
) -> None:
    """Walk to the end, or until `stop_after` packets were tried (`TRY_DECODE` at most), and write
    it into `walks`, one for each of `streams`. May be called again, to go on. Raises the
    exceptions above."""
    by_index = {stream.index: walk for stream, walk in zip(streams, walks, strict=True)}
    framed = family is MPEG
    past = None if limit is None else limit + GRACE
    try:
        for packet in container.demux(list(streams)):
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
            if walk.tried < TRY_DECODE:
                if walk.tried == 0 and family is WAV:
                    _refuse_foreign_samples(packet)
                _try_decode(walk, packet)
                if walk.tried == stop_after:
                    break
            if past is not None and walk.total * walk.tick > past:
                raise PastLimit(walk.total * walk.tick)
    except av.error.FFmpegError as error:
        # A file cut short ends in an error; what came before it is what plays.
        if not any(walk.packets for walk in walks):
            raise Undecodable("broken") from error


def _check_frame(walk: Walk, packet: Any, size: int) -> None:
    header = _HEADER(packet)[0] if size >= 4 else 0
    kind = header & mpeg.SAME_KIND
    same, walk.kind = walk.kind in (None, kind), kind
    if same and mpeg.frame_length(header & 0xFFFFFE00) == size:
        walk.framed += size
        walk.unframed = 0
    else:
        walk.unframed += size


def _try_decode(walk: Walk, packet: Any) -> None:
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
            if context.name in CONSTANT:
                walk.packet_seconds = max(walk.packet_seconds, frame.samples / frame.sample_rate)


def _refuse_foreign_samples(packet: Any) -> None:
    name = packet.stream.codec_context.name if packet.stream.codec_context else ""
    if not name.startswith("pcm_"):
        return
    if starts_foreign(bytes(memoryview(packet)[:4096])):
        raise NotAudio("a wav header before other content")
