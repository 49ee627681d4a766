"""Files that are not what they seem: renamed, glued together, cut, lying, and mutated at random."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from typing import Any

import av.logging
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.uploads.formats.families import BY_MEDIA_TYPE
from proxy.uploads.probe import process as probe
from tests.data.audio.generate import path_of
from tests.uploads.audio import KINDS, encode, film, id3, wav_header
from tests.uploads.growing import Growing

SNIFFER = probe.load_sniffer()
SAMPLES = {kind: path_of(kind).read_bytes() for kind in KINDS}


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    """FFmpeg has a lot to say about these files."""
    av.logging.set_level(av.logging.PANIC)


def examine(data: bytes, limit: float | None = 600.0) -> dict[str, Any]:
    """The probe's last word on `data`, from the code that runs in its processes."""
    types = tuple(BY_MEDIA_TYPE)
    return probe.judge(Growing(data), SNIFFER, types, limit, lambda **_: None)


def zipped() -> bytes:
    """A small archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.txt", b"hello " * 2000)
    return out.getvalue()


PDF = b"%PDF-1.4\n1 0 obj<</A " + b"(text)" * 800 + b">>endobj\ntrailer<<>>\n%%EOF\n"
HTML = b"<!DOCTYPE html><html><script>alert(1)</script>" + b"<p>hello</p>" * 1500 + b"</html>"
ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\0\x3e\0" + bytes(range(256)) * 100
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\x02\0\0\0" + bytes(5000)
TEXT = b"Just some lines of text.\n" * 500
MP3, M4A, WAV = SAMPLES["mp3-bare"], SAMPLES["m4a-first"], SAMPLES["wav"]
MEDIA = M4A.index(b"mdat") + 4
NOISE = os.urandom(60_000)

FALSE = {
    "pdf": PDF,
    "zip": zipped(),
    "html": HTML,
    "elf": ELF,
    "png": PNG,
    "text": TEXT,
    "noise": NOISE,
    "zeros": bytes(100_000),
    "ones": b"\xff" * 100_000,
    "frame headers only": b"\xff\xfb\x90\x00" * 20_000,
    "tag before a pdf": id3() + PDF,
    "tag before a zip": id3() + zipped(),
    "tag before a page": id3() + HTML,
    "tag before a program": id3() + ELF,
    "tag before nothing": id3(b"x" * 5000),
    "tag that claims to be long": id3(PDF, claimed=200_000_000),
    "mp3 behind a pdf": PDF + MP3,
    "mp3 behind a zip": zipped() + MP3,
    "mp3 behind a page": HTML + MP3,
    "mp3 behind a program": ELF + MP3,
    "mp3 before a zip": MP3 * 20 + zipped(),
    "mp3 before a pdf": MP3 * 20 + PDF,
    "mp3 before a page": MP3 * 20 + HTML,
    "mp3 in noise": NOISE[:30_000] + MP3[:1500] + NOISE * 4,
    "wav header before a zip": wav_header(20_000) + zipped(),
    "wav header before a pdf": wav_header(20_000) + PDF,
    "wav header before a page": wav_header(20_000) + HTML,
    "wav header before a program": wav_header(20_000) + ELF,
    "wav header before text": wav_header(20_000) + TEXT,
    "wav before a zip": WAV + zipped(),
    "wav header": wav_header(0),
    "mp4 brand before a page": M4A[:32] + HTML,
    "mp4 brand before noise": M4A[:32] + NOISE,
    "mp4 brand": M4A[:32],
    "mp4 index without media": M4A[:MEDIA],
    "mp4 with noise for media": M4A[:MEDIA] + NOISE[: len(M4A) - MEDIA],
    "mp4 with zeros for media": M4A[:MEDIA] + bytes(len(M4A) - MEDIA),
    "mp4 without its index": SAMPLES["m4a-last"][:4000],
    "ogg header before noise": SAMPLES["opus"][:150] + NOISE,
    "flac header": SAMPLES["flac"][:60],
    "film, mp4": film("mp4"),
    "film, webm": film("webm"),
}


@pytest.mark.parametrize("name", FALSE)
def test_nothing_false_is_let_through(name: str) -> None:
    """Type or duration: there is a refusal, never a crash."""
    assert examine(FALSE[name])["refused"] in ("type", "unknown")


TRUE = {
    "tag with a large picture": id3(b"\x89PNG" + NOISE * 20) + MP3,
    "tag of the wrong length": id3(b"x" * 300, claimed=100) + MP3,
    "leading zeros": bytes(500) + MP3,
    "leading noise": NOISE[:5000] + MP3 * 5,
    "trailing tag": MP3 + b"TAG" + b"Title".ljust(125, b"\0"),
    "trailing zeros": MP3 * 5 + bytes(4000),
    "two joined, of two rates": MP3 * 3 + encode("mp3-bare", 1.0, 44_100),
    "wav of unknown length": wav_header(0xFFFFFFFF) + WAV[-8000:],
    "wav with metadata behind": WAV + b"LIST" + struct.pack("<I", 2000) + bytes(2000),
    "mp3 cut short": MP3[: len(MP3) // 2],
    "mp4 cut short": M4A[: len(M4A) - 1500],
    "ogg cut short": encode("opus", 4.0)[:-9000],
    "two oggs joined": SAMPLES["vorbis"] * 2,
}


@pytest.mark.parametrize("name", TRUE)
def test_nothing_true_is_refused(name: str) -> None:
    """Untidy, but audio."""
    assert 0.3 < examine(TRUE[name])["duration"] < 5.5


def patched(data: bytes, box: bytes, offset: int, value: int) -> bytes:
    """`data` with 32 bits changed at `offset` behind the box's name."""
    at = data.index(box) + 4 + offset
    return data[:at] + value.to_bytes(4, "big") + data[at + 4 :]


def test_headers_that_lie_change_nothing() -> None:
    """The packets are measured, whatever the header says."""
    short, long = SAMPLES["mp3"], encode("mp3", 660, 8000, silent=True)
    mark = b"Info" if b"Info" in short else b"Xing"
    assert examine(patched(short, mark, 4, 400_000))["duration"] == pytest.approx(1.0, abs=0.2)
    mark = b"Info" if b"Info" in long else b"Xing"
    assert examine(patched(long, mark, 4, 30))["refused"] == "long"
    three_hours = patched(patched(M4A, b"mvhd", 16, 10_800_000), b"mdhd", 16, 10_800 * 16_000)
    assert examine(three_hours)["duration"] == pytest.approx(1.0, abs=0.2)
    eleven = encode("m4a-first", 660, 8000, silent=True)
    assert examine(patched(eleven, b"mdhd", 12, 800_000))["refused"] == "long"  # 100 x faster
    assert examine(patched(eleven, b"stts", 12, 0))["refused"] == "long"  # no time per packet
    one_second_claimed = wav_header(8000, 8000, 8) + bytes([128]) * 660 * 8000
    assert examine(one_second_claimed)["refused"] == "long"


FALSE_FIELDS = {
    "samples of a byte": [(b"stsz", 4, 1), (b"stsz", 8, 50_000_000), (b"stsc", 12, 50_000_000)],
    "samples of nothing": [(b"stsz", 8, 0xFFFFFFFF)],
    "times": [(b"stts", 8, 0xFFFFFFFF)],
    "entries of times": [(b"stts", 4, 0x20000000)],
    "entries of places": [(b"stco", 4, 0x40000000)],
    "entries of chunks": [(b"stsc", 4, 0x15555556)],
}


@pytest.mark.parametrize("layout", ["m4a-first", "m4a-last"])
@pytest.mark.parametrize("name", FALSE_FIELDS)
def test_an_index_that_claims_too_much_is_not_expanded(
    name: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kilobyte that stands for gigabytes is judged before FFmpeg sees it."""
    data = encode(layout, 2.0, 8000, silent=True)
    for box, offset, value in FALSE_FIELDS[name]:
        data = patched(data, box, offset, value)
    monkeypatch.setattr("proxy.uploads.formats.mp4.open_container", None)
    answer = examine(data)
    assert (answer["refused"], answer["why"]) == ("unknown", "entries")


def test_no_limit_still_measures() -> None:
    """`max_duration: null`."""
    assert examine(encode("mp3", 660, 8000, silent=True), None)["duration"] > 659


@given(
    kind=st.sampled_from(sorted(KINDS)),
    changes=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=12),
    cut=st.floats(0.05, 1),
)
@settings(max_examples=120, deadline=20_000)
def test_mutated_files_get_an_answer(
    kind: str, changes: list[tuple[float, bytes]], cut: float
) -> None:
    """Accepted or refused: the probe neither raises nor hangs nor answers nonsense."""
    data = bytearray(SAMPLES[kind])
    for where, what in changes:
        at = int(where * (len(data) - 1))
        data[at : at + len(what)] = what
    answer = examine(bytes(data[: int(cut * len(data))]))
    assert answer.keys() & {"duration", "refused"}
    assert answer.get("refused") in (None, "type", "unknown", "long")
