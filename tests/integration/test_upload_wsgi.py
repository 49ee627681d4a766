"""What WSGI apps make of an upload: their servers know no chunks, so it needs its length.

The server is the standard library's, which reads `CONTENT_LENGTH` bytes and nothing else; the forms
are read by Django and by Werkzeug (Flask).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from django.conf import settings
from django.core.files.uploadhandler import MemoryFileUploadHandler
from django.core.handlers.wsgi import LimitedStream
from django.http.multipartparser import MultiPartParser
from werkzeug.wrappers import Request

from tests.data.audio.generate import path_of
from tests.http1 import PATIENCE, Site
from tests.uploads.drive import form, part
from tests.uploads.site import chunked, head

MP3 = path_of("mp3").read_bytes()
Found = tuple[dict[str, str], dict[str, tuple[str, str, bytes]]]


def werkzeug(environ: dict[str, Any]) -> Found:
    """Fields and files as Flask's request has them."""
    with Request(environ) as request:
        files = {name: (f.filename, f.mimetype, f.read()) for name, f in request.files.items()}
        return dict(request.form), files  # type: ignore[return-value]


def django(environ: dict[str, Any]) -> Found:
    """Fields and files as Django's request has them."""
    if not settings.configured:
        settings.configure()
    handler = MemoryFileUploadHandler()
    handler.activated = True
    length = int(environ.get("CONTENT_LENGTH") or 0)
    body = LimitedStream(environ["wsgi.input"], length)  # as its WSGI handler does
    fields, files = MultiPartParser(environ, body, [handler]).parse()
    found = {name: (f.name, f.content_type, f.read()) for name, f in files.items()}
    return dict(fields.items()), found


class Quiet(WSGIRequestHandler):
    """Without a line for each request."""

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def found() -> list[Found]:
    """What the app has read, by request."""
    return []


@pytest.fixture(scope="module")
def site(found: list[Found], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A proxy before an app that reads forms as the path says."""

    def app(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        read = django if environ["PATH_INFO"] == "/django" else werkzeug
        found.append(read(environ))
        start("202 Accepted", [("Content-Length", "0")])
        return []

    server = make_server("127.0.0.1", 0, app, handler_class=Quiet)
    thread = threading.Thread(target=server.serve_forever, name="wsgi")
    thread.start()
    routes = [{"name": "create", "path": "/{rest:*}", "upstream": "app", "upload": {}}]
    target = {"targets": [f"http://127.0.0.1:{server.server_port}"]}
    folder = tmp_path_factory.mktemp("wsgi")
    try:
        with Site(folder, {"front": {"routes": routes}}, app=target) as site:
            yield site
            site.check()
    finally:
        server.shutdown()
        thread.join(PATIENCE)
        server.server_close()


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("path", ["/django", "/flask"])
def test_the_form_is_all_there(site: Site, found: list[Found], path: str, framing: str) -> None:
    """However the client framed it."""
    body = form(part(b"5", b"max_shorts", None), part(MP3), part("olá".encode(), b"note", None))
    raw = chunked(body, 1000) if framing == "chunked" else body
    response = site.ask(head(None if framing == "chunked" else len(body), path=path) + raw)
    assert response.status == 202
    fields, files = found[-1]
    assert fields == {"max_shorts": "5", "note": "olá"}
    assert files == {"audio_file": ("song.mp3", "audio/mpeg", MP3)}
