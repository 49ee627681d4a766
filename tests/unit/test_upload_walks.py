"""Frames counted, in pieces of any size, indexes followed, and FFmpeg's own count beside ours."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator

import av.logging
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.upload import families, measure, mp3, mpeg, packets, refused
from proxy.upload.frames import CONTEXT, FrameCounter
from tests.bench.uploads import noise
from tests.uploads.growing import Growing

MIB = 2**20
HEADERS = (0xFFFB9000, 0xFFFB9200, 0xFFFBE264, 0xFFFA5000)  # one kind, four lengths
OTHER_KIND = 0xFFF38000


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    """FFmpeg has a lot to say about mutated files."""
    av.logging.set_level(av.logging.PANIC)


def frame(header: int) -> bytes:
    """A frame whose content is nothing."""
    return header.to_bytes(4, "big") + bytes(mpeg.frame_length(header) - 4)


def pieces(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    """`data` cut into pieces of these sizes, over and over."""
    at, turn = 0, 0
    while at < len(data):
        yield data[at : at + sizes[turn % len(sizes)]]
        at += sizes[turn % len(sizes)]
        turn += 1


_SIZES = st.lists(st.integers(1, 3000), min_size=1, max_size=5)


@given(st.lists(st.sampled_from(HEADERS), min_size=1, max_size=60), _SIZES)
def test_frames_are_counted_whatever_the_pieces(headers: list[int], sizes: list[int]) -> None:
    """All of them, and every byte; 1152 samples each at 44.1 kHz."""
    data = b"".join(map(frame, headers))
    counter = FrameCounter(data[:4])
    for piece in pieces(data, sizes):
        counter.feed(piece)
    assert (counter.frames, counter.size, counter.uncounted) == (len(headers), len(data), 0)
    assert counter.seconds == pytest.approx(len(headers) * 1152 / 44_100)
    assert not counter.broken


@given(
    st.lists(st.sampled_from(HEADERS), min_size=1, max_size=40),
    st.sampled_from([b"\0" * 50, b"TAG" + b"x" * 125, frame(OTHER_KIND), b"\xff\xfb\x00\x00xx"]),
    _SIZES,
)
def test_the_count_stops_at_what_is_no_such_frame(
    headers: list[int], behind: bytes, sizes: list[int]
) -> None:
    """What is handed over begins with whole frames, leaves out none of the bytes behind them, and
    is no longer counted."""
    data = b"".join(map(frame, headers)) + behind
    counter = FrameCounter(data[:4])
    fed = 0
    for piece in pieces(data, sizes):
        counter.feed(piece)
        fed += len(piece)
        if counter.broken:
            break
    assert counter.broken
    assert counter.frames == len(headers)
    rest = counter.rest()
    assert rest == data[counter.size : fed]
    again = len(headers) - counter.frames
    assert again == min(CONTEXT, len(headers))
    assert len(rest) == sum(mpeg.frame_length(h) for h in headers[counter.frames :]) + (
        fed - (len(data) - len(behind))
    )


def test_frames_begin_with_a_frame() -> None:
    """Whatever else comes first is refused."""
    with pytest.raises(ValueError, match="header"):
        FrameCounter(b"RIFF")


def measured(data: bytes) -> float | str:
    """Seconds, or why there are none."""
    source = Growing(data)
    try:
        return measure.measure(source, families.MPEG, None)
    except refused.NotAudio as error:
        return error.what
    except refused.Undecodable as error:
        return error.why


def demuxed(data: bytes) -> float | str:
    """The same with FFmpeg's demuxer from the first byte to the last."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mp3, "_lead", lambda source: b"")
        return measured(data)


_BARE = {"write_xing": "0", "id3v2_version": "0"}
# Noise: a tone's frames are so alike that FFmpeg finds false headers in them once it has lost step.
MP3S = {
    "bare": noise("mp3", "libmp3lame", 12, _BARE),
    "table": noise("mp3", "libmp3lame", 12, {}, bit_rate=128_000),
    "mpeg2": noise("mp3", "libmp3lame", 12, _BARE, 22_050, 64_000),
    "mpeg25": noise("mp3", "libmp3lame", 12, _BARE, 8000, 32_000),
}


@pytest.mark.parametrize("name", MP3S)
def test_counted_frames_are_those_that_ffmpeg_finds(name: str) -> None:
    """To the frame; the one that holds Xing's table plays nothing."""
    assert measured(MP3S[name]) == demuxed(MP3S[name])


@given(
    name=st.sampled_from(sorted(MP3S)),
    changes=st.lists(
        st.tuples(
            st.floats(0, 1),
            st.sampled_from(["flip", "noise", "zeros", "cut", "other"]),
            st.integers(1, 4000),
        ),
        max_size=3,
    ),
    ending=st.sampled_from([b"", b"TAG" + bytes(125), bytes(3000), b"\xff\xfb\x90"]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=120, deadline=None)
def test_broken_chains_are_measured_as_ffmpeg_would(
    name: str, changes: list[tuple[float, str, int]], ending: bytes, seed: int
) -> None:
    """Damaged anywhere, in any way: the same verdict, and the same length but for what damaged
    frames play."""
    generator = random.Random(seed)
    data = bytearray(MP3S[name])
    for where, change, size in changes:
        at = int(where * (len(data) - 1))
        if change == "flip":
            data[at] ^= 1 << size % 8
        elif change == "cut":
            del data[at : at + size]
        else:
            other = MP3S["mpeg2" if name == "bare" else "bare"]
            data[at:at] = {
                "noise": generator.randbytes(size),
                "zeros": bytes(size),
                "other": other[size : 3 * size],
            }[change]
    ours, theirs = measured(bytes(data + ending)), demuxed(bytes(data + ending))
    if isinstance(ours, str) or isinstance(theirs, str):
        assert ours == theirs
    else:
        assert ours == pytest.approx(theirs, rel=0.03, abs=0.4)


M4AS = {
    "first": noise("ipod", "aac", 20, {"movflags": "faststart"}),
    "last": noise("ipod", "aac", 20, {}),
    "fragments": noise("ipod", "aac", 20, {"movflags": "frag_keyframe+empty_moov"}),
    "hybrid": noise("ipod", "aac", 20, {"movflags": "frag_keyframe", "frag_duration": "1000000"}),
    "alac": noise("ipod", "alac", 20, {"movflags": "faststart"}),
    "opus": noise("mp4", "libopus", 20, {"movflags": "faststart"}, 48_000, 96_000),
    "flac": noise("mp4", "flac", 20, {"movflags": "faststart", "strict": "-2"}),
}


@pytest.mark.parametrize(
    ("name", "cut"),
    [(name, cut) for name in M4AS for cut in (1.0, 0.999, 0.7) if name != "last" or cut == 1.0],
)
def test_an_index_tells_what_demuxing_does(name: str, cut: float) -> None:
    """To a packet, and of a file cut short only what is there; half a packet is not."""
    data = M4AS[name][: int(len(M4AS[name]) * cut)]
    with packets.open_container(io.BytesIO(data), families.MP4) as container:
        streams = packets.audio_streams(container, families.MP4)
        walk = packets.Walk(float(streams[0].time_base or 1))
        packets.walk_packets(container, streams, [walk], families.MP4, None)
    source = Growing(data)
    found = measure.measure(source, families.MP4, None)
    assert found == pytest.approx(walk.seconds(), abs=0.12)


@pytest.mark.parametrize("name", ["first", "fragments", "alac"])
def test_too_long_is_known_before_the_end(name: str) -> None:
    """As soon as the samples up to the limit have come."""
    source = Growing(M4AS[name])
    with pytest.raises(refused.PastLimit) as past:
        measure.measure(source, families.MP4, 10.0)
    assert past.value.seconds == pytest.approx(10.3, abs=0.2)
    assert source.received < len(M4AS[name])
