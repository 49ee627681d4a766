"""A route's rules for uploads, and the checks that need only the head of a request."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

from proxy.config.listeners import Upload
from proxy.core.clock import Clock, SystemClock
from proxy.core.errors import UploadRejected
from proxy.core.memory.budget import Owner
from proxy.spool import Spool
from proxy.uploads import rejections
from proxy.uploads.check import OTHER_FIELDS, UploadCheck
from proxy.uploads.form import values
from proxy.uploads.formats.families import compile_types
from proxy.uploads.probe.pool import ProbePool
from proxy.uploads.probe.task import ProbeTask

_RAW_TYPES = ("audio/", "video/", "application/octet-stream", "application/ogg", "application/mp4")


class UploadRules:
    """The rules of one route, compiled. `digest`: whether to compute `UploadCheck.content`.
    `boundary` returns 32 random hexadecimal digits."""

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
        types = tuple(family.media_type for family in compile_types(rules.types))
        self.task = ProbeTask.of(types, rules.max_duration, rules.max_size)

    def begin(
        self,
        content_type: bytes | None,
        content_length: int | None,
        content_encoding: bytes | None,
        digests: Sequence[tuple[bytes, bytes]] = (),
        owner: Owner | None = None,
    ) -> UploadCheck:
        """Check the request's head, before any 100 (Continue). `digests`: names and values of its
        `DIGEST_FIELDS`; `owner`: whom the memory is charged to. Raises `UploadRejected` if no body
        could be accepted, except in report mode."""
        check = UploadCheck(self, content_length, owner)
        try:
            form = self._examine_head(content_type, content_length, content_encoding)
            if form is not None:
                check.expect_form(form, digests)
        except UploadRejected as error:
            check.fail(error)
        return check

    def _examine_head(
        self, content_type: bytes | None, length: int | None, encoding: bytes | None
    ) -> values.FormType | None:
        """The form's type from the head, None if the body is the file itself."""
        rules, field = self.rules, self.rules.field
        if encoding is not None and encoding.strip().lower() not in (b"", b"identity"):
            raise rejections.malformed(
                "an encoded body (Content-Encoding) is not accepted", field, reason="encoding"
            )
        others = OTHER_FIELDS + sum(rule.max_size * rule.max_count for rule in rules.also)
        if length is not None and length > rules.max_size + (others if field is not None else 0):
            raise rejections.too_large(length, rules.max_size, field)
        text = (content_type or b"").decode("latin-1").strip()
        if field is None:
            kind = text.partition(";")[0].strip().lower()
            if length == 0:
                raise rejections.empty(None)
            if kind and not kind.startswith(_RAW_TYPES):
                raise rejections.type_rejected(kind, self.task.types, None)
            return None
        if not text and not length:
            raise rejections.missing(field)
        try:
            return values.parse_form_type(text)
        except ValueError as error:
            raise rejections.malformed(str(error), field, reason="content_type") from error
