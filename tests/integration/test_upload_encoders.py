"""What other programs than ffmpeg write, and ffmpeg with its rarer options: accepted, and measured
rightly. A program that is not installed is skipped."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from proxy.config.listeners import Upload
from proxy.uploads.formats.families import NAMES
from proxy.uploads.probe.pool import ProbePool
from proxy.uploads.rules import UploadRules
from tests.uploads.audio import samples, wav_header
from tests.uploads.drive import form, new_spool, part, upload

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECONDS, RATE = 5, 44_100

# IN is a WAV, OUT the file to be written; the name's ending tells most programs what to write.
LAME = {
    "lame-128.mp3": "lame --quiet -b 128 IN OUT",
    "lame-320.mp3": "lame --quiet -b 320 IN OUT",
    "lame-v0.mp3": "lame --quiet -V 0 IN OUT",
    "lame-v9.mp3": "lame --quiet -V 9 IN OUT",
    "lame-abr.mp3": "lame --quiet --abr 160 IN OUT",
    "lame-no-table.mp3": "lame --quiet -t -V 4 IN OUT",
    "lame-crc.mp3": "lame --quiet -p -b 128 IN OUT",
    "lame-mono-8k.mp3": "lame --quiet --resample 8 -b 8 -m m IN OUT",
    "lame-22k.mp3": "lame --quiet --resample 22.05 -V 5 IN OUT",
    "lame-joint.mp3": "lame --quiet -m j -b 192 IN OUT",
    "lame-tags.mp3": "lame --quiet --tt Title --ta Artist --add-id3v2 -b 128 IN OUT",
    "lame-id3v1.mp3": "lame --quiet --tt Title --id3v1-only -b 128 IN OUT",
    "lame-padded-tag.mp3": "lame --quiet --tt Title --pad-id3v2-size 100000 -b 128 IN OUT",
    "lame-no-reservoir.mp3": "lame --quiet --nores -b 128 IN OUT",
    "lame-strict.mp3": "lame --quiet --strictly-enforce-ISO -b 320 IN OUT",
    "twolame.mp2": "twolame --quiet -b 192 IN OUT",
    "twolame-vbr.mp2": "twolame --quiet --vbr IN OUT",
    "twolame-mono.mp2": "twolame --quiet -m m -b 64 IN OUT",
}
SOX = {
    "sox.mp3": "sox IN OUT",
    "sox-v2.mp3": "sox IN -C -2 OUT",
    "sox.mp2": "sox IN OUT",
    "sox-8.wav": "sox IN -b 8 OUT",
    "sox-24.wav": "sox IN -b 24 OUT",
    "sox-32.wav": "sox IN -b 32 OUT",
    "sox-float.wav": "sox IN -e floating-point -b 32 OUT",
    "sox-double.wav": "sox IN -e floating-point -b 64 OUT",
    "sox-a-law.wav": "sox IN -e a-law OUT",
    "sox-mu-law.wav": "sox IN -e mu-law -r 8000 OUT",
    "sox-ima.wav": "sox IN -e ima-adpcm OUT",
    "sox-ms.wav": "sox IN -e ms-adpcm OUT",
    "sox-gsm.wav": "sox IN -e gsm-full-rate -r 8000 OUT",
    "sox-plain-header.wav": "sox IN -t wavpcm OUT",
    "sox-six-channels.wav": "sox IN -c 6 OUT",
    "sox-192k.wav": "sox IN -r 192000 -b 24 OUT",
    "sox-piped.wav": "sox IN -t wav - | cat > OUT",
    "sox.ogg": "sox IN OUT",
    "sox.flac": "sox IN OUT",
}
XIPH = {
    "oggenc.ogg": "oggenc -Q -o OUT IN",
    "oggenc-low.ogg": "oggenc -Q -q -1 --resample 22050 -o OUT IN",
    "oggenc-high.ogg": "oggenc -Q -q 10 -o OUT IN",
    "oggenc-managed.ogg": "oggenc -Q --managed -b 96 -o OUT IN",
    "oggenc-comments.ogg": "oggenc -Q -t Title -a Artist -o OUT IN",
    "opusenc.opus": "opusenc --quiet IN OUT",
    "opusenc-speech.opus": "opusenc --quiet --bitrate 12 --framesize 60 IN OUT",
    "opusenc-short.opus": "opusenc --quiet --framesize 2.5 IN OUT",
    "opusenc-cbr.opus": "opusenc --quiet --hard-cbr --bitrate 256 IN OUT",
    "opusenc-page.opus": "opusenc --quiet --max-delay 0 IN OUT",
    "flac.oga": "flac -s --ogg -o OUT IN",
    "flac-0.flac": "flac -s -0 -o OUT IN",
    "flac-8.flac": "flac -s -8 -o OUT IN",
    "flac-no-padding.flac": "flac -s --no-padding --no-seektable -o OUT IN",
    "flac-piped.flac": "flac -s -c IN > OUT",
    "speexenc.spx": "speexenc --quiet IN OUT",
    "speexenc-narrow.spx": "sox IN -r 8000 -c 1 -t wav - | speexenc --quiet -n - OUT",
    "speexenc-vbr.spx": "speexenc --quiet --vbr -w IN OUT",
}
_FFMPEG = "ffmpeg -hide_banner -loglevel error -y -i IN"
FFMPEG = {
    "piped.wav": f"{_FFMPEG} -f wav - | cat > OUT",
    "extensible.wav": f"{_FFMPEG} -c:a pcm_s24le -ac 6 OUT",
    "g722.wav": f"{_FFMPEG} -c:a g722 -ar 16000 -ac 1 OUT",
    "g726.wav": f"{_FFMPEG} -c:a g726 -ar 8000 -ac 1 OUT",
    "mp3.wav": f"{_FFMPEG} -c:a libmp3lame OUT",
    "w64-size.wav": f"{_FFMPEG} -rf64 auto -write_peak on OUT",
    "he-rate.m4a": f"{_FFMPEG} -c:a aac -ar 22050 -b:a 32k OUT",
    "96k.m4a": f"{_FFMPEG} -c:a aac -ar 96000 OUT",
    "six.m4a": f"{_FFMPEG} -c:a aac -ac 6 OUT",
    "mono.m4b": f"{_FFMPEG} -c:a aac -ac 1 -f ipod OUT",
    "brand.m4a": f"{_FFMPEG} -c:a aac -f mp4 -brand isom OUT",
    "piped.mp4": f"{_FFMPEG} -c:a aac -f mp4 -movflags frag_keyframe+empty_moov - | cat > OUT",
    "every-packet.m4a": f"{_FFMPEG} -c:a aac -movflags empty_moov+frag_every_frame OUT",
    "cmaf.m4a": f"{_FFMPEG} -c:a aac -movflags cmaf OUT",
    "hybrid.m4a": f"{_FFMPEG} -c:a aac -movflags frag_keyframe -frag_duration 1000000 OUT",
    "sidx.m4a": f"{_FFMPEG} -c:a aac -movflags dash+global_sidx -frag_duration 500000 OUT",
    "delay.m4a": f"{_FFMPEG} -c:a aac -movflags +delay_moov -use_editlist 1 OUT",
    "no-edit-list.m4a": f"{_FFMPEG} -c:a aac -use_editlist 0 OUT",
    "moov-reserved.m4a": f"{_FFMPEG} -c:a aac -moov_size 20000 OUT",
    "alac-24.m4a": f"{_FFMPEG} -c:a alac -sample_fmt s32p OUT",
    "ac3.mp4": f"{_FFMPEG} -c:a ac3 OUT",
    "eac3.mp4": f"{_FFMPEG} -c:a eac3 OUT",
    "pcm.mov": f"{_FFMPEG} -c:a pcm_s16be OUT",
    "pcm-24.mov": f"{_FFMPEG} -c:a pcm_s24le OUT",
    "adpcm.mov": f"{_FFMPEG} -c:a adpcm_ima_qt OUT",
    "mu-law.mov": f"{_FFMPEG} -c:a pcm_mulaw OUT",
    "amr.3gp": f"{_FFMPEG} -c:a libopencore_amrnb -ar 8000 -ac 1 OUT",
    "opus-120ms.ogg": f"{_FFMPEG} -c:a libopus -frame_duration 120 OUT",
    "opus-surround.ogg": f"{_FFMPEG} -c:a libopus -ac 6 OUT",
    "vorbis-pages.ogg": f"{_FFMPEG} -c:a libvorbis -page_duration 20000 OUT",
    "chapters.m4a": f"{_FFMPEG} -i CHAPTERS -map_metadata 1 -map 0:a -c:a aac OUT",
    "free-of-tags.mp3": f"{_FFMPEG} -c:a libmp3lame -write_xing 0 -id3v2_version 0 -bitexact OUT",
    "vbr-ape.mp3": f"{_FFMPEG} -c:a libmp3lame -q:a 0 -write_apetag 1 -metadata title=Tone OUT",
    "cluster.webm": f"{_FFMPEG} -c:a libopus -cluster_time_limit 100 OUT",
    "dash.webm": f"{_FFMPEG} -c:a libvorbis -dash 1 OUT",
    "flac.mka": f"{_FFMPEG} -c:a flac OUT",
    "latm-free.aac": f"{_FFMPEG} -c:a aac -f adts -write_id3v2 1 OUT",
}
CHAPTERS = ";FFMETADATA1\n" + "".join(
    f"[CHAPTER]\nTIMEBASE=1/1000\nSTART={at * 1000}\nEND={at * 1000 + 1000}\ntitle=C{at}\n"
    for at in range(SECONDS)
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def validator() -> AsyncIterator[UploadRules]:
    """Every family."""
    pool = ProbePool()
    await pool.start()
    yield UploadRules(Upload(types=tuple(NAMES)), pool, new_spool())
    await pool.stop()


def written(folder: Path, name: str, command: str) -> bytes:
    """The file, or a skip where this machine lacks the program or the encoder."""
    program = command.split()[0]
    if shutil.which(program) is None or ("speexenc" in command and not shutil.which("speexenc")):
        pytest.skip(f"{program} is not installed")
    tone = folder / "in.wav"
    pcm = samples(SECONDS, RATE).tobytes()
    tone.write_bytes(wav_header(len(pcm), RATE) + pcm)
    (folder / "chapters").write_text(CHAPTERS)
    for short, long in (("IN", tone), ("OUT", folder / name), ("CHAPTERS", folder / "chapters")):
        command = " ".join(str(long) if word == short else word for word in command.split())
    result = subprocess.run(["sh", "-c", command], capture_output=True, timeout=120, check=False)
    data = (folder / name).read_bytes() if (folder / name).exists() else b""
    if result.returncode or not data:
        pytest.skip(f"{program} cannot write it here: {result.stderr.decode()[-200:]}")
    return data


@pytest.mark.parametrize("name", [*LAME, *SOX, *XIPH, *FFMPEG])
async def test_true_audio_is_accepted(validator: UploadRules, tmp_path: Path, name: str) -> None:
    """Five seconds, give or take the encoder's padding."""
    data = written(tmp_path, name, (LAME | SOX | XIPH | FFMPEG)[name])
    outcome = await upload(validator, form(part(data)))
    assert outcome.code == "accepted", outcome.facts
    assert outcome.facts["duration"] == pytest.approx(SECONDS, abs=0.3)
