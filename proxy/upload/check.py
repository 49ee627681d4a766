"""One upload, as the engine sees it: bytes in, bytes for upstream out, a verdict at the end.

Rules:
1. Nothing of a form goes upstream before the file's type is known. So a PDF called `song.mp3` never
   reaches the app, not even its first byte, and the canonical header can name what the file really
   is. Nor before `buffer` bytes are there, or the verdict: until then the upload needs no upstream
   connection, and a slow sender takes none from others. All uploads together hold back 64 MiB at
   most; once they do, each goes on as soon as its type is known.
2. The end is held back until the verdict: of a form the last boundary, of a raw body the last
   piece.
3. What goes upstream is written anew: our own boundary, which no client can know (so no parser, be
   it as lenient as it likes, finds a boundary within the file), one `Content-Disposition` per part,
   a safe file name, the detected type. The length changes with it: a form is forwarded chunked, a
   raw body keeps its length.
4. A file of the configured field once; no other file; the other fields together 1 MiB at most.
5. In report mode the bytes pass as they came and nothing is raised; the verdict is only recorded.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any, Final

from proxy.clock import Clock, SystemClock
from proxy.config.listeners import Upload
from proxy.errors import Overloaded, ProxyError, UploadRejected
from proxy.upload import disposition, verdicts
from proxy.upload.families import BY_MEDIA_TYPE, HEAD, compile_types
from proxy.upload.findings import refusal
from proxy.upload.form import FormError, FormReader, Part, PartEnd
from proxy.upload.holding import Holding
from proxy.upload.pool import ProbePool
from proxy.upload.session import HIGH_WATER, Answer, Job, ProbeSession

OTHER_FIELDS: Final = 1024 * 1024  # bytes of a form that are not the file
_RAW_TYPES = ("audio/", "video/", "application/octet-stream", "application/ogg", "application/mp4")

#: What `UploadCheck.facts` may hold, and the access line as `upload_NAME`.
FACTS: Final = (
    "verdict",
    "mode",
    "type",
    "label",
    "size",
    "duration",
    "validation_ms",
    "reason",
)


class UploadValidator:
    """The rules of one route, compiled. `boundary` makes 32 hexadecimal digits, at random."""

    def __init__(
        self,
        rules: Upload,
        pool: ProbePool,
        *,
        clock: Clock | None = None,
        boundary: Callable[[], str] = lambda: secrets.token_hex(16),
    ) -> None:
        self.rules = rules
        self.pool = pool
        self.clock: Clock = clock or SystemClock()
        self.new_boundary = boundary
        families = compile_types(rules.types)
        self.job = Job(
            tuple(family.media_type for family in families), rules.max_size, rules.max_duration
        )

    def begin(
        self,
        content_type: bytes | None,
        content_length: int | None,
        content_encoding: bytes | None,
    ) -> UploadCheck:
        """Look at the request's head, before any 100 (Continue). Raises an `UploadRejected` where
        no body could make it good; in report mode never."""
        return UploadCheck(self, content_type, content_length, content_encoding)


class UploadCheck:
    """Call `feed` for each piece of the body, `finish` after the last, `close` in any case.

    `forward_length`: the length of the body that goes upstream, None where only chunked will do.
    `content_type`: the `Content-Type` to send upstream, None to leave the client's. Both hold for
    the whole body. `on_change` is called from the event loop when a waiting `drained` would return
    or raise: an engine that sleeps on the client's next bytes can act on an early refusal at once.
    """

    def __init__(
        self,
        validator: UploadValidator,
        content_type: bytes | None,
        content_length: int | None,
        content_encoding: bytes | None,
    ) -> None:
        self._rules = validator.rules
        self._accepted = validator.job.types
        self._field = validator.rules.field
        self._clock = validator.clock
        self._report = validator.rules.mode == "report"
        self._session: ProbeSession = validator.pool.session(validator.job, self._changed)
        self._held = Holding(validator.rules.buffer, validator.pool.held)  # rule 1
        self._last = b""  # rule 2, raw bodies
        self._head: list[bytes] = []  # of the file, until a process is worth its while
        self._head_size = 0
        self._part: Part | None = None  # the part we are in
        self._in_file = False
        self._file_seen = False
        self._released = False
        self._body = self._file = 0
        self._error: ProxyError | None = None
        self._finished_at: float | None = None
        self._validation_ms: float | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._content_length = content_length
        self._form: FormReader | None = None
        self._boundary = b""
        self.on_change: Callable[[], None] | None = None
        self.forward_length: int | None = content_length
        self.content_type: bytes | None = None
        try:
            self._examine_head(content_type, content_length, content_encoding)
            if not self._report and self._form is not None:
                self._boundary = validator.new_boundary().encode()
                self.content_type = b"multipart/form-data; boundary=" + self._boundary
                self.forward_length = None
        except UploadRejected as error:
            self._fail(error)

    # --- what the engine calls ---------------------------------------------------------------

    def feed(self, data: bytes) -> list[bytes]:
        """The next bytes of the body; `b""` just to ask. Returns what may go upstream now. Raises
        `UploadRejected`, or `Overloaded` where no probe process could be had."""
        self._raise_if_failed()
        out: list[bytes] = []
        if self._error is not None:  # report mode, verdict known
            self._body += len(data)
        else:
            try:
                self._consult()
                out = self._take(data) if data else self._release()
            except ProxyError as error:
                self._fail(error)
        if self._report:
            return [data] if data else []
        return out

    @property
    def blocked(self) -> bool:
        """Whether the engine should stop reading the client until `drained` returns."""
        if self._error is not None or self._session.decided:
            return False
        undecided = self._session.opened and self._session.kind is None
        return self._session.full or (undecided and self._held.size > HIGH_WATER)

    async def drained(self) -> None:
        """Wait until not `blocked`. Raises as `feed` does where the verdict comes first."""
        while self.blocked:
            await self._next_change()
        self._raise_if_failed()

    async def finish(self) -> list[bytes]:
        """The body is complete: wait for the verdict. Raises it, or returns the end of the body."""
        self._raise_if_failed()
        self._finished_at = self._clock.monotonic()
        out: list[bytes] = []
        try:
            if self._error is None:
                self._end_of_body()
                while not self._session.decided:
                    await self._next_change()
                self._consult()
                out = self._release(complete=True)
        except ProxyError as error:
            self._fail(error)
        self._validation_ms = (self._clock.monotonic() - self._finished_at) * 1000
        if self._report:
            return []
        if self._form is not None:
            out.append(b"--" + self._boundary + b"--\r\n")
        elif self._last:
            out.append(self._last)
        return out

    def close(self) -> None:
        """Free the probe process. Always call it; a second call does nothing."""
        self._session.close()
        self._held.drop()
        self._head.clear()

    @property
    def facts(self) -> dict[str, Any]:
        """For the access line and the metrics: `verdict` (`accepted`, an error's code, or
        `unfinished`), `mode`, `type` and `label` (ours and libmagic's), `size` in bytes, `duration`
        in seconds, `validation_ms` from the last byte to the verdict, `reason`. What is not known
        is left out."""
        session = self._session
        verdict = session.verdict or {}
        values = (
            self._verdict_name(),
            self._rules.mode,
            session.kind and session.kind.get("type"),
            session.kind and session.kind.get("label"),
            self._file,
            verdict.get("duration"),
            self._validation_ms,
            self._error.reason if self._error else None,
        )
        facts = zip(FACTS, values, strict=True)
        return {name: value for name, value in facts if value is not None}

    # --- the request's head ---------------------------------------------------------------------

    def _examine_head(
        self, content_type: bytes | None, length: int | None, encoding: bytes | None
    ) -> None:
        field, limit = self._field, self._rules.max_size
        if encoding is not None and encoding.strip().lower() not in (b"", b"identity"):
            raise verdicts.malformed(
                "an encoded body (Content-Encoding) is not accepted", field, reason="encoding"
            )
        if length is not None and length > limit + (OTHER_FIELDS if field else 0):
            raise verdicts.too_large(length, limit, field)
        text = (content_type or b"").decode("latin-1").strip()
        if field is None:
            if length == 0:
                raise verdicts.empty(None)
            kind = text.partition(";")[0].strip().lower()
            if kind and not kind.startswith(_RAW_TYPES):
                raise verdicts.type_rejected(kind, self._accepted, None)
            self._in_file = self._file_seen = True
            return
        if not text and not length:
            raise verdicts.missing(field)
        try:
            self._form = FormReader(disposition.parse_boundary(text))
        except ValueError as error:
            raise verdicts.malformed(str(error), field, reason="content_type") from error

    # --- the body -------------------------------------------------------------------------------

    def _take(self, data: bytes) -> list[bytes]:
        self._body += len(data)
        if self._form is None:
            self._take_file(data)
            previous, self._last = self._last, data
            return self._emit(previous)
        out: list[bytes] = []
        try:
            for event in self._form.feed(data):
                if isinstance(event, bytes):
                    if self._in_file:
                        self._take_file(event)
                    out += self._emit(event)
                elif isinstance(event, PartEnd):
                    out += self._emit(b"\r\n")
                    self._end_part()
                else:
                    out += self._begin_part(event)
        except FormError as error:
            raise verdicts.malformed(str(error), self._field) from error
        if self._body - self._file > OTHER_FIELDS:
            raise verdicts.malformed("the other fields are over 1MB", self._field, reason="fields")
        return out

    def _begin_part(self, part: Part) -> list[bytes]:
        self._part = part
        if part.name != self._field:
            if part.filename is not None:
                raise verdicts.malformed(
                    f"a file in a field other than {self._field}", self._field, reason="other_file"
                )
            return self._emit(self._part_head(part))
        if self._file_seen:
            raise verdicts.malformed(
                f"field {self._field} is there twice", self._field, reason="duplicate"
            )
        if part.filename is None:
            raise verdicts.missing(part.name)
        self._file_seen = self._in_file = True
        return []  # its head is written when its type is known

    def _part_head(self, part: Part) -> bytes:
        head = b"--" + self._boundary + b"\r\n"
        if part.filename is None:
            return head + disposition.write_disposition(part.name) + b"\r\n"
        kind: Answer = self._session.kind or {}
        family = BY_MEDIA_TYPE[kind["type"]]
        name = disposition.safe_file_name(part.filename, family)
        return (
            head
            + disposition.write_disposition(part.name, name)
            + f"Content-Type: {family.media_type}\r\n\r\n".encode()
        )

    def _take_file(self, data: bytes) -> None:
        if self._file == 0:
            self._file_part = self._part
        self._file += len(data)
        if self._file > self._rules.max_size:
            self._raise_too_large()
        if self._session.opened:
            self._session.send(data)
            return
        self._head.append(data)
        self._head_size += len(data)
        if self._head_size >= HEAD:
            self._open_session()

    def _raise_too_large(self) -> None:
        limit, length = self._rules.max_size, self._content_length
        if length is None:
            raise verdicts.too_large(self._file, limit, self._field, at_least=True)
        # The file is what the rest of the body is, the last boundary aside.
        expected = self._file + length - self._body if self._form else length
        raise verdicts.too_large(max(expected, self._file), limit, self._field)

    def _open_session(self) -> None:
        self._session.open()
        self._session.send(b"".join(self._head))
        self._head.clear()

    def _end_part(self) -> None:
        self._part = None
        if self._in_file:
            self._in_file = False
            self._end_of_file()

    def _end_of_file(self) -> None:
        if self._file == 0:
            raise verdicts.empty(self._field)
        if not self._session.opened:
            self._open_session()
        self._session.end()

    def _end_of_body(self) -> None:
        if self._form is None:
            self._end_of_file()
            return
        assert self._field is not None
        if self._body == 0:
            raise verdicts.missing(self._field)
        try:
            self._form.close()
        except FormError as error:
            raise verdicts.malformed(str(error), self._field, reason="cut_short") from error
        if not self._file_seen:
            raise verdicts.missing(self._field)

    # --- what goes upstream ---------------------------------------------------------------------

    def _emit(self, data: bytes) -> list[bytes]:
        if self._report or not data:
            return []
        if self._released:
            return [data]
        self._held.add(data, before_file=not self._file_seen)
        return self._release()

    def _release(self, *, complete: bool = False) -> list[bytes]:
        """Everything held, once it is enough and the type of the file is known and good."""
        if self._released or self._report or self._session.kind is None:
            return []
        if not (complete or self._held.enough):
            return []
        self._released = True
        head = b""
        if self._form is not None:
            assert self._file_part is not None
            head = self._part_head(self._file_part)
        return self._held.take(head)

    # --- the verdict ----------------------------------------------------------------------------

    def _consult(self) -> None:
        """Raise what the probe has found so far."""
        error = refusal(self._session, self._accepted, self._rules.max_duration, self._field)
        if error is not None:
            raise error

    def _fail(self, error: ProxyError) -> None:
        """Settle on `error`; in report mode it is only kept for `facts`."""
        self._error = error
        self._session.close()
        self._held.drop()
        self._head.clear()
        self._raise_if_failed()

    def _raise_if_failed(self) -> None:
        if self._error is None and not self._report and self._session.decided:
            try:
                self._consult()
            except ProxyError as error:
                self._error = error
        if self._error is not None and not self._report:
            raise self._error

    def _verdict_name(self) -> str:
        if self._error is not None:
            return "overloaded" if isinstance(self._error, Overloaded) else self._error.code
        return "accepted" if self._validation_ms is not None else "unfinished"

    # --- waiting --------------------------------------------------------------------------------

    def _changed(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self.on_change is not None:
            self.on_change()

    async def _next_change(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
