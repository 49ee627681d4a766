"""Starlette, Flask (Werkzeug) and Django, and the servers in front of them."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import django
import flask
import httptools
import pytest
import starlette.routing
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse
from django.urls import path as django_path
from django.urls import re_path
from starlette.applications import Starlette
from starlette.responses import Response

from tests.routers import HANDLERS, Router


def starlette_router() -> Router:
    """Starlette behind uvicorn: httptools splits the target, `unquote` decodes the path once."""
    ran: list[str] = []

    def endpoint(name: str) -> Callable[[Any], Response]:
        async def run(request: Any) -> Response:
            ran.append(name)
            return Response()

        return run

    app = Starlette(
        routes=[
            starlette.routing.Route(
                path.replace("{rest:*}", "{rest:path}"), endpoint(name), methods=[method or "GET"]
            )
            for name, method, path in HANDLERS
        ]
    )

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        pass

    def route(method: str, target: str) -> str | None:
        try:
            url = httptools.parse_url(target.encode())
        except httptools.HttpParserInvalidURLError:
            return None
        ran.clear()
        raw_path = url.path or b"/"
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(raw_path.decode("ascii")),
            "raw_path": raw_path,
            "root_path": "",
            "query_string": url.query or b"",
            "headers": [(b"host", b"app")],
        }
        _run(app(scope, receive, send))
        return ran[0] if ran else None

    return route


def _run(coroutine: Any) -> None:
    """A coroutine that never really waits."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("the application waited for something")


def _environ(method: str, path: str, query: str) -> dict[str, Any]:
    return {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query,
        "SERVER_NAME": "app",
        "SERVER_PORT": "80",
        "HTTP_HOST": "app",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }


def _served(app: Any, ran: list[str], merges: bool) -> Router:
    """A WSGI application behind gunicorn, or behind what is built on Python's http.server, which
    merges slashes at the start (`merges`)."""

    def route(method: str, target: str) -> str | None:
        path, _, query = target.partition("?")
        ran.clear()
        if merges and path.startswith("//"):
            path = "/" + path.lstrip("/")
        answer: Iterable[bytes] = app(_environ(method, path, query), lambda *_: None)
        getattr(answer, "close", lambda: None)()
        return ran[0] if ran else None

    return route


def flask_router(strict_slashes: bool, merges: bool) -> Router:
    """Flask, with or without its strictness about a slash at the end."""
    ran: list[str] = []
    app = flask.Flask("app")
    app.url_map.strict_slashes = strict_slashes

    def view(name: str) -> Callable[..., str]:
        def run(**parameters: str) -> str:
            ran.append(name)
            return ""

        return run

    for name, method, path in HANDLERS:
        rule = path.replace("{rest:*}", "<path:rest>").replace("{", "<").replace("}", ">")
        app.add_url_rule(rule, name, view(name), methods=[method or "GET"])
    return _served(app.wsgi_app, ran, merges)


def bottle_router() -> Router:
    """Bottle, which leaves out of a path what is no UTF-8. Skips where it is not installed."""
    bottle = pytest.importorskip("bottle")
    ran: list[str] = []
    app = bottle.Bottle()

    def view(name: str) -> Callable[..., str]:
        def run(**parameters: str) -> str:
            ran.append(name)
            return ""

        return run

    for name, method, path in HANDLERS:
        rule = path.replace("{rest:*}", "<rest:path>").replace("{", "<").replace("}", ">")
        app.route(rule, method or "GET", view(name))
    return _served(app, ran, merges=False)


_DJANGO_RAN: list[str] = []


def django_router(merges: bool) -> Router:
    """Django with `path` and, for one handler, a `re_path` that ends in `$`."""
    # Its settings are the process', and whoever comes first in it makes them.
    if not settings.configured:
        settings.configure(USE_TZ=True)
    if not hasattr(settings, "ROOT_URLCONF"):
        urls = ModuleType("tests.routers.urls")
        urls.urlpatterns = [_django_url(path) for path in dict.fromkeys(h[2] for h in HANDLERS)]
        settings.ALLOWED_HOSTS = ["*"]
        settings.ROOT_URLCONF = urls
        settings.MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
        settings.LOGGING_CONFIG = None
        django.setup()
        logging.getLogger("django.request").disabled = True  # every 404
    return _served(WSGIHandler(), _DJANGO_RAN, merges)


def _django_url(path: str) -> Any:
    handlers = {method: name for name, method, other in HANDLERS if other == path}

    def view(request: Any, **parameters: str) -> HttpResponse:
        # As its class-based views do: HEAD is GET's.
        name = handlers.get("GET" if request.method == "HEAD" else request.method)
        if name is None:
            return HttpResponse(status=405)
        _DJANGO_RAN.append(name)
        return HttpResponse()

    if "{" not in path:
        return re_path(f"^{path[1:]}$", view)
    pattern = path[1:].replace("{rest:*}", "<path:rest>").replace("{", "<str:").replace("}", ">")
    return django_path(pattern, view)
