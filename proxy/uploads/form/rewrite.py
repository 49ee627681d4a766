"""The rewritten form: what the app gets instead of the client's.

Rules:
1. The parts keep their order. Each gets one `Content-Disposition` and one type, a safe file name
   and a boundary that no client can know.
2. There is one file in the audio's field. Others need a rule in `also` (attachments.py).
3. A file input that was left empty (`filename=""` and no bytes) is not a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from proxy.config.listeners import Upload
from proxy.core.memory.budget import Holding
from proxy.spool import SpooledBody
from proxy.uploads import rejections
from proxy.uploads.form import values
from proxy.uploads.form.attachments import Attachment
from proxy.uploads.form.reader import Event, Part, PartEnd
from proxy.uploads.formats.families import FormatFamily


def _ignore(data: bytes) -> None:
    """Replaces the methods of a closed form."""


def _no_body() -> SpooledBody:
    """Replaces the factory of a closed form."""
    raise RuntimeError("the form is closed")


class NewForm:
    """Takes the events of a `FormReader`. `file`: receives the audio; `new_body`: makes a body for
    another file; `held`: the memory account of the fields. `raw`: whether names keep their charset
    instead of being sent as UTF-8. `digest`: whether to compute `content`."""

    def __init__(
        self,
        rules: Upload,
        file: SpooledBody,
        new_body: Callable[[], SpooledBody],
        held: Holding,
        *,
        boundary: bytes,
        raw: bool,
        digest: bool,
    ) -> None:
        self._field = rules.field or ""
        self._also = {rule.field: rule for rule in rules.also}
        self._file = file
        self._new_body = new_body
        self._held = held
        self._boundary = boundary
        self._raw = raw
        self._digest = digest
        self._before: list[bytearray | SpooledBody] = []  # the audio
        self._parts = self._before  # where parts go
        self._part: Part | None = None  # the current one
        self._add: Callable[[bytes], None] = self._begin_file  # where its bytes go
        self._value = hashlib.sha256(usedforsecurity=False)
        self._values: list[tuple[bytes, ...]] = []
        self._audio: Part | None = None
        self.attachments: list[Attachment] = []

    @property
    def has_file(self) -> bool:
        """Whether the audio's part has begun."""
        return self._audio is not None

    @property
    def size(self) -> int:
        """Bytes of all files so far."""
        return self._file.size + sum(attachment.body.size for attachment in self.attachments)

    def take(self, event: Event) -> None:
        """Take the next event. Raises a rejection."""
        if isinstance(event, bytes):
            self._add(event)
        elif isinstance(event, PartEnd):
            self._end()
        else:
            self._begin(event)

    def _begin(self, part: Part) -> None:
        self._part = part
        if part.filename is None and part.name != self._field:
            self._open(part, part.text_type)
            self._value = hashlib.sha256(usedforsecurity=False)
            self._add = self._add_value
        else:
            self._add = self._begin_file  # on its first byte
            if part.filename != "":
                self._begin_file(b"")

    def _add_value(self, data: bytes) -> None:
        self._last().extend(data)
        self._held.grow(len(data))
        if self._digest:
            self._value.update(data)

    def _begin_file(self, data: bytes) -> None:
        part = self._part
        assert part is not None
        if part.name != self._field:
            self._begin_attachment(part)
        elif self.has_file:
            raise rejections.malformed(
                f"field {self._field} is there twice", self._field, reason="duplicate"
            )
        elif part.filename is None:
            raise rejections.missing(part.name)
        else:
            self._audio, self._parts = part, []
            self._add = self._add_audio
        if data:
            self._add(data)

    def _begin_attachment(self, part: Part) -> None:
        rule = self._also.get(part.name)
        if rule is None:
            raise rejections.malformed(
                f"a file in a field other than {self._field}", self._field, reason="other_file"
            )
        if sum(other.part.name == part.name for other in self.attachments) >= rule.max_count:
            raise rejections.malformed(
                f"there are more than {rule.max_count} files in field {rule.field}"
                if rule.max_count > 1
                else f"field {rule.field} is there twice",
                rule.field,
                reason="duplicate",
            )
        self.attachments.append(Attachment(rule, part, self._new_body()))
        self._add = self.attachments[-1].append

    def _add_audio(self, data: bytes) -> None:
        self._file.append([data])

    def _end(self) -> None:
        part = self._part
        assert part is not None
        if self._add == self._add_value:
            self._last().extend(b"\r\n")
            if self._digest:
                self._values.append((b"field", part.name.encode(), self._value.digest()))
        elif self._add == self._add_audio:
            self.end_file()
        elif self._add != self._begin_file:
            attachment = self.attachments[-1]
            attachment.end()
            name, kind = attachment.head()
            self._open(part, kind, name)
            self._parts += [attachment.body, bytearray(b"\r\n")]
        elif part.name != self._field:  # rule 3
            self._open(part, b"application/octet-stream", "")
            self._last().extend(b"\r\n")

    def end_file(self) -> None:
        """End the audio. Raises a rejection."""
        if self._file.size == 0:
            raise rejections.empty(self._field or None)
        self._file.end()
        self._file.to_file()

    def _last(self) -> bytearray:
        last = self._parts[-1]
        assert isinstance(last, bytearray)
        return last

    def _open(self, part: Part, kind: bytes | None, filename: str | None = None) -> None:
        name = part.raw_name
        if not self._raw:
            name = values.decode(name.decode("latin-1")).encode()
        line = values.write_disposition(name, filename)
        if kind is not None:
            line += b"Content-Type: " + kind + b"\r\n"
        self._parts.append(bytearray(b"--" + self._boundary + b"\r\n" + line + b"\r\n"))

    def frame(self, family: FormatFamily) -> None:
        """Frame the audio, of that `family`, with all other parts."""
        assert self._audio is not None
        behind, self._parts = self._parts, self._before
        name = values.safe_file_name(self._audio.filename or "", family.extensions)
        self._open(self._audio, family.media_type.encode(), name)
        behind = [bytearray(b"\r\n"), *behind, bytearray(b"--" + self._boundary + b"--\r\n")]
        before, after = (
            [bytes(part) if isinstance(part, bytearray) else part for part in parts]
            for parts in (self._before, behind)
        )
        self._held.clear()
        self._file.frame(before, after)

    def content(self) -> list[tuple[bytes, ...]] | None:
        """The SHA-256 of each field's value and of each file, with their names. None while a
        file is being written."""
        files = [(a.part.name, a.body.digest()) for a in self.attachments]
        files.append((self._field, self._file.digest()))
        found = [(b"file", name.encode(), digest) for name, digest in files if digest is not None]
        return [*self._values, *found] if len(found) == len(files) else None

    def close(self) -> None:
        """Release everything but the audio."""
        for attachment in self.attachments:
            attachment.body.close()
        self._before, self._parts = [], []
        self._add, self._new_body = _ignore, _no_body  # bound methods would be reference cycles
        self._held.clear()
