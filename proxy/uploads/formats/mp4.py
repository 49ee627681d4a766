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

from av.audio.stream import AudioStream
from av.packet import Packet

from proxy.uploads.formats.families import MP4
from proxy.uploads.formats.mp4_boxes import Layout, file_boxes
from proxy.uploads.formats.packets import (
    LARGE,
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

_INDEXED = frozenset({"aac", "alac"})  # one frame in a sample
_SPREAD = 160
_MOST_SAMPLES = 8  # in a byte, of the densest codecs in QuickTime
_SLACK = 64  # bytes of an `mdat` box that may belong to no sample


def measure_mp4(source: Source, limit: float | None) -> float:
    """Seconds of its longest track. Raises the exceptions of probe/refused.py."""
    layout, walks = Layout(), list[PacketWalk]()
    for box in file_boxes(source):
        if layout.fragments and not walks and box.kind in (b"mdat", b"moof"):
            walks = walk_file(lambda: source.back(0), MP4, limit)
        layout.note(box, source)
    source.rewind()
    if layout.samples > _MOST_SAMPLES * source.received:
        raise Undecodable("entries")
    if not walks:
        try:
            walks = _measure_indexed(source, limit, layout)
        except DecodeAll:
            walks = walk_all(source.back(0), MP4, limit, every=True)
    covered = max(layout.size, sum(walk.size for walk in walks))
    refuse_foreign(source, layout.others)
    if sum(min(end, source.received) - start for start, end in layout.sound) > covered + _SLACK:
        refuse_foreign(source, layout.sound)
    return settle(walks, limit)


def _measure_indexed(source: Source, limit: float | None, layout: Layout) -> list[PacketWalk]:
    if not layout.indexed:
        raise Undecodable("cut_short")
    with open_container(source, MP4) as container:
        if layout.cut and not container.streams.audio:
            raise Undecodable("cut_short")
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


def _follow_index(walk: PacketWalk, stream: AudioStream, source: Source, layout: Layout) -> bool:
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


def _decode_spread(walk: PacketWalk, stream: AudioStream, source: Source, layout: Layout) -> None:
    """Rule 2."""
    entries, context = stream.index_entries, stream.codec_context
    number = len(entries)
    assert context is not None
    chosen = {int((n + random.random()) * number / _SPREAD) for n in range(_SPREAD)}  # noqa: S311
    large = LARGE * layout.size / number
    if layout.largest > large:
        chosen |= {at for at, entry in enumerate(entries) if entry.size > large}
    context.flush_buffers()
    for at in sorted(chosen)[: 8 * _SPREAD]:
        entry = entries[min(at, number - 1)]
        if 0 <= entry.pos <= source.received - entry.size:
            after = entries[min(at + 1, number - 1)].timestamp - entry.timestamp
            claim = after * walk.tick if at + 1 < number else walk.packet_seconds
            walk.decode(context, Packet(source.at(entry.pos, entry.size)), claim)
