"""A strict parser of multipart/form-data that yields events as bytes arrive.

The underlying parser is defnull's `multipart` in strict mode; docs/explanation/uploads.md compares
it with `python-multipart`. This module adds:
1. Preamble and epilogue are dropped, as RFC 2046 §5.1.1 demands, up to 4 KiB each. The boundary may
   not occur in the epilogue.
2. A part has one `Content-Disposition`, at most one `Content-Type` (or the same one twice) and no
   nested multipart (RFC 7578 §4.3). `Content-Transfer-Encoding` may only be `binary`, `8bit` or
   `7bit`, which mean none (RFC 2045 §6.2, RFC 7578 §4.7).
3. Names are decoded as UTF-8, or else as ISO-8859-1, and never rejected for their charset. They are
   rejected if they begin or end with spaces, which Django strips, or with a byte order mark, which
   Node strips.
4. Neither data nor a header may begin with the boundary, which some parsers would take for one: the
   line end that closes the headers counts as the one before it.
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

from proxy.uploads.form import values

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_NO_ENCODING = frozenset({"binary", "8bit", "7bit"})

MAX_PARTS = 200
MAX_HEADER_LINE = 8 * 1024
MAX_HEADERS = 16
MAX_NAME = 1000  # characters, field and file names
MAX_AROUND = 4 * 1024  # bytes of preamble, and of epilogue


class FormError(ValueError):
    """The body is not valid `form-data`; the message is half a sentence."""


@dataclass(frozen=True)
class Part:
    """The head of one part. `filename`: as sent by the client, None for a plain field. `raw_name`:
    the name as it stood between the quotes. `text_type`: the `Content-Type` that a text part
    keeps."""

    name: str
    filename: str | None
    raw_name: bytes
    text_type: bytes | None = None


class PartEnd:
    """The part is complete."""


PART_END = PartEnd()
Event = Part | bytes | PartEnd


class FormReader:
    """Feed pieces of the body; get parts, their bytes (large slices, not copied) and their ends.

    `complete`: whether the closing boundary was seen.
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
        self._opening = b"--" + boundary
        self._closing = b"\r\n--" + boundary + b"--"
        self._before = b""  # until the first boundary is complete
        self._started = False
        self._recent = b""  # the end of the bytes so far, to find a closing boundary across pieces
        self._epilogue = b""
        self._first: bytes | None = None  # of the part's data, while they may be the boundary
        self.complete = False

    def feed(self, data: bytes) -> Iterator[Event]:
        """Parse the next bytes. Raises `FormError`. Exhaust the iterator before the next call."""
        if not self._started and not self.complete:
            data = self._after_preamble(data)
        if self.complete:
            self._drop_epilogue(data)
        if self.complete or not data:
            return
        ended = False
        try:
            for event in self._parser.parse(data):
                ended = event is None
                if event is None:
                    yield PART_END
                elif isinstance(event, MultipartSegment):
                    self._first = b""
                    yield _part(event)
                else:
                    if self._first is not None:
                        self._check_first(event)
                    yield event
        except ParserLimitReached as error:
            raise FormError(f"a limit is exceeded ({_sentence(error)})") from error
        except MultipartError as error:
            raise FormError(_sentence(error)) from error
        self._note_end(data, ended)

    def close(self) -> None:
        """End the body. Raises `FormError` if it stopped before the last boundary."""
        if not self.complete:
            raise FormError("the body ends before the last boundary")

    def _after_preamble(self, data: bytes) -> bytes:
        """Rule 1: the bytes from the first boundary on; none while that is incomplete."""
        data = self._before + data
        opening = self._opening
        at = data.find(opening)
        if at > MAX_AROUND or (at < 0 and len(data) > MAX_AROUND + len(opening)):
            raise FormError("there is no boundary in the first 4KB of the body")
        if at > 0 and data[:at][-2:] != b"\r\n":  # some parsers would begin here, others later
            raise FormError("the first boundary does not begin a line")
        behind = at + len(opening)
        if at < 0 or len(data) < behind + 2:
            self._before = data
            return b""
        self._before = b""
        if data.startswith(b"--", behind):  # a form without parts
            self.complete = True
            return data[behind + 2 :]
        self._started = True
        return data[at:]

    def _check_first(self, data: bytes) -> None:
        """Rule 4."""
        assert self._first is not None
        self._first += data[: len(self._opening)]
        if self._first.startswith(self._opening):
            raise FormError("a part begins with the boundary")
        if not self._opening.startswith(self._first):
            self._first = None

    def _note_end(self, data: bytes, ended: bool) -> None:
        """The parser does not report whether a part was the last one. If a part ended in `data` and
        the closing boundary is there, it was: by rule 4 nothing else looks like one."""
        keep = len(self._closing) - 1
        if ended:
            window = self._recent + data
            at = window.find(self._closing)
            if at >= 0:
                self.complete = True
                self._drop_epilogue(window[at + len(self._closing) :])
        self._recent = data[-keep:] if len(data) >= keep else (self._recent + data)[-keep:]

    def _drop_epilogue(self, data: bytes) -> None:
        self._epilogue += data[: MAX_AROUND + 1]
        if self._epilogue[:1] not in (b"", b"\r", b"\n", b" ", b"\t"):
            raise FormError("the last boundary does not end its line")
        if len(self._epilogue) > MAX_AROUND:
            raise FormError("there are more than 4KB behind the last boundary")
        if self._opening in self._epilogue:
            raise FormError("there is another boundary behind the last one")


def _part(segment: MultipartSegment) -> Part:
    fields: dict[str, str] = {}
    for name, value in segment.headerlist:
        if _CONTROL.search(value):
            raise FormError("a part header has control characters")
        _check_header(name, value.strip(" \t").lower(), fields)
        fields[name] = value
    try:
        _, parameters = values.parse_value(fields["Content-Disposition"])
        raw = values.field_name(parameters)
    except ValueError as error:
        raise FormError(str(error)) from error
    filename = values.file_name(parameters)
    if len(raw) > MAX_NAME or len(filename or "") > MAX_NAME:
        raise FormError("a name is too long")
    decoded = values.decode(values.unescape(raw))
    if decoded != decoded.strip().lstrip("\ufeff"):
        raise FormError("a part's name begins or ends with a blank")
    content_type = fields.get("Content-Type")
    return Part(
        decoded,
        filename,
        raw.encode("latin-1"),
        None if content_type is None else values.text_type(content_type),
    )


def _check_header(name: str, value: str, earlier: dict[str, str]) -> None:
    """Rule 2 for a header in lower case after the `earlier` ones. Raises `FormError`."""
    if name.startswith("-"):
        raise FormError("a part header begins like a boundary")
    if name == "Content-Transfer-Encoding" and value not in _NO_ENCODING:
        raise FormError("a part has a Content-Transfer-Encoding other than binary, 8bit and 7bit")
    if name == "Content-Type" and value.startswith("multipart/"):
        raise FormError("a part is itself multipart")
    if name in earlier and (
        name == "Content-Disposition"
        or (name == "Content-Type" and value != earlier[name].strip(" \t").lower())
    ):
        raise FormError(f"a part has two {name} fields")


def _sentence(error: MultipartError) -> str:
    text = str(error.args[0])
    return text[:1].lower() + text[1:]
