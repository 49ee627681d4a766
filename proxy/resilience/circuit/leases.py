"""Probe leases of one breaker, and the callers that wait for one from Redis. Pure.

In a fleet, Redis grants the leases; they arrive a round trip after the request. A caller refused
meanwhile might return only a minute later, long after its lease has been given back, and so never
get one. Therefore a caller may wait briefly for the reply (forward/admission.py defines how long).
Without Redis, leases are made here, within the same limit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

#: `Retry-After`, in seconds, while all probe slots are in use.
PROBE_RETRY_AFTER = 1.0

#: Seconds that an unused probe lease is kept before it is returned to the fleet. A refused caller
#: that retries after `Retry-After` (whole seconds) still finds it; keeping it longer would only
#: prevent other processes from probing.
HOLD = PROBE_RETRY_AFTER + 0.25


class Caller:
    """One waiting caller: `waiting` until the reply calls `ready`."""

    __slots__ = ("ready", "waiting")

    def __init__(self, ready: Callable[[], None]) -> None:
        self.waiting = True
        self.ready = ready


class Callers:
    """All callers that wait at one breaker."""

    def __init__(self) -> None:
        self._waiting: dict[Caller, None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self, ready: Callable[[], None]) -> Caller:
        """Start waiting. Owes a `leave`."""
        caller = Caller(ready)
        self._waiting[caller] = None
        return caller

    def leave(self, caller: Caller) -> None:
        """Stop waiting. Idempotent."""
        self._waiting.pop(caller, None)

    def answer(self) -> None:
        """Redis has replied, or will not: let every caller ask the breaker for a permit."""
        answered, self._waiting = self._waiting, {}
        for caller in answered:
            caller.waiting = False
            caller.ready()


class ProbeLeases:
    """The leases of one breaker in the process `owner`. Times are monotonic seconds."""

    def __init__(self, owner: str) -> None:
        self.in_use: dict[str, float] = {}  # lease, expires at
        self._owner = owner
        self._serial = 0
        self._granted: deque[tuple[str, float, float]] = deque()  # lease, kept until, expires at

    @property
    def granted(self) -> int:
        """The number of leases from Redis that no call uses yet."""
        return len(self._granted)

    @property
    def give_back_at(self) -> float | None:
        """When the first of these must be returned."""
        return self._granted[0][1] if self._granted else None

    def at_hand(self, now: float) -> bool:
        """Whether a call can have a lease from Redis at once."""
        return any(expires > now for _lease, _kept, expires in self._granted)

    def grant(self, leases: Iterable[str], now: float, expires: float) -> None:
        """Keep leases from Redis for the next calls."""
        for lease in leases:
            self._granted.append((lease, now + HOLD, expires))

    def take(self, now: float) -> str | None:
        """A lease from Redis for one call."""
        while self._granted:
            lease, _kept, expires = self._granted.popleft()
            if expires > now:
                self.in_use[lease] = expires
                return lease
        return None

    def make(self, now: float, lifetime: float, most: int) -> str | None:
        """Without Redis: a lease for one call, None while `most` are in use."""
        self.expire(now)
        if len(self.in_use) >= most:
            return None
        self._serial += 1
        lease = f"{self._owner}:local:{self._serial}"
        self.in_use[lease] = now + lifetime
        return lease

    def end(self, lease: str) -> float | None:
        """The call is over; when its lease expires, None if it was taken back before."""
        return self.in_use.pop(lease, None)

    def give_back(self, now: float) -> list[str]:
        """The leases that no call has used within `HOLD` seconds, to be returned to Redis."""
        unused = []
        while self._granted and self._granted[0][1] <= now:
            lease, _kept, expires = self._granted.popleft()
            if expires > now:
                unused.append(lease)
        return unused

    def expire(self, now: float) -> None:
        """Take back the leases of calls that hang; they have expired in Redis too."""
        for lease in [lease for lease, expires in self.in_use.items() if expires <= now]:
            del self.in_use[lease]

    def drop_granted(self) -> None:
        """Redis is unreachable: what it has granted counts no more."""
        self._granted.clear()

    def clear(self) -> None:
        """The state has changed: no lease is valid any more."""
        self.in_use.clear()
        self._granted.clear()
