"""What makes two requests the same: the caller's key, its scope, and the request's fingerprint.

1. The field is an RFC 9651 string (`Idempotency-Key: "8e03978e-…"`), as the draft requires; the
   bare form that most clients send means the same. An empty value is not a key.
2. A key belongs to its sender. Its scope is the family of jobs and the caller's credentials, so
   that nobody gets another caller's answer by guessing a key.
3. A fingerprint covers what determines the job: method, target, fields, and the SHA-256 of the
   file. It leaves out boundaries, field order, file names and other header fields, which differ
   between repetitions by the same client.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

MAX_KEY = 255
"""Characters; Stripe's limit, which client libraries expect."""

_BARE = re.compile(rb"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_QUOTED = re.compile(rb'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')


def parse_key(values: Sequence[bytes]) -> str | None:
    """The key in the values of all `Idempotency-Key` fields; None if there is none.

    Raises `ValueError` with a message for the caller.
    """
    if not values:
        return None
    if len(values) > 1:
        raise ValueError("Idempotency-Key comes more than once")
    value = values[0].strip(b" \t")
    if quoted := _QUOTED.fullmatch(value):
        value = re.sub(rb"\\(.)", rb"\1", quoted[1])
    elif value.startswith(b'"') or (value and not _BARE.fullmatch(value)):
        raise ValueError("Idempotency-Key must be a string of visible ASCII characters")
    if len(value) > MAX_KEY:
        raise ValueError(f"Idempotency-Key is longer than {MAX_KEY} characters")
    return value.decode("ascii") or None


def record_id(family: str, caller: Iterable[bytes], key: str) -> str:
    """The ID of a key's record: 40 hex digits, safe in a Redis key and in a log line."""
    return _digest(b"key", family.encode(), key.encode(), *caller)[:40]


def upload_record_id(family: str, caller: Iterable[bytes], fingerprint: str) -> str:
    """The record's ID for an upload without a key (`same_upload_within`)."""
    return _digest(b"upload", family.encode(), fingerprint.encode(), *caller)[:40]


def fingerprint(method: str, target: str, content: Iterable[tuple[bytes, ...]]) -> str:
    """Hex SHA-256 of a request. `content` holds the fields of a form and the digest of its file, or
    the digest of the body, in any order."""
    parts = sorted(_digest(*part).encode() for part in content)
    return _digest(method.encode(), target.encode("utf-8", "surrogateescape"), *parts)


def _digest(*parts: bytes) -> str:
    """The digest of the parts with their lengths, so that different lists have different
    digests."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.hexdigest()
