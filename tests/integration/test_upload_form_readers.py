"""Forms of odd pieces: what we find in one that we let pass, every app's parser finds in ours.

Starlette, Werkzeug, Django and defnull's `multipart` read what `NewForm` writes of what our reader
reads. They may decode an escape in a name each in its own way, as they would without us; which
parts there are, which of them are files and what is in them must be the same for all.
"""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from multipart import MultipartSegment, PushMultipartParser
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartParser

from proxy.config.listeners import Upload
from proxy.core.memory.budget import Holding, MemoryBudget
from proxy.uploads.form.reader import FormError, FormReader, Part, PartEnd
from proxy.uploads.form.rewrite import NewForm
from proxy.uploads.formats.families import MPEG
from tests.uploads.apps import Form, django, werkzeug
from tests.uploads.drive import new_spool

IN, OUT = b"q1w2", b"0123456789abcdef0123456789abcdef"
Found = list[tuple[str, str, bytes]]  # kind, name, data


def rewritten(body: bytes, chunk: int) -> tuple[Found, bytes]:
    """What our reader finds but for the bytes of files, and the form without them, written anew."""
    reader = FormReader(IN)
    found: Found = []
    file = new_spool().body(lambda: None)
    form = NewForm(
        Upload(field="none-such"), file, lambda: file,
        Holding(MemoryBudget().account("test")), boundary=OUT, raw=False, digest=False,
    )  # fmt: skip
    part, pieces = Part("", None, b""), b""
    for at in range(0, len(body), chunk):
        for event in reader.feed(body[at : at + chunk]):
            if isinstance(event, Part):
                part, pieces = event, b""
            elif not isinstance(event, PartEnd):
                pieces += event
            elif part.filename is None:
                found.append(("field", part.name, pieces))
                for step in (part, pieces, event):
                    form.take(step)
            elif not part.filename and not pieces:
                found.append(("unfilled", part.name, b""))
                form.take(part)
                form.take(event)
    reader.close()
    form.take(Part("none-such", "x", b"none-such"))
    form.frame(MPEG)
    text = b"".join(piece for piece in file.before[:-1] if isinstance(piece, bytes))
    return found, text + b"--" + OUT + b"--\r\n"


# --- the apps' parsers --------------------------------------------------------------------------

TYPE = "multipart/form-data; boundary=" + OUT.decode()


def by_starlette(body: bytes) -> Found:
    """python-multipart, as Starlette uses it."""

    async def stream() -> AsyncIterator[bytes]:
        yield body

    async def read() -> Found:
        form = await MultiPartParser(Headers({"content-type": TYPE}), stream()).parse()
        found: Found = []
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                found.append((_kind(value.filename), name, await value.read()))
            else:
                found.append(("field", name, value.encode()))
        await form.close()
        return found

    return asyncio.run(read())


def by_werkzeug(body: bytes) -> Found:
    """Flask's."""
    return _of_wsgi(werkzeug, body)


def by_django(body: bytes) -> Found:
    """Django's, for which an input left empty is a field without a value, whoever sends it."""
    return _of_wsgi(django, body)


def by_defnull(body: bytes) -> Found:
    """Bottle's."""
    found: Found = []
    with PushMultipartParser(OUT, strict=True) as parser:
        for event in parser.parse(body):
            if isinstance(event, MultipartSegment):
                kind = "field" if event.filename is None else _kind(event.filename)
                found.append((kind, event.name, b""))
            elif event is not None:
                found[-1] = (*found[-1][:2], found[-1][2] + event)
    return found


def _of_wsgi(read: Callable[[dict[str, Any]], Form], body: bytes) -> Found:
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "POST",
        "CONTENT_TYPE": TYPE,
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
    }
    form = read(environ)
    fields = [("field", name, value.encode()) for name, value in form.fields]
    files = [(_kind(given), name, data) for name, given, _, data in form.files]
    return fields + files


def _kind(filename: str | None) -> str:
    return "file" if filename else "unfilled"


# --- odd pieces ---------------------------------------------------------------------------------

NAMES = [
    b"a", b"a b", b"audio_file", rb"a\"b", b"a%22b", rb"a\"; filename=\"x", rb"a\\", rb"a\b",
    b"a;b", b"a=b", b"a; filename=x", b"a\tb", b" a", b"a\xa0", b"=?utf-8?q?a?=", b"a*", b"\xe7",
    "ç".encode(), b"a%0d%0ab", b"a\xe2\x80\xa8b", b"a\x85", b"utf-8''a", b'a"b', b"a,b", b"''",
    rb"\"a\"", rb"a\"=\"b", b"\xef\xbb\xbfa",
]  # fmt: skip
QUOTINGS = [b'name="%b"'] * 4 + [
    b"name=%b", b'NAME="%b"', b'name = "%b"', b'name="%b" ', b'name*="%b"', b"name='%b'",
]  # fmt: skip
FILENAMES = [
    b'filename=""', b'filename="x"', b"filename=x", b"filename*=utf-8''x", b'filename="a"b"',
    b"filename=", rb'filename="a\"b"', rb'filename="a\"', b"filename*0=x", b'FileName="q"',
    b"filename=a b", b'filename ="x"', b'filename="a;b"', b"x=y", b"", b"name=z", b'x="', b"name",
]  # fmt: skip
TYPES = [
    b"text/plain; charset=utf-8", b"application/octet-stream", b"application/json", b"",
    b"text/html; name=x", b'text/plain; filename="x"', b"multipart/mixed; boundary=q1w2",
    b'text/plain;charset="utf-8";boundary=zz', b"message/rfc822", b"audio/mpeg; name=x",
]  # fmt: skip
HEADERS = [
    b"Content-Transfer-Encoding: binary", b"Content-Transfer-Encoding: base64", b" folded",
    b"Content-Length: 1", b"Content-Type: text/plain", b'content-disposition: form-data; name="z"',
    b"--q1w2--: x", b"X-Y: z",
]  # fmt: skip
DATA = [
    b"", b"x", b"\r\n", b"\r\n--q1w", b"--q1w2", b"--q1w2--", b"\n--q1w2\n", b"\r\n--",
    b"a" * 70_000, b"%41+b", b"\r", b"\n",
    b'\r\n--zz\r\nContent-Disposition: form-data; name="evil"\r\n\r\nx',
]  # fmt: skip


def odd_form(chance: random.Random) -> bytes:
    """A form of one to three parts, most of them a little odd."""
    pick = chance.choice
    out = pick([b""] * 12 + [b"\r\n", b"before\r\n", b"before\n", b"--q1w\r\n", b"x"])
    for _ in range(chance.randrange(1, 4)):
        values = [b"form-data", pick(QUOTINGS) % pick(NAMES)]
        if chance.random() < 0.4:
            values.insert(pick([1, 2]), pick(FILENAMES))
        separator = pick([b"; ", b";", b";  ", b" ;", b";\t"])
        headers = [b"Content-Disposition:" + pick([b"", b" ", b"\t"]) + separator.join(values)]
        if chance.random() < 0.4:
            headers.insert(chance.randrange(2), b"Content-Type: " + pick(TYPES))
        if chance.random() < 0.15:
            headers.insert(chance.randrange(len(headers) + 1), pick(HEADERS))
        end = pick([b"\r\n"] * 20 + [b"\n", b" \r\n", b"--\r\n"])
        out += b"--" + IN + end + b"\r\n".join(headers) + b"\r\n\r\n" + pick(DATA)
        out += pick([b"\r\n"] * 20 + [b"\n", b""])
    out += b"--" + IN + pick([b"--\r\n"] * 8 + [b"--", b"--\n", b"--x", b"--\r\nbehind", b"\r\n"])
    if chance.random() < 0.15:
        at = chance.randrange(len(out))
        out = out[:at] + pick([b"\r\n", b'"', b"\\", b";", b"\0", b"\n", b"="]) + out[at + 1 :]
    return out


@pytest.mark.parametrize("seed", range(2))
def test_all_readers_find_the_same(seed: int) -> None:
    """And in pieces of any size our own finds the same as in one."""
    chance, passed = random.Random(seed), 0
    for _ in range(600):
        body, chunk = odd_form(chance), chance.choice([1, 3, 7, 50])
        try:
            found, ours = rewritten(body, 1 << 20)
        except FormError:
            with pytest.raises(FormError):
                rewritten(body, chunk)
            continue
        if len(body) < 9000:
            assert rewritten(body, chunk) == (found, ours)
        if any(data != data.decode(errors="ignore").encode() for _, _, data in found):
            continue  # no UTF-8: decoded by each in its own way
        passed += 1
        for read in (by_starlette, by_werkzeug, by_django, by_defnull):
            theirs = read(ours)
            kinds = {"unfilled": "field"} if read is by_django else {}
            expected = sorted((kinds.get(kind, kind), data) for kind, _, data in found)
            assert sorted((kind, data) for kind, _, data in theirs) == expected, body
            names = sorted(name.replace("%22", '"') for _, name, _ in theirs)
            assert names == sorted(name.replace("%22", '"') for _, name, _ in found), body
    assert passed > 10
