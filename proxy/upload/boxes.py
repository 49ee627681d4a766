"""The boxes of an MP4 file, as far as they must be known before FFmpeg sees them.

ISO/IEC 14496-12 §4.2: 32 bits of size and four letters; size 1 means 64 bits of size behind the
letters, size 0 "to the end of the file".
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

_SHORT, HEADER = 8, 16  # bytes of a box's header, without and with 64 bits of size
#: Boxes with nothing but boxes in them, between the index and its tables.
_PARENTS = frozenset((b"trak", b"mdia", b"minf", b"stbl", b"udta", b"ilst", b"edts"))


@dataclass(frozen=True)
class Box:
    """`start` is where its contents begin, `end` where they must end."""

    kind: bytes
    at: int
    start: int
    end: int


def read_header(data: bytes, at: int, last: int) -> Box | None:
    """The box at the beginning of `data`, which stands `at` there; None where there is none.
    `last`: where a box of size 0 ends."""
    if len(data) < _SHORT:
        return None
    size, kind, start = int.from_bytes(data[:4], "big"), data[4:8], at + _SHORT
    if size == 1:
        size, start = int.from_bytes(data[8:16], "big"), at + HEADER
    end = last if size == 0 else at + size
    return Box(kind, at, start, end) if end >= start else None


def inner_boxes(data: bytes, start: int, end: int) -> Iterator[Box]:
    """The boxes of an index, those that only hold others followed by what they hold."""
    at = start
    while at < end:
        box = read_header(data[at : at + HEADER], at, end)
        if box is None or box.end > end:
            return
        yield box
        if box.kind in _PARENTS:
            yield from inner_boxes(data, box.start, box.end)
        elif box.kind == b"meta":  # with four bytes of version, but for QuickTime's
            versioned = not data.startswith(b"hdlr", box.start + 4)
            yield from inner_boxes(data, box.start + 4 * versioned, box.end)
        at = box.end


def sample_sizes(data: bytes, box: Box) -> tuple[int, int]:
    """The sum of a track's sizes in an `stsz` box, and the largest; (0, 0) where they are not
    there."""
    same = int.from_bytes(data[box.start + 4 : box.start + 8], "big")
    number = int.from_bytes(data[box.start + 8 : box.start + 12], "big")
    if same:
        return same * number, same
    table = data[box.start + 12 : min(box.end, box.start + 12 + 4 * number)]
    sizes = array("I", table[: len(table) // 4 * 4])
    if sys.byteorder == "little":
        sizes.byteswap()
    return sum(sizes), max(sizes, default=0)
