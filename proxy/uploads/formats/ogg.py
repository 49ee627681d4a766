"""Ogg, link by link.

Rules:
1. A file may be a chain of several (RFC 3533 §4). A page that begins a stream, after one that does
   not, begins the next link, whatever its codec and rate. Each link is opened as a file of its own,
   so that no film hides behind a second of sound; the durations add up.
2. Packets carry their duration inside. Granule positions, and so time stamps, are not trusted: in
   short clips FFmpeg has the last packet play almost 2^32 ticks.
3. Comments are counted before FFmpeg parses them, since it compares each with all before it.
"""

from __future__ import annotations

from proxy.uploads.formats.families import OGG
from proxy.uploads.formats.packets import MAX_ENTRIES, settle, walk_file
from proxy.uploads.formats.polyglots import refuse_foreign
from proxy.uploads.probe.refused import PastLimit, Undecodable
from proxy.uploads.probe.source import Source

_MAX_LINKS = 256
_HEADER = 27
_LONGEST_HEADER = _HEADER + 255
_BEGINS = 2  # flag: first page of a logical stream
_LONGEST_PACKET = 255 * 255  # bytes of it in a page
#: First bytes of a stream's second packet, and how many bytes precede the comments.
_COMMENTS = ((b"OpusTags", 8), (b"\x03vorbis", 7), (b"\x84", 4), (b"\x04", 4))


def measure_ogg(source: Source, limit: float | None) -> float:
    """Seconds of all links together. Raises the exceptions of probe/refused.py."""
    pages = _Pages(source)
    links, seconds = 0, 0.0
    while pages.begin_link():
        if links == _MAX_LINKS:
            raise Undecodable("entries")
        rest = None if limit is None else limit - seconds
        try:
            seconds += settle(walk_file(pages.open_link, OGG, rest), rest)
        except PastLimit as error:
            raise PastLimit(seconds + error.seconds) from error
        except Undecodable:
            pages.finish_link()
            if not links or not pages.ended:
                raise  # otherwise the headers of the last link are cut short: no player plays it
        pages.finish_link()
        links += 1
    refuse_foreign(source, pages.stray)
    return seconds


class _Pages:
    """One link after the other, as a file that cannot seek. `stray`: ranges that belong to no page;
    `ended`: there is no other link."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._given = self._next = source.position  # end of what was read; next page
        self._begin = self._next  # of the link
        self._heads = True  # of it: pages that begin a stream
        self._over = True
        self._comments_due: set[bytes] = set()  # serial numbers
        self.stray: list[tuple[int, int]] = []
        self.ended = False

    def begin_link(self) -> bool:
        """Move to the next link. Returns whether there is one."""
        self._begin = self._next
        return not self.ended

    def open_link(self) -> _Pages:
        """Read the link from its beginning."""
        self._given = self._next = self._begin
        self._heads, self._over, self.ended = True, False, False
        return self

    def finish_link(self) -> None:
        """Skip the rest of the link."""
        while self.read(_LONGEST_PACKET):
            pass

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, empty at the end of the link."""
        data = b"" if self._over else self._source.some(self._given, size)
        while (at := self._next - self._given) < len(data):
            header = data[at : at + _LONGEST_HEADER]
            if len(header) < _LONGEST_HEADER:
                header = self._source.at(self._next, _LONGEST_HEADER)
            if header[:5] != b"OggS\0" or len(header) <= _HEADER:
                self._pass_over(data, at)
            elif header[5] & _BEGINS and not self._heads:
                self._over = True
                data = data[:at]
            else:
                self._note_page(header)
                self._next += _HEADER + header[26] + sum(header[_HEADER : _HEADER + header[26]])
        self._given += len(data)
        if not data and not self._over:
            self._over = self.ended = True
        return data

    def _pass_over(self, data: bytes, at: int) -> None:
        """Skip to the next page, or to a possible beginning of one at the end of `data`."""
        found = data.find(b"OggS\0", at + 1)
        start, self._next = (
            self._next,
            self._given + (found if found >= 0 else max(at + 1, len(data) - 4)),
        )
        if self.stray and self.stray[-1][1] == start:
            start = self.stray.pop()[0]
        self.stray.append((start, self._next))

    def _note_page(self, header: bytes) -> None:
        serial = header[14:18]
        if header[5] & _BEGINS:
            self._comments_due.add(serial)
            return
        self._heads = False
        if serial in self._comments_due:
            self._comments_due.discard(serial)
            packet = self._source.at(self._next + _HEADER + header[26], _LONGEST_PACKET)
            at = next((skip for magic, skip in _COMMENTS if packet.startswith(magic)), 0)
            at += 4 + int.from_bytes(packet[at : at + 4], "little")  # the vendor string
            number = int.from_bytes(packet[at : at + 4], "little")
            if at + 4 <= len(packet) and number > MAX_ENTRIES:
                raise Undecodable("entries")
