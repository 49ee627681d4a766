"""A strict reader of multipart/form-data that yields events while the bytes come.

The parser is defnull's `multipart` in strict mode; docs/uploads.md compares it with
`python-multipart`. Beyond it:
1. Nothing before the first boundary and nothing behind the last one, an empty line aside
   (RFC 2046 §5.1.1 allows text there, that is "to be ignored": room to hide in).
2. One `Content-Disposition` per part, at most one `Content-Type`, no `Content-Transfer-Encoding`
   (RFC 7578 §4.7), no multipart within (RFC 7578 §4.3).
3. Names are decoded by us: UTF-8, else ISO-8859-1, never refused for their charset.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from multipart import (  # type: ignore[import-untyped]
    MultipartError,
    MultipartSegment,
    ParserLimitReached,
    PushMultipartParser,
)

from proxy.upload import disposition

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

MAX_PARTS = 200
MAX_HEADER_LINE = 8 * 1024
MAX_HEADERS = 16
MAX_NAME = 1000  # characters, field and file names


class FormError(ValueError):
    """The body is not what `form-data` must be; the message is half a sentence."""


@dataclass(frozen=True)
class Part:
    """The head of one part. `filename`: as the client gave it; None for a plain field."""

    name: str
    filename: str | None


class PartEnd:
    """The part is complete."""


PART_END = PartEnd()
Event = Part | bytes | PartEnd


class FormReader:
    """Feed pieces of the body; get parts, their bytes (in big slices, uncopied) and their ends.

    `complete` says whether the closing boundary was seen.
    """

    def __init__(self, boundary: bytes) -> None:
        self._parser = PushMultipartParser(
            boundary,
            max_header_size=MAX_HEADER_LINE,
            max_header_count=MAX_HEADERS,
            max_segment_count=MAX_PARTS,
            header_charset="latin-1",
            strict=True,
        )
        opening = b"--" + boundary
        self._openings = (opening, b"\r\n" + opening)
        self._closing = b"\r\n--" + boundary + b"--"
        self._before = b""  # until the first boundary is whole
        self._started = False
        self._recent = b""  # enough of what was fed to find the closing boundary again
        self._epilogue = b""
        self.complete = False

    def feed(self, data: bytes) -> Iterator[Event]:
        """Parse on. Raises `FormError`. Consume the iterator before the next call."""
        if self.complete:
            self._check_epilogue(data)
            return
        if not self._started:
            data = self._before = self._before + data
            if not self._begins(data):
                return
            self._before = b""
        ended = False
        try:
            for event in self._parser.parse(data):
                ended = event is None
                if event is None:
                    yield PART_END
                elif isinstance(event, MultipartSegment):
                    yield _part(event)
                else:
                    yield event
        except ParserLimitReached as error:
            raise FormError(f"a limit is exceeded ({_sentence(error)})") from error
        except MultipartError as error:
            raise FormError(_sentence(error)) from error
        self._note_end(data, ended)

    def close(self) -> None:
        """The body is over. Raises `FormError` where it stopped before the last boundary."""
        try:
            self._parser.close()
        except MultipartError as error:
            raise FormError("the body ends before the last boundary") from error

    def _begins(self, data: bytes) -> bool:
        """Rule 1: whether the first boundary is whole; raises where it cannot come any more."""
        if not any(opening.startswith(data[: len(opening)]) for opening in self._openings):
            raise FormError("the body does not begin with the boundary")
        opening = self._openings[data[:1] == b"\r"]
        self._started = len(data) >= len(opening) + 2
        return self._started

    def _note_end(self, data: bytes, ended: bool) -> None:
        """The parser does not say that a part was the last one, nor where. A part that ended last
        in `data` was, if the closing boundary is there: nothing before it can look like one."""
        keep = len(self._closing) - 1
        if ended:
            window = self._recent + data
            at = window.find(self._closing)
            if at >= 0:
                self.complete = True
                self._check_epilogue(window[at + len(self._closing) :])
        self._recent = data[-keep:] if len(data) >= keep else (self._recent + data)[-keep:]

    def _check_epilogue(self, data: bytes) -> None:
        self._epilogue += data
        if not b"\r\n".startswith(self._epilogue):
            raise FormError("there is more behind the last boundary")


def _part(segment: MultipartSegment) -> Part:
    seen: set[str] = set()
    parameters: dict[str, str] = {}
    for name, value in segment.headerlist:
        if name == "Content-Transfer-Encoding":
            raise FormError("a part has a Content-Transfer-Encoding")
        if name in seen and name in ("Content-Disposition", "Content-Type"):
            raise FormError(f"a part has two {name} fields")
        seen.add(name)
        if _CONTROL.search(value):
            raise FormError("a part header has control characters")
        try:
            if name == "Content-Disposition":
                parameters = disposition.parse_value(value)[1]
            elif name == "Content-Type" and value.lower().startswith("multipart/"):
                raise FormError("a part is itself multipart")
        except ValueError as error:
            raise FormError(str(error)) from error
    try:
        filename = disposition.file_name(parameters)
    except ValueError as error:
        raise FormError(str(error)) from error
    name = disposition.decode(parameters.get("name", ""))
    if not name:
        raise FormError("a part has no name")
    if len(name) > MAX_NAME or len(filename or "") > MAX_NAME:
        raise FormError("a name is too long")
    if filename is not None and "filename*" not in parameters:
        filename = disposition.decode(filename)
    return Part(name, filename)


def _sentence(error: MultipartError) -> str:
    text = str(error.args[0])
    return text[:1].lower() + text[1:]
