"""The top-level boxes of an MP4 file, followed while its bytes stream by.

ISO/IEC 14496-12 §4.2: 32 bits of size and four letters; size 1 means 64 bits of size behind the
letters, size 0 "to the end of the file".
"""

from __future__ import annotations

from collections.abc import Iterator

_SHORT, _LONG = 8, 16  # bytes of a header
_TO_THE_END = 1 << 63


class BoxWalk:
    """Feed it the file from its first byte. `lost`: something was met that is no box, so that
    what follows may be anything."""

    def __init__(self) -> None:
        self.lost = False
        self._offset = 0  # of the next byte
        self._media_start: int | None = None  # where the content of the current `mdat` begins
        self._left = 0  # bytes of the current box still to come
        self._header = b""

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes, int | None]]:
        """All of `data`, in pieces: (offset in the file, bytes, None or, within an `mdat`, the
        offset at which its content begins). Consume it before the next call."""
        at, end = 0, len(data)
        while at < end:
            media_start = None
            if self.lost:
                size = end - at
            elif self._left:
                size = min(end - at, self._left)
                self._left -= size
                media_start = self._media_start
            else:
                wanted = _LONG if self._header[:4] == b"\0\0\0\1" else _SHORT
                size = min(end - at, wanted - len(self._header))
                self._header += data[at : at + size]
            yield self._offset, data[at : at + size], media_start
            at += size
            self._offset += size
            if self._header:
                self._read_header()

    def pass_over(self, size: int) -> None:
        """So many bytes of the current `mdat` are not shown."""
        self._left -= size
        self._offset += size

    @property
    def media(self) -> tuple[int, int, int] | None:
        """Within an `mdat`: where its content begins, where we are, and where it ends."""
        if not self._left or self._media_start is None:
            return None
        return self._media_start, self._offset, self._offset + self._left

    def _read_header(self) -> None:
        header = self._header
        size = int.from_bytes(header[:4], "big")
        if len(header) < (_LONG if size == 1 else _SHORT):
            return
        if size == 1:
            size = int.from_bytes(header[8:16], "big")
        elif size == 0:
            size = _TO_THE_END
        self._header = b""
        self.lost = size < len(header)
        self._left = size - len(header)
        self._media_start = self._offset if header[4:8] == b"mdat" else None


def is_sequential(head: bytes) -> bool:
    """Whether the index (`moov`) comes before the media (`mdat`), so that FFmpeg need not seek.
    Where `head` ends before either is seen, the answer is no: seeking always works."""
    at = 0
    while at + _SHORT <= len(head):
        size, kind = int.from_bytes(head[at : at + 4], "big"), head[at + 4 : at + 8]
        if kind in (b"moov", b"mdat"):
            return kind == b"moov"
        if size == 1:
            size = int.from_bytes(head[at + 8 : at + 16], "big")
        if size < _SHORT:
            return False
        at += size
    return False
