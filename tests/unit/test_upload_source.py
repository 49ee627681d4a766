"""A file that comes while it is read: what is waited for and what is not; and samples counted
beside FFmpeg's walk."""

from __future__ import annotations

import io
import os
import random
import struct

import av
import av.error
import av.logging
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.uploads.formats import families, measure
from proxy.uploads.probe import refused
from proxy.uploads.probe.source import Source, SpoolUnreadable
from tests.uploads.audio import encode
from tests.uploads.growing import Growing

MIB = 2**20
NOISE = random.Random(11).randbytes(6 * MIB)


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    """FFmpeg has a lot to say about mutated files."""
    av.logging.set_level(av.logging.PANIC)


@given(
    size=st.integers(0, 1_200_000),
    steps=st.lists(
        st.tuples(st.sampled_from(["read", "peek", "skip"]), st.integers(0, 400_000)),
        max_size=12,
    ),
)
@settings(deadline=None)
def test_a_growing_file_reads_like_a_whole_one(size: int, steps: list[tuple[str, int]]) -> None:
    """The same bytes at the same places; nothing is read that is not there."""
    data = NOISE[:size]
    source, plain = Growing(data), io.BytesIO(data)
    for step, number in steps:
        at = plain.tell()
        match step:
            case "read":
                got = source.read(number)
                assert got == plain.read(len(got))
                assert got or not number or at == size
            case "peek":
                assert source.peek(number) == plain.read(number)
                plain.seek(at)
            case "skip":
                source.skip(number)
                plain.seek(min(at + number, size))
        assert source.position == plain.tell()


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-500, 2_000)), max_size=12))
def test_a_whole_file_seeks_like_any_other(seeks: list[tuple[int, int]]) -> None:
    """From each of the three places, also behind the end; never before the beginning."""
    data = NOISE[:1000]
    ours, plain = Growing(data), io.BytesIO(data)
    assert not ours.seekable()
    ours.rewind()
    assert ours.seekable()
    for whence, offset in seeks:
        base = (0, plain.tell(), len(data))[whence]
        if base + offset < 0:
            with pytest.raises(ValueError, match="negative"):
                ours.seek(offset, whence)
            continue
        assert ours.seek(offset, whence) == plain.seek(base + offset)
        assert ours.read(100) == plain.read(100)
        assert ours.tell() == plain.tell()


def test_a_spool_that_is_shorter_than_it_should_be_is_noticed() -> None:
    """As one that cannot be read: that is no end of the file."""
    file = os.memfd_create("spool")
    os.write(file, b"abc")
    source = Source(file, 5, True, lambda _: (5, True))
    assert source.peek(3) == b"abc"
    with pytest.raises(SpoolUnreadable):
        source.peek(5)
    os.close(file)
    with pytest.raises(SpoolUnreadable):
        source.peek(3)


def chunk(name: bytes, content: bytes, claimed: int | None = None) -> bytes:
    """A RIFF chunk, padded; `claimed` is the length that it says."""
    size = len(content) if claimed is None else claimed
    return name + struct.pack("<I", size & 0xFFFFFFFF) + content + b"\0" * (len(content) % 2)


def header(tag: int = 1, channels: int = 2, rate: int = 44_100, bits: int = 16) -> bytes:
    """Up to the samples; the length of the whole is 2^32-1, which nobody minds."""
    block = channels * bits // 8
    shape = struct.pack("<HHIIHH", tag, channels, rate, rate * block, block, bits)
    return b"RIFF\xff\xff\xff\xffWAVE" + chunk(b"fmt ", shape)


def rf64(samples: bytes, claimed: int | None = None) -> bytes:
    """The same with 64 bits of length."""
    size = len(samples) if claimed is None else claimed
    sizes = chunk(b"ds64", struct.pack("<QqQI", 0, size, 0, 0))
    return b"RF64\xff\xff\xff\xffWAVE" + sizes + header()[12:] + chunk(b"data", samples, 2**32 - 1)


def measured(data: bytes, limit: float | None = None) -> float | str:
    """Seconds, or why there are none."""
    try:
        return measure.measure(Growing(data), families.WAV, limit)
    except refused.NotAudio as error:
        return error.what
    except refused.Undecodable as error:
        return error.why
    except refused.PastLimit:
        return "long"


class Pipe:
    """A file that cannot seek: of several chunks of samples FFmpeg plays the last one only where it
    can."""

    def __init__(self, data: bytes) -> None:
        self.read = io.BytesIO(data).read


def played(data: bytes) -> float:
    """Seconds in the packets that FFmpeg finds in the whole file; 0 if it finds no WAV, or decodes
    none of the first (513 channels, say, are too many)."""
    try:
        with av.open(Pipe(data), format="wav", metadata_errors="replace") as container:
            tick = float(container.streams.audio[0].time_base or 1)
            packets = list(container.demux())
            seconds = sum(packet.duration or 0 for packet in packets) * tick
            return seconds if any(map(decodes, packets[:32])) else 0.0
    except (av.error.FFmpegError, IndexError):
        return 0.0


def decodes(packet: av.Packet) -> bool:
    """Whether FFmpeg makes sound of it."""
    try:
        return bool(packet.decode())
    except (av.error.FFmpegError, ValueError):
        return False


S3 = NOISE[: 3 * MIB]
LIST = chunk(b"LIST", b"INFO" + bytes(2001))
WAVS = {
    "s16": header() + chunk(b"data", S3),
    "u8": header(bits=8, channels=1, rate=8000) + chunk(b"data", S3),
    "s24": header(bits=24, channels=1) + chunk(b"data", S3[:-1]),
    "s32": header(bits=32) + chunk(b"data", S3),
    "float": header(tag=3, bits=32) + chunk(b"data", bytes(3 * MIB)),
    "a-law": header(tag=6, bits=8) + chunk(b"data", S3),
    "six channels": header(channels=6) + chunk(b"data", S3),
    "length unknown, 0": header() + chunk(b"data", S3, 0),
    "length unknown, -1": header() + chunk(b"data", S3, -1),
    "longer than it is": header() + chunk(b"data", S3, 4 * MIB),
    "cut inside a sample": header() + chunk(b"data", S3)[:-3],
    "metadata in front": header() + LIST + chunk(b"data", S3),
    "metadata behind": header() + chunk(b"data", S3) + LIST,
    "little claimed": header() + chunk(b"data", S3, 2 * MIB),
    "a second chunk": header() + chunk(b"data", S3) + LIST + chunk(b"data", S3[: 2 * MIB]),
    "a second chunk, cut": header() + chunk(b"data", S3) + chunk(b"data", S3)[: 2 * MIB],
    "odd chunks": header() + LIST + chunk(b"data", S3[:-1]) + LIST + chunk(b"data", S3),
    "a chunk of nothing": header() + chunk(b"data", S3) + chunk(b"data", b"") + LIST,
    "rf64": rf64(S3),
    "rf64 that lies": rf64(S3, 2 * MIB),
    "adpcm": encode("wav", 1.0)[:20] + b"\x02" + header(bits=4)[21:] + chunk(b"data", S3),
}  # fmt: skip


@pytest.mark.parametrize("name", WAVS)
def test_counted_samples_are_those_that_ffmpeg_plays(name: str) -> None:
    """To the sample, wherever they stand and whatever the header says."""
    found = measured(WAVS[name])
    if not played(WAVS[name]):
        assert found == "no_audio"
        return
    assert found == pytest.approx(played(WAVS[name]), abs=1e-4)
    if isinstance(found, float):
        assert measured(WAVS[name], found - 1) == "long"
        assert measured(WAVS[name], found) == pytest.approx(found)


@given(
    name=st.sampled_from(sorted(WAVS)),
    flips=st.lists(st.tuples(st.integers(0, 100), st.integers(0, 255)), max_size=3),
    cut=st.integers(0, 4 * MIB),
    behind=st.sampled_from([b"", LIST, chunk(b"data", S3[:MIB]), b"\0" * 5000, b"data"]),
)
@settings(max_examples=80, deadline=None)
def test_damaged_headers_are_read_as_ffmpeg_does(
    name: str, flips: list[tuple[int, int]], cut: int, behind: bytes
) -> None:
    """The same length, but for what rounding makes of packets that are no whole samples; and more
    where much stands behind the samples that is no chunk."""
    data = bytearray(WAVS[name][: cut or None] + behind)
    for at, value in flips:
        if at < len(data):
            data[at] = value
    ours, theirs = measured(bytes(data)), played(bytes(data))
    if theirs:
        assert isinstance(ours, float)
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-3) or ours > theirs


def test_too_long_is_known_before_the_end() -> None:
    """As soon as the samples up to the limit have come."""
    wav = header() + chunk(b"data", NOISE * 4)
    source = Growing(wav)
    with pytest.raises(refused.PastLimit) as past:
        measure.measure(source, families.WAV, 30.0)
    assert past.value.seconds == pytest.approx(30.5, abs=0.2)
    assert source.received < 8 * MIB
