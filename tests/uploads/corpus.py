"""A corpus to be written by the ffmpeg program: names and arguments."""

from __future__ import annotations

import subprocess
from pathlib import Path

_RED = "-f lavfi -i color=red:size=600x600:rate=25:duration=0.04"
_PICTURE = f"{_RED} -map 0 -map 1 -disposition:v attached_pic"
FILES = {
    "cbr.mp3": "-c:a libmp3lame -b:a 128k",
    "vbr.mp3": "-c:a libmp3lame -q:a 4",
    "vbr-no-xing.mp3": "-c:a libmp3lame -q:a 4 -write_xing 0 -id3v2_version 0",
    "id3v1.mp3": "-c:a libmp3lame -write_id3v1 1 -metadata title=Tone",
    "id3v24.mp3": "-c:a libmp3lame -id3v2_version 4 -metadata title=Tone",
    "picture.mp3": f"{_PICTURE} -c:a libmp3lame -c:v png",
    "mpeg2.mp3": "-ar 22050 -c:a libmp3lame -write_xing 0 -id3v2_version 0",
    "mpeg25.mp3": "-ar 8000 -c:a libmp3lame -write_xing 0 -id3v2_version 0",
    "layer2.mp2": "-c:a mp2",
    "pcm8.wav": "-c:a pcm_u8",
    "pcm16.wav": "-c:a pcm_s16le",
    "pcm24.wav": "-c:a pcm_s24le",
    "pcm32.wav": "-c:a pcm_s32le",
    "float.wav": "-c:a pcm_f32le",
    "double.wav": "-c:a pcm_f64le",
    "mulaw.wav": "-c:a pcm_mulaw -ar 8000",
    "adpcm.wav": "-c:a adpcm_ima_wav",
    "rf64.wav": "-rf64 always",
    "broadcast.wav": "-write_bext 1 -metadata description=Tone",
    "last.m4a": "-c:a aac",
    "first.m4a": "-c:a aac -movflags +faststart",
    "fragmented.m4a": "-c:a aac -movflags frag_keyframe+empty_moov -frag_duration 1000000",
    "dash.m4a": "-c:a aac -movflags dash -frag_duration 1000000",
    "picture.m4a": f"{_PICTURE} -c:a aac -c:v mjpeg",
    "alac.m4a": "-c:a alac",
    "opus.mp4": "-c:a libopus",
    "flac.mp4": "-c:a flac -strict -2",
    "mp3.mp4": "-c:a libmp3lame",
    "phone.3gp": "-c:a aac",
    "quicktime.mov": "-c:a aac",
    "named-channels.mov": "-c:a pcm_s16le -ac 8",
    "dense.mov": "-c:a adpcm_ms",
    "vorbis.ogg": "-c:a libvorbis",
    "opus.opus": "-c:a libopus",
    "flac.oga": "-c:a flac",
    "speex.ogg": "-c:a libspeex -ar 16000",
    "flac.flac": "-c:a flac",
    "opus.webm": "-c:a libopus",
    "vorbis.webm": "-c:a libvorbis",
    "live.webm": "-c:a libopus -live 1",
    "mp3.mka": "-c:a libmp3lame",
    "picture.mka": f"{_PICTURE} -c:a flac -c:v mjpeg -pix_fmt yuvj420p",
    "picture.mkv": f"{_PICTURE} -c:a libopus -c:v png",
    "adts.aac": "-c:a aac",
}
_VIDEO = "-f lavfi -i testsrc=size=64x64:rate=10:duration=2 -shortest"
FILMS = {
    "film.mp4": f"{_VIDEO} -c:v mpeg4 -c:a aac",
    "fragmented.mp4": f"{_VIDEO} -c:v mpeg4 -c:a aac -movflags frag_keyframe+empty_moov",
    "film.mov": f"{_VIDEO} -c:v mjpeg -c:a pcm_s16le",
    "slides.mkv": f"{_VIDEO} -r 1 -c:v mjpeg -pix_fmt yuvj420p -c:a flac",
    "one-picture.mkv": f"{_PICTURE} -c:v mpeg4 -c:a flac",
    "film.webm": f"{_VIDEO} -c:v libvpx -c:a libopus",
    "film.ogv": f"{_VIDEO} -c:v libtheora -c:a libvorbis",
    "film.mpg": f"{_VIDEO} -c:v mpeg2video -c:a mp2",
    "film.avi": f"{_VIDEO} -c:v mpeg4 -c:a libmp3lame",
}


def write(path: Path, arguments: str, seconds: float = 5) -> bytes:
    """A tone of `seconds`, encoded by these options. Raises `CalledProcessError`."""
    tone = ["-f", "lavfi", "-i", f"sine=frequency=440:duration={seconds}"]
    command = ["ffmpeg", "-hide_banner", "-loglevel", "error", "-y", *tone, *arguments.split()]
    subprocess.run([*command, str(path)], check=True, capture_output=True, timeout=20)
    return path.read_bytes()
