"""WAV, RF64, BW64 and RIFX, chunk by chunk.

Rules:
1. FFmpeg gets the format and the samples, and none of the other chunks. Those are hopped over,
   whatever stands in them, before the samples or behind; what is no chunk at all is looked at.
2. PCM is counted, not read: after a trial of a few packets every byte plays as long as the others.
3. Where FFmpeg ends, we end: at the end that the header tells (0 and 2^32-1: none), unless another
   chunk of samples follows, as a stream's would. Chunks are padded to an even length.
4. A header may claim one second of an hour. Bytes behind the samples that are no chunk are counted
   as if they were played where there are many of them.
"""

from __future__ import annotations

from collections.abc import Iterator

from proxy.upload.families import WAV
from proxy.upload.foreign import refuse_foreign, starts_foreign
from proxy.upload.packets import (
    GRACE,
    MAX_ENTRIES,
    Walk,
    audio_streams,
    open_container,
    walk_packets,
)
from proxy.upload.refused import NotAudio, PastLimit, Undecodable
from proxy.upload.source import Source
from proxy.upload.view import ENDLESS, View

_NO_SIZE = (0, 0xFFFFFFFF)
_CHUNK = 8  # bytes of a header: four letters and a size
_TAGS = frozenset((b"LIST", b"id3 ", b"ID3 ", b"bext", b"iXML", b"axml", b"_PMX", b"cart"))
_MAX_FORMAT = 64 * 1024
_TRIAL = 256 * 1024  # bytes of PCM: one would do, all bytes decode
_STRAY = 128 * 1024  # bytes that may stand behind a WAV's samples without being a chunk


def measure_wav(source: Source, limit: float | None) -> Walk:
    """The walk through the whole file. Raises the exceptions of refused.py."""
    chunks = _Chunks(source)
    start, end = first = next(chunks.samples(), (0, 0))
    if not chunks.format or first == (0, 0):
        raise Undecodable("no_audio")
    if starts_foreign(source.at(start, min(4096, end - start))):
        raise NotAudio("a wav header before other content")
    trial = View(source, chunks.header(), iter([(start, min(end, start + _TRIAL))]))
    walk = _demux(trial, limit, pcm_only=True)
    if walk is not None:
        _count(walk, source, _from(first, chunks), limit)
    else:
        walk = _demux(View(source, chunks.header(), _from(first, chunks)), limit)
        assert walk is not None
        chunks.finish()
    source.drain()
    _count_stray(walk, chunks.stray)
    refuse_foreign(source, chunks.stray)
    refuse_foreign(source, chunks.others)
    return walk


def _from(first: tuple[int, int], chunks: _Chunks) -> Iterator[tuple[int, int]]:
    yield first
    yield from chunks.samples()


def _demux(view: View, limit: float | None, *, pcm_only: bool = False) -> Walk | None:
    """None for other codecs than PCM where that is all that is wanted."""
    with open_container(view, WAV) as container:
        streams = audio_streams(container, WAV)[:1]
        context = streams[0].codec_context
        if pcm_only and (context is None or not context.name.startswith("pcm_")):
            return None
        walk = Walk(float(streams[0].time_base or 1))
        walk_packets(container, streams, [walk], WAV, limit)
        return walk


def _count(
    walk: Walk, source: Source, ranges: Iterator[tuple[int, int]], limit: float | None
) -> None:
    """Rule 2: replace what the trial gave by what the whole file has. Raises `PastLimit` when the
    bytes up to the limit are there."""
    if not walk.size or not walk.total:
        raise Undecodable("no_audio")
    seconds = walk.total * walk.tick / walk.size  # of a byte
    most = ENDLESS if limit is None else int((limit + GRACE) / seconds)
    counted = 0
    for start, end in ranges:
        source.arrive(min(end, start + most - counted + 1))
        counted += max(0, min(end, source.received) - start)
        if counted > most:
            raise PastLimit(counted * seconds)
    walk.total = walk.total * counted // walk.size
    walk.last = walk.total
    walk.size = counted


def _count_stray(walk: Walk, stray: list[tuple[int, int]]) -> None:
    """Rule 4."""
    size = sum(end - start for start, end in stray)
    if walk.size and size > max(_STRAY, walk.size // 2):
        walk.total += walk.total * size // walk.size


class _Chunks:
    """Hops from chunk to chunk. `others`: ranges of chunks that are no format, samples or tags;
    `stray`: those that are no chunks."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._at = source.position
        self._magic = source.at(self._at, 4)
        self._order: str = "big" if self._magic == b"RIFX" else "little"
        self._size_64: int | None = None
        self._sampled = False
        self.format = b""
        self.others: list[tuple[int, int]] = []
        self.stray: list[tuple[int, int]] = []
        self._at += 12
        self._samples = self._walk()

    def samples(self) -> Iterator[tuple[int, int]]:
        """The next ranges of samples."""
        return self._samples

    def finish(self) -> None:
        """To the end of the file."""
        for _ in self._samples:
            pass

    def header(self) -> bytes:
        """A file's beginning up to its samples, of unknown number."""
        magic = b"RIFX" if self._order == "big" else b"RIFF"
        size = self._bytes(len(self.format))
        return magic + b"\xff" * 4 + b"WAVEfmt " + size + self.format + b"data" + b"\xff" * 4

    def _bytes(self, value: int) -> bytes:
        return value.to_bytes(4, "big" if self._order == "big" else "little")

    def _walk(self) -> Iterator[tuple[int, int]]:
        for _ in range(MAX_ENTRIES):
            header = self._source.at(self._at, _CHUNK)
            if len(header) < _CHUNK:
                break
            name, start = header[:4], self._at + _CHUNK
            size = int.from_bytes(header[4:], "big" if self._order == "big" else "little")
            if name == b"data" and self.format:
                yield start, (end := start + self._data_size(size))
                self._at = end + end % 2
                continue
            if not _is_name(name) or not self._source.arrive(start + size):
                break
            if name == b"fmt " and not self.format and size <= _MAX_FORMAT:
                self.format = self._source.at(start, size + size % 2)
            elif name == b"ds64":  # EBU Tech 3306: RF64 has its sizes here, in 64 bits
                self._size_64 = int.from_bytes(self._source.at(start + 8, 8), "little")
            elif name not in _TAGS:
                self.others.append((start, start + size))
            self._at = start + size + size % 2
        else:
            raise Undecodable("entries")
        self._source.drain()
        if self._at < self._source.received:
            self.stray.append((self._at, self._source.received))

    def _data_size(self, size: int) -> int:
        if self._magic in (b"RF64", b"BW64") and self._size_64:
            size, self._size_64 = self._size_64, None
            return min(size, ENDLESS)
        endless = size in _NO_SIZE and not self._sampled
        self._sampled = True
        return ENDLESS if endless else size


def _is_name(name: bytes) -> bool:
    """Whether these four bytes can be a chunk's: letters, digits, blanks and the like."""
    return all(0x20 <= byte < 0x7F for byte in name) and not name.isspace()
