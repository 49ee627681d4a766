"""What a request with a key may do, given what is stored of the key. Pure.

 1. Nothing stored: it is the first, and goes on.
 2. Another request under the same key: 422, whatever state the first is in.
 3. Answered: the answer is repeated.
 4. Under way: the caller waits for it, or is told to come back (409).
 5. Sent, outcome unknown: evidence decides. Only proof that the app did nothing lets it go on; a
    job that was made is the answer; in doubt the caller is told to come back, since a second job
    is what the key is there to prevent.

Which of the app's answers are kept (draft §2.6: success or error, once the operation was carried
out): every one but those which say that it was not, or not yet.
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
    """Answer with what the first request got."""

    answer: StoredAnswer


Verdict = Literal["first", "wait", "mismatch", "settle"] | Repeat


def verdict(found: Record | None, fingerprint: str, *, owner_alive: bool) -> Verdict:
    """What to do with a request of `fingerprint`. `owner_alive`: whether whoever works on `found`
    still renews its claim; without that a running record is one of unknown outcome."""
    if found is None:
        return "first"
    if found.fingerprint != fingerprint:
        return "mismatch"
    if found.answer is not None:
        return Repeat(found.answer)
    return "wait" if found.state == "running" and owner_alive else "settle"


Outcome = Literal["keep", "release", "unknown"]


def outcome_of_answer(status: int) -> Outcome:
    """What an answer of the app says about its request."""
    if status in _NOT_CARRIED_OUT:
        return "release" if status != 504 else "unknown"
    return "unknown" if status >= 500 else "keep"


def outcome_of_failure(code: str, *, sent: bool) -> Outcome:
    """What an error of ours says. `sent`: whether anything of the request reached the app."""
    return "unknown" if sent and code != "job_not_stored" else "release"
