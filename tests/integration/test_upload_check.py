"""Whole uploads through the check and real probe processes: what passes, what is refused."""

from __future__ import annotations

import asyncio
import gc
import io
import random
import weakref
import zipfile
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from proxy.config.listeners import Upload
from proxy.core.errors import UploadRejected, UploadTooLong, forget_frames
from proxy.uploads.check import OTHER_FIELDS
from proxy.uploads.formats.families import NAMES
from proxy.uploads.probe.pool import ProbePool
from proxy.uploads.rules import UploadRules
from tests.data.audio.generate import path_of
from tests.http1 import PATIENCE
from tests.uploads.audio import KINDS, encode, wav_header
from tests.uploads.drive import (
    CONTENT_TYPE,
    feed_until_refused,
    form,
    new_spool,
    part,
    room,
    upload,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
ALL = tuple(NAMES)
MIB = 2**20


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[ProbePool]:
    """Probe processes, started once."""
    pool = ProbePool()
    await pool.start()
    yield pool
    await pool.stop()
    assert pool.running == 0


@pytest.fixture
def validator(pool: ProbePool) -> UploadRules:
    """Every family, ten minutes, 50 MiB."""
    return UploadRules(Upload(types=ALL), pool, new_spool(), boundary=lambda: "ours")


@pytest.mark.parametrize("chunk", [1, 777, 1 << 20])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("wav")] + ["wav"])
async def test_every_sample_is_accepted(validator: UploadRules, kind: str, chunk: int) -> None:
    """In pieces of any size, measured to the tenth of a second, and forwarded byte for byte."""
    audio = path_of(kind).read_bytes()
    outcome = await upload(validator, form(part(audio)), chunk=chunk)
    assert outcome.code == "accepted"
    assert outcome.facts["duration"] == pytest.approx(1.0, abs=0.2)
    assert outcome.facts["size"] == len(audio)
    assert outcome.parts()[0][3] == audio


async def test_the_app_gets_a_canonical_form(validator: UploadRules) -> None:
    """Our boundary, one disposition, a safe name with the true extension, the detected type; other
    fields in their order."""
    audio = path_of("m4a-last").read_bytes()
    body = form(
        part(b"5", b"max_shorts", None, b"Content-Type: text/plain; format=x; charset=Latin1"),
        part(audio, b"audio_file", b"../x<y>.php", b"Content-Type: text/html", b"X-Odd: 1"),
        part("olá".encode(), b"note", None),
    )
    outcome = await upload(validator, body)
    assert outcome.content_type == b"multipart/form-data; boundary=ours"
    assert outcome.forward_length == len(outcome.sent)
    assert outcome.sent == (
        b'--ours\r\nContent-Disposition: form-data; name="max_shorts"\r\n'
        b"Content-Type: text/plain; charset=Latin1\r\n\r\n5\r\n"
        b'--ours\r\nContent-Disposition: form-data; name="audio_file"; filename="x_y.m4a"\r\n'
        b"Content-Type: audio/mp4\r\n\r\n" + audio + b"\r\n"
        b'--ours\r\nContent-Disposition: form-data; name="note"\r\n\r\nol\xc3\xa1\r\n--ours--\r\n'
    )


@pytest.mark.parametrize("chunk", [1, 1 << 20])
async def test_inputs_that_were_left_empty_are_no_files(validator: UploadRules, chunk: int) -> None:
    """Browsers send them with an empty name and no byte: the app gets them so, the audio once."""
    unfilled = part(b"", b"cover", b"", b"Content-Type: application/octet-stream")
    nothing = part(b"", b"audio_file", b"")
    body = form(unfilled, nothing, part(AUDIO, filename=b""), nothing, unfilled)
    outcome = await upload(validator, body, chunk=chunk)
    assert outcome.parts() == [
        ("cover", "", "application/octet-stream", b""),
        ("audio_file", "audio.mp3", "audio/mpeg", AUDIO),
        ("cover", "", "application/octet-stream", b""),
    ]


async def test_names_and_charset_go_as_they_came(validator: UploadRules) -> None:
    """In the charset that the client names; without one, names are UTF-8."""
    body = form(part(b"\xe7", "a\xe7\xe3o".encode("latin-1"), None), part(AUDIO))
    for charset, name in ((b"", "a\xe7\xe3o".encode()), (b"; charset=ISO-8859-1", b"a\xe7\xe3o")):
        outcome = await upload(validator, body, content_type=CONTENT_TYPE + charset)
        assert outcome.content_type == b"multipart/form-data; boundary=ours" + charset
        assert b'name="' + name + b'"\r\n\r\n\xe7\r\n' in outcome.sent


async def test_a_refused_type_never_reaches_the_app(validator: UploadRules) -> None:
    """Not one byte goes upstream, the fields before the file included."""
    body = form(part(b"5", b"max_shorts", None), part(b"%PDF-1.7\n" + b"x" * 500_000))
    outcome = await upload(validator, body)
    assert (outcome.code, outcome.sent) == ("upload_type_rejected", b"")
    assert outcome.error is not None
    assert outcome.error.detail.startswith(
        "Audio file type not accepted: a PDF document (application/pdf) (accepted: MP3"
    )
    assert outcome.error.facts["field"] == "audio_file"


async def test_an_unlisted_family_is_refused_by_its_name(pool: ProbePool) -> None:
    """FLAC, WebM and AAC are true audio, but only where the config says so."""
    strict = UploadRules(Upload(), pool, new_spool())
    for kind, name in (("flac", "audio/flac"), ("webm", "audio/webm"), ("aac", "audio/aac")):
        outcome = await upload(strict, form(part(path_of(kind).read_bytes())))
        assert outcome.code == "upload_type_rejected"
        assert outcome.facts["type"] == name
        assert outcome.facts["label"]
        assert name in str(outcome.error)


@pytest.mark.parametrize("kind", ["mp3", "m4a-last", "m4a-first", "flac", "opus"])
async def test_eleven_minutes_are_too_long(validator: UploadRules, kind: str) -> None:
    """And the app never sees the end."""
    rate = 8000 if kind != "opus" else 48_000
    outcome = await upload(validator, form(part(encode(kind, 660, rate, silent=True))))
    assert outcome.code == "upload_too_long"
    assert str(outcome.error) == "Audio file too long: over 10min (max: 10min)"
    assert outcome.error is not None
    assert outcome.error.facts["limit"] == 600
    assert not outcome.sent.endswith(b"--ours--\r\n")


async def test_three_hours_are_refused_after_ten_minutes(validator: UploadRules) -> None:
    """The rest of the body is not waited for."""
    second = bytes(16_000)
    check = validator.begin(CONTENT_TYPE, None, None)
    noticed = asyncio.Event()
    check.on_change = noticed.set
    try:
        check.feed(part(wav_header(10_800 * 16_000, 8000)).removesuffix(b"\r\n"))
        for _ in range(700):
            check.feed(second)
        # The probe follows as fast as this machine lets it; hardly a byte more comes meanwhile.
        refusal = None
        async with asyncio.timeout(PATIENCE):
            while refusal is None:
                refusal = await feed_until_refused(check, b"\0", 1)
                await asyncio.sleep(0.01)
        assert isinstance(refusal, UploadTooLong)
        assert check.facts["size"] < 1_000 * 16_000
    finally:
        check.close()


@pytest.mark.parametrize("kind", ["mp3", "m4a-last", "wav"])
async def test_ten_minutes_are_not_too_long(validator: UploadRules, kind: str) -> None:
    """An encoder's padding does not push a file of exactly ten minutes over the limit."""
    outcome = await upload(validator, form(part(encode(kind, 600, 8000, silent=True))))
    assert outcome.code == "accepted"


@pytest.mark.parametrize("chunk", [65_536, MIB])
async def test_most_of_a_long_wav_is_only_counted(validator: UploadRules, chunk: int) -> None:
    """And all of it is forwarded; one that goes on for too long in another chunk of samples is
    refused, and so is one that ends in an archive."""
    audio = wav_header(12 * MIB, 16_000) + random.Random(chunk).randbytes(12 * MIB)
    good = await upload(validator, form(part(audio)), chunk=chunk)
    assert good.code == "accepted"
    assert good.facts["duration"] == pytest.approx(12 * MIB / 32_000)
    assert good.parts()[0][3] == audio
    more = audio + b"data" + (12 * MIB).to_bytes(4, "little") + bytes(12 * MIB)
    long = await upload(validator, form(part(more)), chunk=chunk)
    assert long.code == "upload_too_long"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", "hello")
    both = await upload(validator, form(part(audio + archive.getvalue())), chunk=chunk)
    assert both.code == "upload_type_rejected"


async def test_a_length_that_cannot_fit_is_refused_before_the_body(
    validator: UploadRules,
) -> None:
    """File limit plus 1 MiB for the rest."""
    length = int(61.2 * MIB)
    with pytest.raises(UploadRejected, match=r"^Audio file too large: 61.2MB \(max: 50MB\)$"):
        validator.begin(CONTENT_TYPE, length, None)
    validator.begin(CONTENT_TYPE, 50 * MIB + OTHER_FIELDS, None).close()


@pytest.mark.parametrize("known", [True, False])
async def test_bytes_are_counted_whatever_the_length_says(pool: ProbePool, known: bool) -> None:
    """Chunked bodies, and lengths that fit only because of the allowance."""
    small = UploadRules(Upload(max_size=100_000), pool, new_spool())
    body = form(part(wav_header(100_000) + bytes(109_900)))
    outcome = await upload(small, body, length=len(body) if known else None)
    found = "107.4KB" if known else "over 97.7KB"
    assert outcome.code == "upload_too_large"
    assert str(outcome.error) == f"Audio file too large: {found} (max: 97.7KB)"


async def test_the_largest_file_is_accepted(pool: ProbePool) -> None:
    """To the byte."""
    audio = wav_header(99_956) + bytes(99_956)
    exact = UploadRules(Upload(max_size=100_000), pool, new_spool())
    assert (await upload(exact, form(part(audio)))).code == "accepted"


AUDIO = path_of("mp3").read_bytes()
REFUSED = {
    "no file": (form(part(b"x", b"other", None)), "upload_missing"),
    "no parts": (form(), "upload_missing"),
    "no body": (b"", "upload_missing"),
    "a text field": (form(part(b"x", b"audio_file", None)), "upload_missing"),
    "empty": (form(part(b"")), "upload_empty"),
    "empty, no name": (form(part(b"", b"audio_file", b"")), "upload_missing"),
    "another file without a name": (form(part(AUDIO), part(b"x", b"a", b"")), "upload_malformed"),
    "two files": (form(part(AUDIO), part(AUDIO)), "upload_malformed"),
    "file and field": (form(part(AUDIO), part(b"x", b"audio_file", None)), "upload_malformed"),
    "another file": (form(part(AUDIO), part(AUDIO, b"cover")), "upload_malformed"),
    "cut short": (form(part(AUDIO))[:-10], "upload_malformed"),
    "cut in the file": (form(part(AUDIO))[:2000], "upload_malformed"),
    "junk behind": (form(part(AUDIO)) + b"junk" * 2000, "upload_malformed"),
    "large fields": (form(part(AUDIO), part(b"x" * OTHER_FIELDS, b"a", None)), "upload_malformed"),
    "not a form": (b'{"audio_file": 1}', "upload_malformed"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("chunk", [100, 1 << 20])
async def test_broken_forms_are_refused(validator: UploadRules, name: str, chunk: int) -> None:
    """With the code that says what is wrong, and never with a complete request upstream."""
    body, code = REFUSED[name]
    outcome = await upload(validator, body, chunk=chunk)
    assert outcome.code == code
    assert not outcome.sent.endswith(b"--ours--\r\n")


@pytest.mark.parametrize(
    ("content_type", "encoding", "code"),
    [
        (b"application/json", None, "upload_malformed"),
        (b"multipart/form-data", None, "upload_malformed"),
        (b"multipart/form-data; boundary=a; boundary=b", None, "upload_malformed"),
        (CONTENT_TYPE, b"gzip", "upload_malformed"),
        (None, None, "upload_malformed"),
    ],
)
async def test_heads_that_cannot_lead_to_an_upload(
    validator: UploadRules, content_type: bytes, encoding: bytes | None, code: str
) -> None:
    """Refused at once, before any body."""
    with pytest.raises(UploadRejected) as refusal:
        validator.begin(content_type, 1000, encoding)
    assert refusal.value.code == code


@pytest.mark.parametrize("chunk", [1, 1000, 1 << 20])
async def test_raw_bodies(pool: ProbePool, chunk: int) -> None:
    """Unchanged, with their length, the last piece held back until the result."""
    raw = UploadRules(Upload(field=None), pool, new_spool())
    outcome = await upload(
        raw, AUDIO, chunk=chunk, content_type=b"audio/mpeg; x=y", length=len(AUDIO)
    )
    assert (outcome.code, outcome.sent) == ("accepted", AUDIO)
    assert (outcome.forward_length, outcome.content_type) == (len(AUDIO), None)
    bad = await upload(raw, b"%PDF-1.4" + AUDIO, chunk=chunk, content_type=b"audio/mpeg")
    assert (bad.code, bad.sent) == ("upload_type_rejected", b"")


async def test_raw_bodies_that_are_refused(pool: ProbePool) -> None:
    """Declared as something else, empty, or one byte too large."""
    raw = UploadRules(Upload(field=None, max_size=1000), pool, new_spool())
    for content_type, length, code in (
        (b"text/html", 10, "upload_type_rejected"),
        (CONTENT_TYPE, 10, "upload_type_rejected"),
        (b"audio/mpeg", 0, "upload_empty"),
        (b"audio/mpeg", 1001, "upload_too_large"),
    ):
        with pytest.raises(UploadRejected) as refusal:
            raw.begin(content_type, length, None)
        assert refusal.value.code == code
    assert (await upload(raw, b"", content_type=b"audio/mpeg")).code == "upload_empty"


async def test_report_mode_changes_nothing_and_reports(pool: ProbePool) -> None:
    """Every byte as it came; the facts say what would have been."""
    report = UploadRules(Upload(mode="report", max_size=1 * MIB), pool, new_spool())
    bodies = {
        "accepted": form(part(AUDIO)),
        "upload_type_rejected": form(part(b"%PDF-1.7" + bytes(100_000))),
        "upload_malformed": b"not a form at all",
        "upload_too_large": form(part(wav_header(2 * MIB) + bytes(2 * MIB))),
        "upload_missing": form(),
    }
    for result, body in bodies.items():
        outcome = await upload(report, body, chunk=5000)
        assert (outcome.code, outcome.sent) == ("accepted", body)
        assert outcome.facts["verdict"] == result
        assert outcome.facts["mode"] == "report"
    far_too_large = await upload(report, AUDIO, length=10**9)
    assert far_too_large.facts["verdict"] == "upload_too_large"
    assert (far_too_large.forward_length, far_too_large.content_type) == (10**9, None)


async def test_forty_at_once(validator: UploadRules) -> None:
    """All accepted, the loop never blocked, and every result soon after its last byte."""
    audio = encode("mp3", 60, 8000, silent=True)
    outcomes = await asyncio.gather(
        *(upload(validator, form(part(audio)), chunk=16_384) for _ in range(40))
    )
    assert {outcome.code for outcome in outcomes} == {"accepted"}
    assert max(outcome.slowest_feed for outcome in outcomes) < 0.1


async def test_an_upload_that_is_given_up_frees_its_process(
    pool: ProbePool, validator: UploadRules
) -> None:
    """The client left midway."""
    check = validator.begin(CONTENT_TYPE, None, None)
    check.feed(part(wav_header(10**6) + bytes(200_000)).removesuffix(b"\r\n"))
    async with asyncio.timeout(PATIENCE):
        while not pool.running:
            await room(check)
    check.close()
    check.close()
    assert pool.running == 0
    assert check.facts["verdict"] == "unfinished"


async def test_the_client_answers_for_what_an_upload_holds(validator: UploadRules) -> None:
    """Fields, file and what is written around it count as the connection's, until it is closed."""

    class Client:
        held = 0
        who = "192.0.2.1"

    client = Client()
    check = validator.begin(CONTENT_TYPE, None, None, owner=client)
    check.feed(part(bytes(50_000), b"style", None).removesuffix(b"\r\n"))
    assert client.held == 50_000
    check.feed(b"\r\n" + part(wav_header(10**6) + bytes(9_000)).removesuffix(b"\r\n"))
    assert client.held > 59_000
    check.close()
    assert client.held == 0


@pytest.mark.parametrize(
    "body", [b"", b"no form", part(b"x" * 70_000)[:-2], part(b"x")[:20] + b"\0\r\n\r\n"]
)
async def test_an_upload_leaves_nothing_to_the_collector(
    validator: UploadRules, body: bytes
) -> None:
    """A flood of refused ones would keep it busy, and everybody waiting for it."""
    gc.collect()
    gc.disable()
    try:
        check = validator.begin(CONTENT_TYPE, None, None)
        left = weakref.ref(check)
        error: Exception | None = None
        try:
            check.feed(body)
            await check.finish()
        except UploadRejected as refusal:
            error = refusal
        assert error is not None
        check.close()
        forget_frames(error)
        del check
        async with asyncio.timeout(PATIENCE):
            while left() is not None:  # noqa: ASYNC110 (the disk may still be at work for it)
                await asyncio.sleep(0.005)
    finally:
        gc.enable()
