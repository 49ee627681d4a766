"""The last good answer to each GET, for when the upstream cannot give a new one. Pure, bounded.

Rules
1. Kept are 200 answers to GET without `Range`, no longer than `max_body`, unless the upstream
   forbids keeping them (`Cache-Control: no-store`, `Vary: *`) or sets a cookie with them.
2. The key is the target and every request field that could have changed the answer: credentials
   above all, so that nobody ever gets another's (RFC 9111 §3.5, §4.1). An answer that varies by a
   field that is not in the key is not kept.
3. Memory is bounded by bytes, the least recently used goes first. Too old is as good as gone. What
   is kept counts against the process' budget; where that has no room, nothing new is kept.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from proxy.core.memory.budget import Holding

#: Request fields that are part of the key.
KEY_FIELDS = frozenset(
    {
        b"accept",
        b"accept-encoding",
        b"accept-language",
        b"authorization",
        b"cookie",
        b"host",
        b"origin",
        b"x-api-key",
    }
)
_OVERHEAD = 512  # bytes of one entry beside its header lines and body, roughly


@dataclass(frozen=True, slots=True)
class StaleAnswer:
    """An answer as kept: `lines` are its field lines, `stored` the monotonic second."""

    lines: tuple[bytes, ...]
    body: bytes
    stored: float

    def age(self, now: float) -> int:
        """Whole seconds for the `Age` field (RFC 9111 §5.1)."""
        return max(0, int(now - self.stored))


class StaleCache:
    """Of one route. `max_age` in seconds, `max_bytes` for all answers, `max_body` for one."""

    def __init__(self, max_age: float, max_bytes: int, max_body: int, memory: Holding) -> None:
        self.max_age = max_age
        self.max_bytes = max_bytes
        self.max_body = max_body
        self._memory = memory
        self._answers: OrderedDict[bytes, StaleAnswer] = OrderedDict()

    @property
    def used(self) -> int:
        """Bytes that all answers take up."""
        return self._memory.size

    def __len__(self) -> int:
        return len(self._answers)

    def key(
        self, method: str, target: str, host: bytes | None, lines: Sequence[bytes]
    ) -> bytes | None:
        """What a request is remembered by; None for one that is not. `lines` are `Name: value`.

        A digest: credentials are compared, never stored.
        """
        if method != "GET":
            return None
        digest = hashlib.blake2b(target.encode("latin-1", "replace"), digest_size=24)
        kept = [b"host:" + (host or b"")]
        for line in lines:
            name, _, value = line.partition(b":")
            name = name.strip().lower()
            if name == b"range":
                return None
            if name in KEY_FIELDS:
                kept.append(name + b":" + value.strip())
        for field in sorted(kept):  # the order of different fields means nothing
            digest.update(b"\0%d:%b" % (len(field), field))
        return digest.digest()

    def keep(self, key: bytes, lines: Sequence[bytes], body: bytes, now: float) -> bool:
        """Keep a 200 answer instead of an older one; False where it must or can not be kept.

        `lines` are `Name: value`, without hop-by-hop fields and framing.
        """
        size = _OVERHEAD + len(body) + sum(map(len, lines))
        if len(body) > self.max_body or size > self.max_bytes or not _may_keep(lines):
            self.drop(key)
            return False
        self.drop(key)
        while self.used + size > self.max_bytes:
            self.drop(next(iter(self._answers)))
        if not self._memory.try_grow(size):
            return False
        self._answers[key] = StaleAnswer(tuple(lines), body, now)
        return True

    def get(self, key: bytes, now: float) -> StaleAnswer | None:
        """The answer, if it is young enough."""
        answer = self._answers.get(key)
        if answer is None:
            return None
        if now - answer.stored > self.max_age:
            self.drop(key)
            return None
        self._answers.move_to_end(key)
        return answer

    def drop(self, key: bytes) -> None:
        """Forget one answer, if it is there."""
        answer = self._answers.pop(key, None)
        if answer is not None:
            self._memory.shrink(_OVERHEAD + len(answer.body) + sum(map(len, answer.lines)))


def _may_keep(lines: Sequence[bytes]) -> bool:
    for line in lines:
        name, _, value = line.partition(b":")
        name = name.strip().lower()
        words = {word.strip().lower() for word in value.split(b",")}
        if name == b"cache-control" and b"no-store" in words:
            return False
        if name == b"vary" and not words <= KEY_FIELDS:
            return False
        if name == b"set-cookie":
            return False
    return True
