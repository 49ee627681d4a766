"""Slow callers before a real uvicorn that takes nine connections, as make-video does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.http1 import PATIENCE, RawClient, Site, free_port, get, post, wait_until

_APP = """
from starlette.applications import Starlette
from starlette.responses import FileResponse, PlainTextResponse
from starlette.routing import Route

async def take(request):
    return PlainTextResponse(str(len(await request.body())))

async def give(request):
    return FileResponse("film.mp4")

app = Starlette(routes=[Route("/", take, methods=["GET", "POST"]), Route("/film", give)])
"""
FILM = os.urandom(1000) * 8000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """`buffered` leads to the app as in the ready config, `direct` without buffering."""
    folder = tmp_path_factory.mktemp("app")
    (folder / "small_app.py").write_text(_APP)
    (folder / "film.mp4").write_bytes(FILM)
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "small_app:app", f"--port={port}"]
    command += ["--limit-concurrency=10", "--log-level=warning", "--no-access-log"]
    app = subprocess.Popen(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)})
    target = {
        "targets": [f"http://127.0.0.1:{port}"],
        "connect_patience": f"{PATIENCE:g}s",
        "pool": {"max_connections": 4, "queue_timeout": "300ms", "reuse": "idempotent"},
    }
    buffered = target | {"buffering": {"request": True, "response": True}}
    rest = {"name": "all", "path": "/{rest:*}"}
    try:
        with Site(
            tmp_path_factory.mktemp("proxy"),
            {
                "buffered": {"routes": [rest | {"upstream": "buffered"}]},
                "direct": {"routes": [rest | {"upstream": "direct"}]},
            },
            upstreams={"buffered": buffered, "direct": target},
        ) as site:
            assert site.ask(get(), "buffered").status == 200  # it is up
            yield site
    finally:
        app.terminate()
        app.wait(PATIENCE)


def slow(site: Site, stack: ExitStack, listener: str, kind: str, number: int) -> list[RawClient]:
    """So many clients that have sent one byte, or take nothing of their download."""
    clients = []
    for _ in range(number):
        client = stack.enter_context(site.connect(listener, receive_buffer=4096))
        if kind == "uploads":
            client.send(get("/", "Content-Length: 100", method="POST") + b"x")
        else:
            client.send(get("/film"))
            client.response_head()
        clients.append(client)
    return clients


@pytest.mark.parametrize("kind", ["uploads", "downloads"])
def test_eight_slow_clients_do_not_shut_the_app(site: Site, kind: str) -> None:
    """Others are served, POSTs included, and the slow ones in the end."""
    with ExitStack() as stack:
        clients = slow(site, stack, "buffered", kind, 8)
        for _ in range(5):
            assert site.ask(get(), "buffered").status == 200
            assert site.ask(post(b"12345"), "buffered").body == b"5"
        client = clients[0]
        if kind == "uploads":
            client.send(b"x" * 99)
            assert client.response("POST").body == b"100"


def test_without_buffering_four_do(site: Site) -> None:
    """The control: the same clients without it take all that the pool has."""
    with ExitStack() as stack:
        slow(site, stack, "direct", "uploads", 4)
        wait_until(
            lambda: (
                site.proxy.metric("proxy_upstream_connections", upstream="direct", state="active")
                == 4
            ),
            "four connections in use",
        )
        assert site.ask(get(), "direct").status == 503
