"""Uploads of true clients, read by true apps: what the app reads is what the client has sent.

The clients that are at hand run; the forms of others are reconstructed (tests/uploads/clients.py).
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import pytest
import requests
import urllib3

from tests.data.audio.generate import path_of
from tests.http1 import PATIENCE, Site, get
from tests.uploads.apps import Form, StarletteApp, WsgiApp
from tests.uploads.clients import CLIENTS, Client

MP3 = path_of("mp3").read_bytes()
NOTE = 'olá, "ção"\r\n--x'
PATHS = ["/starlette", "/flask", "/django"]
Apps = dict[str, StarletteApp | WsgiApp]


@pytest.fixture(scope="module")
def apps() -> Iterator[Apps]:
    """The app of each path."""
    starlette, wsgi = StarletteApp(), WsgiApp()
    yield {"/starlette": starlette, "/flask": wsgi, "/django": wsgi}
    starlette.stop()
    wsgi.stop()


@pytest.fixture(scope="module")
def site(apps: Apps, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A proxy before them."""
    also = [{"field": "cover", "types": ["image/png"]}]
    routes = [
        {"name": path[1:], "path": path, "upstream": path[1:], "upload": {"also": also}}
        for path in PATHS
    ]
    upstreams = {path[1:]: {"targets": [f"http://127.0.0.1:{apps[path].port}"]} for path in PATHS}
    folder = tmp_path_factory.mktemp("clients")
    with Site(folder, {"front": {"routes": routes}}, upstreams=upstreams) as site:
        yield site
        site.check()


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
@pytest.mark.parametrize("path", PATHS)
def test_forms_as_clients_write_them(site: Site, apps: Apps, path: str, client: Client) -> None:
    """Each is accepted, and read as it was meant."""
    body = client.body(MP3)
    fields = (f"Content-Type: {client.content_type}", f"Content-Length: {len(body)}")
    answer = site.ask(get(path, *fields, method="POST") + body)
    assert answer.status == 202, answer.body
    form = apps[path].forms[-1]
    # For Django an input left empty is a field, whoever sends it.
    assert [field for field in form.fields if field != ("cover", "")] == list(client.fields)
    files = [file for file in form.files if file[1]]
    assert files == [("audio_file", client.filename, "audio/mpeg", MP3 + client.behind)]


# --- clients that run ---------------------------------------------------------------------------

Send = Callable[[str, Path], int]


def by_requests(url: str, file: Path) -> int:
    """requests, with a file that it reads itself."""
    with file.open("rb") as audio:
        fields = {"max_shorts": "5", "note": NOTE}
        return requests.post(
            url, data=fields, files={"audio_file": audio}, timeout=PATIENCE
        ).status_code


def by_urllib3(url: str, file: Path) -> int:
    """urllib3, with a type for a text part."""
    fields = {
        "max_shorts": "5",
        "note": (None, NOTE, "text/plain; charset=utf-8"),
        "audio_file": (file.name, file.read_bytes(), "audio/mpeg"),
    }
    with urllib3.PoolManager(timeout=PATIENCE, retries=False) as pool:
        return pool.request("POST", url, fields=fields).status


def by_aiohttp(url: str, file: Path) -> int:
    """aiohttp, in chunks, with types for text parts."""

    async def send() -> int:
        form = aiohttp.FormData(quote_fields=False)
        form.add_field("max_shorts", "5", content_type="text/plain")
        form.add_field("note", NOTE)
        with file.open("rb") as audio:
            form.add_field("audio_file", audio, filename=file.name)
            async with aiohttp.ClientSession() as session, session.post(url, data=form) as answer:
                return answer.status

    return asyncio.run(send())


def by_httpx(url: str, file: Path) -> int:
    """httpx."""
    httpx = pytest.importorskip("httpx")  # of the development tools
    fields, files = (
        {"max_shorts": "5", "note": NOTE},
        {"audio_file": (file.name, file.read_bytes())},
    )
    return int(httpx.post(url, data=fields, files=files, timeout=PATIENCE).status_code)


def by_curl(url: str, file: Path, *more: str) -> int:
    """curl, with the transfer encodings that it can be asked for."""
    note = file.with_name("note.txt")
    note.write_bytes(NOTE.encode())
    form = ["-F", "max_shorts=5", "-F", f"note=<{note};type=text/plain"]
    form += ["-F", f"audio_file=@{file};encoder=binary", *more]
    return int(_run("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", *form, url))


def by_curl_in_chunks(url: str, file: Path) -> int:
    """curl, that sends chunks and waits for our leave."""
    return by_curl(url, file, "-H", "Transfer-Encoding: chunked", "-H", "Expect: 100-continue")


NODE = """
const {url, file, note} = JSON.parse(process.argv[1]);
const form = new FormData();
form.set("max_shorts", "5");
form.set("note", note);
const audio = require("fs").readFileSync(file);
form.set("audio_file", new Blob([audio], {type: "audio/mpeg"}), require("path").basename(file));
fetch(url, {method: "POST", body: form}).then(answer => console.log(answer.status));
"""


def by_node(url: str, file: Path) -> int:
    """Node's fetch."""
    return int(_run("node", "-e", NODE, json.dumps({"url": url, "file": str(file), "note": NOTE})))


PERL = """
my ($url, $file, $note) = @ARGV;
my @fields = (max_shorts => 5, note => $note, audio_file => [$file]);
print LWP::UserAgent->new->post($url, Content_Type => "form-data", Content => \\@fields)->code;
"""


def by_perl(url: str, file: Path) -> int:
    """Perl's LWP."""
    if "LWP" not in _run("perl", "-e", "eval { require LWP::UserAgent } and print 'LWP'"):
        pytest.skip("no LWP here")
    return int(_run("perl", "-MLWP::UserAgent", "-e", PERL, url, str(file), NOTE))


def _run(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} here")
    return subprocess.run(
        command, check=True, timeout=PATIENCE, capture_output=True, text=True
    ).stdout


@pytest.mark.parametrize(
    "send",
    [by_requests, by_urllib3, by_aiohttp, by_httpx, by_curl, by_curl_in_chunks, by_node, by_perl],
    ids=lambda send: send.__name__,
)
@pytest.mark.parametrize("path", PATHS)
def test_clients_that_run(site: Site, apps: Apps, path: str, send: Send, tmp_path: Path) -> None:
    """The same fields and the same file arrive from each at each."""
    file = tmp_path / "voice (1).mp3"
    file.write_bytes(MP3)
    host, port = site.addresses["front"]
    assert send(f"http://{host}:{port}{path}", file) == 202
    assert apps[path].forms[-1] == Form(
        [("max_shorts", "5"), ("note", NOTE)], [("audio_file", file.name, "audio/mpeg", MP3)]
    )


@pytest.mark.parametrize("path", PATHS)
def test_a_cover_comes_along(site: Site, apps: Apps, path: str) -> None:
    """Where the route names its field, before the audio or behind it."""
    host, port = site.addresses["front"]
    cover = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 2000
    parts = [("cover", ("my cover.bmp", cover, "image/bmp")), ("audio_file", ("a.mp3", MP3))]
    for files in (parts, parts[::-1]):
        answer = requests.post(
            f"http://{host}:{port}{path}", data={"a": "1"}, files=files, timeout=PATIENCE
        )
        assert answer.status_code == 202
        form = apps[path].forms[-1]
        assert form.fields == [("a", "1")]
        assert sorted(form.files) == [
            ("audio_file", "a.mp3", "audio/mpeg", MP3),
            ("cover", "my cover.png", "image/png", cover),
        ]
