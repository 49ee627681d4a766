"""MP4 and its relatives: an index that is trusted as far as decoded samples confirm it.

Rules:
1. FFmpeg opens the file once it is complete, and may seek: otherwise it finds no chapters.
   Fragmented files have their index among the sound; they are demuxed as they arrive.
2. AAC and ALAC have one frame per sample. So the index gives the number of packets after the first
   ones, and samples all over the file are decoded to check whether they play what they claim: a
   random one in each of `_SPREAD` sections, and those far larger than average. Other codecs, and
   files cut short, are demuxed to the end (packets.py).
3. Checking every index entry in Python takes 0.5 µs each, 12 ms for ten minutes of AAC. So if the
   last sample exists, the others are assumed to exist: an index that invents samples only makes the
   file longer.
4. Boxes are counted before FFmpeg parses them, since each takes time. Boxes without sound are
   searched for foreign formats, and so is the sound if it is larger than all samples.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from av.audio.stream import AudioStream
from av.packet import Packet

from proxy.uploads.formats.families import MP4
from proxy.uploads.formats.mp4_boxes import (
    HEADER,
    Box,
    absurd_tables,
    inner_boxes,
    read_header,
    sample_sizes,
)
from proxy.uploads.formats.packets import (
    LARGE,
    MAX_ENTRIES,
    TRY_DECODE,
    DecodeAll,
    PacketWalk,
    audio_streams,
    new_walks,
    open_container,
    settle,
    walk_all,
    walk_file,
    walk_packets,
)
from proxy.uploads.formats.polyglots import refuse_foreign
from proxy.uploads.probe.refused import Undecodable
from proxy.uploads.probe.source import Source

_MAX_INDEX = 32 * 1024 * 1024  # bytes, of hours of sound
_INDEXED = frozenset({"aac", "alac"})  # one frame in a sample
_SPREAD = 160
_SLACK = 64  # bytes of an `mdat` box that may belong to no sample
_KNOWN = frozenset((b"ftyp", b"styp", b"moof", b"sidx", b"mfra"))


def measure_mp4(source: Source, limit: float | None) -> float:
    """Seconds of its longest track. Raises the exceptions of probe/refused.py."""
    fragmented = _begins_with_fragments(source)
    walks = walk_file(lambda: source.back(0), MP4, limit) if fragmented else []
    source.rewind()
    layout = _layout(source)
    if not fragmented:
        try:
            walks = _measure_indexed(source, limit, layout)
        except DecodeAll:
            walks = walk_all(source.back(0), MP4, limit, every=True)
    covered = max(layout.samples, sum(walk.size for walk in walks))
    refuse_foreign(source, layout.others)
    if sum(end - start for start, end in layout.sound) > covered + _SLACK:
        refuse_foreign(source, layout.sound)
    return settle(walks, limit)


def _begins_with_fragments(source: Source) -> bool:
    """Whether an index for fragments precedes any sound."""
    at = 0
    for _ in range(MAX_ENTRIES):
        box = read_header(source.at(at, HEADER), at, at)
        if box is None or box.end <= at or box.kind in (b"mdat", b"moof"):
            break
        if box.kind == b"moov":
            index = source.at(box.start, box.end - box.start) if box.end <= _MAX_INDEX else b""
            _inner(index, sys.maxsize)  # the length of the file is not known yet
            return b"mvex" in index
        at = box.end
    return False


@dataclass(slots=True)
class _Layout:
    """`sound`: ranges of the `mdat` boxes; `others`: ranges of other boxes and of bytes that are no
    box. `samples`, `largest`: bytes of all samples in the last index, and of the largest one.
    `found`: there is an index; `fragments`: it does not cover all samples."""

    sound: list[tuple[int, int]] = field(default_factory=list)
    others: list[tuple[int, int]] = field(default_factory=list)
    samples: int = 0
    largest: int = 0
    found: bool = False
    fragments: bool = False


def _layout(source: Source) -> _Layout:
    layout = _Layout()
    for box in _boxes(source):
        if box.kind == b"moov":
            if box.end - box.start > _MAX_INDEX:
                raise Undecodable("memory")
            index = source.at(box.start, box.end - box.start)
            layout.found, layout.samples, layout.largest = True, 0, 0
            layout.fragments = b"mvex" in index
            for inner in _inner(index, source.received):
                if inner.kind == b"stsz":
                    total, largest = sample_sizes(index, inner)
                    layout.samples += total
                    layout.largest = max(layout.largest, largest)
        elif box.kind == b"mdat":
            layout.sound.append((box.start, min(box.end, source.received)))
        elif box.kind not in _KNOWN:
            layout.others.append((box.at, min(box.end, source.received)))
            if len(layout.others) > MAX_ENTRIES:
                raise Undecodable("entries")
    return layout


def _inner(index: bytes, received: int) -> list[Box]:
    """The boxes of an index. Raises `Undecodable` if it claims more than can be true."""
    boxes = list(islice(inner_boxes(index, 0, len(index)), MAX_ENTRIES + 1))
    if len(boxes) > MAX_ENTRIES or absurd_tables(index, boxes, received):
        raise Undecodable("entries")
    return boxes


def _boxes(source: Source) -> Iterator[Box]:
    """The boxes of the whole file; a rest that is no box comes as one without a name."""
    at = 0
    while at < source.received:
        box = read_header(source.at(at, HEADER), at, source.received)
        if box is None or box.end <= at or (box.end > source.received and box.kind != b"mdat"):
            box = Box(b"", at, at, source.received)
        yield box
        at = box.end


def _measure_indexed(source: Source, limit: float | None, layout: _Layout) -> list[PacketWalk]:
    if not layout.found:
        raise Undecodable("cut_short")
    with open_container(source, MP4) as container:
        streams = audio_streams(container, MP4)
        walks = new_walks(streams, MP4)
        context = streams[0].codec_context
        indexed = (
            len(streams) == 1
            and context is not None
            and context.name in _INDEXED
            and not layout.fragments
        )
        stop = TRY_DECODE if indexed else None
        walk_packets(container, streams, walks, limit, stop_after=stop)
        if walks[0].tried == stop and not _follow_index(walks[0], streams[0], source, layout):
            walk_packets(container, streams, walks, limit)
        walks[0].check_limit(walks[0].seconds(), limit)
        return walks


def _follow_index(walk: PacketWalk, stream: AudioStream, source: Source, layout: _Layout) -> bool:
    """Count the packets after the trial by the index. False if that is not reliable: nothing of the
    trial plays, or the last sample does not exist. Raises `DecodeAll`."""
    entries = stream.index_entries
    if not walk.packets or len(entries) <= walk.tried:
        return False
    end = entries[-1]
    if not 0 <= end.pos <= source.received - end.size:
        return False
    step = max(end.timestamp - entries[-2].timestamp, 0)
    played = max(end.timestamp + step - entries[walk.tried].timestamp, 0)
    _decode_spread(walk, stream, source, layout)
    if walk.lies:
        raise DecodeAll
    walk.total += played
    walk.packets += len(entries) - TRY_DECODE
    return True


def _decode_spread(walk: PacketWalk, stream: AudioStream, source: Source, layout: _Layout) -> None:
    """Rule 2."""
    entries, context = stream.index_entries, stream.codec_context
    number = len(entries)
    assert context is not None
    chosen = {int((n + random.random()) * number / _SPREAD) for n in range(_SPREAD)}  # noqa: S311
    large = LARGE * layout.samples / number
    if layout.largest > large:
        chosen |= {at for at, entry in enumerate(entries) if entry.size > large}
    context.flush_buffers()
    for at in sorted(chosen)[: 8 * _SPREAD]:
        entry = entries[min(at, number - 1)]
        if 0 <= entry.pos <= source.received - entry.size:
            after = entries[min(at + 1, number - 1)].timestamp - entry.timestamp
            claim = after * walk.tick if at + 1 < number else walk.packet_seconds
            walk.decode(context, Packet(source.at(entry.pos, entry.size)), claim)
