"""Apps that read forms with the parsers that services have: Starlette's, Werkzeug's (Flask) and
Django's, the latter two behind a WSGI server, which knows no chunks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import uvicorn
from django.conf import settings
from django.core.files.uploadhandler import MemoryFileUploadHandler
from django.core.handlers.wsgi import LimitedStream
from django.http.multipartparser import MultiPartParser
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from werkzeug.wrappers import Request as WerkzeugRequest

from tests.http1 import PATIENCE, free_port, wait_until


@dataclass(frozen=True)
class Form:
    """What an app has read: (name, value) of fields, (name, file name, type, bytes) of files, each
    in their order."""

    fields: list[tuple[str, str]]
    files: list[tuple[str, str, str, bytes]]


class StarletteApp:
    """The service's side: what its parser found, and how many requests began."""

    def __init__(self) -> None:
        self.forms: list[Form] = []
        self.started = 0
        self.port = free_port()
        self._server = uvicorn.Server(
            uvicorn.Config(
                Starlette(routes=[Route("/{path:path}", self._create, methods=["POST"])]),
                host="127.0.0.1",
                port=self.port,
                log_config=None,
                ws="none",
            )
        )
        self._thread = threading.Thread(target=self._server.run, name="uvicorn")
        self._thread.start()
        wait_until(lambda: self._server.started, "uvicorn")

    async def _create(self, request: Request) -> Response:
        self.started += 1
        form = Form([], [])
        async with request.form() as found:
            for name, value in found.multi_items():
                if isinstance(value, UploadFile):
                    data = await value.read()
                    form.files.append((name, value.filename or "", value.content_type or "", data))
                else:
                    form.fields.append((name, value))
        self.forms.append(form)
        return JSONResponse({"status": "accepted"}, 202)

    def stop(self) -> None:
        """End the server and its thread."""
        self._server.should_exit = True
        self._thread.join(PATIENCE)


def werkzeug(environ: dict[str, Any]) -> Form:
    """Fields and files as Flask's request has them."""
    with WerkzeugRequest(environ) as request:
        files = [
            (name, file.filename or "", file.mimetype, file.read())
            for name, file in request.files.items(multi=True)
        ]
        return Form(list(request.form.items(multi=True)), files)


def django(environ: dict[str, Any]) -> Form:
    """Fields and files as Django's request has them."""
    if not settings.configured:
        settings.configure(USE_TZ=True)
    handler = MemoryFileUploadHandler()
    handler.activated = True
    length = int(environ.get("CONTENT_LENGTH") or 0)
    body = LimitedStream(environ["wsgi.input"], length)  # as its WSGI handler does
    fields, files = MultiPartParser(environ, body, [handler]).parse()
    return Form(
        [(name, value) for name, values in fields.lists() for value in values],
        [
            (name, file.name, file.content_type, file.read())
            for name, found in files.lists()
            for file in found
        ],
    )


class Quiet(WSGIRequestHandler):
    """Without a line for each request."""

    def log_message(self, *_: Any) -> None:
        """Write nothing."""


class WsgiApp:
    """Django where the path begins with /django, else Werkzeug, behind the standard library's
    server, which reads `CONTENT_LENGTH` bytes and nothing else."""

    def __init__(self) -> None:
        self.forms: list[Form] = []
        self._server = make_server("127.0.0.1", 0, self._serve, handler_class=Quiet)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="wsgi")
        self._thread.start()

    def _serve(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        read = django if environ["PATH_INFO"].startswith("/django") else werkzeug
        self.forms.append(read(environ))
        start("202 Accepted", [("Content-Length", "0")])
        return []

    def stop(self) -> None:
        """End the server and its thread."""
        self._server.shutdown()
        self._thread.join(PATIENCE)
        self._server.server_close()
