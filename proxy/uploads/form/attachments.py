"""Files that a form may have beside the audio: each field has a rule for types, size and number.

Rules:
1. A type is recognised by the first bytes of a file, text by all of them; the file's name and the
   client's `Content-Type` are ignored. Nothing is decoded, so an image may be broken. What begins
   like a page or a program is not text.
2. They keep their place in the form, with a safe name and the recognised type.
3. They wait in the spool like the audio.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from proxy.config.listeners import AlsoFile
from proxy.spool import SpooledBody
from proxy.uploads import rejections
from proxy.uploads.form import values
from proxy.uploads.form.reader import Part

HEAD = 512  # bytes that decide the type


@dataclass(frozen=True)
class Kind:
    """How files of one type begin. `text`: the only control characters are line ends and tabs."""

    media_type: str
    start: re.Pattern[bytes]
    extensions: tuple[str, ...]
    text: bool = False


def _kind(media_type: str, start: bytes, extensions: str, *, text: bool = False) -> Kind:
    if text:
        start = rb"(?!" + _BOM + _NO_TEXT + rb")" + _BOM + start
    return Kind(media_type, re.compile(start, re.DOTALL), tuple(extensions.split()), text)


_BOM = rb"(?:\xef\xbb\xbf)?"
_NO_TEXT = rb"\s*(?:%PDF-|#!|<(?i:!doctype|html|head|body|script|svg|\?))"
_CONTROL = re.compile(rb"[^\t\n\f\r\x20-\x7e\x80-\xff]")
_KINDS: Final = {
    kind.media_type: kind
    for kind in (
        _kind("image/jpeg", rb"\xff\xd8\xff", ".jpg .jpeg"),
        _kind("image/png", rb"\x89PNG\r\n\x1a\n", ".png"),
        _kind("image/gif", rb"GIF8[79]a", ".gif"),
        _kind("image/webp", rb"RIFF....WEBPVP8[ LX]", ".webp"),
        _kind("image/avif", rb"....ftypavi[fs]", ".avif"),
        _kind("image/heic", rb"....ftyp(?:hei[cxms]|hev[cx]|mif1)", ".heic .heif"),
        _kind("application/pdf", rb"%PDF-\d\.\d", ".pdf"),
        _kind("application/json", rb"\s*[\[{]", ".json", text=True),
        _kind("text/vtt", rb"WEBVTT(?:[ \t\r\n]|\Z)", ".vtt", text=True),
        _kind(
            "application/x-subrip",
            rb"\s*\d+[ \t]*\r?\n\d+:\d\d:\d\d[,.]\d{1,3} --> ",
            ".srt",
            text=True,
        ),
        _kind("text/plain", rb"", ".txt .csv .md .lrc .srt .vtt", text=True),
    )
}


class Attachment:
    """One such file, during and after its arrival."""

    def __init__(self, rule: AlsoFile, part: Part, body: SpooledBody) -> None:
        self.part = part
        self.body = body
        self._rule = rule
        self._kinds = [_KINDS[name] for name in rule.types]
        self._head = b""
        self._decided = False

    def append(self, data: bytes) -> None:
        """Take the next bytes. Raises a rejection as soon as it is certain."""
        if not self._decided:
            self._head += data[:HEAD]
            if len(self._head) >= HEAD:
                self._decide()
        if self._decided and self._kinds[0].text and _CONTROL.search(data):
            self._refuse()
        self.body.append([data])
        if self.body.size > self._rule.max_size:
            raise rejections.too_large(
                None, self._rule.max_size, self._rule.field, rejections.beside(self._rule.field)
            )

    def end(self) -> None:
        """End the file. Raises a rejection."""
        if self.body.size == 0:
            raise rejections.empty(self._rule.field, rejections.beside(self._rule.field))
        if not self._decided:
            self._decide()
        self.body.end()

    def head(self) -> tuple[str, bytes]:
        """Its safe name and type, once it has ended."""
        (kind,) = self._kinds
        given = self.part.filename or ""
        name = values.safe_file_name(given, kind.extensions, without="file")
        return name, kind.media_type.encode()

    def _decide(self) -> None:
        self._decided = True
        fitting = (kind for kind in self._kinds if kind.start.match(self._head))
        found = next((k for k in fitting if not (k.text and _CONTROL.search(self._head))), None)
        if found is None:
            self._refuse()
        else:
            self._kinds = [found]

    def _refuse(self) -> None:
        raise rejections.attachment_rejected(self._rule.types, self._rule.field)
