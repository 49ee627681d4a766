"""What WSGI apps make of an upload: their servers know no chunks, so it needs its length."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.data.audio.generate import path_of
from tests.http1 import Site
from tests.uploads.apps import Form, WsgiApp
from tests.uploads.drive import form, part
from tests.uploads.site import chunked, head

MP3 = path_of("mp3").read_bytes()


@pytest.fixture(scope="module")
def app() -> Iterator[WsgiApp]:
    """One app for the file."""
    app = WsgiApp()
    yield app
    app.stop()


@pytest.fixture(scope="module")
def site(app: WsgiApp, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A proxy before it."""
    routes = [{"name": "create", "path": "/{rest:*}", "upstream": "app", "upload": {}}]
    target = {"targets": [f"http://127.0.0.1:{app.port}"]}
    folder = tmp_path_factory.mktemp("wsgi")
    with Site(folder, {"front": {"routes": routes}}, app=target) as site:
        yield site
        site.check()


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("path", ["/django", "/flask"])
def test_the_form_is_all_there(site: Site, app: WsgiApp, path: str, framing: str) -> None:
    """However the client framed it."""
    body = form(part(b"5", b"max_shorts", None), part(MP3), part("olá".encode(), b"note", None))
    raw = chunked(body, 1000) if framing == "chunked" else body
    response = site.ask(head(None if framing == "chunked" else len(body), path=path) + raw)
    assert response.status == 202
    assert app.forms[-1] == Form(
        [("max_shorts", "5"), ("note", "olá")], [("audio_file", "song.mp3", "audio/mpeg", MP3)]
    )


def test_flask_reads_a_field_in_the_charset_of_its_part(site: Site, app: WsgiApp) -> None:
    """Which has come along."""
    kind = b"Content-Type: text/plain; charset=ISO-8859-1"
    body = form(part("ação".encode("latin-1"), b"note", None, kind), part(MP3))
    assert site.ask(head(len(body), path="/flask") + body).status == 202
    assert app.forms[-1].fields == [("note", "ação")]
