"""WAV, RF64, BW64 and RIFX.

Rules:
1. FFmpeg gets the format and everything from the first samples on, but no other chunk before them.
   It stops at the length in the header (0 and 2^32-1: unbounded) and continues with the next chunk
   of samples.
2. Chunks that hold neither sound nor tags are searched for foreign formats, as are bytes outside
   chunks.
3. A header may claim one second of an hour. So a large number of bytes after the samples that form
   no chunk counts as played.
"""

from __future__ import annotations

from collections.abc import Iterator

from proxy.uploads.formats.families import WAV
from proxy.uploads.formats.packets import MAX_ENTRIES, PacketWalk, settle, walk_file
from proxy.uploads.formats.polyglots import refuse_foreign, starts_foreign
from proxy.uploads.probe.refused import NotAudio, Undecodable
from proxy.uploads.probe.source import ENDLESS, Prefixed, Source

_CHUNK = 8  # bytes of a header: four letters and a size
_TAGS = frozenset((b"LIST", b"id3 ", b"ID3 ", b"bext", b"iXML", b"axml", b"_PMX", b"cart"))
_MAX_FORMAT = 64 * 1024
_STRAY = 128 * 1024  # bytes outside chunks that may follow the samples


def measure_wav(source: Source, limit: float | None) -> float:
    """Seconds. Raises the exceptions of probe/refused.py."""
    start = source.position
    before, sound = source.peek(12), 0
    for name, at, end in _chunks(source, start):
        if name == b"data" and b"fmt " in before[12:]:
            sound = at
            break
        if name in (b"fmt ", b"ds64") and end - at <= _MAX_FORMAT and name not in before:
            before += source.at(at, _padded(at, end) - at)
    if not sound:
        raise Undecodable("no_audio")
    if starts_foreign(source.at(sound + _CHUNK, 4096)):
        raise NotAudio("a wav header before other content")
    walks = walk_file(lambda: Prefixed(before, source.back(sound)), WAV, limit)
    source.drain()
    _check_other_chunks(walks[0], source, start)
    return settle(walks, limit)


def _check_other_chunks(walk: PacketWalk, source: Source, start: int) -> None:
    """Rules 2 and 3."""
    behind = source.received
    for name, at, end in _chunks(source, start):
        behind = _padded(at, end)
        if name != b"data" and name not in _TAGS:
            refuse_foreign(source, [(at + _CHUNK, end)])
    refuse_foreign(source, [(behind, source.received)])
    stray = source.received - behind
    if walk.size and stray > max(_STRAY, walk.size // 2):
        walk.total += walk.total * stray // walk.size


def _chunks(source: Source, at: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of each chunk. A chunk of samples may have no length, or one that the
    file is too short for; then it ends with the file."""
    magic, at = source.at(at, 4), at + 12
    size_64 = 0
    sampled = False
    for _ in range(MAX_ENTRIES):
        header = source.at(at, _CHUNK)
        if len(header) < _CHUNK:
            return
        name = header[:4]
        size = int.from_bytes(header[4:], "big" if magic == b"RIFX" else "little")
        if name == b"data":
            if magic in (b"RF64", b"BW64") and size_64:
                size, size_64 = size_64, 0
            elif size == 0xFFFFFFFF or (size == 0 and not sampled):
                size = ENDLESS
            sampled = True
        elif (sampled and not _is_name(name)) or not source.arrive(at + _CHUNK + size):
            return  # before the samples FFmpeg skips chunks of any name
        elif name == b"ds64":  # EBU Tech 3306: RF64 has its sizes here, in 64 bits
            size_64 = min(int.from_bytes(source.at(at + 16, 8), "little"), ENDLESS)
        yield name, at, at + _CHUNK + size
        at += _CHUNK + size + size % 2
    raise Undecodable("entries")


def _padded(at: int, end: int) -> int:
    """Where the chunk after the one from `at` to `end` begins. Chunks are padded to even lengths;
    after a tag they may begin at odd offsets."""
    return end + (end - at) % 2


def _is_name(name: bytes) -> bool:
    """Whether these four bytes can name a chunk: printable ASCII, not all spaces."""
    return all(0x20 <= byte < 0x7F for byte in name) and not name.isspace()
