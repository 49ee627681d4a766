"""What crosses to a probe process and what need not; and samples counted beside FFmpeg's walk."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Iterator

import av.logging
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.upload import families, measure, packets, session
from proxy.upload.source import Source
from proxy.upload.spool import Spool
from proxy.upload.transfer import KEEP, MOST_ASKED, Receiver, Sender
from tests.uploads.audio import encode

MIB = 2**20
NOISE = random.Random(11).randbytes(6 * MIB)


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    """FFmpeg has a lot to say about mutated files."""
    av.logging.set_level(av.logging.PANIC)


class Link:
    """A sender and a receiver of one file; `ahead` bytes are on their way before they are read.
    `crossed` counts what was sent, headers and all."""

    def __init__(self, data: bytes, piece: int = 65_536, ahead: int = 0) -> None:
        self.sender = Sender()
        self.asked: list[tuple[int, int]] = []
        self.crossed = 0
        self._ahead = ahead
        self._pieces = iter([data[at : at + piece] for at in range(0, len(data), piece)])
        self._under_way = bytearray()
        self._ended = False

    def receive(self, size: int) -> bytes:
        """A socket's `recv`."""
        while not self._ended and len(self._under_way) < max(size, self._ahead):
            piece = next(self._pieces, None)
            self._ended = piece is None
            out = self.sender.go_on() if piece is None else self.sender.send(piece)
            self._under_way += b"".join(out)
        taken = bytes(self._under_way[:size])
        del self._under_way[:size]
        self.crossed += len(taken)
        return taken

    def ask(self, start: int, end: int) -> None:
        """A request of the process."""
        self.asked.append((start, end))
        self.sender.leave_out(start, end)

    def source(self) -> Source:
        """The file as the process reads it."""
        return Source(Receiver(self.receive), families.HEAD, self.ask)


def received(link: Link) -> Iterator[tuple[int, bytes]]:
    """What comes out: places in the file and their bytes."""
    take, at = Receiver(link.receive), 0
    while got := take(50_000):
        if isinstance(got, int):
            at += got
        else:
            yield at, got
            at += len(got)


@given(
    size=st.integers(0, 1_200_000),
    piece=st.sampled_from([1_000, 65_536, 300_000, 2_000_000]),
    asked=st.lists(
        st.tuples(st.integers(0, 1_300_000), st.integers(0, 900_000), st.integers(0, 20)),
        max_size=4,
    ),
)
@settings(deadline=None)
def test_only_what_was_asked_away_is_missing(
    size: int, piece: int, asked: list[tuple[int, int, int]]
) -> None:
    """Whenever it is asked: every byte that comes is where it belongs, none is missing that was not
    asked away, and the end of the file is there."""
    data = NOISE[:size]
    link = Link(data, piece)
    holes = sorted((start, start + length, turn) for start, length, turn in asked)
    missing = bytearray(b"\1" * size)
    for turn, (at, got) in enumerate(received(link)):
        assert data[at : at + len(got)] == got
        missing[at : at + len(got)] = bytes(len(got))
        for start, end, when in holes:
            if when == turn:
                link.ask(start, end)
    for start, end in link.asked:
        missing[start:end] = bytes(len(missing[start:end]))
    assert not any(missing)
    tail = max(0, size - KEEP)
    there = bytearray(size - tail)
    for at, got in received(fresh := Link(data, piece)):
        if not fresh.asked:
            fresh.ask(0, 2 * size)
        first = max(at, tail)
        there[first - tail : at + len(got) - tail] = got[max(0, first - at) :]
    assert bytes(there) == data[tail:]


def test_requests_have_their_bounds() -> None:
    """A process that has lost its mind fills no memory of the proxy's."""
    sender = Sender()
    for number in range(1000):
        sender.leave_out(number * 10, number * 10 + 5)
    assert len(sender._asked) == MOST_ASKED
    assert not session._is_answer({"leave_out": "everything"})
    assert not session._is_answer({"leave_out": [1]})
    assert not session._is_answer({"leave_out": [1.5, "x"]})
    assert session._is_answer({"leave_out": [1, 2**64]})


# --- samples ------------------------------------------------------------------------------------


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


def measured(data: bytes, limit: float | None = None, *, demuxed: bool = False) -> float | str:
    """Seconds, or why there are none; with `demuxed`, by FFmpeg's packets alone."""
    source = Link(data, ahead=300_000).source()
    with pytest.MonkeyPatch.context() as patch:
        if demuxed:
            patch.setattr(measure, "find_samples", lambda head: None)
        try:
            return measure.measure(source, families.WAV, limit)
        except packets.NotAudio as error:
            return error.what
        except packets.Undecodable as error:
            return error.why
        except packets.PastLimit:
            return "long"


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
    assert found == pytest.approx(measured(WAVS[name], demuxed=True), abs=1e-6)
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
    """The same reason, or the same length, but for what rounding makes of packets that are no whole
    samples."""
    data = bytearray(WAVS[name][: cut or None] + behind)
    for at, value in flips:
        if at < len(data):
            data[at] = value
    ours, theirs = measured(bytes(data)), measured(bytes(data), demuxed=True)
    assert ours == (
        theirs if isinstance(theirs, str) else pytest.approx(theirs, rel=1e-4, abs=1e-3)
    )


def test_most_of_a_long_file_never_crosses() -> None:
    """PCM, and the sound before an MP4's index; the length is what it was."""
    wav = header() + chunk(b"data", NOISE * 4)
    link = Link(wav, ahead=500_000)
    seconds = measure.measure(link.source(), families.WAV, None)
    assert seconds == pytest.approx(len(NOISE) * 4 / 176_400)
    assert link.crossed < len(wav) / 10
    alac = encode("alac", 120, 44_100)
    media = alac.index(b"mdat") - 4
    assert media < 100
    assert len(alac) > 5 * MIB
    whole, part = io.BytesIO(alac), Link(alac, ahead=300_000)
    spools = []
    for source in (Source(whole.read, families.HEAD), part.source()):
        spool = Spool(io.BytesIO())
        spool.fill(source)
        spools.append(spool.file.read())
        assert measure.measure(source, families.MP4, None, spool=spool) == pytest.approx(120, 0.01)
    assert spools[0] == spools[1]
    assert part.crossed < len(alac) - MIB


def test_too_long_is_known_before_the_end() -> None:
    """Though the bytes up to the limit are only counted."""
    wav = header() + chunk(b"data", NOISE * 4)
    source = Link(wav, ahead=500_000).source()
    with pytest.raises(packets.PastLimit) as refused:
        measure.measure(source, families.WAV, 30.0)
    assert refused.value.seconds == pytest.approx(30.3, abs=0.1)
    assert source.received < 8 * MIB
