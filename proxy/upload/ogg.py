"""Ogg, link by link.

Rules:
1. A file may be several, one behind the other (chained, RFC 3533 §4): a page that begins a stream
   behind one that does not begins the next link, be its codec and rate what they may. Each link is
   opened as a file of its own, so a film does not hide behind a second of sound; their lengths add
   up.
2. Packets carry their length inside. Granule positions, and so time stamps, may say anything: in
   short clips FFmpeg takes the last packet to play 2^32 ticks less a few.
3. Comments are counted before FFmpeg sees them: it compares each with all before it.
"""

from __future__ import annotations

from collections.abc import Iterator

from proxy.upload.families import OGG
from proxy.upload.foreign import refuse_foreign
from proxy.upload.packets import (
    MAX_ENTRIES,
    Walk,
    audio_streams,
    open_container,
    refuse_video,
    walk_packets,
)
from proxy.upload.refused import PastLimit, Undecodable
from proxy.upload.source import Source
from proxy.upload.view import View

_MAX_LINKS = 256
_HEADER = 27
_LONGEST_HEADER = _HEADER + 255
_LONGEST_PAGE = _LONGEST_HEADER + 255 * 255
_BEGINS = 2  # flag: first page of a logical stream
_WINDOW = 256 * 1024
#: What stands before the comments, by the first bytes of a stream's second packet.
_COMMENTS = ((b"OpusTags", 8), (b"\x03vorbis", 7), (b"\x84", 4), (b"\x04", 4))


def measure_ogg(source: Source, limit: float | None) -> list[Walk]:
    """The links' walks. Raises the exceptions of packets.py."""
    pages = _Pages(source)
    done: list[Walk] = []
    while pages.more:
        if len(done) == _MAX_LINKS:
            raise Undecodable("entries")
        view = View(source, b"", pages.link())
        before = sum(walk.seconds() for walk in done)
        try:
            done.append(_measure_link(view, None if limit is None else limit - before))
        except PastLimit as error:
            raise PastLimit(before + error.seconds) from error
        except Undecodable:
            view.finish()
            if not done or pages.more:
                raise
            break  # cut short in the headers of the last link: nobody plays that
        view.finish()
    refuse_foreign(source, pages.stray)
    return done


def _measure_link(view: View, limit: float | None) -> Walk:
    with open_container(view, OGG) as container:
        streams = audio_streams(container, OGG)
        walks = [Walk(float(stream.time_base or 1)) for stream in streams]
        walk_packets(container, streams, walks, OGG, limit)
        refuse_video(container, OGG)
    for walk in walks:
        walk.require_sound()
    return max(walks, key=Walk.seconds)


class _Pages:
    """Hops from page to page. `stray`: ranges that belong to none."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._at = source.position
        self._window, self._base = b"", self._at
        self._comments_due: set[bytes] = set()  # serial numbers
        self.stray: list[tuple[int, int]] = []
        self.more = True

    def link(self) -> Iterator[tuple[int, int]]:
        """The ranges of the next link; `more` is false when it was the last one."""
        heads = True
        start = self._at
        while (page := self._page(start)) is not None:
            header, skipped = page
            if skipped:
                yield start, skipped[0]
                start = skipped[1]
            if header[5] & _BEGINS:
                if not heads:
                    yield start, self._at
                    return
                self._comments_due.add(header[14:18])
            else:
                heads = False
                if header[14:18] in self._comments_due:
                    self._comments_due.discard(header[14:18])
                    self._count_comments(_HEADER + header[26])
            self._at += _HEADER + header[26] + sum(header[_HEADER : _HEADER + header[26]])
            if self._at - start >= _WINDOW:
                yield start, self._at
                start = self._at
        yield start, self._source.received
        self.more = False

    def _page(self, start: int) -> tuple[bytes, tuple[int, int] | None] | None:
        """The header of the page that comes next, and what was passed over to find it."""
        lost = self._at
        while True:
            header = self._peek(_LONGEST_HEADER)
            if header[:5] == b"OggS\0" and len(header) > _HEADER:
                if lost == self._at:
                    return header, None
                self.stray.append((lost, self._at))
                return header, (lost, self._at)
            if len(header) <= _HEADER:
                if self._source.received > lost:
                    self.stray.append((lost, self._source.received))
                return None
            found = self._window.find(b"OggS\0", self._at - self._base + 1)
            self._at = self._base + (found if found >= 0 else max(1, len(self._window) - 4))

    def _peek(self, size: int) -> bytes:
        at = self._at - self._base
        if not 0 <= at <= len(self._window) - size:
            self._base = self._at
            self._window = self._source.at(self._at, _LONGEST_PAGE)
            at = 0
        return self._window[at : at + size]

    def _count_comments(self, start: int) -> None:
        """Rule 3, on the page that comes next. The number stands behind the name of the writer."""
        packet = self._peek(_LONGEST_PAGE)[start:]
        at = next((skip for magic, skip in _COMMENTS if packet.startswith(magic)), 0)
        at += 4 + int.from_bytes(packet[at : at + 4], "little")
        if at + 4 <= len(packet) and int.from_bytes(packet[at : at + 4], "little") > MAX_ENTRIES:
            raise Undecodable("entries")
