"""Other people's file formats, where bytes that nobody parses could hide them.

PCM samples may be any bytes, and MP3 players skip what is no frame: so what stands first in a WAV's
samples, before an MP3's first frame or behind its last one is compared with the first bytes of
common formats. Only signatures of at least 27 bits are in the list, so that noise does not match.
"""

from __future__ import annotations

import re

_SIGNATURES = (
    rb"PK\x03\x04|%PDF-|\x7fELF|\x89PNG\r\n|GIF8[79]a|\xff\xd8\xff[\xdb\xe0-\xef]|Rar!\x1a\x07"
    rb"|7z\xbc\xaf\x27\x1c|\x1f\x8b\x08[\0-\x1f]|BZh[1-9]1AY|\xfd7zXZ\0|\xd0\xcf\x11\xe0\xa1\xb1"
    rb"|<(?:!doctype|html|script|svg|\?xml|\?php)|#!\s*/|OggS|fLaC|\xca\xfe\xba\xbe"
)
_AT_START = re.compile(rb"\s*(?:" + _SIGNATURES + rb")", re.IGNORECASE)
_ANYWHERE = re.compile(rb"%PDF-|\x7fELF|PK\x03\x04|<(?:!doctype|html|script|\?php)", re.IGNORECASE)
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e]{512,}")  # 64 ms of 8 kHz PCM that never crosses silence


def starts_foreign(data: bytes) -> bool:
    """Whether `data` begins like another format, or is nothing but text."""
    return bool(_AT_START.match(data) or _TEXT.fullmatch(data))


def contains_foreign(data: bytes) -> bool:
    """Whether something else begins anywhere in `data`, which no audio decoder will read."""
    return bool(_ANYWHERE.search(data))
