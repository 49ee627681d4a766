"""Indexes followed, beside FFmpeg's own walk; and an MP3's frames told from what is none."""

from __future__ import annotations

import io

import av.logging
import pytest

from proxy.upload import families, measure, packets, refused
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
def test_an_index_tells_what_demuxing_does(name: str, cut: float) -> None:
    """To a packet, and of a file cut short only what is there; half a packet is not."""
    data = M4AS[name][: int(len(M4AS[name]) * cut)]
    (walk,) = packets.walk_file(io.BytesIO(data), families.MP4, None)
    found = measure.measure(Growing(data), families.MP4, None)
    assert found == pytest.approx(walk.seconds(), abs=0.12)


def test_too_long_is_known_before_the_end() -> None:
    """As soon as the fragments up to the limit have come."""
    source = Growing(M4AS["fragments"])
    with pytest.raises(refused.PastLimit) as past:
        measure.measure(source, families.MP4, 10.0)
    assert past.value.seconds == pytest.approx(10.3, abs=0.2)
    assert source.received < len(M4AS["fragments"])
