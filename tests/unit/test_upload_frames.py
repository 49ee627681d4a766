"""MPEG audio and ADTS headers, and the families' signatures."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.listeners import AudioType, Upload
from proxy.uploads.formats import families, mpeg_frames
from tests.data.audio.generate import path_of
from tests.uploads.audio import KINDS, id3
from tests.uploads.growing import Growing

FAMILY_OF = {
    "mp3": families.MPEG,
    "mp3-bare": families.MPEG,
    "alac": families.MP4,
    "vorbis": families.OGG,
    "opus": families.OGG,
    "ogg-flac": families.OGG,
    "flac": families.FLAC,
    "webm": families.WEBM,
    "aac": families.AAC,
}


@pytest.mark.parametrize(
    ("header", "length"),
    [
        (0xFFFB9000, 417),  # MPEG-1 layer III, 128 kbit/s, 44.1 kHz
        (0xFFFB9200, 418),  # the same, padded
        (0xFFF38000, 208),  # MPEG-2 layer III, 64 kbit/s, 22.05 kHz
        (0xFFE38000, 417),  # MPEG 2.5 layer III, 64 kbit/s, 11.025 kHz
        (0xFFFDA400, 576),  # MPEG-1 layer II, 192 kbit/s, 48 kHz
        (0xFFFF9400, 288),  # MPEG-1 layer I, 288 kbit/s, 48 kHz
        (0xFFFB0000, 0),  # free format
        (0xFFFBF000, 0),  # forbidden bit rate
        (0xFFFB9C00, 0),  # forbidden sampling rate
        (0xFFEB9000, 0),  # forbidden version
        (0xFFF99000, 0),  # forbidden layer
        (0x49443303, 0),  # ID3
    ],
)
def test_frame_lengths_are_those_of_the_standard(header: int, length: int) -> None:
    """Every version and layer, and every forbidden value."""
    assert mpeg_frames.frame_length(header) == length


def test_random_bytes_hold_no_credible_chain() -> None:
    """64 KiB of noise hold hundreds of headers, but no four that follow each other."""
    for _ in range(20):
        assert mpeg_frames.find_chain(os.urandom(families.HEAD)) == -1


def test_a_chain_is_found_behind_junk() -> None:
    """Leading junk does not hide the frames."""
    frames = path_of("mp3-bare").read_bytes()
    assert mpeg_frames.find_chain(b"\0" * 777 + frames) == 777


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_recognised(kind: str) -> None:
    """The signature alone suffices where libmagic does not know."""
    expected = FAMILY_OF.get(kind) or (families.WAV if kind.startswith("wav") else families.MP4)
    head = path_of(kind).read_bytes()[: families.HEAD]
    assert families.recognise(head, families.UNKNOWN_LABEL) is expected


def test_libmagic_may_say_no() -> None:
    """A foreign label refuses what only looks like a container."""
    head = path_of("opus").read_bytes()
    assert families.recognise(head, "application/pdf") is None


def test_frames_from_the_first_byte_outweigh_libmagic() -> None:
    """Eight frames in a row are more than any label knows of."""
    assert families.recognise(path_of("mp3-bare").read_bytes(), "image/x-tga") is families.MPEG


@pytest.mark.parametrize("kind", ["mp3", "flac", "aac", "wav", "opus"])
@pytest.mark.parametrize("size", [0, 300, 200_000])
def test_a_tag_is_followed_to_what_it_is_before(kind: str, size: int) -> None:
    """ID3v2 stands before other formats, too, however long it is."""
    source = Growing(id3(b"x" * size) * 2 + path_of(kind).read_bytes())
    assert families.skip_tags(source)
    head = source.peek(families.HEAD)
    family = FAMILY_OF.get(kind, families.WAV)
    for label in (families.UNKNOWN_LABEL, "audio/mpeg"):
        assert families.recognise(head, label, tagged=True) is family
    assert families.recognise(head, "image/png", tagged=True) in (None, families.MPEG)


@pytest.mark.parametrize("junk", [b"<html><body>", b"%PDF-1.4\n", b"PK\x03\x04", b"hello " * 200])
def test_leading_junk_that_is_something_is_no_junk(junk: bytes) -> None:
    """A page or an archive with an MP3 behind it is not an MP3 with junk before it."""
    frames = path_of("mp3-bare").read_bytes()
    assert families.recognise(junk + frames, families.UNKNOWN_LABEL) is None


@given(st.binary(max_size=4096), st.sampled_from(["text/plain", families.UNKNOWN_LABEL]))
def test_recognising_never_fails(head: bytes, label: str) -> None:
    """Any bytes at all give a family or None."""
    families.recognise(head, label)


def test_the_config_knows_the_same_names() -> None:
    """The schema's list and the families' are one, and the default takes each family once."""
    assert set(AudioType.__args__) == set(families.NAMES)
    compiled = families.compile_types(Upload().types)
    assert [family.media_type for family in compiled] == [
        "audio/mpeg",
        "audio/wav",
        "audio/mp4",
        "audio/ogg",
    ]
