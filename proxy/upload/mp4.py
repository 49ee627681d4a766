"""MP4 and its kin: an index, believed as far as samples from all over the file bear it out.

Rules:
1. FFmpeg opens the file when it is whole and may seek: only so it finds chapters. While an upload
   still comes, an index that stands first is looked at for what refuses the file at once. Fragments
   have their index among the sound; they are demuxed as they come.
2. AAC and ALAC have one frame in a sample. So after the trial of the first packets FFmpeg's index
   tells how many there are (it has followed edit lists by then), and samples all over the file are
   decoded to see whether each plays what it claims: one in each of `_SPREAD` stretches, at random,
   and those that are far larger than the others. Other codecs are demuxed to the end (packets.py).
3. An entry counts only if its bytes were received. Where the last sample is there, the file was not
   cut short, and the others are believed to be there too: an index that invents some makes itself
   longer, and so does nobody else harm.
4. To look at every entry costs 0.5 µs each, 12 ms for ten minutes of AAC. So it is done only where
   rule 3 or very large samples ask for it.
5. Boxes are counted before FFmpeg sees them: it takes its time over each. Those that hold no sound
   are searched for other content, the sound itself where there is more of it than samples.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import av.error
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.index import IndexEntries, IndexEntry
from av.packet import Packet
from av.stream import Discard

from proxy.upload.boxes import Box, inner_boxes, read_header, sample_sizes
from proxy.upload.families import MP4
from proxy.upload.foreign import refuse_foreign
from proxy.upload.packets import (
    GRACE,
    MAX_ENTRIES,
    TRY_DECODE,
    Walk,
    audio_streams,
    decode,
    open_container,
    refuse_video,
    walk_packets,
)
from proxy.upload.refused import PastLimit, Undecodable
from proxy.upload.source import Source
from proxy.upload.view import View

_HEADER = 16
_MAX_INDEX = 32 * 1024 * 1024  # bytes, of hours of sound
_INDEXED = frozenset({"aac", "alac"})  # one frame in a sample
_SPREAD = 160
_LARGE = 8  # times the mean, of a sample
_SLACK = 64  # bytes of sound that may belong to no sample
_KNOWN = frozenset((b"ftyp", b"styp", b"moof", b"mdat", b"sidx", b"mfra"))


def measure_mp4(source: Source, limit: float | None) -> list[Walk]:
    """The walks of its tracks. Raises the exceptions of refused.py."""
    index = _index_in_front(source)
    fragmented = index is not None and b"mvex" in index
    if fragmented:
        walks = _measure(source, limit, b"", indexed=False)
    elif index is not None and not source.whole:
        _refuse_early(source, index, limit)
    source.rewind()
    layout = _Layout(source)
    if not fragmented:
        if not layout.index:
            raise Undecodable("cut_short")
        walks = _measure(source, limit, layout.index, indexed=True)
    _refuse_hidden(source, layout, walks)
    return walks


def _index_in_front(source: Source) -> bytes | None:
    """All up to the end of an index that comes before the sound."""
    at = 0
    for _ in range(MAX_ENTRIES):
        box = read_header(source.at(at, _HEADER), at, at)
        if box is None or box.end <= at or box.kind in (b"mdat", b"moof"):
            return None
        if box.kind == b"moov":
            return source.at(0, box.end) if box.end <= _MAX_INDEX else None
        at = box.end
    return None


def _measure(source: Source, limit: float | None, index: bytes, *, indexed: bool) -> list[Walk]:
    with open_container(source, MP4) as container:
        streams = audio_streams(container, MP4)
        walks = [Walk(float(stream.time_base or 1)) for stream in streams]
        context = streams[0].codec_context
        indexed &= len(streams) == 1 and context is not None and context.name in _INDEXED
        stop = TRY_DECODE if indexed else None
        walk_packets(container, streams, walks, MP4, limit, stop_after=stop)
        if walks[0].tried == stop:
            _follow_index(walks[0], container, streams[0], source, index)
        refuse_video(container, MP4)
    return walks


def _refuse_early(source: Source, index: bytes, limit: float | None) -> None:
    """Raise what the index alone shows, as soon as the sample at the limit is there. Where it never
    comes, the file was cut short before."""
    with open_container(View(source, index, iter(())), MP4) as container:
        if b"chap" not in index:  # a chapter's pictures are known for such only when they are there
            refuse_video(container, MP4)
        for stream in container.streams.audio if limit is not None else ():
            entries, tick = stream.index_entries, float(stream.time_base or 1)
            if not len(entries) or limit is None:
                continue
            first = entries[0].timestamp
            low, high = 0, len(entries)
            while low < high:  # the first entry past the limit; entries are sorted by time
                middle = (low + high) // 2
                if (entries[middle].timestamp - first) * tick > limit + GRACE:
                    high = middle
                else:
                    low = middle + 1
            if 0 < low < len(entries) and source.arrive(
                entries[low - 1].pos + entries[low - 1].size
            ):
                raise PastLimit((entries[low].timestamp - first) * tick)


def _follow_index(
    walk: Walk, container: InputContainer, stream: AudioStream, source: Source, index: bytes
) -> None:
    """Replace what the trial gave by what the index says. Raises `Undecodable`."""
    # FFmpeg reads on without giving out packets: fragments may follow, their entries are added.
    for other in container.streams:
        other.discard = Discard.all
    with contextlib.suppress(av.error.FFmpegError):  # a file cut short: what was there counts
        for _ in container.demux(stream):
            pass
    entries = stream.index_entries
    if not len(entries):
        raise Undecodable("broken")
    received = source.received
    if _is_there(entries[-1], received):
        start = _first_played(entries)
        number, first, last = len(entries) - start, entries[start].timestamp, entries[-1].timestamp
        before = entries[-2].timestamp if number > 1 else last
    else:
        stamps = [
            entry.timestamp
            for entry in entries
            if _is_there(entry, received) and not entry.is_discard
        ]
        if not stamps:
            raise Undecodable("cut_short")
        number, first, last = len(stamps), min(stamps), max(stamps)
        before = stamps[-2] if number > 1 else last
    if number < walk.packets:
        raise Undecodable("broken")
    step = max(last - before, 0)
    played = last - first + step
    if stream.duration and abs(played - stream.duration) <= step:
        played = stream.duration  # the last packet is shorter than the one before it
    walk.packets = number
    walk.total = max(walk.total, played)
    _decode_spread(walk, stream, source, _largest(index))


def _first_played(entries: IndexEntries) -> int:
    """The first entry that an edit list leaves. One that takes no time is not taken away by it."""
    for at in range(len(entries) - 1):
        entry = entries[at]
        if not entry.is_discard or entries[at + 1].timestamp <= entry.timestamp:
            return at
    return 0


def _is_there(entry: IndexEntry, received: int) -> bool:
    return 0 <= entry.pos <= received - entry.size


def _largest(index: bytes) -> tuple[int, int]:
    """Sum and largest of the sizes in the index, of all tracks."""
    sizes = [sample_sizes(index, box) for box in inner_boxes(index, 0, len(index))
             if box.kind == b"stsz"]  # fmt: skip
    return sum(size for size, _ in sizes), max((size for _, size in sizes), default=0)


def _decode_spread(walk: Walk, stream: AudioStream, source: Source, sizes: tuple[int, int]) -> None:
    """Rule 2."""
    entries, context = stream.index_entries, stream.codec_context
    number = len(entries)
    assert context is not None
    chosen = {int((n + random.random()) * number / _SPREAD) for n in range(_SPREAD)}  # noqa: S311
    mean = sizes[0] / number
    if sizes[1] > _LARGE * mean:
        chosen |= {at for at, entry in enumerate(entries) if entry.size > _LARGE * mean}
    context.flush_buffers()
    for at in sorted(chosen)[: 8 * _SPREAD]:
        entry = entries[min(at, number - 1)]
        if _is_there(entry, source.received):
            after = entries[min(at + 1, number - 1)].timestamp - entry.timestamp
            claim = after * walk.tick if at + 1 < number else walk.packet_seconds
            decode(walk, context, Packet(source.at(entry.pos, entry.size)), claim)


class _Layout:
    """Where what stands. `index`: the contents of the last `moov`; `sound`: ranges of the `mdat`
    boxes; `others`: ranges of what holds no sound, `stray` of what is no box."""

    def __init__(self, source: Source) -> None:
        self.index = b""
        self.sound: list[tuple[int, int]] = []
        self.others: list[tuple[int, int]] = []
        for box in _boxes(source):
            if box.kind == b"moov":
                if box.end - box.start > _MAX_INDEX:
                    raise Undecodable("memory")
                self.index = source.at(box.start, box.end - box.start)
                self._count(inner_boxes(self.index, 0, len(self.index)))
            elif box.kind == b"mdat":
                self.sound.append((box.start, min(box.end, source.received)))
            elif box.kind not in _KNOWN:
                self.others.append((box.at, min(box.end, source.received)))
                if len(self.others) > MAX_ENTRIES:
                    raise Undecodable("entries")

    def _count(self, boxes: Iterator[Box]) -> None:
        for number, _ in enumerate(boxes):
            if number > MAX_ENTRIES:
                raise Undecodable("entries")


def _boxes(source: Source) -> Iterator[Box]:
    """The boxes of the whole file; what is none at its end as one without a name."""
    at = 0
    while at < source.received:
        box = read_header(source.at(at, _HEADER), at, source.received)
        if box is None or box.end <= at or (box.end > source.received and box.kind != b"mdat"):
            box = Box(b"", at, at, source.received)
        yield box
        at = box.end


def _refuse_hidden(source: Source, layout: _Layout, walks: list[Walk]) -> None:
    """Rule 5."""
    refuse_foreign(source, layout.others)
    covered = max(_largest(layout.index)[0], sum(walk.size for walk in walks))
    if sum(end - start for start, end in layout.sound) > covered + _SLACK:
        refuse_foreign(source, layout.sound)
