"""The probe's pure pieces: wording, trailing tags, foreign content, the source of bytes, layout."""

from __future__ import annotations

import os
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.upload import foreign, measure, mp3, packets, verdicts
from proxy.upload.boxes import is_sequential
from proxy.upload.holding import Holding, Total
from proxy.upload.source import KEEP, Source
from tests.data.audio.generate import path_of

MIB = 2**20


def test_the_size_message_is_the_sprint_documents() -> None:
    """Word for word, with the facts beside it."""
    error = verdicts.too_large(int(61.2 * MIB), 50 * MIB, "audio_file")
    assert error.detail == "Audio file too large: 61.2MB (max: 50MB)"
    assert error.status == 400
    assert error.facts == {
        "limit": 50 * MIB,
        "measured": int(61.2 * MIB),
        "field": "audio_file",
    }


@pytest.mark.parametrize(
    ("size", "text"),
    [(50 * MIB, "50MB"), (50 * MIB + 1, "50.1MB"), (1536, "1.5KB"), (12, "12B"), (MIB, "1MB")],
)
def test_a_measured_size_never_reads_like_the_limit(size: int, text: str) -> None:
    """One byte over 50 MiB is not "50MB (max: 50MB)"."""
    assert verdicts.size_text(size, measured=True) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(600, "10min"), (90, "1min 30s"), (4.5, "4.5s"), (10_800, "3h"), (3661, "1h 1min 1s")],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    """As the config's units."""
    assert verdicts.duration_text(seconds) == text


def test_tags_at_the_end_of_an_mp3_are_no_junk() -> None:
    """ID3v1, APEv2 with and without header, Lyrics3v2, and nothing at all."""
    id3v1 = b"TAG" + bytes(125)
    footer = b"APETAGEX" + struct.pack("<III", 2000, 532, 1)
    lyrics = b"LYRICSBEGIN" + b"x" * 50 + b"000061LYRICS200"
    audio = b"\xff\xfb" * 4000
    assert mp3.trailing_tags(audio) == 0
    assert mp3.trailing_tags(audio + id3v1) == 128
    assert mp3.trailing_tags(audio + footer + struct.pack("<I", 0) + bytes(8)) == 532
    assert mp3.trailing_tags(audio + footer + struct.pack("<I", 1 << 31) + bytes(8)) == 564
    assert mp3.trailing_tags(audio + lyrics + id3v1) == len(lyrics) + 128


def test_noise_is_not_foreign() -> None:
    """A false alarm would refuse true audio."""
    for _ in range(200):
        noise = os.urandom(4096)
        assert not foreign.starts_foreign(noise)


def test_a_zip_and_a_pdf_are_seen_through_what_is_around_them() -> None:
    """Their readers look at the end and at the first KiB, and so do we."""
    directory = b"PK\x05\x06" + bytes(16) + struct.pack("<H", 3) + b"end"
    with pytest.raises(packets.NotAudio, match="zip"):
        measure.refuse_polyglot(b"RIFF", b"samples" + directory)
    measure.refuse_polyglot(b"RIFF", directory + b"samples")
    with pytest.raises(packets.NotAudio, match="pdf"):
        measure.refuse_polyglot(b"ID3" + bytes(500) + b"%PDF-1.7", b"x%%EOF\n")


def test_the_source_gives_the_head_twice_and_keeps_only_the_end() -> None:
    """Memory stays flat while any amount passes."""
    data = os.urandom(1_000_000)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        sent = ours.send(data[:50_000])
        source = Source(theirs.recv, sent)
        assert source.head == data[:sent]
        passed = source.read(100) + source.read()
        while sent < len(data):
            sent += (piece := ours.send(data[sent : sent + 50_000]))
            while piece > 0:
                got = source.read(piece)
                passed += got
                piece -= len(got)
        ours.shutdown(socket.SHUT_WR)
        source.drain()
    assert passed == data
    assert source.received == len(data)
    assert source.tail == data[-KEEP:]


def test_only_an_index_in_front_is_read_on_the_way() -> None:
    """`moov` before `mdat`, and never where the order is unknown."""
    assert is_sequential(path_of("m4a-first").read_bytes())
    assert is_sequential(path_of("m4a-fragmented").read_bytes())
    assert not is_sequential(path_of("m4a-last").read_bytes())
    assert not is_sequential(b"")
    assert not is_sequential(bytes(100))
    huge = struct.pack(">I4sQ", 1, b"free", 2**40)
    assert not is_sequential(huge + bytes(100))


@given(
    before=st.lists(st.binary(min_size=1, max_size=9000), max_size=9),
    file=st.lists(st.binary(min_size=1, max_size=9000), max_size=9),
)
def test_what_is_held_back_comes_out_in_order(before: list[bytes], file: list[bytes]) -> None:
    """With the file's head where it belongs, nothing lost, and the total as it was."""
    total = Total()
    held = Holding(1, total)
    for pieces, is_before in ((before, True), (file, False)):
        for piece in pieces:
            held.add(piece, before_file=is_before)
    assert held.size == total.size == len(b"".join(before + file))
    assert held.enough == bool(before + file)
    assert b"".join(held.take(b"HEAD")) == b"".join([*before, b"HEAD", *file])
    assert held.size == total.size == 0
