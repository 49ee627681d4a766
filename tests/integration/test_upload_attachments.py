"""Files that a form brings beside its audio: what passes, what is refused, what stays bounded."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from proxy.config.listeners import AlsoFile, Upload
from proxy.idempotency.key import fingerprint
from proxy.uploads.check import OTHER_FIELDS
from proxy.uploads.probe.pool import ProbePool
from proxy.uploads.rules import UploadRules
from tests.data.audio.generate import path_of
from tests.uploads.drive import form, new_spool, part, upload

MP3 = path_of("mp3").read_bytes()
JPEG = b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(range(256)) * 20
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(2000)
SRT = "1\r\n00:00:00,000 --> 00:00:02,500\r\nolá\r\n".encode("latin-1") * 30
VTT = b"\xef\xbb\xbfWEBVTT\n\n00:00.000 --> 00:02.000\nhello\n"
ALSO: list[dict[str, Any]] = [
    {"field": "cover", "types": ["image/jpeg", "image/png"], "max_size": 500_000},
    {"field": "text", "types": ["text/vtt", "application/x-subrip"], "max_count": 3},
    {"field": "any", "types": ["application/json", "text/plain", "application/pdf", "image/gif"]},
]


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[ProbePool]:
    """Probe processes, started once."""
    pool = ProbePool()
    await pool.start()
    yield pool
    await pool.stop()


@pytest.fixture
def validator(pool: ProbePool) -> UploadRules:
    """A route with a few rules."""
    rules = Upload(also=tuple(AlsoFile.model_validate(rule) for rule in ALSO))
    return UploadRules(rules, pool, new_spool(), digest=True, boundary=lambda: "ours")


@pytest.mark.parametrize("chunk", [1, 700, 1 << 20])
async def test_they_pass_beside_the_audio(validator: UploadRules, chunk: int) -> None:
    """In their places, byte for byte, with a safe name and the type that they have."""
    body = form(
        part(b"1", b"a", None),
        part(JPEG, b"cover", b"../my cover.html", b"Content-Type: text/html"),
        part(SRT, b"text", b"s.srt"),
        part(MP3),
        part(b"2", b"b", None),
        part(VTT, b"text", b""),
        part(b"", b"text", b""),
    )
    outcome = await upload(validator, body, chunk=chunk)
    assert outcome.forward_length == len(outcome.sent)
    assert outcome.parts() == [
        ("a", None, None, b"1"),
        ("cover", "my cover.jpg", "image/jpeg", JPEG),
        ("text", "s.srt", "application/x-subrip", SRT),
        ("audio_file", "song.mp3", "audio/mpeg", MP3),
        ("b", None, None, b"2"),
        ("text", "file.vtt", "text/vtt", VTT),
        ("text", "", "application/octet-stream", b""),
    ]


@pytest.mark.parametrize("first", [True, False])
async def test_a_large_one_goes_to_the_disk(pool: ProbePool, first: bool) -> None:
    """Like the audio: it takes no more memory than that, and comes back whole."""
    rule = AlsoFile(field="cover", types=("image/png",), max_size=40_000_000)
    spool = new_spool()
    validator = UploadRules(Upload(also=(rule,)), pool, spool, digest=True)
    large = PNG + bytes(range(256)) * 80_000
    parts = [part(large, b"cover", b"c.png"), part(MP3)]
    outcome = await upload(validator, form(*(parts if first else reversed(parts))))
    assert outcome.content is not None
    assert {name: digest for _, name, digest in outcome.content} == {
        b"cover": hashlib.sha256(large).digest(),
        b"audio_file": hashlib.sha256(MP3).digest(),
    }
    assert [data for *_, data in outcome.parts()] == ([large, MP3] if first else [MP3, large])
    assert spool.memory.used == 0


PLAIN = b"just text, f\xfcr alle\n" * 40
REFUSED = {
    "in no field of the rules": (part(JPEG, b"other"), "upload_malformed"),
    "a text field": (part(b"x", b"cover", None), "accepted"),
    "too large": (part(JPEG + bytes(500_000), b"cover"), "upload_too_large"),
    "just too large": (part(JPEG + bytes(500_001 - len(JPEG)), b"cover"), "upload_too_large"),
    "just large enough": (part(JPEG + bytes(500_000 - len(JPEG)), b"cover"), "accepted"),
    "one too many": (part(JPEG, b"cover") * 2, "upload_malformed"),
    "three of three": (part(VTT, b"text") * 3, "accepted"),
    "four of three": (part(VTT, b"text") * 4, "upload_malformed"),
    "empty": (part(b"", b"cover", b"c.png"), "upload_empty"),
    "left empty": (part(b"", b"cover", b""), "accepted"),
    "another type": (part(b"GIF89a" + bytes(900), b"cover"), "upload_type_rejected"),
    "a short one of another type": (part(b"GIF89a", b"cover"), "upload_type_rejected"),
    "audio": (part(MP3, b"cover"), "upload_type_rejected"),
    "text for an image": (part(PLAIN, b"cover"), "upload_type_rejected"),
    "plain text": (part(PLAIN, b"any"), "accepted"),
    "JSON": (part(b' {"a": 1}', b"any"), "accepted"),
    "a PDF": (part(b"%PDF-1.7\n\xe2\xe3\0", b"any"), "accepted"),
    "one letter": (part(b"x", b"any"), "accepted"),
    "a page": (part(b"\xef\xbb\xbf \n<!DOCTYPE html>" + PLAIN, b"any"), "upload_type_rejected"),
    "a script": (part(b"#!/bin/sh\n" + PLAIN, b"any"), "upload_type_rejected"),
    "a null at the end of text": (part(PLAIN * 900 + b"\0", b"any"), "upload_type_rejected"),
    "an escape in short text": (part(b"a\x1b[0m", b"any"), "upload_type_rejected"),
    "a program": (part(b"\x7fELF" + bytes(9000), b"any"), "upload_type_rejected"),
    "no timing in SubRip": (part(PLAIN, b"text"), "upload_type_rejected"),
    "large text fields all the same": (
        part(b"x" * OTHER_FIELDS, b"cover", None), "upload_malformed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("chunk", [333, 1 << 22])
async def test_each_has_its_rule(validator: UploadRules, name: str, chunk: int) -> None:
    """With the code and the field of what was wrong with it."""
    more, code = REFUSED[name]
    for body in (form(part(MP3), more), form(more, part(MP3))):
        outcome = await upload(validator, body, chunk=chunk)
        assert outcome.code == code
        if code in ("upload_too_large", "upload_type_rejected"):
            assert outcome.error is not None
            assert outcome.error.facts["field"] in more.decode("latin-1")
            assert outcome.error.facts["field"] in str(outcome.error)


async def test_the_length_allows_for_them(validator: UploadRules) -> None:
    """A `Content-Length` that audio, files and fields have room in is not refused by itself."""
    most = 50 * 2**20 + 500_000 + 3 * 5 * 2**20 + 5 * 2**20 + OTHER_FIELDS
    assert (await upload(validator, form(part(MP3)), length=most)).code == "accepted"
    assert (await upload(validator, b"", length=most + 1)).code == "upload_too_large"


async def test_they_belong_to_what_makes_an_upload_the_same(validator: UploadRules) -> None:
    """In any order and under any boundary; another cover is another request."""

    async def of(*parts: bytes) -> str:
        outcome = await upload(validator, form(*parts))
        assert outcome.content is not None
        return fingerprint("POST", "/", outcome.content)

    first = await of(part(JPEG, b"cover"), part(MP3), part(b"1", b"a", None))
    assert await of(part(MP3, filename=b"b"), part(b"1", b"a", None), part(JPEG, b"cover")) == first
    assert await of(part(PNG, b"cover"), part(MP3), part(b"1", b"a", None)) != first
    assert await of(part(MP3), part(b"1", b"a", None)) != first
