"""True files of unusual build are accepted, and measured as a decoder plays them; files that claim
less than they play, or carry something else, are refused."""

from __future__ import annotations

import io
import os
import random
import struct
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import chain, cycle, repeat
from pathlib import Path

import av
import pytest

from proxy.uploads.formats import packets, polyglots
from proxy.uploads.formats.families import BY_MEDIA_TYPE
from proxy.uploads.probe import process as probe
from tests.data.audio.generate import path_of
from tests.integration.test_upload_hostile import SNIFFER, examine
from tests.unit.test_upload_parts import NOT_AUDIO, zipped
from tests.uploads import audio
from tests.uploads.audio import KINDS, encode, film, id3, wav_header
from tests.uploads.growing import Growing
from tests.uploads.mp4_edit import box, boxes, edited, reindexed, sizes_of

SAMPLES = {kind: path_of(kind).read_bytes() for kind in KINDS}
WAV, MP3, OPUS, M4A = (SAMPLES[kind] for kind in ("wav", "mp3-bare", "opus", "m4a-last"))


@pytest.fixture(autouse=True)
def more_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codecs in MP4 that few files have."""
    more = {
        "opus-mp4": ("mp4", "libopus", {}),
        "flac-mp4": ("mp4", "flac", {"strict": "-2"}),
        "ac3-mp4": ("mp4", "ac3", {}),
        "pcm-mov": ("mov", "pcm_s16le", {}),
        "mulaw-mov": ("mov", "pcm_mulaw", {}),
        "webm-live": ("webm", "libopus", {"live": "1"}),
    }
    monkeypatch.setattr(audio, "KINDS", KINDS | more)


def page_crc(page: bytes) -> bytes:
    """`page` of an Ogg file with the checksum that it needs (RFC 3533 §6)."""
    crc = 0
    for byte in page[:22] + bytes(4) + page[26:]:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
    return page[:22] + struct.pack("<I", crc) + page[26:]


def with_pre_skip(opus: bytes, samples: int) -> bytes:
    """Another pre-skip in the first page."""
    end = opus.index(b"OggS", 4)
    at = opus.index(b"OpusHead") + 10
    return page_crc(opus[:at] + struct.pack("<H", samples) + opus[at + 2 : end]) + opus[end:]


def ending_at(opus: bytes, granule: int) -> bytes:
    """Another position in the last page."""
    at = opus.rindex(b"OggS")
    return opus[:at] + page_crc(opus[at : at + 6] + struct.pack("<q", granule) + opus[at + 14 :])


def edit_from(m4a: bytes, media_time: int) -> bytes:
    """Its one edit begins there."""
    at = m4a.index(b"elst") + 16
    return m4a[:at] + struct.pack(">I", media_time) + m4a[at + 4 :]


def riff(*chunks: tuple[bytes, bytes], magic: bytes = b"RIFF") -> bytes:
    """A WAV of these chunks."""
    order = ">I" if magic == b"RIFX" else "<I"
    content = b"".join(n + struct.pack(order, len(c)) + c + b"\0" * (len(c) % 2) for n, c in chunks)
    return magic + struct.pack(order, len(content) + 4) + b"WAVE" + content


def chaptered(path: Path, *, first: bool) -> bytes:
    """An M4B with two chapters, whose names are a text track."""
    options = {"movflags": "faststart"} if first else {}
    base = Fraction(1, 1000)
    with av.open(str(path), "w", format="ipod", options=options) as container:
        container.set_chapters(
            [
                {"id": n, "start": n * 500, "end": n * 500 + 500, "time_base": base,
                 "metadata": {"title": f"Part {n}"}}
                for n in range(2)
            ]
        )  # fmt: skip
        with av.open(io.BytesIO(M4A)) as source:
            stream = container.add_stream_from_template(source.streams.audio[0])
            for packet in source.demux(source.streams.audio[0]):
                if packet.size:
                    packet.stream = stream
                    container.mux(packet)
    return path.read_bytes()


@pytest.mark.parametrize("first", [True, False])
def test_chapters_are_no_film(tmp_path: Path, first: bool) -> None:
    """With the index first or last."""
    data = chaptered(tmp_path / "book.m4b", first=first)
    assert data.count(b"trak") == 2
    assert examine(data)["duration"] == pytest.approx(1.0, abs=0.1)


def pictured(
    pictures: int, *, chapters: bool = False, codec: str = "mjpeg", container: str = "mp4"
) -> bytes:
    """A file with a second of sound and a track of so many pictures, which are those of chapters
    (in MP4) or nobody's."""
    out = io.BytesIO()
    with av.open(out, "w", format=container) as target:
        audio = target.add_stream("aac", rate=48_000)
        audio.layout = "mono"
        video = target.add_stream(codec, rate=1)
        video.width = video.height = 32
        video.pix_fmt = {"mjpeg": "yuvj420p", "png": "rgb24"}.get(codec, "yuv420p")
        for number in range(pictures):
            picture = av.VideoFrame(32, 32, video.pix_fmt)
            picture.pts = number
            target.mux(video.encode(picture))
        sound = av.AudioFrame(format="fltp", layout="mono", samples=48_000)
        sound.planes[0].update(bytes(48_000 * 4))
        sound.sample_rate, sound.pts = 48_000, 0
        for stream, frame in ((audio, sound), (audio, None), (video, None)):
            target.mux(stream.encode(frame))
    if container != "mp4":
        return out.getvalue()
    index = dict(boxes(out.getvalue()))[b"moov"]
    tracks = [box(kind, inner) for kind, inner in boxes(index)]
    first = next(at for at, track in enumerate(tracks) if track[4:8] == b"trak")
    if chapters:
        tracks[first] = box(
            b"trak", tracks[first][8:] + box(b"tref", box(b"chap", struct.pack(">I", 2)))
        )
    return out.getvalue().replace(box(b"moov", index), box(b"moov", b"".join(tracks)))


def test_pictures_of_chapters_are_no_film(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as there are few; the same pictures beside the sound are one."""
    assert examine(pictured(3, chapters=True))["duration"] == pytest.approx(1.0, abs=0.1)
    assert examine(pictured(3, chapters=False))["what"] == "audio/mp4 with a video track"
    monkeypatch.setattr(packets, "MAX_ENTRIES", 10)
    assert examine(pictured(11, chapters=True))["what"] == "audio/mp4 with a video track"


@pytest.mark.parametrize(
    ("codec", "container"), [("mjpeg", "mp4"), ("png", "mp4"), ("mjpeg", "matroska")]
)
def test_a_single_still_is_a_cover(codec: str, container: str) -> None:
    """Some programs write covers as video tracks. Two pictures are a film, as is one frame of a
    codec that is none of images."""
    one = pictured(1, codec=codec, container=container)
    assert examine(one)["duration"] == pytest.approx(1.0, abs=0.1)
    for data in (
        pictured(2, codec=codec, container=container),
        pictured(1, codec="mpeg4", container=container),
    ):
        assert examine(data)["what"].endswith(" with a video track")


def test_a_recording_without_lengths_is_measured() -> None:
    """As browsers write WebM: no duration, no index, no length of a block."""
    data = encode("webm-live", 3.0)
    with av.open(io.BytesIO(data)) as container:
        assert container.duration is None
    assert examine(data)["duration"] == pytest.approx(3.0, abs=0.1)
    assert examine(data, 2.0)["refused"] == "long"
    assert examine(data[:-2000], 600)["duration"] < 3.0


FORMAT = WAV[20:36]
SOUND = WAV[WAV.index(b"data") + 8 :]
METADATA = {
    "id3": (b"id3 ", id3(os.urandom(300_000))),
    "list": (b"LIST", b"INFO" + bytes(200_001)),
    "bext": (b"bext", bytes(602)),
    "junk": (b"JUNK", bytes(500_000)),
    "axml": (b"axml", b"<?xml version='1.0'?>" + b"<a/>" * 60_000),
}
SWAPPED = riff(
    (b"fmt ", struct.pack(">HHIIHH", *struct.unpack("<HHIIHH", FORMAT))),
    (b"data", bytes(SOUND[at ^ 1] for at in range(len(SOUND) // 2 * 2))),
    magic=b"RIFX",
)
TRUE = {
    **{f"{n} behind": riff((b"fmt ", FORMAT), (b"data", SOUND), m) for n, m in METADATA.items()},
    **{f"{n} before": riff(m, (b"fmt ", FORMAT), (b"data", SOUND)) for n, m in METADATA.items()},
    **{f"{n} between": riff((b"fmt ", FORMAT), m, (b"data", SOUND)) for n, m in METADATA.items()},
    "no name before": riff((b"fmt ", FORMAT), (b"fa\x10t", bytes(10)), (b"data", SOUND)),
    "rifx": SWAPPED,
    "tag before a wav": id3() + WAV,
    "large tag before a wav": id3(os.urandom(100_000)) + WAV,
    "tag before an ogg": id3() + OPUS,
    "large tag before a flac": id3(os.urandom(100_000)) + SAMPLES["flac"],
    "underflow of the last packet": ending_at(OPUS, 47_000),
    "no end of the last packet": ending_at(OPUS, 0),
    "longest pre-skip": with_pre_skip(encode("opus", 2.0), 48_000),
    "cut in the head of the second link": OPUS + SAMPLES["vorbis"][:60],
    "edit from one second on": edit_from(encode("m4a-last", 2.0), 1024 + 48_000),
    "a thousand empty boxes": M4A + box(b"free", b"") * 1000,
}


@pytest.mark.parametrize("name", TRUE)
def test_a_second_of_sound_is_accepted(name: str) -> None:
    """However it is wrapped."""
    assert examine(TRUE[name])["duration"] == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("kind", ["mp3", "mp3-bare", "aac", "opus", "vorbis", "m4a-first", "flac"])
@pytest.mark.parametrize("seconds", [0.02, 0.05, 0.1, 0.2])
def test_a_moment_of_sound_is_accepted(kind: str, seconds: float) -> None:
    """A few frames, with a tag behind them where such files have tags."""
    data = encode(kind, seconds)
    assert 0 < examine(data)["duration"] < seconds + 0.15
    if kind.startswith("mp3"):
        assert 0 < examine(data + b"TAG" + bytes(125))["duration"] < seconds + 0.15


def test_every_link_of_a_chain_counts() -> None:
    """Of whatever codec, and up to the limit."""
    both = OPUS + SAMPLES["vorbis"] + SAMPLES["ogg-flac"]
    assert examine(both)["duration"] == pytest.approx(3.0, abs=0.2)
    assert examine(both, 2.5)["refused"] == "long"
    eleven = encode("vorbis", 660, 8000, silent=True)
    for first in (OPUS, SAMPLES["vorbis"], SAMPLES["vorbis"] + OPUS):
        assert examine(first + eleven)["refused"] == "long"
    assert examine(eleven + OPUS, 700)["duration"] == pytest.approx(661, abs=0.5)
    assert examine(OPUS * 300) == {"refused": "unknown", "why": "entries"}


def test_a_film_behind_sound_is_a_film() -> None:
    """As the second link of a chain."""
    both = film("ogg")
    for data in (both, OPUS + both, OPUS + both + OPUS):
        assert examine(data)["what"] == "audio/ogg with a video track"


LONG = ["m4a-last", "alac", "opus-mp4", "flac-mp4", "pcm-mov", "mulaw-mov", "ac3-mp4"]


@pytest.mark.parametrize("kind", LONG)
def test_eleven_minutes_do_not_pass_as_less(kind: str) -> None:
    """Whatever the index claims: fifty times less, nine minutes, or more than one frame in some of
    its samples. (Tenths of it all.)"""
    data = encode(kind, 66, 48_000 if kind.startswith("ac3") else 8000, silent=True)
    assert examine(data, 60)["refused"] == "long"
    scale = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)[0]
    assert examine(faster(data, scale * 50), 60)["refused"] == "long"
    assert examine(faster(data, scale * 11 // 9), 60)["refused"] == "long"
    sizes = sizes_of(data)
    if kind == "m4a-last":
        ticks = 66 * scale // len(sizes)
        assert examine(reindexed(data, [sum(sizes)], [5 * scale]), 60)["refused"] == "long"
        for few in (2, 50):
            joined = join_some(sizes, few)
            assert examine(reindexed(data, joined, [ticks] * len(joined)), 60)["refused"] == "long"


def faster(data: bytes, scale: int) -> bytes:
    """With another number of ticks in a second."""
    at = data.index(b"mdhd") + 16
    return data[:at] + struct.pack(">I", scale) + data[at + 4 :]


def join_some(sizes: Sequence[int], few: int) -> list[int]:
    """Every sample behind the first forty holds `few` frames, or is one of twenty that are left."""
    joined, at, generator = list(sizes[:40]), 40, random.Random(few)
    while at < len(sizes):
        take = few if generator.random() < 0.9 else 1
        joined.append(sum(sizes[at : at + take]))
        at += take
    return joined


def joined(kind: str, container: str, pattern: Iterator[int]) -> bytes:
    """132 seconds of silence, of which a packet holds as many frames as `pattern` says, and claims
    to play one."""
    out = io.BytesIO()
    data = encode(kind, 132, 48_000 if kind == "ac3-mp4" else 8000, silent=True)
    options = {"strict": "-2"}
    with (
        av.open(io.BytesIO(data)) as source,
        av.open(out, "w", format=container, options=options) as target,
    ):
        stream = target.add_stream_from_template(source.streams.audio[0])
        frames = [bytes(one) for one in source.demux(audio=0) if one.size]
        source.seek(0)
        length = next(source.demux(audio=0)).duration
        time = at = 0
        while at < len(frames):
            take = next(pattern)
            packet = av.Packet(b"".join(frames[at : at + take]))
            packet.pts = packet.dts = time
            packet.duration, packet.time_base = length, source.streams.audio[0].time_base
            packet.stream = stream
            target.mux(packet)
            time, at = time + (length or 0), at + take
    return out.getvalue()


@pytest.mark.parametrize(
    ("kind", "container"),
    [(k, c) for k in ("flac-mp4", "m4a-last", "ac3-mp4") for c in ("mp4", "matroska")]
    + [("flac-mp4", "ogg")],
)
@pytest.mark.parametrize("pattern", ["half", "one in three", "one in ten", "a few"])
def test_several_frames_in_a_packet_count(kind: str, container: str, pattern: str) -> None:
    """Behind a beginning that is honest, be the file as small as it likes."""
    numbers = {
        "half": chain(repeat(1, 40), repeat(2)),
        "one in three": chain(repeat(1, 40), cycle((3, 1, 1))),
        "one in ten": chain(repeat(1, 100), cycle((20, *repeat(1, 9)))),
        "a few": chain(*(chain(repeat(1, 100), [100]) for _ in range(4)), repeat(1)),
    }
    assert examine(joined(kind, container, numbers[pattern]), 120)["refused"] == "long"


def with_damage(data: bytes, seconds: float) -> bytes:
    """With packets that play so long overwritten, from the fifth part of the file on."""
    out = bytearray(data)
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.audio[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        for packet in packets[len(packets) // 5 :]:
            if seconds > 0:
                seconds -= float((packet.duration or 0) * (stream.time_base or 0))
                assert packet.pos is not None
                header = 7 * (container.format.name == "aac")
                end = packet.pos + packet.size
                out[packet.pos + header : end] = b"\xff" * (packet.size - header)
    return bytes(out)


def test_an_index_whose_end_is_lacking_is_read_as_far_as_it_goes() -> None:
    """As FFmpeg reads it: what is lost are tags, unless much is."""
    tags = box(b"udta", box(b"meta", bytes(4) + box(b"ilst", bytes(5000))))
    tagged = b"".join(box(kind, inner + tags * (kind == b"moov")) for kind, inner in boxes(M4A))
    for cut in (1, 3000, 5030):
        assert examine(tagged[:-cut])["duration"] == pytest.approx(1.0, abs=0.1), cut
    at = tagged.index(b"moov")
    for end in (at + 4, at + 60):
        assert examine(tagged[:end]) == {"refused": "unknown", "why": "cut_short"}
    joined = M4A.replace(
        b"stsz" + M4A[M4A.index(b"stsz") + 4 :][:12], b"stsz" + bytes(8) + b"\xff" * 4
    )
    at = joined.index(b"trak") - 4
    assert examine(joined[:at] + b"\0\xff" + joined[at + 2 :])["why"] == "entries"


@pytest.mark.parametrize("kind", ["m4a-first", "m4a-fragmented", "aac", "ac3-mp4"])
def test_damage_counts_as_little_as_it_plays(kind: str) -> None:
    """Of 66 seconds, half of which no decoder plays."""
    data = encode(kind, 66, 48_000, silent=True)
    assert examine(with_damage(data, 3), 60)["refused"] == "long"
    assert 34 < examine(with_damage(data, 30), 40)["duration"] < 37
    assert examine(with_damage(data, 30), 30)["refused"] == "long"


def test_a_short_recording_in_matroska_is_accepted() -> None:
    """It is smaller than what is searched at the end of a longer one."""
    for kind in ("webm", "webm-live"):
        assert 0 < examine(encode(kind, 0.02, silent=True))["duration"] < 0.1


def test_time_stamps_make_nothing_longer() -> None:
    """A damaged one, in the cluster of a recording of three seconds, is a gap in it."""
    data = encode("webm-live", 3.0)
    at = data.rindex(b"\xe7\x82") + 2  # the last cluster's: two bytes, in milliseconds
    damaged = data[:at] + b"\xff\xff" + data[at + 2 :]
    assert examine(damaged, 10)["duration"] == pytest.approx(3.0, abs=0.1)


@pytest.mark.parametrize("what", NOT_AUDIO)
@pytest.mark.parametrize("tag", [b"", b"\0", b"TAG" + bytes(125)])
def test_other_content_behind_the_sound_is_found(what: str, tag: bytes) -> None:
    """In every family, with and without something behind it."""
    noise = random.Random(what).randbytes(2000)
    for kind, data in SAMPLES.items():
        found = examine(data + NOT_AUDIO[what] + noise + tag)
        assert found.get("what") == what, kind


def test_other_content_in_front_of_the_sound_is_found() -> None:
    """In boxes and chunks that nobody reads, and in the sound where no sample is."""
    elf = NOT_AUDIO["application/x-executable"] + bytes(100)
    void = b"\xec" + (len(elf) | 1 << 56).to_bytes(8, "big") + elf
    webm = encode("webm-live", 3.0)
    clusters = [at for at in range(len(webm)) if webm.startswith(b"\x1f\x43\xb6\x75", at)]
    first = SAMPLES["m4a-first"]
    moov_end = first.index(b"mdat") - 4
    for data in (
        first[:moov_end] + box(b"mdat", first[moov_end + 8 :] + elf),
        M4A + box(b"free", elf),
        M4A + box(b"skip", zipped()),
        riff((b"fmt ", FORMAT), (b"JUNK", elf), (b"data", SOUND)),
        bytes(300) + elf + MP3,
        MP3 + elf + MP3,
        *(webm[:at] + void + webm[at:] for at in clusters),
    ):
        assert examine(data)["refused"] == "type", data[:40]


def rf64(*behind: tuple[bytes, bytes], claimed: int | None = None) -> bytes:
    """One second whose length stands in 64 bits before the format, and chunks behind it."""
    sizes = struct.pack("<QQQI", 0, len(SOUND) if claimed is None else claimed, 0, 0)
    chunks = riff((b"ds64", sizes), (b"fmt ", FORMAT), (b"data", SOUND), *behind, magic=b"RF64")
    at = chunks.index(b"data") + 4
    return b"RF64" + b"\xff" * 4 + chunks[8:at] + b"\xff" * 4 + chunks[at + 4 :]


@pytest.mark.parametrize("tag", [b"", id3(bytes(10)), id3(bytes(11))], ids=["no", "even", "odd"])
@pytest.mark.parametrize("more", [b"", b"\0\0\0"], ids=["even", "odd"])
def test_chunks_have_even_lengths_wherever_they_begin(tag: bytes, more: bytes) -> None:
    """Odd ones are padded; a tag before them changes nothing, nor does it hide what is behind."""
    data = tag + riff((b"fmt ", FORMAT + more), (b"data", SOUND + more[:1]), (b"LIST", b"INFO"))
    assert examine(data)["duration"] == pytest.approx(1.0)
    elf = NOT_AUDIO["application/x-executable"] + bytes(100)
    assert examine(data + elf)["what"] == "application/x-executable"


def test_a_format_has_64_kib_at_most() -> None:
    """Its header included. None is that long."""
    for size, member in ((2**16 - 8, "duration"), (2**16 - 6, "refused")):
        longer = FORMAT + bytes(size - len(FORMAT))
        assert member in examine(riff((b"fmt ", longer), (b"data", SOUND))), size


def test_text_is_no_sound_where_it_is_all_that_the_sound_begins_with() -> None:
    """4 KiB of it."""
    for size, member in ((4095, "duration"), (4096, "refused")):
        text = b"A" * size + bytes(8000)
        assert member in examine(riff((b"fmt ", FORMAT), (b"data", text))), size


@pytest.mark.parametrize("name", [b"~ab ", b" ~~~", b"    ", b"\x7fabc", b"\x1fabc"])
def test_only_what_can_be_a_name_begins_a_chunk(name: bytes) -> None:
    """Behind the samples. What is no chunk counts as if it were played, where it is much."""
    seconds = examine(riff((b"fmt ", FORMAT), (b"data", SOUND), (name, bytes(200_000))))["duration"]
    assert (seconds > 10) == (name not in (b"~ab ", b" ~~~"))


@pytest.mark.parametrize("magic", [b"RF64", b"BW64"])
def test_lengths_of_64_bits_give_the_end_of_the_sound(magic: bytes) -> None:
    """What stands behind it is a chunk: tags that may say anything, others that are searched."""
    page, elf = b"INFO<!doctype html>", NOT_AUDIO["application/x-executable"] + bytes(100)
    assert examine(magic + rf64((b"LIST", page))[4:])["duration"] == pytest.approx(1.0, abs=0.01)
    assert examine(magic + rf64((b"JUNK", elf))[4:])["what"] == "application/x-executable"
    half = rf64((b"JUNK", elf), claimed=len(SOUND) // 2)
    assert examine(magic + half[4:])["refused"] == "type"
    # Only the first chunk of samples has its length there.
    two = rf64((b"data", SOUND[: len(SOUND) // 2]), (b"JUNK", elf))
    assert examine(magic + two[4:])["what"] == "application/x-executable"
    endless = rf64((b"JUNK", bytes(1000)), claimed=2**40)
    assert examine(magic + endless[4:])["duration"] == pytest.approx(1.063)


def flac_blocks(*more: tuple[int, bytes]) -> tuple[bytes, bytes]:
    """The FLAC file up to its first frame, with these blocks of metadata; and its frames."""
    flac = SAMPLES["flac"]
    at = 4
    while True:
        last, size = flac[at] & 0x80, int.from_bytes(flac[at + 1 : at + 4], "big")
        at += 4 + size
        if last:
            break
    head = flac[:4] + bytes((flac[4] & 0x7F,)) + flac[5:42]
    for number, (kind, data) in enumerate(more, 1):
        final = 0x80 * (number == len(more))
        head += bytes((kind | final,)) + len(data).to_bytes(3, "big") + data
    return head, flac[at:]


@pytest.mark.parametrize("what", sorted(NOT_AUDIO))
def test_a_flac_carries_nothing_but_sound(what: str) -> None:
    """Padding, applications' and unknown blocks are searched, and so is what stands between frames,
    which FFmpeg counts as a part of the one before; what quotes anything is not."""
    carried = NOT_AUDIO[what] + bytes(200)
    for kind in (1, 2, 5, 7, 126):
        head, frames = flac_blocks((4, bytes(8)), (kind, bytes(1500) + carried))
        assert examine(head + frames)["what"] == what, kind
    head, frames = flac_blocks((6, bytes(1500) + carried), (1, bytes(4000)))
    if what != "application/zip":  # whose readers find it in a picture as well
        assert examine(head + frames)["duration"] == pytest.approx(1.0)
    sync = frames[:2]
    at = frames.index(sync, len(frames) // 2)
    assert examine(head + frames[:at] + carried + frames[at:])["what"] == what


def test_a_flac_is_searched_while_it_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    """After its last byte nothing but the last piece is left, whatever its blocks and frames hold;
    and nothing between or behind them is passed over, wherever in a piece it begins."""
    noise = bytes(random.Random(1).randrange(256) for _ in range(1000)) * 3000
    head, frames = flac_blocks((1, noise[:1_000_000]), (2, noise[:1_500_000]))
    data = head + frames * 20
    source, pieces, late = Growing(data), [0], [0]
    search = polyglots.find_foreign

    def counted(piece: bytes) -> str | None:
        pieces[0] += len(piece)
        late[0] += len(piece) * (source.received == len(data))
        return search(piece)

    monkeypatch.setattr(polyglots, "find_foreign", counted)
    result = probe.judge(source, SNIFFER, tuple(BY_MEDIA_TYPE), 600.0, lambda **_: None)
    assert result["duration"] > 0
    assert pieces[0] > len(data) - 1000
    assert late[0] < 600_000
    elf = NOT_AUDIO["application/x-executable"] + bytes(200)
    for at in (len(head), len(data) - 300_000, len(data)):
        assert examine(data[:at] + elf + data[at:])["what"] == "application/x-executable", at


def commented(number: int) -> bytes:
    """A FLAC file with so many comments."""
    flac = SAMPLES["flac"]
    comments = struct.pack("<I", 1) + b"x" + struct.pack("<I", number)
    comments += b"".join(struct.pack("<I", 7) + b"A%05d=" % n for n in range(number))
    block = b"\4" + len(comments).to_bytes(3, "big") + comments
    return flac[:4] + bytes((flac[4] & 0x7F,)) + flac[5:42] + block + flac[42:]


def test_many_small_things_cost_nothing() -> None:
    """They are counted or passed over before FFmpeg takes its time over each."""
    assert examine(commented(50_000))["duration"] == pytest.approx(1.0)
    tags = b"".join(box(b"\xa9" + b"%03d" % (n % 1000), bytes(8)) for n in range(50_000))
    inner = box(b"udta", box(b"meta", bytes(4) + box(b"ilst", tags)))
    tagged = b"".join(
        box(kind, content + inner * (kind == b"moov")) for kind, content in boxes(M4A)
    )
    for data in (
        M4A + box(b"free", b"") * 50_000,
        edited(tagged, {}),
        WAV + b"JUNK\0\0\0\0" * 50_000,
        wav_header(0xFFFFFFFF)[:12] + b"JUNK\0\0\0\0" * 50_000 + wav_header(100)[12:] + bytes(100),
    ):
        assert examine(data) == {"refused": "unknown", "why": "entries"}
