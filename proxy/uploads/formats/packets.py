"""One walk through the packets of a file, as FFmpeg's demuxer finds them.

Rules:
1. The demuxer is given, never guessed, and reads only from our file object.
2. A walk adds up what packets claim to play and decodes a sample of them: the first ones, some at
   random, and all that are unusually large. If they play longer than they claim, or the file is
   too long by its claims but some of them do not play at all, the file is walked again and every
   packet is decoded (`DecodeAll`). What comes out is the duration.
3. Time stamps are ignored, so gaps and damaged stamps make nothing longer.
4. A second measure, for codecs with a constant packet duration, is the number of packets times a
   decoded duration. Opus packets give their duration in the first byte. The largest measure wins.
5. Packets that an edit list or a pre-skip discards are decoded too, to prove that they can be, but
   add no time.
6. FFmpeg finds "audio" in any bytes, since it skips what it cannot parse. So an MP3 packet counts
   only if it is one whole frame of the same kind as the one before, and a quarter of the first
   packets must decode.
7. A video track is a film, unless it is cover art, chapter pictures or a single still image.
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
from av.video.stream import VideoStream

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
_SPARSELY = 128  # one in so many packets is tried, of ADTS, which cannot lie
_MISSING = 0.05  # seconds of packets tried that need not play: decoders may need some to begin
# Codecs with the same number of samples in every packet (the last one aside).
_CONSTANT = frozenset({"aac", "mp3", "mp3float", "mp2", "mp2float", "mp1", "mp1float", "alac"})
_STILLS = frozenset({"mjpeg", "png", "gif", "bmp", "webp", "tiff"})
_BYTE = struct.Struct("B").unpack_from
_HEADER = struct.Struct(">I").unpack_from
_SKIP = struct.Struct("<I").unpack_from
_UNDERFLOW = 1 << 31  # ticks of one packet: FFmpeg's 32-bit difference went below zero
# How much a packet's claim may differ from its decoded duration: the last ones are often cut.
_TOLERANCE, _PADDING = 1.005, 1.0  # times; seconds
_BLOCK_HEADERS = 64  # bytes: of a cluster and a block
LARGE = 8  # times the mean, of a packet
#: Opus: samples of a frame at 48 kHz by the upper five bits of a packet's first byte (RFC 6716
#: §3.1).
_OPUS_FRAME = (480, 960, 1920, 2880) * 3 + (480, 960) * 2 + (120, 240, 480, 960) * 4
_OPUS_SECONDS = [_OPUS_FRAME[byte >> 3] / 48_000 * (1, 2, 2, 0)[byte & 3] for byte in range(256)]


class DecodeAll(Exception):
    """The file must be walked again, decoding everything (rule 2)."""


@dataclass(slots=True)
class PacketWalk:
    """Statistics of one audio stream so far; `total` in units of its time base."""

    family: FormatFamily
    tick: float  # seconds
    codec: str
    every: bool = False  # decode all packets
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
    proven: bool = False  # enough have decoded, whatever comes later
    missing: float = 0.0  # seconds that those tried claim to play, and do not
    lies: int = 0  # packets that play longer than they claim,
    excess: float = 0.0  # by so many seconds
    inner: float = 0.0  # seconds by the packets' own durations (Opus)
    played: float = 0.0  # seconds that came out of the decoder
    skipped: float = 0.0  # seconds at the beginning that are decoded but not played
    next_try: int = 0  # the value of `packets` at which to decode the next one

    @property
    def claimed(self) -> float:
        """The duration so far, without other measures than the first."""
        return self.played if self.every else self.total * self.tick

    def seconds(self) -> float:
        """The duration: the largest measure, if it exceeds the claim by more than padding."""
        claimed = self.claimed
        if self.every:
            return max(claimed - self.skipped, 0.0)
        alike = self.packet_seconds if self.codec in _CONSTANT or not self.total else 0.0
        implied = max(self.packets * alike, self.inner)
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
        enough = bool(self.lengths) and len(self.lengths) * _MUST_DECODE >= self.tried
        self.proven |= enough and self.tried >= TRY_DECODE
        return enough or self.proven

    def check_limit(self, seconds: float, limit: float | None) -> None:
        """Raise `PastLimit` if `seconds` are too long, or `DecodeAll` if they may not be."""
        if limit is not None and seconds > limit + GRACE:
            if self.missing > _MISSING and not self.every:
                raise DecodeAll
            raise PastLimit(seconds)

    def decode(self, context: AudioCodecContext, packet: Any, claim: float) -> float:
        """Decode `packet`, which claims to play `claim` seconds (0: no claim). Returns the seconds
        that it plays. Raises `DecodeAll`."""
        self.tried += 1
        if not context.is_open:
            context.thread_count = 1  # the sandbox has no threads
            context.flags2 |= Flags2.skip_manual  # rule 5
            # PyAV frees the channels' names once for each object that it makes of a layout, frames
            # included. So this object takes them over, and the context goes on without names.
            layout = context.layout
            if layout.nb_channels:
                context.layout = f"{layout.nb_channels} channels"
        try:
            frames = context.decode(packet)
        except (av.error.FFmpegError, ValueError) as error:
            if isinstance(error, MemoryError):
                raise
            frames = []
        played = sum(frame.samples / frame.sample_rate for frame in frames if frame.sample_rate)
        if played:
            self.lengths.append(played)
        self.missing += max(claim - played, 0.0)
        if (claim or self.total) and played > claim * _TOLERANCE + min(1.5 * self.tick, 0.002):
            self.lies += 1
            self.excess += played - claim
            if not self.every and (self.lies > 1 or self.excess > _PADDING):  # one may be odd
                raise DecodeAll
        return played


def open_container(
    file: IO[bytes] | Any, family: FormatFamily, *, every: bool = False
) -> InputContainer:
    """Raises `Undecodable` if the demuxer does not find its format. `every`: as a player would, in
    small packets, since a damaged one plays nothing."""
    try:
        return av.open(
            file,
            "r",
            format=family.demuxer,
            options={} if every else dict(family.options),
            metadata_errors="replace",
            buffer_size=_BUFFER,
        )
    except (av.error.FFmpegError, ValueError) as error:
        raise Undecodable("memory" if isinstance(error, MemoryError) else "broken") from error


def audio_streams(container: InputContainer, family: FormatFamily) -> list[AudioStream]:
    """All audio streams. Raises `NotAudio` if there are none, or a film."""
    stills(container, family)
    streams = list(container.streams.audio)
    if not streams:
        raise NotAudio(f"{family.media_type} without audio")
    return streams


def stills(container: InputContainer, family: FormatFamily) -> list[VideoStream]:
    """The video tracks that may turn out to be still images (rule 7). Raises `NotAudio` if another
    one is no picture either. In fragmented and chained files, streams may appear late."""
    found = []
    for stream in container.streams.video:
        if stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails):
            most = MAX_ENTRIES
        elif _codec(stream) in _STILLS:
            most = 1
            found.append(stream)
        else:
            most = -1
        if len(stream.index_entries) > most:
            raise _film(family)
    return found


def _film(family: FormatFamily) -> NotAudio:
    return NotAudio(f"{family.media_type} with a video track")


def walk_file(
    opened: Callable[[], Any], family: FormatFamily, limit: float | None
) -> list[PacketWalk]:
    """Statistics of all tracks of the file that `opened` returns; it may be opened a second time.
    Raises the exceptions of probe/refused.py."""
    try:
        return walk_all(opened(), family, limit)
    except DecodeAll:
        return walk_all(opened(), family, limit, every=True)


def walk_all(
    file: Any, family: FormatFamily, limit: float | None, *, every: bool = False
) -> list[PacketWalk]:
    """The same for one walk. Raises `DecodeAll`, unless that is what it does."""
    with open_container(file, family, every=every) as container:
        streams = audio_streams(container, family)
        walks = new_walks(streams, family, every=every)
        walk_packets(container, streams, walks, limit)
        stills(container, family)
        for walk in walks:
            walk.check_limit(walk.seconds(), limit)
        return walks


def new_walks(
    streams: Sequence[AudioStream], family: FormatFamily, *, every: bool = False
) -> list[PacketWalk]:
    """Empty statistics, one for each stream."""
    return [
        PacketWalk(family, float(stream.time_base or 1), _codec(stream), every)
        for stream in streams
    ]


def _codec(stream: AudioStream | VideoStream) -> str:
    return getattr(stream.codec_context, "name", "")  # there may be no decoder


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
    limit: float | None,
    *,
    stop_after: int | None = None,
) -> None:
    """Walk to the end, or until `stop_after` packets were decoded (at most `TRY_DECODE`). Updates
    `walks`, one for each of `streams`. Call it again to continue. Raises like `walk_all`."""
    by_index = {stream.index: walk for stream, walk in zip(streams, walks, strict=True)}
    family = walks[0].family
    pictures = stills(container, family)
    shown: set[int] = set()
    framed = family in (MPEG, AAC, WEBM)
    try:
        for packet in container.demux([*streams, *pictures]):
            if not packet.size:  # the flush at the end
                continue
            walk = by_index.get(packet.stream_index)
            if walk is None:
                if packet.stream_index in shown:
                    raise _film(family)
                shown.add(packet.stream_index)
                continue
            walk.size += packet.size
            if framed and not _cover(walk, packet):
                walk.missing += (packet.duration or 0) * walk.tick
            _count(walk, packet)
            if walk.tried == stop_after:
                break
            walk.check_limit(walk.claimed, limit)
    except av.error.FFmpegError as error:
        _judge_end(error, walks)


def _judge_end(error: Exception, walks: Sequence[PacketWalk]) -> None:
    """A file cut short ends in an error; the packets before it count. But after a lack of memory
    there may be more to play."""
    if isinstance(error, MemoryError):
        raise Undecodable("memory") from error
    if not any(walk.packets for walk in walks):
        raise Undecodable("broken") from error


def _count(walk: PacketWalk, packet: Any) -> None:
    duration = packet.duration or 0
    if duration >= _UNDERFLOW:
        duration = 0
    played = 0.0
    alone = "opus" in walk.codec  # a packet says itself how long it plays
    if (
        walk.packets >= walk.next_try
        or walk.tried < TRY_DECODE
        or not walk.decodes
        or (not alone and packet.size * walk.packets > LARGE * walk.size)
        or (not alone and duration * walk.packets > LARGE * walk.total)
        or walk.every
    ):
        if not walk.tried and walk.family is not MP4:
            walk.skipped = _skipped(packet)
        if alone or walk.family is MPEG:
            walk.next_try = sys.maxsize
        elif walk.family is AAC:
            walk.next_try = walk.packets + _SPARSELY
        else:
            walk.next_try = walk.packets + 1 + int(walk.tried * random.random() / 2)  # noqa: S311
        if (context := packet.stream.codec_context) is not None:
            played = walk.decode(context, packet, duration * walk.tick)
    if not (duration and packet.is_discard):
        walk.packets += 1
        walk.total += duration
        walk.played += played
        if alone:
            walk.inner += opus_seconds(packet)


def _cover(walk: PacketWalk, packet: Any) -> bool:
    """Record the packet's range and return True, unless it is an MP3 packet that is no whole frame
    (rule 6)."""
    size = packet.size
    if walk.family is MPEG:
        header = _HEADER(packet)[0] if size >= 4 else 0
        kind, before = header & mpeg_frames.SAME_KIND, walk.kind
        walk.kind = kind
        length = mpeg_frames.frame_length(header & 0xFFFFFE00)
        if length != size or (kind != before and before is not None):
            return False
    at = packet.pos or 0
    if at > walk.end + (_BLOCK_HEADERS if walk.family is WEBM else 0):
        if len(walk.gaps) == MAX_ENTRIES:
            walk.gaps[-1] = (walk.gaps[-1][0], at)
        else:
            walk.gaps.append((walk.end, at))
    walk.covered += size
    walk.last, walk.end = at, at + size
    return True


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
