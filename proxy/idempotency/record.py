"""The stored record of a key: who works on it, or what was answered.

Data read back from Redis and SQLite is not trusted: `decode` returns None for anything that this
file did not write.
"""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

MAX_ANSWER = 256 * 1024
"""The longest answer body that is kept, in bytes. The real service's answers have 300."""

MAX_RECORD = 2 * MAX_ANSWER
"""The longest encoded record in bytes; anything longer was not written by us."""

_MAX_FIELDS = 32

State = Literal["running", "unknown", "done"]
_STATES: tuple[State, ...] = ("running", "unknown", "done")

#: Response fields that are kept: those needed to understand the body. Dates, lengths and
#: correlation IDs belong to a single exchange.
KEPT_FIELDS = frozenset({b"content-type", b"content-language", b"location", b"content-location"})


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """An answer to be repeated: `fields` are whole lines without line ends."""

    status: int
    fields: tuple[bytes, ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Record:
    """A key's record. Times are Unix seconds. `running`: `owner` works on it. `unknown`: it was
    sent to the app, and it is not known whether it was carried out. `done`: `answer` is set."""

    fingerprint: str
    state: State
    owner: str
    started_at: float
    answer: StoredAnswer | None = None

    def finished(self, answer: StoredAnswer) -> Record:
        """The same key, answered."""
        return replace(self, state="done", answer=answer)

    def left_open(self) -> Record:
        """The same key, with an unknown outcome."""
        return replace(self, state="unknown")


def encode(record: Record) -> bytes:
    """The record as one JSON object, readable with redis-cli."""
    document: dict[str, Any] = {
        "fingerprint": record.fingerprint,
        "state": record.state,
        "owner": record.owner,
        "started_at": record.started_at,
    }
    if record.answer is not None:
        document["answer"] = {
            "status": record.answer.status,
            "fields": [line.decode("latin-1") for line in record.answer.fields],
            "body": base64.b64encode(record.answer.body).decode("ascii"),
        }
    return json.dumps(document, separators=(",", ":")).encode()


def decode(data: object) -> Record | None:
    """The record in `data`; None for anything that `encode` did not write."""
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogateescape")
    if not isinstance(data, bytes) or len(data) > MAX_RECORD:
        return None
    try:
        document = json.loads(data)
        state = document["state"]
        started_at = float(document["started_at"])
        fingerprint, owner = document["fingerprint"], document["owner"]
        answer = _answer(document["answer"]) if state == "done" else None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError):
        return None
    if state not in _STATES or not math.isfinite(started_at):
        return None
    if not (isinstance(fingerprint, str) and isinstance(owner, str)):
        return None
    return Record(fingerprint, state, owner[:128], started_at, answer)


def _answer(document: Any) -> StoredAnswer:
    status = document["status"]
    if type(status) is not int or not 200 <= status <= 599:
        raise ValueError("status")
    fields = tuple(line.encode("latin-1") for line in document["fields"][:_MAX_FIELDS])
    for line in fields:
        name = line.partition(b":")[0].lower()
        if name not in KEPT_FIELDS or any(byte < 32 or byte == 127 for byte in line):
            raise ValueError("field")
    body = base64.b64decode(document["body"], validate=True)
    if len(body) > MAX_ANSWER:
        raise ValueError("body")
    return StoredAnswer(status, fields, body)
