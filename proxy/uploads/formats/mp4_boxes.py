"""The boxes of an MP4 file, as far as they must be checked before FFmpeg parses them.

ISO/IEC 14496-12 §4.2: 32 bits of size and four letters; size 1 means 64 bits of size behind the
letters, size 0 "to the end of the file".
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

from proxy.uploads.formats.packets import MAX_ENTRIES
from proxy.uploads.probe.refused import Undecodable
from proxy.uploads.probe.source import ENDLESS, Source

_SHORT, _HEADER = 8, 16  # bytes of a box's header, without and with 64 bits of size
_MAX_INDEX = 32 * 1024 * 1024  # bytes, of hours of sound
#: Boxes that contain only boxes, between the index and its tables.
_PARENTS = frozenset((b"trak", b"mdia", b"minf", b"stbl", b"udta", b"ilst", b"edts"))
_KNOWN = frozenset((b"ftyp", b"styp", b"moof", b"sidx", b"mfra"))

#: Bytes of an entry in the tables of a track.
_ENTRY = {b"stsz": 4, b"stts": 8, b"ctts": 8, b"stsc": 12, b"stco": 4, b"co64": 8, b"stss": 4}

#: Samples that a table of times may have beyond those in the file, as some writers do.
_SLACK = 1024


@dataclass(frozen=True)
class Box:
    """`start`: where its contents begin; `end`: where they must end."""

    kind: bytes
    at: int
    start: int
    end: int


def file_boxes(source: Source) -> Iterator[Box]:
    """The boxes of the file as they arrive, those of sound (`mdat`) by their header alone; the rest
    of a file that is no box comes as one without a name. Sound and an index may be cut short."""
    at = 0
    while header := source.at(at, _HEADER):
        box = _read_header(header, at, ENDLESS)
        whole = box is not None and (box.kind == b"mdat" or source.arrive(box.end))
        if box is None or not (whole or box.kind == b"moov" or box.end == ENDLESS):
            source.drain()
            box = Box(b"", at, at, source.received)
        yield box
        at = box.end


def _read_header(data: bytes, at: int, last: int) -> Box | None:
    """The box at the beginning of `data`, which is at offset `at`; None if there is none. `last`:
    where a box of size 0 ends."""
    if len(data) < _SHORT:
        return None
    size, kind, start = int.from_bytes(data[:4], "big"), data[4:8], at + _SHORT
    if size == 1:
        size, start = int.from_bytes(data[8:16], "big"), at + _HEADER
    end = last if size == 0 else at + size
    return Box(kind, at, start, end) if end >= start else None


def _inner_boxes(data: bytes, start: int, end: int) -> Iterator[Box]:
    """The boxes of an index, in order, each parent followed by its children. FFmpeg reads those
    that claim to end behind their parents as if they ended there."""
    at = start
    while at < end:
        box = _read_header(data[at : at + _HEADER], at, end)
        if box is None or box.start > end:
            return
        box = replace(box, end=min(box.end, end))
        yield box
        if box.kind in _PARENTS:
            yield from _inner_boxes(data, box.start, box.end)
        elif box.kind == b"meta":  # with four bytes of version, except in QuickTime
            versioned = not data.startswith(b"hdlr", box.start + 4)
            yield from _inner_boxes(data, box.start + 4 * versioned, box.end)
        at = box.end


@dataclass(slots=True)
class Layout:
    """What the boxes so far say. `sound`: ranges of the `mdat` boxes; `others`: ranges of boxes
    without sound and of bytes that are no box. `indexed`: there is an index; `cut`: not all of it;
    `fragments`: it does not cover all samples. `samples`: the most that a track claims; `size`,
    `largest`: bytes of all samples, and of the largest one."""

    sound: list[tuple[int, int]] = field(default_factory=list)
    others: list[tuple[int, int]] = field(default_factory=list)
    indexed: bool = False
    cut: bool = False
    fragments: bool = False
    samples: int = 0
    size: int = 0
    largest: int = 0

    def note(self, box: Box, source: Source) -> None:
        """Take the next box. Raises `Undecodable` if there are too many, or if an index claims more
        than it has room for: FFmpeg allocates 24 bytes per claimed sample."""
        if box.kind == b"moov":
            end = min(box.end, source.received)
            if end - box.start > _MAX_INDEX:
                raise Undecodable("memory")
            self.cut = end < box.end
            self._read_index(source.at(box.start, end - box.start))
        elif box.kind == b"mdat":
            self.sound.append((box.start, box.end))
        elif box.kind not in _KNOWN:
            self.others.append((box.at, box.end))
            if len(self.others) > MAX_ENTRIES:
                raise Undecodable("entries")

    def _read_index(self, index: bytes) -> None:
        self.indexed, self.fragments, self.size, self.largest = True, b"mvex" in index, 0, 0
        boxes = list(islice(_inner_boxes(index, 0, len(index)), MAX_ENTRIES + 1))
        samples = times = 0  # of the current track
        for box in boxes:
            if box.kind == b"trak":
                samples = times = 0
            if (entry := _ENTRY.get(box.kind)) is None:
                continue
            start = box.start + (12 if box.kind == b"stsz" else 8)
            same, number = _numbers(index[start - 8 : start].rjust(8, b"\0"))
            if box.kind != b"stsz":  # it alone may have one size for all samples
                same = 0
            if number * entry > box.end - start and not same:
                raise Undecodable("entries")
            table = _numbers(index[start : start + entry * number])
            if box.kind == b"stsz":
                samples = number
                self.size += same * number or sum(table)
                self.largest = max(self.largest, same or max(table, default=0))
            elif box.kind == b"stts":
                times = sum(table[::2])
            if samples and times > 2 * samples + _SLACK:
                raise Undecodable("entries")
            self.samples = max(self.samples, samples)
        if len(boxes) > MAX_ENTRIES:
            raise Undecodable("entries")


def _numbers(table: bytes) -> array[int]:
    numbers = array("I", table[: len(table) // 4 * 4])
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers
