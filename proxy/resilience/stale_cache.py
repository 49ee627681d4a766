"""The last good response to each GET, served when the upstream has none. Pure, bounded.

Rules
1. It keeps 200 responses to GET without `Range`, up to `max_body`, unless the upstream forbids it
   (`Cache-Control: no-store`, `Vary: *`) or the response sets a cookie.
2. The key is the target and every request field that could have changed the response, above all
   credentials, so that nobody gets somebody else's response (RFC 9111 §3.5, §4.1). A response that
   varies by a field outside the key is not kept.
3. Memory is bounded in bytes; the least recently used response is dropped first, and expired ones
   are not served. The cache counts against the memory budget; if that has no room, nothing new is
   kept.
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
_OVERHEAD = 512  # approximate bytes of an entry besides its header lines and body


@dataclass(frozen=True, slots=True)
class StaleAnswer:
    """A cached response: `lines` are its field lines, `stored` is in monotonic seconds."""

    lines: tuple[bytes, ...]
    body: bytes
    stored: float

    def age(self, now: float) -> int:
        """Whole seconds for the `Age` field (RFC 9111 §5.1)."""
        return max(0, int(now - self.stored))


class StaleCache:
    """The cache of one route. `max_age` in seconds, `max_bytes` for all responses, `max_body` for
    one."""

    def __init__(self, max_age: float, max_bytes: int, max_body: int, memory: Holding) -> None:
        self.max_age = max_age
        self.max_bytes = max_bytes
        self.max_body = max_body
        self._memory = memory
        self._answers: OrderedDict[bytes, StaleAnswer] = OrderedDict()

    @property
    def used(self) -> int:
        """Bytes used by all responses."""
        return self._memory.size

    def __len__(self) -> int:
        return len(self._answers)

    def key(
        self, method: str, target: str, host: bytes | None, lines: Sequence[bytes]
    ) -> bytes | None:
        """The key of a request; None if its response is never kept. `lines` are `Name: value`.

        A digest, so that credentials are not stored.
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
        for field in sorted(kept):  # the order of different fields has no meaning
            digest.update(b"\0%d:%b" % (len(field), field))
        return digest.digest()

    def keep(self, key: bytes, lines: Sequence[bytes], body: bytes, now: float) -> bool:
        """Keep a 200 response in place of an older one; False if it must not or cannot be kept.

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
        """The response, unless it has expired."""
        answer = self._answers.get(key)
        if answer is None:
            return None
        if now - answer.stored > self.max_age:
            self.drop(key)
            return None
        self._answers.move_to_end(key)
        return answer

    def drop(self, key: bytes) -> None:
        """Drop the response, if there is one."""
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
