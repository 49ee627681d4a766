"""Parts of the spooled file, put together as the file that FFmpeg shall see.

What no decoder needs (tags, pictures, comments by the thousand) is left out: FFmpeg would take its
time over it, and play the same.
"""

from __future__ import annotations

from collections.abc import Iterator

from proxy.upload.source import Source

ENDLESS = 1 << 62  # the end of a range that goes on to the end of the file


class View:
    """`before`, then the ranges (start, end) of `source`, as a file that cannot seek. A range is
    asked for when the one before it has been read."""

    def __init__(self, source: Source, before: bytes, ranges: Iterator[tuple[int, int]]) -> None:
        self._source = source
        self._before = before
        self._ranges = ranges
        self._at = self._end = 0

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, empty at the end."""
        if self._before:
            data, self._before = self._before[:size], self._before[size:]
            return data
        while True:
            if self._at < self._end:
                data = self._source.some(self._at, min(size, self._end - self._at))
                self._at += len(data)
                if data:
                    return data
            found = next(self._ranges, None)
            if found is None:
                return b""
            self._at, self._end = found

    def finish(self) -> None:
        """Pass over the ranges that were not read."""
        for _ in self._ranges:
            pass
