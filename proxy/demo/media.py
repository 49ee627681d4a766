"""Real audio and video, made and measured with PyAV: small, quick and widely playable."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

WIDTH, HEIGHT, FPS = 180, 320, 10
_RATE = 44_100
_CONTRAST_OF_TEXT = 16.0  # mean difference of neighbouring pixels

MediaError = av.FFmpegError


@dataclass(frozen=True, slots=True)
class Media:
    """What a file holds. `duration` in seconds, `size` in bytes."""

    duration: float
    size: int
    video: bool
    audio: bool
    width: int = 0
    height: int = 0


def inspect(path: Path) -> Media:
    """Measure a file. Raises `MediaError` if it is not a media file."""
    with av.open(str(path)) as container:
        video = container.streams.video
        return Media(
            duration=(container.duration or 0) / 1_000_000,
            size=path.stat().st_size,
            video=bool(video),
            audio=bool(container.streams.audio),
            width=video[0].width if video else 0,
            height=video[0].height if video else 0,
        )


def make_audio(path: Path, seconds: float) -> None:
    """A tone that rises and falls, mono; the suffix of `path` (.mp3, .wav) chooses the format."""
    codec = "libmp3lame" if path.suffix == ".mp3" else "pcm_s16le"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=_RATE, layout="mono")
        assert isinstance(stream, AudioStream)
        total, step = int(seconds * _RATE), 1152
        phase = 0.0
        for start in range(0, total, step):
            count = min(step, total - start)
            frequency = 330 + 110 * math.sin(start / _RATE)
            samples = array("h", bytes(2 * count))
            for index in range(count):
                samples[index] = int(12_000 * math.sin(phase))
                phase += 2 * math.pi * frequency / _RATE
            frame = AudioFrame(format="s16", layout="mono", samples=count)
            frame.planes[0].update(_padded(samples.tobytes(), frame.planes[0].buffer_size))
            frame.sample_rate = _RATE
            frame.time_base = Fraction(1, _RATE)
            frame.pts = start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def make_long_audio(path: Path, seconds: int) -> None:
    """Like `make_audio`, but faster: the same second of sound, encoded repeatedly."""
    rate = 8_000
    second = array("h", (int(12_000 * math.sin(step / 6)) for step in range(rate))).tobytes()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libmp3lame", rate=rate, layout="mono")
        assert isinstance(stream, AudioStream)
        for number in range(seconds):
            frame = AudioFrame(format="s16", layout="mono", samples=rate)
            frame.planes[0].update(_padded(second, frame.planes[0].buffer_size))
            frame.sample_rate = rate
            frame.time_base = Fraction(1, rate)
            frame.pts = number * rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def make_clip(path: Path, seconds: float, seed: int) -> None:
    """A short vertical video without sound: a moving gradient, coloured by `seed`."""
    with av.open(str(path), "w") as container:
        stream = _video_stream(container)
        for index in range(int(seconds * FPS)):
            container.mux(stream.encode(_pattern(index, seed)))
        container.mux(stream.encode(None))


def compose(audio: Path, clips: list[Path], output: Path) -> Media:
    """Make the final MP4: the clips in turn, repeated until the audio ends, with the audio as AAC.
    Raises `MediaError` if an input is not a media file."""
    with av.open(str(audio)) as source, av.open(str(output), "w") as container:
        picture = _video_stream(container)
        sound = container.add_stream("aac", rate=_RATE, layout="mono")
        assert isinstance(sound, AudioStream)
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=_RATE)
        pictures = _pictures(clips)
        played = shown = 0
        for decoded in source.decode(audio=0):
            for frame in resampler.resample(decoded):
                frame.pts = played
                frame.time_base = Fraction(1, _RATE)
                played += frame.samples
                container.mux(sound.encode(frame))
            while shown * _RATE < played * FPS:
                image = next(pictures)
                image.pts, image.time_base = shown, Fraction(1, FPS)
                shown += 1
                container.mux(picture.encode(image))
        container.mux(sound.encode(None))
        container.mux(picture.encode(None))
    return inspect(output)


def search_text(path: Path) -> list[float]:
    """For every frame of a video, the confidence (0 to 1) that it has no burnt-in text: the less
    contrast between neighbouring pixels, the higher. One line in the lower third, where subtitles
    are, is enough for a stand-in. Raises `MediaError`."""
    certainties = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            luma = frame.reformat(format="yuv420p").planes[0]
            start = luma.line_size * (luma.height * 5 // 6)
            line = bytes(luma)[start : start + luma.width]
            contrast = sum(abs(left - right) for left, right in pairwise(line)) / len(line)
            certainties.append(max(0.0, 1.0 - contrast / _CONTRAST_OF_TEXT))
    return certainties


def _video_stream(container: av.container.OutputContainer) -> VideoStream:
    # mpeg4 is in every build of FFmpeg; H.264 encoders are not.
    stream = container.add_stream("mpeg4", rate=FPS)
    assert isinstance(stream, VideoStream)
    stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    stream.bit_rate = 200_000
    return stream


def _pictures(clips: list[Path]) -> Iterator[VideoFrame]:
    """Every frame of every clip in turn, endlessly; a moving pattern if there are no clips."""
    index = 0
    while True:
        for clip in clips:
            with av.open(str(clip)) as container:
                for frame in container.decode(video=0):
                    # A decoded frame keeps its picture type, which the encoder would follow.
                    yield frame.reformat(WIDTH, HEIGHT, "yuv420p")
                    index += 1
        if not clips:
            yield _pattern(index, 0)
            index += 1


def _pattern(index: int, seed: int) -> VideoFrame:
    frame = VideoFrame(WIDTH, HEIGHT, "yuv420p")
    luma, *chroma = frame.planes
    ramp = bytes(abs((x % 256) - 128) + 64 for x in range(luma.line_size + 256))
    rows = (ramp[(index * 6 + y) % 256 :][: luma.line_size] for y in range(luma.height))
    luma.update(_padded(b"".join(rows), luma.buffer_size))
    for number, plane in enumerate(chroma):
        plane.update(bytes([(64 + 70 * seed + 90 * number) % 256]) * plane.buffer_size)
    frame.pts, frame.time_base = index, Fraction(1, FPS)
    return frame


def _padded(data: bytes, size: int) -> bytes:
    """`data` cut or padded to the size of a plane, whose lines FFmpeg aligns."""
    return data[:size].ljust(size, b"\0")
