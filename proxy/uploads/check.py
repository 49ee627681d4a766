"""One upload, as the engine sees it: bytes in, a verdict and a body for the upstream out.

Rules:
1. The file goes into the spool, where a probe process reads it. Until the upload is accepted,
   nothing is sent upstream and no upstream connection is held. So no byte of a PDF called
   `song.mp3` reaches the app, and slow senders do not use up connections.
2. The form is rewritten around the spooled file (form/rewrite.py) with our own boundary, the
   detected type and a length. No client can know the boundary, so not even a lenient parser finds
   one within the file.
3. The parts of a form other than its files may take 1 MiB in total.
4. In report mode the bytes pass unchanged and nothing is raised; the verdict is only recorded.
5. If the spool has no room, or no probe process is free in time, the answer is 503 and the cause
   is logged.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from proxy.core.errors import Overloaded, ProxyError, forget_frames
from proxy.core.memory.budget import Holding, Owner
from proxy.spool import SpooledBody
from proxy.uploads import rejections
from proxy.uploads.form import values
from proxy.uploads.form.digests import DIGEST_FIELDS, Digests
from proxy.uploads.form.reader import FormError, FormReader
from proxy.uploads.form.rewrite import NewForm
from proxy.uploads.formats.families import BY_MEDIA_TYPE, HEAD
from proxy.uploads.probe.session import ProbeSession

if TYPE_CHECKING:
    from proxy.uploads.rules import UploadRules

OTHER_FIELDS: Final = 1024 * 1024  # bytes of a form that are not its files
SPOOL_TIMEOUT = 10.0  # seconds that the disk may take for the last bytes
#: `verdict` (`accepted`, an error's code, `overloaded` or `unfinished`), `mode`, `type` and `label`
#: (ours and libmagic's), `size` in bytes, `duration` in seconds, `validation_ms` from the last byte
#: to the verdict, `reason`. The access log has them as `upload_NAME`.
FACTS: Final = ("verdict", "mode", "type", "label", "size", "duration", "validation_ms", "reason")

log = logging.getLogger("proxy.uploads")


def _no_listener() -> None:
    """Replaces the listener of a closed check."""


class UploadCheck:
    """Call `feed` for each piece of the body, `finish` after the last one, and always `close`.

    `content_type`: the `Content-Type` to send upstream, None to keep the client's. `on_change` is
    called from the event loop after an early rejection, or when there is room for more.
    """

    stale = DIGEST_FIELDS

    def __init__(
        self, validator: UploadRules, content_length: int | None, owner: Owner | None
    ) -> None:
        self._validator = validator
        self._rules = validator.rules
        self._field = validator.rules.field
        self._clock = validator.clock
        self._report = validator.rules.mode == "report"
        self._content_length = content_length
        self._owner = owner
        self._session: ProbeSession = validator.pool.session(
            validator.task, self._changed, owner.who if owner is not None else None
        )
        self._file = self._new_body(keep=True)
        self._reader: FormReader | None = None
        self._form: NewForm | None = None
        self._digests: Digests | None = None
        self._body = 0
        self._error: ProxyError | None = None
        self._validation_ms: float | None = None
        self._change = asyncio.Event()
        self.on_change: Callable[[], None] | None = None
        self.content_type: bytes | None = None

    # --- what the engine calls ---------------------------------------------------------------

    @property
    def forward_length(self) -> int | None:
        """The length of the body that goes upstream, None if it must be chunked."""
        return self._content_length if self._report else self._file.length

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the body; `b""` only checks for a verdict. Returns what may go
        upstream now: nothing, except in report mode. Raises `UploadRejected`, or `Overloaded` if
        the proxy itself cannot check the upload."""
        self._raise_if_failed()
        self._body += len(data)
        if self._error is None:  # otherwise report mode, and already rejected
            try:
                self._consult()
                if data:
                    self._take(data)
            except ProxyError as error:
                self.fail(error)
        return [data] if data and self._report else []

    @property
    def blocked(self) -> bool:
        """Whether to stop reading from the client until `on_change`, because the disk is slow."""
        if self._error is not None:
            return False
        file = self._file.blocked and not self._session.decided
        return file or any(body.blocked for body in self._others())

    async def finish(self) -> list[bytes] | SpooledBody:
        """End the body and wait for the verdict. Raises a rejection, or returns the body to send
        upstream; an empty list in report mode, where the bytes have already passed."""
        self._raise_if_failed()
        finished_at = self._clock.monotonic()
        try:
            if self._error is None:
                self._end_of_body()
                await self._verdict()
                self._consult()
        except ProxyError as error:
            self.fail(error)
        self._validation_ms = (self._clock.monotonic() - finished_at) * 1000
        if self._report:
            return []
        if self._form is not None:
            assert self._session.kind is not None
            self._form.frame(BY_MEDIA_TYPE[self._session.kind["type"]])
        return self._file

    def close(self) -> None:
        """Release the probe process and the spool. A second call does nothing. Breaks reference
        cycles, so that a flood of uploads leaves no work for the garbage collector."""
        self._session.close()
        self._session.listener = _no_listener
        self._reader = self.on_change = None
        self._file.close()
        if self._form is not None:
            self._form.close()
        if self._error is not None:
            forget_frames(self._error)

    @property
    def content(self) -> list[tuple[bytes, ...]] | None:
        """Identifies the content: the SHA-256 of each field's value and of each file, with their
        names. None until the upload is accepted, and without `UploadRules.digest`."""
        if self._validation_ms is None or self._error is not None:
            return None
        if self._form is not None:
            return self._form.content()
        digest = self._file.digest()
        return None if digest is None else [(b"file", b"", digest)]

    @property
    def detail(self) -> str | None:
        """The detail of the rejection, in report mode too."""
        return self._error.detail if self._error is not None else None

    @property
    def facts(self) -> dict[str, Any]:
        """What is known so far, by the names in `FACTS`."""
        error, found = self._error, self._session.verdict or {}
        kind = self._session.kind or {k: v for k, v in found.items() if isinstance(v, str)}
        if error is not None:
            verdict = "overloaded" if isinstance(error, Overloaded) else error.code
        else:
            verdict = "unfinished" if self._validation_ms is None else "accepted"
        facts = {
            "verdict": verdict,
            "mode": self._rules.mode,
            "type": kind.get("type", kind.get("family")),
            "label": kind.get("label"),
            "size": self._file.size,
            "duration": found.get("duration"),
            "validation_ms": self._validation_ms,
            "reason": error.reason if error is not None else None,
        }
        return {name: value for name, value in facts.items() if value is not None}

    # --- the request's head ---------------------------------------------------------------------

    def expect_form(
        self, form_type: values.FormType, digests: Sequence[tuple[bytes, bytes]]
    ) -> None:
        """Expect a form; `digests` as for `UploadRules.begin`."""
        validator, charset = self._validator, form_type.charset
        boundary = validator.new_boundary().encode()
        self._reader = FormReader(form_type.boundary)
        self._form = NewForm(
            self._rules,
            self._file,
            self._new_body,
            Holding(validator.spool.memory, self._owner),
            boundary=boundary,
            raw=charset is not None,
            digest=validator.digest,
        )
        self._digests = Digests(digests) if digests else None
        if not self._report:
            self.content_type = b"multipart/form-data; boundary=" + boundary
            if charset is not None:
                self.content_type += b"; charset=" + charset.encode()

    def _new_body(self, *, keep: bool = False) -> SpooledBody:
        spool, digest = self._validator.spool, self._validator.digest
        return spool.body(self._spool_changed, owner=self._owner, sha256=digest, keep=keep)

    # --- the body -------------------------------------------------------------------------------

    def _take(self, data: bytes) -> None:
        file = self._file
        if self._reader is None or self._form is None:
            file.append([data])
        else:
            if self._digests is not None:
                self._digests.update(data)
            try:
                for event in self._reader.feed(data):
                    self._form.take(event)
            except FormError as error:
                raise rejections.malformed(str(error), self._field) from error
            if self._body - self._form.size > OTHER_FIELDS:
                raise rejections.malformed(
                    "the other fields are over 1MB", self._field, reason="fields"
                )
        if file.size > self._rules.max_size:
            raise rejections.too_large(self._expected(), self._rules.max_size, self._field)
        if file.size >= HEAD or file.complete:
            file.to_file()
            self._notify_session()

    def _expected(self) -> int | None:
        """The size of the file if the rest of the body, except the last boundary, belongs to it."""
        if self._content_length is None or self._rules.also:
            return None
        rest = self._content_length - self._body
        return self._file.size + max(rest, 0)

    def _end_of_body(self) -> None:
        if self._reader is None or self._form is None:
            if self._file.size == 0:
                raise rejections.empty(None)
            self._file.end()
            self._file.to_file()
            self._notify_session()
            return
        assert self._field is not None
        if self._body == 0:
            raise rejections.missing(self._field)
        try:
            self._reader.close()
        except FormError as error:
            raise rejections.malformed(str(error), self._field, reason="cut_short") from error
        if not self._form.has_file:
            raise rejections.missing(self._field)
        wrong = self._digests.mismatch() if self._digests is not None else None
        if wrong is not None:
            raise rejections.malformed(
                f"the body is not the one that its {wrong} is of", self._field, reason="digest"
            )

    # --- the verdict ----------------------------------------------------------------------------

    def _notify_session(self) -> None:
        file, session = self._file, self._session
        if file.fd is not None:
            whole = file.complete and file.in_file
            if session.opened or whole or file.written >= HEAD:
                session.grew(file.fd, file.written, whole=whole)

    def _others(self) -> list[SpooledBody]:
        return [a.body for a in self._form.attachments] if self._form is not None else []

    async def _verdict(self) -> None:
        """Wait for the verdict. Raises `Overloaded` if the disk does not take the file in time."""
        try:
            async with asyncio.timeout(SPOOL_TIMEOUT):
                while not (self._session.decided or self._file.in_file) or any(
                    body.writing for body in self._others()
                ):
                    self._consult()
                    await self._next_change()
        except TimeoutError:
            log.warning("upload not examined", extra={"cause": "spool: the disk does not answer"})
            raise rejections.overloaded("upload_spool") from None
        while not self._session.decided:
            await self._next_change()

    def _consult(self) -> None:
        """Raise a rejection found so far, or `Overloaded` if there is no room."""
        error = rejections.refusal(
            self._session, self._validator.task.types, self._rules.max_duration, self._field
        )
        if error is not None:
            raise error
        bodies = self._others() if self._session.decided else [self._file, *self._others()]
        full = next((body.full for body in bodies if body.full is not None), None)
        if full is not None:
            log.warning("upload not examined", extra={"cause": f"spool: {full}"})
            raise rejections.overloaded("upload_spool")

    def fail(self, error: ProxyError) -> None:
        """End the check with `error`, which report mode only keeps for `facts`."""
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

    # --- waiting --------------------------------------------------------------------------------

    def _spool_changed(self) -> None:
        if self._error is None:
            self._notify_session()
        self._changed()

    def _changed(self) -> None:
        self._change.set()
        if self.on_change is not None:
            self.on_change()

    async def _next_change(self) -> None:
        self._change.clear()
        await self._change.wait()
