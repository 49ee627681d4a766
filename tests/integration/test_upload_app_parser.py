"""What the app's own parser makes of an upload that we rewrote: a Starlette app behind uvicorn.

The point of writing a form anew is that two parsers cannot disagree about it. So this file lets the
parser that the real service uses (python-multipart, inside Starlette) read what the proxy sends.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.audio.generate import path_of
from tests.http1 import Site, assert_problem
from tests.uploads.apps import Form, StarletteApp
from tests.uploads.audio import wav_header
from tests.uploads.drive import form, part
from tests.uploads.site import chunked, head

MP3 = path_of("mp3").read_bytes()


@pytest.fixture(scope="module")
def app() -> Iterator[StarletteApp]:
    """One app for the file."""
    app = StarletteApp()
    yield app
    app.stop()


@pytest.fixture(scope="module")
def site(app: StarletteApp, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A proxy before it."""
    routes = [{"name": "create", "path": "/{rest:*}", "upstream": "app", "upload": {}}]
    target = {"targets": [f"http://127.0.0.1:{app.port}"]}
    with Site(tmp_path_factory.mktemp("app"), {"front": {"routes": routes}}, app=target) as site:
        yield site
        site.check()


def accepted(app: StarletteApp, site: Site, body: bytes) -> Form:
    """Upload `body`; what the app's parser found."""
    before = len(app.forms)
    response = site.ask(head(len(body)) + body)
    assert response.status == 202, response.body
    assert len(app.forms) == before + 1
    return app.forms[-1]


def test_the_same_file_and_the_same_fields(app: StarletteApp, site: Site) -> None:
    """In their order, repeated names included, with a safe name and the true type."""
    body = form(
        part(b"5", b"max_shorts", None, b"Content-Type: text/plain; charset=utf-8"),
        part("olá, ção".encode(), b"note", None),
        part(MP3, b"audio_file", b"..\\..\\evil\\voz.php", b"Content-Type: text/html"),
        part(b"a\r\n--b\r\n\r\nc", b"tag", None),
        part(b"", b"tag", None),
    )
    assert accepted(app, site, body) == Form(
        [("max_shorts", "5"), ("note", "olá, ção"), ("tag", "a\r\n--b\r\n\r\nc"), ("tag", "")],
        [("audio_file", "voz.mp3", "audio/mpeg", MP3)],
    )


def test_every_kind_of_audio(app: StarletteApp, site: Site) -> None:
    """Byte for byte, whichever container, under the type that it really has."""
    for kind, media_type in (
        ("mp3", "audio/mpeg"),
        ("wav", "audio/wav"),
        ("m4a-last", "audio/mp4"),
        ("m4a-fragmented", "audio/mp4"),
        ("opus", "audio/ogg"),
    ):
        audio = path_of(kind).read_bytes()
        (file,) = accepted(app, site, form(part(audio, filename=b"x.bin"))).files
        assert (file[2], file[3]) == (media_type, audio)


_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=30)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    fields=st.lists(st.tuples(st.sampled_from(["a", "b", "c d", "ação"]), _TEXT), max_size=4),
    filename=st.text(
        st.characters(codec="utf-8", exclude_categories=["Cc"], exclude_characters='"\\'),
        max_size=40,
    ),
    at=st.integers(0, 4),
)
def test_any_fields_and_any_file_name(
    app: StarletteApp, site: Site, fields: list[tuple[str, str]], filename: str, at: int
) -> None:
    """Whatever stands around the file, the app reads exactly that, and a harmless name."""
    parts = [part(value.encode(), name.encode(), None) for name, value in fields]
    at = min(at, len(parts))
    parts.insert(at, part(MP3, b"audio_file", filename.encode()))
    found = accepted(app, site, form(*parts))
    (file,) = found.files
    assert found.fields == fields
    assert (file[0], file[2], file[3]) == ("audio_file", "audio/mpeg", MP3)
    assert file[1].endswith(".mp3")
    assert not set(file[1]) & set('/\\"\r\n;%')


def test_a_bad_upload_costs_the_app_nothing(app: StarletteApp, site: Site) -> None:
    """Neither a form nor a request; whatever is wrong with it, and wherever it comes."""
    before = len(app.forms), app.started
    audio = wav_header(10_560_000) + bytes(10_560_000)
    minutes = path_of("mp3-bare").read_bytes() * 540
    for raw in (
        head(None) + chunked(form(part(audio))),
        head(None) + chunked(form(part(minutes)) + b"junk" * 2000),
        head(None) + chunked(form(part(minutes))[:-8]),
        head(None) + chunked(form(part(b"%PDF-1.4" + bytes(200_000)))),
    ):
        response = site.ask(raw)
        assert response.status == 400, response.body
    assert_problem(site.ask(head(60 * 2**20)), 400, "upload_too_large")
    assert (len(app.forms), app.started) == before
