"""Audio files to order, written by the FFmpeg libraries inside PyAV: no program needed."""

from __future__ import annotations

import io
import math
import struct
import tempfile
from array import array
from pathlib import Path

import av
from av.audio.resampler import AudioResampler

# format, encoder, options of the container: one name for each kind of file worth telling apart
KINDS: dict[str, tuple[str, str, dict[str, str]]] = {
    "mp3": ("mp3", "libmp3lame", {}),
    "mp3-bare": ("mp3", "libmp3lame", {"write_xing": "0", "id3v2_version": "0"}),
    "wav": ("wav", "pcm_s16le", {}),
    "wav24": ("wav", "pcm_s24le", {}),
    "wav-float": ("wav", "pcm_f32le", {}),
    "wav-rf64": ("wav", "pcm_s16le", {"rf64": "always"}),
    "m4a-last": ("ipod", "aac", {}),
    "m4a-first": ("ipod", "aac", {"movflags": "faststart"}),
    "m4a-fragmented": ("ipod", "aac", {"movflags": "frag_keyframe+empty_moov"}),
    "alac": ("ipod", "alac", {}),
    "vorbis": ("ogg", "vorbis", {}),
    "opus": ("ogg", "libopus", {}),
    "ogg-flac": ("ogg", "flac", {}),
    "flac": ("flac", "flac", {}),
    "webm": ("webm", "libopus", {}),
    "aac": ("adts", "aac", {}),
}


def samples(seconds: float, rate: int) -> array[int]:
    """A 440 Hz tone, 16 bits, one channel."""
    step = 2 * math.pi * 440 / rate
    return array("h", (int(9000 * math.sin(step * n)) for n in range(round(seconds * rate))))


def encode(kind: str, seconds: float = 1.0, rate: int = 48_000, *, silent: bool = False) -> bytes:
    """One file of a kind of `KINDS`. `silent` is much faster for long ones."""
    with tempfile.TemporaryDirectory() as folder:
        # a real file: FFmpeg opens it again to move the index to the front
        path = Path(folder, "audio")
        _write(path, kind, seconds, rate, silent=silent)
        return path.read_bytes()


def _write(path: Path, kind: str, seconds: float, rate: int, *, silent: bool) -> None:
    container_name, codec, options = KINDS[kind]
    with av.open(str(path), "w", format=container_name, options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = "stereo" if codec == "vorbis" else "mono"
        if codec == "vorbis":
            stream.codec_context.options = {"strict": "experimental"}
        resampler = AudioResampler(stream.format, stream.layout, rate)
        pcm = bytes(round(seconds * rate) * 2) if silent else samples(seconds, rate).tobytes()
        for at in range(0, len(pcm), rate * 2):  # a second at a time
            piece = pcm[at : at + rate * 2]
            frame = av.AudioFrame(format="s16", layout="mono", samples=len(piece) // 2)
            frame.planes[0].update(piece)
            frame.sample_rate = rate
            frame.pts = at // 2
            for resampled in resampler.resample(frame):
                container.mux(stream.encode(resampled))
        container.mux(stream.encode(None))


def film(container_name: str = "mp4", seconds: float = 1.0) -> bytes:
    """A film with sound: MPEG-4 or VP8 pictures, AAC or Opus."""
    webm = container_name != "mp4"
    out = io.BytesIO()
    with av.open(out, "w", format=container_name) as container:
        video = container.add_stream("libvpx" if webm else "mpeg4", rate=10)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("libopus" if webm else "aac", rate=48_000)
        audio.layout = "mono"
        picture = av.VideoFrame(64, 64, "yuv420p")
        for plane in picture.planes:
            plane.update(bytes(plane.buffer_size))
        for number in range(round(seconds * 10)):
            picture.pts = number
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        resampler = AudioResampler(audio.format, audio.layout, 48_000)
        frame = av.AudioFrame(format="s16", layout="mono", samples=round(seconds * 48_000))
        frame.planes[0].update(samples(seconds, 48_000).tobytes())
        frame.sample_rate, frame.pts = 48_000, 0
        for resampled in resampler.resample(frame):
            container.mux(audio.encode(resampled))
        container.mux(audio.encode(None))
    return out.getvalue()


def wav_header(data_size: int, rate: int = 8000, bits: int = 16) -> bytes:
    """44 bytes: PCM, one channel."""
    block = bits // 8
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        min(data_size + 36, 0xFFFFFFFF),
        b"WAVE",
        b"fmt ",
        16,
        1,
        1,
        rate,
        rate * block,
        block,
        bits,
        b"data",
        data_size,
    )


def id3(payload: bytes = b"", *, claimed: int | None = None) -> bytes:
    """An ID3v2.3 tag with one picture frame of `payload`; `claimed` is a false length."""
    frame = b"APIC" + struct.pack(">IH", len(payload) + 14, 0) + b"\0image/png\0\3\0\0" + payload
    size = len(frame) if claimed is None else claimed
    coded = bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x03\0\0" + coded + frame
