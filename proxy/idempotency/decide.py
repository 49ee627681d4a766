"""What a request with a key may do, given the key's record. Pure.

 1. No record: it is the first request and proceeds.
 2. A different request with the same key: 422, whatever the state of the first.
 3. Answered: the answer is repeated.
 4. In progress: the caller waits for it, or gets 409 to retry later.
 5. Sent, outcome unknown: evidence decides. Only proof that the app did nothing lets the request
    proceed. A job that was created is the answer. In doubt the caller gets 409, because a second
    job is what the key must prevent.

All answers of the app are kept (draft §2.6: success or error, once the operation was carried out),
except those that say that the operation was not carried out, or not yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from proxy.idempotency.record import Record, StoredAnswer

#: Answers after which the same request may succeed: credentials, conflicts, limits (RFC 9110 §15.5,
#: RFC 6585 §4), and failures of the app, which are settled by evidence.
_NOT_CARRIED_OUT = frozenset({401, 403, 407, 408, 409, 421, 425, 429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Repeat:
    """Repeat the answer to the first request."""

    answer: StoredAnswer


Decision = Literal["first", "wait", "mismatch", "settle"] | Repeat


def decide(found: Record | None, fingerprint: str, *, owner_alive: bool) -> Decision:
    """What to do with a request of `fingerprint`. `owner_alive`: the owner of `found` still renews
    its claim; otherwise a running record counts as one of unknown outcome."""
    if found is None:
        return "first"
    if found.fingerprint != fingerprint:
        return "mismatch"
    if found.answer is not None:
        return Repeat(found.answer)
    return "wait" if found.state == "running" and owner_alive else "settle"


Outcome = Literal["keep", "release", "unknown"]


def outcome_of_answer(status: int) -> Outcome:
    """What a response of the app means for its request."""
    if status in _NOT_CARRIED_OUT:
        return "release" if status != 504 else "unknown"
    return "unknown" if status >= 500 else "keep"


def outcome_of_failure(code: str, *, sent: bool) -> Outcome:
    """What an error of our own means. `sent`: whether any of the request may have reached the
    app."""
    return "unknown" if sent and code != "job_not_stored" else "release"
