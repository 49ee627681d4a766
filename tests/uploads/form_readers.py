"""What the parsers of real apps find in a form that passed our reader and was written anew.

Starlette, Werkzeug, Django and defnull's `multipart` read what `NewForm` writes of what our reader
reads. Each may decode an escape in a name in its own way, as it would without us; which parts there
are, which of them are files and what is in them must be the same for all.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from typing import Any

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


def check_form(body: bytes, chunk: int) -> bool:
    """Assert that our reader finds the same in pieces of `chunk` bytes as in one, and that every
    app's parser finds it too. Whether the form passed and could be compared."""
    try:
        found, ours = rewritten(body, 1 << 20)
    except FormError:
        try:
            rewritten(body, chunk)
        except FormError:
            return False
        raise AssertionError(f"refused in one piece, read in pieces of {chunk}: {body!r}") from None
    if len(body) < 9000:
        assert rewritten(body, chunk) == (found, ours), body
    if any(data != data.decode(errors="ignore").encode() for _, _, data in found):
        return False  # not UTF-8: each parser decodes it in its own way
    for read in (by_starlette, by_werkzeug, by_django, by_defnull):
        theirs = read(ours)
        kinds = {"unfilled": "field"} if read is by_django else {}
        expected = sorted((kinds.get(kind, kind), data) for kind, _, data in found)
        assert sorted((kind, data) for kind, _, data in theirs) == expected, body
        names = sorted(name.replace("%22", '"') for _, name, _ in theirs)
        assert names == sorted(name.replace("%22", '"') for _, name, _ in found), body
    return True
