"""A file that FFmpeg must seek in, kept without most of its sound.

An MP4 written in one go has its index at its end. Of what stands before it only the structure is
needed, and enough samples to see that they decode: so of each `mdat` the first MiB is kept, and
then 256 KiB in every 4 MiB. The rest is never written, and reads as zeros. 50 MB cost 4 MB of disk
and a quarter of the time. That rest is asked away (`Source.leave_out`), a hole ahead.
"""

from __future__ import annotations

from typing import IO

from proxy.upload.boxes import BoxWalk
from proxy.upload.source import Source

_FIRST = 1024 * 1024
_PERIOD, _WINDOW = 4 * 1024 * 1024, 256 * 1024


class Spool:
    """The sparse copy. `file` has the length of the original."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self._holes: list[tuple[int, int]] = []  # (start, end) in the file, in order
        self._boxes = BoxWalk()

    def fill(self, source: Source) -> None:
        """Take everything that `source` still has; `file` is rewound."""
        while data := source.take():
            if isinstance(data, int):
                self._leave_out(source.received - data, data)
                self._boxes.pass_over(data)
                continue
            for offset, piece, media_start in self._boxes.feed(data):
                self._take(offset, piece, media_start)
            if self._boxes.media is not None:
                source.leave_out(*_next_hole(*self._boxes.media))
        self.file.truncate(source.received)
        self.file.seek(0)

    def _take(self, offset: int, piece: bytes, media_start: int | None) -> None:
        if media_start is None:
            self._write(offset, piece)
            return
        at = 0
        while at < len(piece):
            where = offset + at - media_start
            first, phase = where < _FIRST, where % _PERIOD
            kept = first or phase < _WINDOW
            size = _FIRST - where if first else (_WINDOW if kept else _PERIOD) - phase
            size = min(size, len(piece) - at)
            if kept:
                self._write(offset + at, piece[at : at + size])
            else:
                self._leave_out(offset + at, size)
            at += size

    def _write(self, offset: int, piece: bytes) -> None:
        self.file.seek(offset)
        self.file.write(piece)

    def _leave_out(self, start: int, size: int) -> None:
        if self._holes and self._holes[-1][1] == start:
            self._holes[-1] = (self._holes[-1][0], start + size)
        else:
            self._holes.append((start, start + size))

    def has(self, start: int, size: int) -> bool:
        """Whether these bytes of the file were kept."""
        return not any(start < end and hole < start + size for hole, end in self._holes)


def _next_hole(media_start: int, at: int, media_end: int) -> tuple[int, int]:
    """The next bytes that are not kept, of an `mdat` of which we are at `at`."""
    where = at - media_start
    start = _FIRST if where < _FIRST else where - where % _PERIOD + _WINDOW
    end = start - start % _PERIOD + _PERIOD
    return media_start + start, min(media_start + end, media_end)
