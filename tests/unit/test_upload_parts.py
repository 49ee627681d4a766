"""The probe's pure pieces: wording, trailing tags, foreign content, layout."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zipfile

import pytest

from proxy.config.listeners import Upload
from proxy.core.memory.budget import Holding, MemoryBudget
from proxy.uploads import rejections
from proxy.uploads.form.reader import PART_END, Part
from proxy.uploads.form.rewrite import NewForm
from proxy.uploads.formats import mpeg_frames, polyglots
from proxy.uploads.formats.families import MPEG
from proxy.uploads.probe import refused
from proxy.uploads.probe.pool import memory_within
from proxy.uploads.probe.task import ProbeTask
from tests.uploads.drive import new_spool
from tests.uploads.growing import Growing

MIB = 2**20


def test_the_size_message_is_the_sprint_documents() -> None:
    """Word for word, with the facts beside it."""
    error = rejections.too_large(int(61.2 * MIB), 50 * MIB, "audio_file")
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
    assert rejections.size_text(size, measured=True) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(600, "10min"), (90, "1min 30s"), (4.5, "4.5s"), (10_800, "3h"), (3661, "1h 1min 1s")],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    """As the config's units."""
    assert rejections.duration_text(seconds) == text


def test_tags_at_the_end_of_an_mp3_are_no_junk() -> None:
    """ID3v1, APEv2 with and without header, Lyrics3v2, and nothing at all."""
    id3v1 = b"TAG" + bytes(125)
    footer = b"APETAGEX" + struct.pack("<III", 2000, 532, 1)
    lyrics = b"LYRICSBEGIN" + b"x" * 50 + b"000061LYRICS200"
    audio = b"\xff\xfb" * 4000
    assert mpeg_frames.trailing_tags(audio) == 0
    assert mpeg_frames.trailing_tags(audio + id3v1) == 128
    assert mpeg_frames.trailing_tags(audio + footer + struct.pack("<I", 0) + bytes(8)) == 532
    assert mpeg_frames.trailing_tags(audio + footer + struct.pack("<I", 1 << 31) + bytes(8)) == 564
    assert mpeg_frames.trailing_tags(audio + lyrics + id3v1) == len(lyrics) + 128


def test_noise_is_not_foreign() -> None:
    """A false alarm would refuse true audio."""
    for _ in range(200):
        noise = os.urandom(4096)
        assert not polyglots.starts_foreign(noise)


def zipped(comment: bytes = b"") -> bytes:
    """A small archive, as Python writes them."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.txt", b"hello")
        archive.comment = comment
    return out.getvalue()


ARCHIVE = zipped()
ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\0\x3e\0"
EXE = b"MZ" + bytes(58) + b"\x40\0\0\0PE\0\0\x64\x86" + bytes(18) + b"\x0b\x02"
NOT_AUDIO = {
    "application/zip": ARCHIVE,
    "application/x-executable": ELF,
    "application/x-dosexec": EXE,
    "application/pdf": b"%PDF-1.7\n",
    "application/x-rar": b"Rar!\x1a\x07\x01\0",
    "application/x-7z-compressed": b"7z\xbc\xaf\x27\x1c\0\4",
    "application/x-mach-binary": b"\xcf\xfa\xed\xfe\x07\0\0\x01",
    "text/html": b"<!DOCTYPE html>",
}


@pytest.mark.parametrize("what", NOT_AUDIO)
@pytest.mark.parametrize("before", [0, 1, 2**20 - 3, 2**20 + 100])
def test_other_content_is_found_wherever_it_begins(what: str, before: int) -> None:
    """Also where one piece that is searched ends and the next begins."""
    data = bytes(before) + NOT_AUDIO[what] + bytes(100)
    with pytest.raises(refused.NotAudio) as error:
        polyglots.refuse_foreign(Growing(data).whole_one(), [(0, len(data))])
    assert error.value.what == what


def test_noise_holds_nothing_foreign() -> None:
    """Nor do signatures without what belongs behind them."""
    noise = os.urandom(2**21) + b"PK\x03\x04PK\x05\x06\x7fELFPE\0\0%PDF-<html" + bytes(100)
    assert polyglots.find_foreign(noise) is None


@pytest.mark.parametrize("behind", [b"", b"x", b"TAG" + bytes(125), bytes(60_000)])
@pytest.mark.parametrize("comment", [b"", b"long" * 1000])
def test_a_zip_is_seen_whatever_stands_behind_it(behind: bytes, comment: bytes) -> None:
    """Its readers look for its directory from the end."""
    for archive in (zipped(comment), zipped(comment) * 2):
        source = Growing(bytes(3000) + archive + behind).whole_one()
        with pytest.raises(refused.NotAudio, match="zip"):
            polyglots.refuse_polyglot(source, b"RIFF")
    polyglots.refuse_polyglot(Growing(bytes(900) + b"PK\x05\x06" + bytes(50)).whole_one(), b"RIFF")


def test_a_pdf_is_seen_in_the_first_kilobyte() -> None:
    """Its readers accept it there."""
    with pytest.raises(refused.NotAudio, match="pdf"):
        polyglots.refuse_polyglot(
            Growing(b"x%%EOF\n").whole_one(), b"ID3" + bytes(500) + b"%PDF-1.7"
        )


def test_the_fields_keep_their_order_around_the_file() -> None:
    """Written anew, and each known by its name and the digest of its value."""
    memory = MemoryBudget()
    body = new_spool().body(lambda: None, sha256=True)
    form = NewForm(
        Upload(), body, lambda: body, Holding(memory.account("spool")),
        boundary=b"B", raw=False, digest=True,
    )  # fmt: skip
    for name, value in (("a", [b"1", b"2"]), ("b", []), ("audio_file", [b"mp3"]), ("a", [b"3"])):
        form.take(Part(name, "x" if value == [b"mp3"] else None, name.encode()))
        for piece in value:
            form.take(piece)
        if name != "audio_file":
            form.take(PART_END)
    values = [(b"a", b"12"), (b"b", b""), (b"a", b"3")]
    expected = [(b"field", name, hashlib.sha256(value).digest()) for name, value in values]
    expected.append((b"file", b"audio_file", hashlib.sha256(b"mp3").digest()))
    body.end()
    assert form.content() == expected
    assert memory.used == 3
    form.frame(MPEG)
    line = b'--B\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
    file = b'--B\r\nContent-Disposition: form-data; name="audio_file"; filename="x.mp3"\r\n'
    before = line % (b"a", b"12") + line % (b"b", b"") + file + b"Content-Type: audio/mpeg\r\n\r\n"
    assert b"".join(map(bytes, body.before)) == before  # type: ignore[arg-type]
    assert b"".join(map(bytes, body.after)) == b"\r\n" + line % (b"a", b"3") + b"--B--\r\n"  # type: ignore[arg-type]
    form.close()
    assert memory.used == 0


def test_probe_processes_share_what_the_container_has() -> None:
    """A quarter of it, 512 MiB at most, and never less than two take; large files get more each."""
    assert memory_within(None) == memory_within(16 * 2**30) == 512 * MIB
    assert memory_within(2**30) == 256 * MIB
    assert memory_within(64 * MIB) == 128 * MIB
    assert ProbeTask.of((), None, 50 * MIB).memory == 64 * MIB
    large = ProbeTask.of((), None, 2**30)
    assert (large.memory, large.cpu) == (128 * MIB, 18)


@pytest.mark.parametrize(
    ("found", "advice"),
    [
        ("audio/aac", "Convert it to M4A."),
        ("audio/x-ms-wma", "Convert it to MP3, M4A or WAV."),
        ("application/pdf", ""),
    ],
)
def test_a_rejected_type_comes_with_advice_where_there_is_some(found: str, advice: str) -> None:
    """Sound of another kind can be converted; a document cannot."""
    error = rejections.type_rejected(found, ["audio/mpeg"], "audio_file")
    assert error.detail.partition("). ")[2] == advice
