"""What an MP4's index may claim: as much as its tables have room for."""

from __future__ import annotations

import struct

import pytest

from proxy.uploads.formats.mp4_boxes import Layout
from proxy.uploads.probe.refused import Undecodable

SLACK = 1024  # samples that a table of times may have beyond those in the file


def box(kind: bytes, contents: bytes) -> bytes:
    """One with its header."""
    return struct.pack(">I", 8 + len(contents)) + kind + contents


def table(kind: bytes, *numbers: int) -> bytes:
    """A box of 32-bit numbers; the first are version and flags."""
    return box(kind, struct.pack(f">{len(numbers)}I", *numbers))


def read(*tables: bytes) -> Layout:
    """What an index with one track says."""
    layout = Layout()
    layout._read_index(box(b"trak", b"".join(tables)))
    return layout


def test_samples_of_one_size_need_no_table() -> None:
    """Their size stands where others have a zero."""
    layout = read(table(b"stsz", 0, 417, 1000))
    assert (layout.samples, layout.size, layout.largest) == (1000, 417_000, 417)


def test_samples_of_different_sizes_are_listed() -> None:
    """Their sizes are added up, and the largest one is known."""
    layout = read(table(b"stsz", 0, 0, 3, 5, 9, 2))
    assert (layout.samples, layout.size, layout.largest) == (3, 16, 9)


@pytest.mark.parametrize(
    ("kind", "fields", "entry"),
    [(b"stsz", 3, 1), (b"stts", 2, 2), (b"ctts", 2, 2), (b"stsc", 2, 3), (b"stco", 2, 1),
     (b"co64", 2, 2), (b"stss", 2, 1)],
)  # fmt: skip
@pytest.mark.parametrize("flags", [0, 1])
def test_a_table_has_room_for_what_it_claims(
    kind: bytes, fields: int, entry: int, flags: int
) -> None:
    """One entry more is rejected, whatever the flags: FFmpeg allocates memory for the claim."""
    head = [flags, *([0] * (fields - 2))]
    entries = [0] * (3 * entry)
    read(table(kind, *head, 3, *entries))
    with pytest.raises(Undecodable, match="entries"):
        read(table(kind, *head, 4, *entries))


def test_a_table_of_times_fits_the_samples() -> None:
    """It may name twice as many and some more, as a few writers do."""
    sizes, most = table(b"stsz", 0, 417, 10), 2 * 10 + SLACK
    assert read(sizes, table(b"stts", 0, 1, most, 1024)).samples == 10
    with pytest.raises(Undecodable, match="entries"):
        read(sizes, table(b"stts", 0, 1, most + 1, 1024))


def test_the_track_with_most_samples_counts() -> None:
    """The sizes of all tracks are added up."""
    layout = Layout()
    tracks = (table(b"stsz", 0, 2, 10), table(b"stsz", 0, 3, 4))
    layout._read_index(b"".join(box(b"trak", each) for each in tracks))
    assert (layout.samples, layout.size, layout.largest) == (10, 32, 3)
