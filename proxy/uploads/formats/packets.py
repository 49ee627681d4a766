"""One walk through the packets of a file, as FFmpeg's demuxer finds them.

Rules:
1. The demuxer is given, never guessed, and reads only from our file object.
2. Claimed durations are compared with decoded ones: for the first packets, then for a random sample
   of the others, and always for unusually large ones. The excess of a decoded over a claimed
   duration is added. Real files have one such packet, the last. After two (usually several frames
   in one packet), the file is walked again and every packet is decoded.
3. Packets are added up; time stamps are ignored. So gaps and damaged stamps make nothing longer.
   Only if packets claim no duration is the time to the next one taken.
4. For codecs with a constant packet duration, the number of packets times a decoded duration is a
   second measure. Opus packets give their duration in the first byte, and MP3 and ADTS are split
   into single frames, so these need no random sample. The largest measure wins.
5. Packets that an edit list or a pre-skip discards are decoded too, to prove that they can be, but
   add no time.
6. FFmpeg finds "audio" in any bytes, since it skips what it cannot parse. So an MP3 packet counts
   only if it is one whole frame of the same kind as the one before, and a quarter of the first
   packets must decode.
"""

from __future__ import annotations

import random
import statistics
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import av
import av.error
from av.audio.codeccontext import AudioCodecContext
from av.audio.stream import AudioStream
from av.codec.context import Flags2
from av.container import InputContainer
from av.stream import Disposition

from proxy.uploads.formats import mpeg_frames
from proxy.uploads.formats.families import AAC, MP4, MPEG, WEBM, FormatFamily
from proxy.uploads.probe.refused import NotAudio, PastLimit, Undecodable

_BUFFER = 256 * 1024  # bytes that FFmpeg reads at a time: fewer calls into Python
# Seconds: an MP3 or AAC of exactly ten minutes is longer by its encoder's delay and padding, up to
# 2300 samples, at 8 kHz.
GRACE = 0.3
TRY_DECODE = 32  # packets: the first of a cut MP3 lack their bit reservoir
MAX_ENTRIES = 4096  # comments, boxes, chunks: more than any tagger writes, and still fast
# One in so many of the packets tried must decode. Of random bytes, one AAC packet in a thousand
# does.
_MUST_DECODE = 4
# Codecs with the same number of samples in every packet (the last one aside).
_CONSTANT = frozenset({"aac", "mp3", "mp3float", "mp2", "mp2float", "mp1", "mp1float", "alac"})
_HEADER = struct.Struct(">I").unpack_from
_BYTE = struct.Struct("B").unpack_from
_SKIP = struct.Struct("<I").unpack_from
_UNDERFLOW = 1 << 31  # ticks of one packet: FFmpeg's 32-bit difference went below zero
# How much a packet's claim may differ from its decoded duration: the last ones are often cut.
_TOLERANCE, _PADDING = 1.005, 1.0  # times; seconds
_BLOCK_HEADERS = 64  # bytes: of a cluster and a block
LARGE = 8  # times the mean, of a packet
_LIES = 2  # packets: the last one may be odd
#: Opus: samples of a frame at 48 kHz by the upper five bits of a packet's first byte (RFC 6716
#: §3.1).
_OPUS_FRAME = (480, 960, 1920, 2880) * 3 + (480, 960) * 2 + (120, 240, 480, 960) * 4
_OPUS_SECONDS = [_OPUS_FRAME[byte >> 3] / 48_000 * (1, 2, 2, 0)[byte & 3] for byte in range(256)]


@dataclass(slots=True)
class PacketWalk:
    """Statistics of one audio stream so far; `total` in units of its time base."""

    tick: float = 1.0  # seconds
    opus: bool = False  # packets carry their duration
    single: bool = False  # each is one frame of MPEG or ADTS
    constant: bool = False  # all have the same duration
    total: int = 0
    packets: int = 0  # that play
    size: int = 0  # bytes of all packets
    covered: int = 0  # bytes of those that are whole frames
    last: int = 0  # where in the file the last of them begins,
    end: int = 0  # and where it ends
    gaps: list[tuple[int, int]] = field(default_factory=list)  # before it, that none covers
    kind: int | None = None  # of MPEG frames
    tried: int = 0
    lengths: list[float] = field(default_factory=list)  # seconds of those that decoded
    lies: int = 0  # packets that play longer than they claim,
    excess: float = 0.0  # by so many seconds
    inner: float = 0.0  # seconds by the packets' own durations (Opus)
    skipped: float = 0.0  # seconds at the beginning that are decoded but not played
    next_try: int = 0  # the value of `packets` at which to decode the next one

    def seconds(self) -> float:
        """The duration: the largest measure, if it exceeds the claim by more than padding."""
        claimed = self.total * self.tick
        alike = self.packet_seconds if self.constant or not self.total else 0.0
        implied = max(self.packets * alike, self.inner, claimed + self.excess)
        if implied <= claimed * _TOLERANCE + _PADDING:
            implied = claimed or implied
        return max(implied - self.skipped, min(implied, self.tick))

    @property
    def packet_seconds(self) -> float:
        """The median duration of decoded packets, 0 if none decodes."""
        return statistics.median(self.lengths) if self.lengths else 0.0

    @property
    def decodes(self) -> bool:
        """Rule 6."""
        return bool(self.lengths) and len(self.lengths) * _MUST_DECODE >= self.tried


def open_container(file: IO[bytes] | Any, family: FormatFamily) -> InputContainer:
    """Raises `Undecodable` if the demuxer does not find its format."""
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
        raise Undecodable("memory" if isinstance(error, MemoryError) else "broken") from error


def audio_streams(container: InputContainer, family: FormatFamily) -> list[AudioStream]:
    """All audio streams. Raises `NotAudio` if there are none, or a video track."""
    refuse_video(container, family)
    streams = list(container.streams.audio)
    if not streams:
        raise NotAudio(f"{family.media_type} without audio")
    return streams


def refuse_video(container: InputContainer, family: FormatFamily) -> None:
    """Raise `NotAudio` for a video track. Cover art and chapter pictures, of which there are few,
    are allowed. In fragmented and chained files, streams may appear late."""
    for stream in container.streams.video:
        picture = stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails)
        if not picture or len(stream.index_entries) > MAX_ENTRIES:
            raise NotAudio(f"{family.media_type} with a video track")


class Lies(Exception):
    """The claims are false: the file must be walked again, decoding everything (rule 2)."""


def walk_file(
    opened: Callable[[], Any], family: FormatFamily, limit: float | None
) -> list[PacketWalk]:
    """Statistics of all tracks of the file that `opened` returns; it may be opened a second time.
    Raises the exceptions of probe/refused.py."""
    try:
        return walk_all(opened(), family, limit)
    except Lies:
        return walk_all(opened(), family, limit, every=True)


def walk_all(
    file: Any, family: FormatFamily, limit: float | None, *, every: bool = False
) -> list[PacketWalk]:
    """The same for one walk. Raises `Lies` if `every` packet must be decoded and is not."""
    with open_container(file, family) as container:
        streams = audio_streams(container, family)
        walks = new_walks(streams, single=family in (MPEG, AAC))
        walk_packets(container, streams, walks, family, limit, every=every)
        refuse_video(container, family)
        return walks


def new_walks(streams: Sequence[AudioStream], *, single: bool = False) -> list[PacketWalk]:
    """Empty statistics, one for each stream."""
    names = [getattr(stream.codec_context, "name", "") for stream in streams]
    return [
        PacketWalk(float(stream.time_base or 1), "opus" in name, single, name in _CONSTANT)
        for stream, name in zip(streams, names, strict=True)
    ]


def settle(walks: Sequence[PacketWalk], limit: float | None) -> float:
    """Seconds of the longest track. Raises `PastLimit`, or `Undecodable` if there is no sound."""
    seconds = max(walk.seconds() for walk in walks)
    if limit is not None and seconds > limit + GRACE:
        raise PastLimit(seconds)
    best = max(walks, key=lambda walk: (walk.decodes, walk.seconds()))
    if best.seconds() <= 0:
        raise Undecodable("no_audio")
    if not best.decodes:
        raise Undecodable("undecodable")
    return seconds


def walk_packets(
    container: InputContainer,
    streams: Sequence[AudioStream],
    walks: Sequence[PacketWalk],
    family: FormatFamily,
    limit: float | None,
    *,
    stop_after: int | None = None,
    every: bool = False,
) -> None:
    """Walk to the end, or until `stop_after` packets were decoded (at most `TRY_DECODE`). Updates
    `walks`, one for each of `streams`. Call it again to continue. Raises like `walk_all`."""
    by_index = {stream.index: walk for stream, walk in zip(streams, walks, strict=True)}
    framed = family in (MPEG, AAC, WEBM)
    past = sys.maxsize if limit is None else limit + GRACE
    try:
        for packet in container.demux(list(streams)):
            size = packet.size
            walk = by_index.get(packet.stream_index)
            if not size or walk is None:  # none: the flush at the end
                continue
            duration = packet.duration or 0
            if duration >= _UNDERFLOW:
                duration = 0
            walk.size += size
            if framed:
                _cover(walk, packet, size, family)
            if (
                walk.packets >= walk.next_try
                or walk.tried < TRY_DECODE
                or (not walk.opus and size * walk.packets > LARGE * walk.size)
                or every
            ):
                if not walk.tried and family is not MP4:
                    walk.skipped = _skipped(packet)
                _try_decode(walk, packet, duration * walk.tick)
                if walk.lies == _LIES and not every:
                    raise Lies
            if not (duration and packet.is_discard):
                walk.packets += 1
                walk.total += duration
                if walk.opus:
                    walk.inner += opus_seconds(packet)
            if walk.tried == stop_after:
                break
            if walk.total * walk.tick > past:
                raise PastLimit(walk.total * walk.tick)
    except av.error.FFmpegError as error:
        _judge_end(error, walks)


def _judge_end(error: Exception, walks: Sequence[PacketWalk]) -> None:
    """A file cut short ends in an error; the packets before it count. But after a lack of memory
    there may be more to play."""
    if isinstance(error, MemoryError):
        raise Undecodable("memory") from error
    if not any(walk.packets for walk in walks):
        raise Undecodable("broken") from error


def _cover(walk: PacketWalk, packet: Any, size: int, family: FormatFamily) -> None:
    """Record the packet's range, unless it is an MP3 packet that is no whole frame (rule 6)."""
    if family is MPEG:
        header = _HEADER(packet)[0] if size >= 4 else 0
        kind, before = header & mpeg_frames.SAME_KIND, walk.kind
        walk.kind = kind
        length = mpeg_frames.frame_length(header & 0xFFFFFE00)
        if length != size or (kind != before and before is not None):
            return
    at = packet.pos or 0
    if at > walk.end + (_BLOCK_HEADERS if family is WEBM else 0):
        if len(walk.gaps) == MAX_ENTRIES:
            walk.gaps[-1] = (walk.gaps[-1][0], at)
        else:
            walk.gaps.append((walk.end, at))
    walk.covered += size
    walk.last, walk.end = at, at + size


def _skipped(packet: Any) -> float:
    """Seconds that a decoder discards from this packet on (Opus: the pre-skip)."""
    if not packet.has_sidedata("skip_samples"):
        return 0.0
    samples = _SKIP(packet.get_sidedata("skip_samples"))[0]
    rate = packet.stream.codec_context.sample_rate
    return samples / rate if rate else 0.0


def opus_seconds(packet: Any) -> float:
    """The duration of an Opus packet: one, two, or a counted number of equal frames."""
    first: int = _BYTE(packet)[0]
    if first & 3 < 3:
        return _OPUS_SECONDS[first]
    count: int = _BYTE(packet, 1)[0] & 63 if packet.size > 1 else 0
    return count * _OPUS_SECONDS[first & 0xFC]


def _try_decode(walk: PacketWalk, packet: Any, claim: float) -> None:
    gap = 1 + int(walk.tried * random.random() / 2)  # noqa: S311
    walk.next_try = sys.maxsize if walk.opus or walk.single else walk.packets + gap
    context: AudioCodecContext | None = packet.stream.codec_context
    if context is not None:
        decode(walk, context, packet, claim)


def decode(walk: PacketWalk, context: AudioCodecContext, packet: Any, claim: float) -> None:
    """Decode `packet`, which claims to play `claim` seconds (0: no claim), and record the result
    (rule 2)."""
    walk.tried += 1
    if not context.is_open:
        context.thread_count = 1  # the sandbox has no threads
        context.flags2 |= Flags2.skip_manual  # rule 5
    try:
        frames = context.decode(packet)
    except (av.error.FFmpegError, ValueError) as error:
        if isinstance(error, MemoryError):
            raise
        return
    played = sum(frame.samples / frame.sample_rate for frame in frames if frame.sample_rate)
    if not played:
        return
    walk.lengths.append(played)
    if (claim or walk.total) and played > claim * _TOLERANCE + min(1.5 * walk.tick, 0.002):
        walk.lies += 1
        walk.excess += played - claim
