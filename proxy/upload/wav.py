"""PCM in a WAV file: its bytes are counted, not read.

Rules:
1. FFmpeg has found the samples, given out the first packets, and decoded them; from there on a byte
   plays as long as every other. So the rest of a chunk of samples is asked away.
2. Where FFmpeg ends, we end: at the end that the header tells (0 and 2^32-1: none), unless another
   chunk of samples follows. Between them stand other chunks, padded to an even length.
3. Anything else than PCM right behind a header that the head shows goes through the demuxer, and so
   does a file that is nearly over.
"""

from __future__ import annotations

from proxy.upload.packets import GRACE, PastLimit, Walk
from proxy.upload.source import Source

_NO_SIZE = (0, 0xFFFFFFFF)
_ENDLESS = 1 << 62
_CHUNK = 8  # bytes of a header: four letters and a size
#: Bytes that must be left for the count to be worth it.
_ENOUGH = 1024 * 1024


def find_samples(head: bytes) -> tuple[int, int] | None:
    """Where the samples start and where they end, by a WAV file's first bytes; None where those
    do not say."""
    at = 12
    size_64 = None
    while at + _CHUNK <= len(head):
        name, size = head[at : at + 4], int.from_bytes(head[at + 4 : at + 8], "little")
        at += _CHUNK
        if name == b"ds64":  # EBU Tech 3306: RF64 has its sizes here, in 64 bits
            size_64 = int.from_bytes(head[at + 8 : at + 16], "little", signed=True)
        elif name == b"data":
            if head[:4] != b"RIFF":
                return (at, at + size_64) if size_64 is not None and size_64 > 0 else None
            return at, at + (_ENDLESS if size in _NO_SIZE else size)
        at += size + size % 2
    return None


def count_samples(walk: Walk, source: Source, start: int, end: int, limit: float | None) -> bool:
    """Replace what the trial gave by what the whole file has. False, and nothing is done, where it
    has to be demuxed. Raises `PastLimit` when the bytes up to the limit are there."""
    if walk.end - walk.size != start or walk.total <= 0 or end - source.position < _ENOUGH:
        return False
    seconds = walk.total * walk.tick / walk.size  # of a byte
    most = _ENDLESS if limit is None else int((limit + GRACE) / seconds)
    counted = 0
    found: tuple[int, int] | None = (start, end)
    while found is not None:
        start, end = found
        there = source.skip_to(min(end, start + most - counted + 1))
        counted += min(source.position, end) - start
        if counted > most:
            raise PastLimit(counted * seconds)
        walk.end = source.position
        found = _next_samples(source) if there else None
    walk.total = walk.total * counted // walk.size
    walk.size = counted
    return True


def _next_samples(source: Source) -> tuple[int, int] | None:
    source.skip(source.position % 2)
    while len(header := source.peek(_CHUNK)) == _CHUNK:
        source.skip(_CHUNK)
        size = int.from_bytes(header[4:], "little")
        if header[:4] == b"data":
            return source.position, source.position + size
        source.skip(size + size % 2)
    return None
