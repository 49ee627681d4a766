"""The boxes of an MP4 file, as far as they must be checked before FFmpeg parses them.

ISO/IEC 14496-12 §4.2: 32 bits of size and four letters; size 1 means 64 bits of size behind the
letters, size 0 "to the end of the file".
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_SHORT, HEADER = 8, 16  # bytes of a box's header, without and with 64 bits of size
#: Boxes that contain only boxes, between the index and its tables.
_PARENTS = frozenset((b"trak", b"mdia", b"minf", b"stbl", b"udta", b"ilst", b"edts"))

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


def read_header(data: bytes, at: int, last: int) -> Box | None:
    """The box at the beginning of `data`, which is at offset `at`; None if there is none. `last`:
    where a box of size 0 ends."""
    if len(data) < _SHORT:
        return None
    size, kind, start = int.from_bytes(data[:4], "big"), data[4:8], at + _SHORT
    if size == 1:
        size, start = int.from_bytes(data[8:16], "big"), at + HEADER
    end = last if size == 0 else at + size
    return Box(kind, at, start, end) if end >= start else None


def inner_boxes(data: bytes, start: int, end: int) -> Iterator[Box]:
    """The boxes of an index, in order, each parent followed by its children."""
    at = start
    while at < end:
        box = read_header(data[at : at + HEADER], at, end)
        if box is None or box.end > end:
            return
        yield box
        if box.kind in _PARENTS:
            yield from inner_boxes(data, box.start, box.end)
        elif box.kind == b"meta":  # with four bytes of version, except in QuickTime
            versioned = not data.startswith(b"hdlr", box.start + 4)
            yield from inner_boxes(data, box.start + 4 * versioned, box.end)
        at = box.end


def sample_sizes(data: bytes, box: Box) -> tuple[int, int]:
    """The sum of a track's sample sizes in an `stsz` box, and the largest; (0, 0) without a
    table."""
    same = int.from_bytes(data[box.start + 4 : box.start + 8], "big")
    number = int.from_bytes(data[box.start + 8 : box.start + 12], "big")
    if same:
        return same * number, same
    table = data[box.start + 12 : min(box.end, box.start + 12 + 4 * number)]
    sizes = _numbers(table[: len(table) // 4 * 4])
    return sum(sizes), max(sizes, default=0)


def absurd_tables(data: bytes, boxes: Iterable[Box], received: int) -> bool:
    """Whether an index claims more samples than `received` bytes of file or its own tables have
    room for: FFmpeg allocates 24 bytes per claimed sample.

    Each sample takes at least a byte of the file, and has one entry for its time and one for its
    offset.
    """
    samples = times = 0  # of the current track
    for box in boxes:
        if box.kind == b"trak":
            samples = times = 0
        entry = _ENTRY.get(box.kind)
        if entry is None:
            continue
        start = box.start + (8 if box.kind == b"stsz" else 4)
        number = int.from_bytes(data[start : start + 4], "big")
        same = box.kind == b"stsz" and any(data[start - 4 : start])
        if number * entry > box.end - start - 4 and not same:
            return True
        if box.kind == b"stsz":
            samples = number
        elif box.kind == b"stts":
            times = sum(_numbers(data[start + 4 : start + 4 + 8 * number])[::2])
        if samples > received or (samples and times > 2 * samples + _SLACK):
            return True
    return False


def _numbers(table: bytes) -> array[int]:
    numbers = array("I", table)
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers
