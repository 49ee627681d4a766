"""One walk through the packets of a file, as FFmpeg's demuxer finds them.

Rules:
1. The demuxer is named, never guessed, and reads from our file object only.
2. What the file claims is compared with what comes out of a decoder: the first packets are
   decoded, and after them some all over the file, at random, the largest ones always. Where more
   comes out than was claimed, that counts. True files have one such packet, the last; where there
   are two (several frames in one, as a rule), the file is walked anew and all are decoded.
3. What plays are packets, so time stamps do not count: a gap between them, or a damaged one, makes
   nothing longer. Only where packets claim no length does the time to the next one stand for it.
4. For codecs whose packets all play equally long, packets times the length of a decoded one count
   as well. Opus says in its first byte how long a packet plays, and MP3 and ADTS are split into
   single frames, so that they need not be decoded all over the file. The largest measure wins.
5. Packets that an edit list or a pre-skip takes away are decoded all the same, so that it is seen
   that they do; but they play nothing.
6. FFmpeg finds "audio" in any bytes: it skips what it cannot parse. So an MP3 packet counts only
   when it is one whole frame of the kind of the one before; and a quarter of the first packets must
   decode.
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

_BUFFER = 256 * 1024  # bytes FFmpeg asks for at once: fewer calls into Python
# Seconds: an MP3 or AAC of exactly ten minutes comes out longer by its encoder's delay and padding,
# up to 2300 samples, at 8 kHz.
GRACE = 0.3
TRY_DECODE = 32  # packets: the first of a cut MP3 lack their bit reservoir
MAX_ENTRIES = 4096  # comments, boxes, chunks: more than any tagger writes, less than hurts
# Of the packets tried, one in so many must decode: of random bytes one AAC packet in a thousand
# does.
_MUST_DECODE = 4
# Codecs with the same number of samples in every packet (the last one aside).
_CONSTANT = frozenset({"aac", "mp3", "mp3float", "mp2", "mp2float", "mp1", "mp1float", "alac"})
_HEADER = struct.Struct(">I").unpack_from
_BYTE = struct.Struct("B").unpack_from
_SKIP = struct.Struct("<I").unpack_from
_UNDERFLOW = 1 << 31  # ticks of one packet: FFmpeg's 32-bit difference went below zero
# A packet's claim may differ from what it decodes to by so much: the last ones are often cut.
_TOLERANCE, _PADDING = 1.005, 1.0  # times; seconds
_BLOCK_HEADERS = 64  # bytes: of a cluster and a block
LARGE = 8  # times the mean, of a packet
_LIES = 2  # packets: one may be odd, the last
#: Opus: samples of a frame at 48 kHz by the upper five bits of a packet's first byte (RFC 6716
#: §3.1).
_OPUS_FRAME = (480, 960, 1920, 2880) * 3 + (480, 960) * 2 + (120, 240, 480, 960) * 4
_OPUS_SECONDS = [_OPUS_FRAME[byte >> 3] / 48_000 * (1, 2, 2, 0)[byte & 3] for byte in range(256)]


@dataclass(slots=True)
class PacketWalk:
    """What one audio stream has shown so far; `total` in units of its time base."""

    tick: float = 1.0  # seconds
    opus: bool = False  # packets say how long they play
    single: bool = False  # each is one frame of MPEG or ADTS
    constant: bool = False  # all of them play equally long
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
    lies: int = 0  # those that play longer than they claim,
    excess: float = 0.0  # by so many seconds
    inner: float = 0.0  # seconds that the packets say themselves (Opus)
    skipped: float = 0.0  # seconds at the beginning that are decoded, but not played
    next_try: int = 0  # when so many `packets` are there

    def seconds(self) -> float:
        """How long it plays; the largest of the measures, if it is larger by more than padding."""
        claimed = self.total * self.tick
        alike = self.packet_seconds if self.constant or not self.total else 0.0
        implied = max(self.packets * alike, self.inner, claimed + self.excess)
        if implied <= claimed * _TOLERANCE + _PADDING:
            implied = claimed or implied
        return max(implied - self.skipped, min(implied, self.tick))

    @property
    def packet_seconds(self) -> float:
        """What one of them plays, 0 where none decodes."""
        return statistics.median(self.lengths) if self.lengths else 0.0

    @property
    def decodes(self) -> bool:
        """Rule 6."""
        return bool(self.lengths) and len(self.lengths) * _MUST_DECODE >= self.tried


def open_container(file: IO[bytes] | Any, family: FormatFamily) -> InputContainer:
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
        raise Undecodable("memory" if isinstance(error, MemoryError) else "broken") from error


def audio_streams(container: InputContainer, family: FormatFamily) -> list[AudioStream]:
    """All of them. Raises `NotAudio` where there are none, or films."""
    refuse_video(container, family)
    streams = list(container.streams.audio)
    if not streams:
        raise NotAudio(f"{family.media_type} without audio")
    return streams


def refuse_video(container: InputContainer, family: FormatFamily) -> None:
    """Cover art is no video, nor are the pictures of chapters, of which there are few. Streams may
    come up late, in fragments and chained files."""
    for stream in container.streams.video:
        picture = stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails)
        if not picture or len(stream.index_entries) > MAX_ENTRIES:
            raise NotAudio(f"{family.media_type} with a video track")


class Lies(Exception):
    """Only a walk that decodes everything tells how long the file plays (rule 2)."""


def walk_file(
    opened: Callable[[], Any], family: FormatFamily, limit: float | None
) -> list[PacketWalk]:
    """The walks through all tracks of the file that `opened` returns from its first byte on, twice
    where need be. Raises the exceptions of probe/refused.py."""
    try:
        return walk_all(opened(), family, limit)
    except Lies:
        return walk_all(opened(), family, limit, every=True)


def walk_all(
    file: Any, family: FormatFamily, limit: float | None, *, every: bool = False
) -> list[PacketWalk]:
    """The same, once; with `every` packet decoded. Raises `Lies` where that is necessary."""
    with open_container(file, family) as container:
        streams = audio_streams(container, family)
        walks = new_walks(streams, single=family in (MPEG, AAC))
        walk_packets(container, streams, walks, family, limit, every=every)
        refuse_video(container, family)
        return walks


def new_walks(streams: Sequence[AudioStream], *, single: bool = False) -> list[PacketWalk]:
    """One for each, with nothing seen yet."""
    names = [getattr(stream.codec_context, "name", "") for stream in streams]
    return [
        PacketWalk(float(stream.time_base or 1), "opus" in name, single, name in _CONSTANT)
        for stream, name in zip(streams, names, strict=True)
    ]


def settle(walks: Sequence[PacketWalk], limit: float | None) -> float:
    """Seconds of the longest track. Raises `PastLimit`, or `Undecodable` where there is no
    sound."""
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
    """Walk to the end, or until `stop_after` packets were tried (`TRY_DECODE` at most), and write
    it into `walks`, one for each of `streams`. May be called again, to go on. Raises as
    `walk_all`."""
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
    """A file cut short ends in an error; what came before it is what plays. But what there is no
    memory for might play, too."""
    if isinstance(error, MemoryError):
        raise Undecodable("memory") from error
    if not any(walk.packets for walk in walks):
        raise Undecodable("broken") from error


def _cover(walk: PacketWalk, packet: Any, size: int, family: FormatFamily) -> None:
    """Note where the packet is. One of an MP3 that is no whole frame is nowhere (rule 6)."""
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
    """Seconds that a decoder is to throw away from here on (Opus: the pre-skip)."""
    if not packet.has_sidedata("skip_samples"):
        return 0.0
    samples = _SKIP(packet.get_sidedata("skip_samples"))[0]
    rate = packet.stream.codec_context.sample_rate
    return samples / rate if rate else 0.0


def opus_seconds(packet: Any) -> float:
    """What an Opus packet plays: frames of one length, one, two or counted in the second byte."""
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
    """Decode `packet`, which claims to play `claim` seconds (0: it claims nothing), and note what
    came of it (rule 2)."""
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
    heard = sum(frame.samples / frame.sample_rate for frame in frames if frame.sample_rate)
    if not heard:
        return
    walk.lengths.append(heard)
    if (claim or walk.total) and heard > claim * _TOLERANCE + min(1.5 * walk.tick, 0.002):
        walk.lies += 1
        walk.excess += heard - claim
