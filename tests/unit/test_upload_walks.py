"""Indexes followed, beside FFmpeg's own walk; and an MP3's frames distinguished from junk."""

from __future__ import annotations

import contextlib
import errno
import io
from collections.abc import Iterator
from itertools import islice

import av
import av.error
import av.logging
import pytest
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet

from proxy.uploads.formats import families, measure, packets
from proxy.uploads.probe import refused
from tests.bench.uploads import noise
from tests.uploads.growing import Growing


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    """FFmpeg has a lot to say about mutated files."""
    av.logging.set_level(av.logging.PANIC)


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
def test_an_index_gives_what_demuxing_does(name: str, cut: float) -> None:
    """To a packet, and of a file cut short only what is there; half a packet is not."""
    data = M4AS[name][: int(len(M4AS[name]) * cut)]
    (walk,) = packets.walk_file(lambda: io.BytesIO(data), families.MP4, None)
    found = measure.measure(Growing(data), families.MP4, None)
    assert found == pytest.approx(walk.seconds(), abs=0.12)


def test_too_long_is_known_before_the_end() -> None:
    """As soon as the fragments up to the limit have come."""
    source = Growing(M4AS["fragments"])
    with pytest.raises(refused.PastLimit) as past:
        measure.measure(source, families.MP4, 10.0)
    assert past.value.seconds == pytest.approx(10.3, abs=0.2)
    assert source.received < len(M4AS["fragments"])


class Short:
    """A container whose demuxer runs out of memory behind forty packets."""

    def __init__(self, container: InputContainer) -> None:
        self._container = container
        self.streams = container.streams

    def demux(self, streams: list[AudioStream]) -> Iterator[Packet]:
        """The packets that there is memory for."""
        yield from islice(self._container.demux(streams), 40)
        raise av.error.MemoryError(errno.ENOMEM, "no memory")


def test_what_there_is_no_memory_for_might_play() -> None:
    """So the packets before it are not all that the file has."""
    with packets.open_container(io.BytesIO(M4AS["opus"]), families.MP4) as container:
        (stream,) = packets.audio_streams(container, families.MP4)
        (walk,) = packets.new_walks([stream], families.MP4)
        with pytest.raises(refused.Undecodable, match="memory"):
            packets.walk_packets(Short(container), [stream], [walk], None)  # type: ignore[arg-type]
    assert walk.packets == 40


MP3 = noise("mp3", "libmp3lame", 12, {"write_xing": "0", "id3v2_version": "0"})
MP3S = {
    "bare": MP3,
    "table": noise("mp3", "libmp3lame", 12, {"id3v2_version": "0"}, bit_rate=128_000),
    "mpeg2": noise("mp3", "libmp3lame", 12, {"id3v2_version": "0"}, 22_050, 64_000),
    "mpeg25": noise("mp3", "libmp3lame", 12, {"id3v2_version": "0"}, 8000, 32_000),
    "tagged": MP3 + b"TAG" + bytes(125),
    "cut": MP3[:-700],
    "junk in front": bytes(500) + MP3,
    "junk within": MP3[:200_000] + bytes(700) + MP3[200_000:],
    "junk behind": MP3 + bytes(3000),
    "another kind behind": MP3 + noise("mp3", "libmp3lame", 4, {}, 22_050, 64_000),
    "short": MP3[:5000],
}


def played(data: bytes) -> float:
    """Seconds that FFmpeg's decoder makes of it; what does not decode plays nothing."""
    seconds = 0.0
    with av.open(io.BytesIO(data), format="mp3") as container:
        for packet in container.demux(audio=0):
            with contextlib.suppress(av.error.InvalidDataError):
                seconds += sum(frame.samples / frame.sample_rate for frame in packet.decode())
    return seconds


@pytest.mark.parametrize("name", MP3S)
def test_an_mp3_is_as_long_as_what_is_decoded(name: str) -> None:
    """But for the padding of encoders, and two frames where something stands between them."""
    data = MP3S[name]
    found = measure.measure(Growing(data), families.MPEG, None)
    assert found == pytest.approx(played(data), abs=0.16)


def test_an_mp3_that_is_too_long_is_known_before_its_end() -> None:
    """As soon as the frames up to the limit have come."""
    source = Growing(MP3 * 4)
    with pytest.raises(refused.PastLimit):
        measure.measure(source, families.MPEG, 15.0)
    assert source.received < len(MP3) * 3


def framed(frames: int, junk: int) -> bytes:
    """So many frames of 417 bytes, with bytes that are none between them, 10,000 at a time."""
    frame = b"\xff\xfb\x90\x00" + bytes(413)
    each = frames * 10_000 // junk
    return b"".join(frame * each + bytes(10_000) for _ in range(junk // 10_000))


@pytest.mark.parametrize(
    ("frames", "junk", "refused_as"),
    [
        (2000, 140_000, None),
        (2000, 700_000, None),
        (2000, 850_000, "junk"),
        (250, 110_000, "junk"),
    ],
)
def test_most_of_an_mp3_must_be_frames(frames: int, junk: int, refused_as: str | None) -> None:
    """As in a file with many unreadable sectors; in noise, few bytes are."""
    source = Growing(framed(frames, junk))
    if refused_as is not None:
        with pytest.raises(refused.Undecodable, match=refused_as):
            measure.measure(source, families.MPEG, None)
    else:
        seconds = measure.measure(source, families.MPEG, None)
        assert seconds == pytest.approx(frames * 1152 / 44_100, rel=0.1)


@pytest.mark.parametrize("behind", [b"", b"TAG" + bytes(125)], ids=["bare", "tagged"])
@pytest.mark.parametrize(("more", "refused_as"), [(0, None), (1, "junk")])
def test_an_mp3_may_be_half_junk(more: int, refused_as: str | None, behind: bytes) -> None:
    """To the byte; a tag is neither frame nor junk."""
    frame = b"\xff\xfb\x90\x00" + bytes(413)
    # FFmpeg takes the last frame before each gap for junk: 398 frames, and as much without them.
    data = frame * 200 + bytes(100 * 417) + frame * 200 + bytes(296 * 417 + more) + behind
    if refused_as is None:
        assert measure.measure(Growing(data), families.MPEG, None) > 0
    else:
        with pytest.raises(refused.Undecodable, match=refused_as):
            measure.measure(Growing(data), families.MPEG, None)
