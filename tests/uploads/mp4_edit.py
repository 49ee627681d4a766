"""MP4 files whose index says what we want it to say."""

from __future__ import annotations

import struct
from collections.abc import Sequence

_PARENTS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


def box(kind: bytes, content: bytes) -> bytes:
    """A box."""
    return struct.pack(">I4s", len(content) + 8, kind) + content


def boxes(data: bytes) -> list[tuple[bytes, bytes]]:
    """The boxes that `data` consists of: kinds and contents."""
    found, at = [], 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        found.append((kind, data[at + 8 : at + size]))
        at += size
    return found


def edited(data: bytes, changes: dict[bytes, bytes]) -> bytes:
    """`data` with other contents for the boxes named, wherever in the index they are. The index
    must stand last, or keep its size."""
    return b"".join(
        box(kind, edited(inner, changes) if kind in _PARENTS else changes.get(kind, inner))
        for kind, inner in boxes(data)
    )


def sizes_of(data: bytes) -> list[int]:
    """What `stsz` says of the one track."""
    at = data.index(b"stsz") + 4
    same, number = struct.unpack_from(">II", data, at + 4)
    return [same] * number if same else list(struct.unpack_from(f">{number}I", data, at + 12))


def reindexed(data: bytes, sizes: Sequence[int], ticks: Sequence[int]) -> bytes:
    """`data`, of one track and with its index last, with samples of these sizes, one behind the
    other, that claim to play so many ticks each."""
    at = data.index(b"mdat") + 4
    stts = b"".join(struct.pack(">II", 1, tick) for tick in ticks)
    return edited(
        data,
        {
            b"stsz": struct.pack(f">III{len(sizes)}I", 0, 0, len(sizes), *sizes),
            b"stts": struct.pack(">II", 0, len(ticks)) + stts,
            b"stsc": struct.pack(">IIIII", 0, 1, 1, len(sizes), 1),
            b"stco": struct.pack(">III", 0, 1, at),
            b"edts": b"",
        },
    )
