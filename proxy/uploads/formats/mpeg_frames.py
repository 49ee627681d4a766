"""MPEG audio and ADTS frame headers: frame lengths and chains of frames.

Rules:
1. A header alone proves nothing: 11 set bits occur every 2 KiB in random bytes. Only a chain of
   frames of the same kind counts, each beginning where the one before ends.
2. "Same kind" is version, layer and sampling rate; bit rate, padding and channel mode may change
   from frame to frame (ISO/IEC 11172-3 §2.4.2.3).
3. Free format (bit rate index 0) is not supported, as in FFmpeg.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

# kbit/s by index, for (MPEG version, layer): ISO/IEC 11172-3 and 13818-3
_BIT_RATES = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_SAMPLE_RATES = (44_100, 48_000, 32_000)
_SLOWER = {3: 0, 2: 1, 0: 2}  # version bits: MPEG-1, MPEG-2 (half the rate), MPEG 2.5 (a quarter)

SAME_KIND = 0xFFFE0C00  # sync, version, layer, sampling rate: rule 2
ADTS_SAME_KIND = 0xFFFFFC00  # the same for ADTS: protection, profile and sampling rate too


@lru_cache(maxsize=4096)
def frame_length(header: int) -> int:
    """Bytes of the MPEG audio frame with this 32-bit header, header included; 0 if invalid."""
    if header & 0xFFE00000 != 0xFFE00000:
        return 0
    version, layer = header >> 19 & 3, 4 - (header >> 17 & 3)
    bit_rate, sample_rate = header >> 12 & 15, header >> 10 & 3
    if version == 1 or layer == 4 or not 0 < bit_rate < 15 or sample_rate == 3:
        return 0
    bits = _BIT_RATES[1 if version == 3 else 2, layer][bit_rate - 1] * 1000
    rate = _SAMPLE_RATES[sample_rate] >> _SLOWER[version]
    padding = header >> 9 & 1
    if layer == 1:
        return (12 * bits // rate + padding) * 4
    per_frame = 72 if layer == 3 and version != 3 else 144
    return per_frame * bits // rate + padding


def adts_length(header: bytes) -> int:
    """Bytes of the ADTS frame that starts with these 7 bytes; 0 if they are no header."""
    if len(header) < 7 or header[0] != 0xFF or header[1] & 0xF6 != 0xF0:
        return 0
    length = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
    return length if length > 7 and header[2] >> 2 & 15 < 13 else 0


def _length_at(head: bytes, at: int) -> int:
    return frame_length(int.from_bytes(head[at : at + 4], "big"))


def _adts_at(head: bytes, at: int) -> int:
    return adts_length(head[at : at + 7])


def chain(head: bytes, at: int, *, adts: bool = False, stop_after: int = 8) -> tuple[int, bool]:
    """How many frames of one kind follow each other from `at`, and whether the chain ran to the
    end of `head` (or to `stop_after`) without breaking."""
    length_at: Callable[[bytes, int], int] = _adts_at if adts else _length_at
    mask = ADTS_SAME_KIND if adts else SAME_KIND
    kind = int.from_bytes(head[at : at + 4], "big") & mask
    frames = 0
    while frames < stop_after:
        if at + 7 > len(head):
            return frames, True
        if int.from_bytes(head[at : at + 4], "big") & mask != kind:
            return frames, False
        length = length_at(head, at)
        if not length:
            return frames, False
        frames += 1
        at += length
    return frames, True


def find_chain(head: bytes, *, adts: bool = False) -> int:
    """Where in `head` a credible chain of frames begins, or -1. Four frames in a row are credible
    anywhere (random bytes: 1 in 10^15), two only if they end the file."""
    at = head.find(b"\xff")
    while at != -1 and at + 7 <= len(head):
        frames, unbroken = chain(head, at, adts=adts, stop_after=4)
        if frames >= 4 or (unbroken and frames >= 2):
            return at
        at = head.find(b"\xff", at + 1)
    return -1


def trailing_tags(tail: bytes) -> int:
    """Bytes of the tags that end an MP3: ID3v1 (128), Lyrics3v2 and APEv2 before it."""
    size = 0
    if tail[-128:-125] == b"TAG":
        size = 128
    rest = tail[: len(tail) - size]
    if rest.endswith(b"LYRICS200") and rest[-15:-9].isdigit():
        size += int(rest[-15:-9]) + 15
        rest = tail[: max(0, len(tail) - size)]
    if rest[-32:-24] == b"APETAGEX":  # APEv2 footer: size with footer, without header
        has_header = rest[-9] & 0x80
        size += int.from_bytes(rest[-20:-16], "little") + (32 if has_header else 0)
    return size
