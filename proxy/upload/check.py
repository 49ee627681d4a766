"""One upload, as the engine sees it: bytes in, a verdict, and a body for the upstream at the end.

Rules:
1. The file goes into the spool, and a probe process reads it there. Nothing goes upstream, and the
   upload needs no upstream connection, before the verdict is good. So a PDF called `song.mp3` never
   reaches the app, not even its first byte, and a slow sender takes no connection from others.
2. What goes upstream is written anew around the spooled file: our own boundary, which no client can
   know (so no parser, be it as lenient as it likes, finds a boundary within the file), one
   `Content-Disposition` per part, a safe file name, the detected type, and the length of it all.
3. A file of the configured field once; others only where `also` names them (attachments.py); the
   other fields together 1 MiB at most.
4. In report mode the bytes pass as they came and nothing is raised; the verdict is only recorded.
5. No room in the spool, no probe process in time: that is 503, and the log says why (session.py).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Final

from proxy.clock import Clock, SystemClock
from proxy.config.listeners import Upload
from proxy.errors import Overloaded, ProxyError, UploadRejected
from proxy.memory_budget import Holding, Owner
from proxy.spool import Framing, Spool, SpooledBody
from proxy.upload import disposition, verdicts
from proxy.upload.attachments import Attachment, Attachments
from proxy.upload.digests import DIGEST_FIELDS, Digests
from proxy.upload.families import BY_MEDIA_TYPE, HEAD, compile_types
from proxy.upload.fields import Fields, Place
from proxy.upload.findings import refusal
from proxy.upload.form import FormError, FormReader, Part, PartEnd
from proxy.upload.pool import ProbePool
from proxy.upload.session import Job, ProbeSession

OTHER_FIELDS: Final = 1024 * 1024  # bytes of a form that are not the file
SPOOL_TIMEOUT = 10.0  # seconds that the disk may take for the last bytes
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

log = logging.getLogger("proxy.upload")


class UploadValidator:
    """The rules of one route, compiled. `digest`: whether uploads are to know what is in them
    (`UploadCheck.content`). `boundary` makes 32 hexadecimal digits, at random."""

    def __init__(
        self,
        rules: Upload,
        pool: ProbePool,
        spool: Spool,
        *,
        digest: bool = False,
        clock: Clock | None = None,
        boundary: Callable[[], str] = lambda: secrets.token_hex(16),
    ) -> None:
        self.rules = rules
        self.pool = pool
        self.spool = spool
        self.digest = digest
        self.clock: Clock = clock or SystemClock()
        self.new_boundary = boundary
        families = compile_types(rules.types)
        types = tuple(family.media_type for family in families)
        self.job = Job.of(types, rules.max_duration, rules.max_size)

    def begin(
        self,
        content_type: bytes | None,
        content_length: int | None,
        content_encoding: bytes | None,
        digests: Sequence[tuple[bytes, bytes]] = (),
        owner: Owner | None = None,
    ) -> UploadCheck:
        """Look at the request's head, before any 100 (Continue); `digests`: names and values of its
        `DIGEST_FIELDS`; `owner` answers for the memory. Raises an `UploadRejected` where no body
        could make it good; in report mode never."""
        return UploadCheck(
            self, content_type, content_length, content_encoding, digests=digests, owner=owner
        )


class UploadCheck:
    """Call `feed` for each piece of the body, `finish` after the last, `close` in any case.

    `content_type`: the `Content-Type` to send upstream, None to leave the client's. `on_change` is
    called from the event loop when something is new: an early refusal, or room for more.
    """

    def __init__(
        self,
        validator: UploadValidator,
        content_type: bytes | None,
        content_length: int | None,
        content_encoding: bytes | None,
        *,
        digests: Sequence[tuple[bytes, bytes]],
        owner: Owner | None,
    ) -> None:
        self._rules = validator.rules
        self._accepted = validator.job.types
        self._field = validator.rules.field
        self._clock = validator.clock
        self._report = validator.rules.mode == "report"
        self._digests = Digests(digests) if digests and self._field is not None else None
        self._session: ProbeSession = validator.pool.session(validator.job, self._changed)
        self._file = validator.spool.body(
            self._spool_changed, owner=owner, sha256=validator.digest, keep=True
        )
        self._fields = Fields(Holding(validator.spool.memory, owner), digest=validator.digest)
        self._also = Attachments(
            validator.rules.also,
            lambda: validator.spool.body(self._spool_changed, owner=owner, sha256=validator.digest),
        )
        self._attachment: Attachment | None = None  # the one we are in
        self._part: Part | None = None  # the part we are in
        self._file_part: Part | None = None
        self._in_file = False
        self._nameless = False  # in a file part that has no name, and no byte yet
        self._file_seen = False
        self._body = 0
        self._error: ProxyError | None = None
        self._validation_ms: float | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._content_length = content_length
        self._form: FormReader | None = None
        self._charset: str | None = None  # of the form, where the client names one
        self._boundary = b""
        self.on_change: Callable[[], None] | None = None
        self.content_type: bytes | None = None
        try:
            self._examine_head(content_type, content_length, content_encoding)
            if not self._report and self._form is not None:
                self._boundary = validator.new_boundary().encode()
                self.content_type = b"multipart/form-data; boundary=" + self._boundary
                if self._charset is not None:
                    self.content_type += b"; charset=" + self._charset.encode()
        except UploadRejected as error:
            self._fail(error)

    # --- what the engine calls ---------------------------------------------------------------

    stale = DIGEST_FIELDS

    @property
    def forward_length(self) -> int | None:
        """The length of the body that goes upstream, None where only chunked will do."""
        return self._content_length if self._report else self._file.length

    def feed(self, data: bytes) -> list[bytes]:
        """The next bytes of the body; `b""` just to ask. Returns what may go upstream now: nothing,
        except in report mode. Raises `UploadRejected`, or `Overloaded` for trouble of ours."""
        self._raise_if_failed()
        if self._error is not None:  # report mode, verdict known
            self._body += len(data)
        else:
            try:
                self._consult()
                if data:
                    self._take(data)
            except ProxyError as error:
                self._fail(error)
        return [data] if data and self._report else []

    @property
    def blocked(self) -> bool:
        """Whether the engine should stop reading the client until `on_change`: the disk is slow."""
        if self._error is not None:
            return False
        file = self._file.blocked and not self._session.decided
        return file or any(body.blocked for body in self._also.bodies)

    async def finish(self) -> list[bytes] | SpooledBody:
        """The body is complete: wait for the verdict. Raises it, or returns the body that goes
        upstream; nothing in report mode, where it went as it came."""
        self._raise_if_failed()
        finished_at = self._clock.monotonic()
        try:
            if self._error is None:
                self._end_of_body()
                await self._verdict()
                self._consult()
        except ProxyError as error:
            self._fail(error)
        self._validation_ms = (self._clock.monotonic() - finished_at) * 1000
        if self._report:
            return []
        self._frame()
        return self._file

    def close(self) -> None:
        """Free the probe process and the spool. Always call it; a second call does nothing."""
        self._session.close()
        self._file.close()
        self._also.close()
        self._fields.clear()

    @property
    def content(self) -> list[tuple[bytes, ...]] | None:
        """What makes two uploads the same: SHA-256 of each field's value and of each file, with
        their names. None before the verdict is good, and where it is not wanted (`digest`)."""
        if self._validation_ms is None or self._error is not None:
            return None
        file, others = self._file.digest(), self._also.content()
        if file is None or others is None:
            return None
        fields = [(b"field", *field) for field in self._fields.content]
        return [*fields, *others, (b"file", (self._field or "").encode(), file)]

    @property
    def detail(self) -> str | None:
        """What the refusal says, in report mode too."""
        return self._error.detail if self._error is not None else None

    @property
    def facts(self) -> dict[str, Any]:
        """For the access line and the metrics: `verdict` (`accepted`, an error's code, or
        `unfinished`), `mode`, `type` and `label` (ours and libmagic's), `size` in bytes, `duration`
        in seconds, `validation_ms` from the last byte to the verdict, `reason`. What is not known
        is left out."""
        session = self._session
        verdict = session.verdict or {}
        kind = session.kind or {k: v for k, v in verdict.items() if isinstance(v, str)}
        values = (
            self._verdict_name(),
            self._rules.mode,
            kind.get("type", kind.get("family")),
            kind.get("label"),
            self._file.size,
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
        if length is not None and length > limit + (
            OTHER_FIELDS + self._also.limit if field else 0
        ):
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
            form_type = disposition.parse_form_type(text)
        except ValueError as error:
            raise verdicts.malformed(str(error), field, reason="content_type") from error
        self._form, self._charset = FormReader(form_type.boundary), form_type.charset

    # --- the body -------------------------------------------------------------------------------

    def _take(self, data: bytes) -> None:
        self._body += len(data)
        if self._form is None:
            self._take_file([data])
            return
        if self._digests is not None:
            self._digests.update(data)
        file: list[bytes] = []
        try:
            for event in self._form.feed(data):
                if isinstance(event, bytes):
                    if self._nameless:
                        self._begin_file()
                    if self._in_file:
                        file.append(event)
                    elif self._attachment is not None:
                        self._attachment.append(event)
                    else:
                        self._take_field(event)
                elif isinstance(event, PartEnd):
                    self._take_file(file)
                    file = []
                    self._end_part()
                else:
                    self._begin_part(event)
        except FormError as error:
            raise verdicts.malformed(str(error), self._field) from error
        self._take_file(file)
        if self._body - self._file.size - self._also.size > OTHER_FIELDS:
            raise verdicts.malformed("the other fields are over 1MB", self._field, reason="fields")

    def _begin_part(self, part: Part) -> None:
        self._part = part
        if part.filename is None and part.name != self._field:
            self._fields.begin(part, **self._place())
        elif part.filename == "":  # a file, or an input that was left empty: the next byte says
            self._nameless = True
        else:
            self._begin_file()

    def _place(self) -> Place:
        """Where a part goes that is not the file, and how its name is written."""
        return {
            "behind": self._file_seen,
            "boundary": self._boundary,
            "raw": self._charset is not None,
        }

    def _begin_file(self) -> None:
        part, self._nameless = self._part, False
        assert part is not None
        if part.name != self._field:
            self._attachment = self._also.begin(part)
            if self._attachment is None:
                raise verdicts.malformed(
                    f"a file in a field other than {self._field}", self._field, reason="other_file"
                )
            return
        if self._file_seen:
            raise verdicts.malformed(
                f"field {self._field} is there twice", self._field, reason="duplicate"
            )
        if part.filename is None:
            raise verdicts.missing(part.name)
        self._file_part = part
        self._file_seen = self._in_file = True

    def _take_field(self, data: bytes) -> None:
        self._fields.add(data)

    def _take_file(self, pieces: list[bytes]) -> None:
        if not pieces:
            return
        file = self._file
        file.append(pieces)
        if file.size > self._rules.max_size:
            self._raise_too_large()
        if file.size >= HEAD:
            file.to_file()
            self._tell_session()

    def _raise_too_large(self) -> None:
        limit, length, size = self._rules.max_size, self._content_length, self._file.size
        if length is None or self._rules.also:
            raise verdicts.too_large(size, limit, self._field, at_least=True)
        # The file is what the rest of the body is, the last boundary aside.
        expected = size + length - self._body if self._form else length
        raise verdicts.too_large(max(expected, size), limit, self._field)

    def _end_part(self) -> None:
        if self._in_file:
            self._in_file = False
            self._end_of_file()
        elif self._attachment is not None:
            attachment, self._attachment = self._attachment, None
            attachment.end()
            self._fields.file(attachment.part, attachment.body, *attachment.head(), **self._place())
        elif self._nameless:
            self._nameless = False
            if self._part is not None and self._part.name != self._field:
                self._fields.unfilled(self._part, **self._place())
        elif self._part is not None:
            self._fields.end()
        self._part = None

    def _end_of_file(self) -> None:
        if self._file.size == 0:
            raise verdicts.empty(self._field)
        self._file.end()
        self._file.to_file()
        self._tell_session()

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
        wrong = self._digests.mismatch() if self._digests is not None else None
        if wrong is not None:
            raise verdicts.malformed(
                f"the body is not the one that its {wrong} is of", self._field, reason="digest"
            )

    def _frame(self) -> None:
        """Rule 2: what stands around the file."""
        if self._form is not None:
            assert self._file_part is not None
            assert self._session.kind is not None
            family = BY_MEDIA_TYPE[self._session.kind["type"]]
            given = self._file_part.filename or ""
            name = disposition.safe_file_name(given, family.extensions)
            head = b"--%b\r\n%bContent-Type: %b\r\n\r\n" % (
                self._boundary,
                disposition.write_disposition(self._file_part.name.encode(), name),
                family.media_type.encode(),
            )
            before, behind = map(_frozen, (self._fields.before, self._fields.behind))
            last = b"--" + self._boundary + b"--\r\n"
            self._fields.clear()
            self._file.frame([*before, head], [b"\r\n", *behind, last])

    # --- the verdict ----------------------------------------------------------------------------

    def _tell_session(self) -> None:
        file, session = self._file, self._session
        if file.fd is not None:
            whole = file.complete and file.in_file
            if session.opened:
                session.grew(file.written, whole=whole)
            elif file.written >= HEAD or whole:
                session.open(file.fd, file.written, whole=whole)

    async def _verdict(self) -> None:
        """Wait for it. Raises `Overloaded` where the disk does not take the file in time."""
        try:
            async with asyncio.timeout(SPOOL_TIMEOUT):
                while not (self._session.decided or self._file.in_file) or self._attaching:
                    self._consult()
                    await self._next_change()
        except TimeoutError:
            log.warning("upload not examined", extra={"cause": "spool: the disk does not answer"})
            raise verdicts.overloaded("upload_spool") from None
        while not self._session.decided:
            await self._next_change()

    @property
    def _attaching(self) -> bool:
        return any(body.writing for body in self._also.bodies)

    def _consult(self) -> None:
        """Raise what the probe has found so far, or that there is no room."""
        error = refusal(self._session, self._accepted, self._rules.max_duration, self._field)
        if error is not None:
            raise error
        full = None if self._session.decided else self._file.full
        full = next((body.full for body in self._also.bodies if body.full is not None), full)
        if full is not None:
            log.warning("upload not examined", extra={"cause": f"spool: {full}"})
            raise verdicts.overloaded("upload_spool")

    def _fail(self, error: ProxyError) -> None:
        """Settle on `error`; in report mode it is only kept for `facts`."""
        self._error = error
        self.close()
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

    def _spool_changed(self) -> None:
        if self._error is None:
            self._tell_session()
        self._changed()

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


def _frozen(parts: list[bytearray | SpooledBody]) -> list[Framing]:
    return [bytes(part) if isinstance(part, bytearray) else part for part in parts]
