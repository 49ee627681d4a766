"""Families of audio formats: what a configured type means in bytes, labels and demuxers.

Rules:
1. A name in the config (`audio/mpeg`) stands for a family. The type that the client declares is
   ignored; libmagic's label can only veto.
2. A family is recognised by its *signature* in the first 64 KiB. libmagic's label must be one that
   it gives to real files of that family, or "unknown" (`application/octet-stream`).
3. The label is ignored if the signature is stronger than anything libmagic checks: eight MPEG audio
   frames in a row from the first byte on.
4. Each family is opened with exactly ONE FFmpeg demuxer. FFmpeg never guesses a format, so its
   playlist, image and network formats are unreachable.
5. Containers that also carry films (MP4, Matroska, Ogg) are accepted only without a video track;
   cover art is not a video track.

The labels are those of libmagic 5.37 to 5.46 for files written by FFmpeg, sox, LAME, iTunes, phone
recorders and browsers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from proxy.uploads.formats import mpeg_frames
from proxy.uploads.formats.polyglots import starts_foreign
from proxy.uploads.probe.source import Source

HEAD = 64 * 1024  # bytes for signature and libmagic; FFmpeg skips as much leading junk
UNKNOWN_LABEL = "application/octet-stream"


@dataclass(frozen=True, eq=False)  # one object per family: compared and hashed by identity
class FormatFamily:
    """One row of the table. `media_type`: the part's `Content-Type` upstream; `extensions`: those
    that a file name may keep, the first one replaces any other; `options`: the demuxer's."""

    media_type: str
    demuxer: str
    labels: frozenset[str]
    extensions: tuple[str, ...]
    options: Mapping[str, str]


def _family(
    media_type: str, demuxer: str, labels: str, extensions: str, **options: str
) -> FormatFamily:
    return FormatFamily(
        media_type, demuxer, frozenset(labels.split()), tuple(extensions.split()), options
    )


MPEG = _family(
    "audio/mpeg",
    "mp3",
    # libmagic 5.41 concatenates two labels for some MPEG-2 layer III files
    "audio/mpeg audio/mp3 audio/x-mp3 audio/x-mpeg audio/mpegapplication/octet-stream",
    ".mp3 .mp2 .mpga",
)
WAV = _family(
    "audio/wav",
    "wav",
    "audio/x-wav audio/wav audio/wave audio/vnd.wave",
    ".wav .wave .rf64",
    # Packets of 64 KiB instead of 4 are an eighth of the work. The small probe size keeps FFmpeg
    # from searching 2 MB of PCM for DTS (110 ms measured).
    max_size="65536",
    probesize="65536",
)
MP4 = _family(
    "audio/mp4",
    "mov",
    "audio/x-m4a audio/mp4 audio/m4a audio/3gpp audio/3gpp2 audio/x-m4b audio/aac audio/vnd.audible"
    " video/mp4 video/x-m4v video/quicktime video/3gpp video/3gpp2 application/mp4",
    ".m4a .mp4 .m4b .3gp .mov",
)
OGG = _family(
    "audio/ogg",
    "ogg",
    "audio/ogg audio/x-vorbis+ogg audio/x-opus+ogg audio/opus audio/vorbis application/ogg"
    " video/ogg",
    ".ogg .oga .opus .spx",
)
FLAC = _family("audio/flac", "flac", "audio/flac audio/x-flac", ".flac")
WEBM = _family(
    "audio/webm",
    "matroska",
    "video/webm audio/webm video/x-matroska audio/x-matroska application/x-matroska",
    ".webm .weba .mka .mkv",
)
AAC = _family(
    "audio/aac",
    "aac",
    "audio/x-hx-aac-adts audio/aac audio/aacp audio/x-aac audio/mpeg",
    ".aac .adts",
)

# The names for a config. Some of the sprint document's names share a family.
NAMES: Mapping[str, FormatFamily] = {
    "audio/mpeg": MPEG,
    "audio/wav": WAV,
    "audio/x-wav": WAV,
    "audio/mp4": MP4,
    "audio/m4a": MP4,
    "audio/ogg": OGG,
    "audio/flac": FLAC,
    "audio/webm": WEBM,
    "audio/aac": AAC,
}
BY_MEDIA_TYPE: Mapping[str, FormatFamily] = {family.media_type: family for family in NAMES.values()}

_MP4_FIRST_BOXES = frozenset(b"ftyp moov mdat free skip wide pnot styp sidx moof uuid".split())


def compile_types(types: Iterable[str]) -> tuple[FormatFamily, ...]:
    """The families of the configured names, without duplicates, in the given order. Raises
    `KeyError` for unknown names, which the config schema has already rejected."""
    return tuple(dict.fromkeys(NAMES[name] for name in types))


def recognise(head: bytes, label: str, *, tagged: bool = False) -> FormatFamily | None:
    """The family of a file that starts with `head` (after its ID3v2 tags if `tagged`) and has
    libmagic's `label`; None if there is none."""
    family, certain = _by_signature(head, tagged=tagged)
    if family is None:
        return None
    if certain or label == UNKNOWN_LABEL or label in family.labels:
        return family
    return family if tagged and label in MPEG.labels else None  # libmagic's label for the tag


def _by_signature(head: bytes, *, tagged: bool) -> tuple[FormatFamily | None, bool]:
    """The family whose signature `head` has, and whether that overrides libmagic (rule 3)."""
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        return WAV, False
    if head[:4] == b"OggS":
        return OGG, False
    if head[:4] == b"fLaC":
        return FLAC, False
    if not tagged:  # these may not follow a tag
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return WEBM, False
        if head[4:8] in _MP4_FIRST_BOXES:
            return MP4, False
    whole = len(head) < HEAD
    sound = head[: len(head) - mpeg_frames.trailing_tags(head)] if whole else head
    frames, unbroken = mpeg_frames.chain(sound, 0)
    if frames >= 8:
        return MPEG, True
    if mpeg_frames.chain(sound, 0, adts=True)[0] >= 2:
        return AAC, False
    if whole and unbroken and frames:
        return MPEG, False
    # Leading junk: the earlier chain of the two wins, unless the junk is a known format.
    chains = (
        (mpeg_frames.find_chain(sound), MPEG),
        (mpeg_frames.find_chain(sound, adts=True), AAC),
    )
    at, family = min(chains, key=lambda chain: chain[0] if chain[0] >= 0 else len(head))
    if starts_foreign(head if at < 0 else head[:at]):
        return None, False
    if at < 0:  # a tag may be longer than it claims: FFmpeg decides
        return (MPEG if tagged and head else None), False
    return family, False


def after_id3(head: bytes) -> int:
    """Where the audio starts after any ID3v2 tags (id3.org, ID3v2.4 §3.1: the length is 4 x 7
    bits, without the header, and a footer adds 10). 0 if there is no tag that FFmpeg reads."""
    at = 0
    while head[at : at + 3] == b"ID3" and len(head) >= at + 10:
        flags, *size = head[at + 5 : at + 10]
        if 0xFF in head[at + 3 : at + 5] or max(size) > 0x7F:
            break
        length = 0
        for byte in size:
            length = length << 7 | byte & 0x7F
        at += 10 + length + (10 if flags & 0x10 else 0)
    return at


def skip_tags(source: Source) -> bool:
    """Move to where the audio starts after any ID3v2 tags. Returns whether there were any."""
    tagged = False
    while (size := after_id3(source.peek(HEAD))) > 0:
        source.skip(size)
        tagged = True
    return tagged
