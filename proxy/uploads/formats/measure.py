"""The duration of a file: how to measure it for each family, so that no crafted file plays longer.

Rules:
1. The packets that exist are counted. Durations in headers are compared with them, not trusted
   (packets.py). The largest of several measures wins.
2. Measuring stops as soon as it is past the limit.
3. Bytes that no decoder reads are searched for other formats (polyglots.py). They must be less
   than half of an MP3, since FFmpeg finds "audio" in any bytes.
4. FFmpeg's parser adds whatever stands between two FLAC frames to the frame before. So a FLAC's
   sound is searched as well, while it arrives, and its metadata except comments, pictures and seek
   points.
"""

from __future__ import annotations

from proxy.uploads.formats.families import FLAC, MP4, MPEG, OGG, WAV, WEBM, FormatFamily
from proxy.uploads.formats.mp4 import measure_mp4
from proxy.uploads.formats.mpeg_frames import trailing_tags
from proxy.uploads.formats.ogg import measure_ogg
from proxy.uploads.formats.packets import MAX_ENTRIES, settle, walk_file
from proxy.uploads.formats.polyglots import OVERLAP, Searched, refuse_foreign
from proxy.uploads.formats.wav import measure_wav
from proxy.uploads.probe.refused import Undecodable
from proxy.uploads.probe.source import ENDLESS, Prefixed, Source

_STREAM_INFO = 38  # bytes of FLAC's first block, with its header
_READ_BLOCKS = frozenset({0, 3, 4, 6})  # stream info, seek table, comments, picture (RFC 9639 §8)
_TAIL = 64 * 1024  # bytes at the end in which tags are looked for


def measure(source: Source, family: FormatFamily, limit: float | None) -> float:
    """Seconds that the file plays; `source` is positioned after its tags. Raises `NotAudio`,
    `Undecodable` or `PastLimit`."""
    own_way = _MEASURES.get(family)
    return own_way(source, limit) if own_way else _measure_frames(source, family, limit)


def _measure_frames(source: Source, family: FormatFamily, limit: float | None) -> float:
    """MP3, AAC and WebM: the whole file goes through the demuxer."""
    begin = source.position
    walks = walk_file(lambda: source.back(begin), family, limit)
    source.drain()
    walk, end = walks[0], source.received
    if family is not WEBM:
        end -= trailing_tags(source.at(max(begin, end - _TAIL), _TAIL))
    gaps = [(begin + start, begin + stop) for start, stop in walk.gaps]
    refuse_foreign(source, [*gaps, (begin + walk.last, end)])
    junk = walk.size - walk.covered - (source.received - end)
    if family is MPEG and junk > walk.covered:
        raise Undecodable("junk")
    return settle(walks, limit)


def _measure_flac(source: Source, limit: float | None) -> float:
    """Rule 4."""
    head = _flac_head(source)
    begin = source.position
    walks = walk_file(lambda: Searched(Prefixed(head, source.back(begin))), FLAC, limit)
    refuse_foreign(source, [(max(begin, source.position - OVERLAP), ENDLESS)])  # what is left
    return settle(walks, limit)


def _flac_head(source: Source) -> bytes:
    """The one block of metadata that a decoder needs; moves `source` to the first frame. Searches
    the blocks that no decoder reads."""
    magic = source.peek(4 + _STREAM_INFO)
    if magic[4] & 0x7F != 0:
        return b""  # FFmpeg's to judge
    at = source.position + 4
    for _ in range(MAX_ENTRIES):
        header = source.at(at, 4)
        begin, at = at + 4, at + 4 + int.from_bytes(header[1:], "big")
        if len(header) == 4 and header[0] & 0x7F not in _READ_BLOCKS:
            refuse_foreign(source, [(begin, at)])
        if len(header) < 4 or header[0] & 0x80:
            source.skip(at - source.position)
            return magic[:4] + bytes((0x80,)) + magic[5:]
    raise Undecodable("entries")


_MEASURES = {OGG: measure_ogg, WAV: measure_wav, MP4: measure_mp4, FLAC: _measure_flac}
