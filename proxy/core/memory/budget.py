"""One budget for everything that the process buffers.

Rules
1. Code that holds bytes for longer than a callback counts them in a named `Account`, and releases
   them when they are gone. A `Holding` does both for one holder and cannot leak.
2. Bytes that already exist (read from a socket, produced by a decoder) are counted with `reserve`,
   which always succeeds. Optional bytes (a copy for a retry, a stale response, a part of a spool)
   need `try_reserve`, and there is a way to do without them.
3. The fuller the budget, the less one connection may hold: `allowance` is a fixed share of what is
   left (dynamic thresholds, as in the shared buffers of switches: Choudhury and Hahne, 1998). So a
   few connections may hold much and many hold little, and together they cannot reach the limit.
4. Above `SLOW_AT` the level is `slow`: optional copies are refused. Above `SHED_AT` it is `shed`:
   the connections that hold most are ended. A level is left a tenth below where it is entered.

Pure and synchronous: a reservation is an addition and two comparisons.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Protocol

#: The limit if neither the config nor a cgroup sets one.
DEFAULT_LIMIT = 256 * 1024 * 1024

#: Buffers get half of a cgroup's limit, but at least and at most this. The other half is for the
#: interpreter, upload probes, SQLite, and cached pages of files.
_LEAST_LIMIT, _MOST_LIMIT = 32 * 1024 * 1024, 1024 * 1024 * 1024

#: The most and the least that one connection may hold in one direction, in bytes. The least is
#: enough for a request head and a piece of its body, so that every connection makes progress. The
#: most is below the size of one read (256 KB), so that a connection holds one read at a time.
MOST, LEAST = 192 * 1024, 16 * 1024

#: One connection may hold 1/_PARTS of what is left in one direction.
_PARTS = 512

#: Shares of the limit at which a level is entered, and how far below it is left again.
SLOW_AT, SHED_AT, _HYSTERESIS = 0.70, 0.85, 0.10

#: `allowance` and `level` follow `used` in steps of this share of the limit.
_STEPS = 128


def default_limit(allowed: int | None) -> int:
    """The limit if the config sets none; `allowed` is the cgroup's limit."""
    if allowed is None:
        return DEFAULT_LIMIT
    return max(_LEAST_LIMIT, min(_MOST_LIMIT, allowed // 2))


class Level(IntEnum):
    """How full the budget is."""

    NORMAL = 0
    SLOW = 1
    SHED = 2

    @property
    def label(self) -> str:
        """As logs and metrics name it."""
        return self.name.lower()


class Owner(Protocol):
    """The connection that is slowed or shed: `held` is the sum of its holdings, in bytes; `who` is
    its client, `""` if that has no address."""

    held: int

    @property
    def who(self) -> object:
        """The same for all connections of one client."""


class Account:
    """The bytes of one kind of holder; `name` is its label in the metrics."""

    __slots__ = ("_budget", "name", "used")

    def __init__(self, budget: MemoryBudget, name: str) -> None:
        self._budget = budget
        self.name = name
        self.used = 0

    @property
    def allowance(self) -> int:
        """Bytes that one holder may have now (rule 3)."""
        return self._budget.allowance

    def sibling(self, name: str) -> Account:
        """The account of that name in the same budget."""
        return self._budget.account(name)

    @property
    def left(self) -> int:
        """Bytes left for optional data."""
        return self._budget.left

    def reserve(self, size: int) -> None:
        """Count `size` bytes that already exist."""
        self.used += size
        self._budget.reserve(size)

    def try_reserve(self, size: int) -> bool:
        """Count `size` bytes if there is room for optional data."""
        if not self._budget.try_reserve(size):
            return False
        self.used += size
        return True

    def release(self, size: int) -> None:
        """Release `size` bytes that were reserved here."""
        self.used -= size
        self._budget.release(size)


class Holding:
    """The bytes of one holder in an account; `clear` releases them all.

    `owner` is the client connection that they are held for.
    """

    __slots__ = ("_account", "_owner", "size")

    def __init__(self, account: Account, owner: Owner | None = None) -> None:
        self._account = account
        self._owner = owner
        self.size = 0

    def grow(self, size: int) -> None:
        """Count `size` more bytes that already exist."""
        self._account.reserve(size)
        self._add(size)

    def try_grow(self, size: int) -> bool:
        """Count `size` more bytes if there is room for optional data."""
        if not self._account.try_reserve(size):
            return False
        self._add(size)
        return True

    def shrink(self, size: int) -> None:
        """Release `size` bytes."""
        self._account.release(size)
        self._add(-size)

    def set(self, size: int) -> None:
        """Hold exactly `size` bytes from now on."""
        if size > self.size:
            self.grow(size - self.size)
        elif size < self.size:
            self.shrink(self.size - size)

    def clear(self) -> None:
        """Release all of them; may be called again."""
        if self.size:
            self.shrink(self.size)

    def _add(self, size: int) -> None:
        self.size += size
        if self._owner is not None:
            self._owner.held += size


class MemoryBudget:
    """`limit` and `used` in bytes; `level` and `allowance` follow `used` in small steps.

    The callbacks in `changed` get (new level, old level). They are called within a reservation, so
    they may only set a flag or schedule something.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self.limit = limit
        self.used = 0
        self.level = Level.NORMAL
        self.allowance = MOST
        self.changed: list[Callable[[Level, Level], None]] = []
        self._accounts: dict[str, Account] = {}
        self.inboxes = self.account("inboxes")  # received by connections and not processed yet
        self.outboxes = self.account("outboxes")  # written by connections and not sent yet
        #: Files in memory, which do not count as resident.
        self.memory_files = self.account("memory_files")
        self._above = self._below = 0  # bounds of `used` within the current step
        self._step()

    @property
    def left(self) -> int:
        """The most that `try_reserve` would grant, in bytes."""
        if self.level is not Level.NORMAL:
            return 0
        return max(0, int(self.limit * SLOW_AT) - self.used)

    def account(self, name: str) -> Account:
        """The account of that name; the same one each time."""
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = Account(self, name)
        return account

    def accounts(self) -> dict[str, int]:
        """Bytes in use by account."""
        return {name: account.used for name, account in list(self._accounts.items())}

    def resize(self, limit: int) -> None:
        """Change the limit."""
        self.limit = limit
        self._step()

    # Called by accounts, and by holders without an account of their own.

    def reserve(self, size: int) -> None:
        """Count `size` bytes that already exist."""
        self.used += size
        if self.used > self._above:
            self._step()

    def try_reserve(self, size: int) -> bool:
        """Count `size` bytes unless that would exceed the first level."""
        if size > self.left:
            return False
        self.reserve(size)
        return True

    def release(self, size: int) -> None:
        """Release `size` bytes that were reserved."""
        self.used -= size
        if self.used < self._below:
            self._step()

    def _step(self) -> None:
        """Recompute everything that depends on the step of `used`."""
        step = max(1, self.limit // _STEPS)
        self._below = self.used // step * step
        self._above = self._below + step
        left = max(0, self.limit - self.used)
        self.allowance = max(LEAST, min(MOST, left // _PARTS))
        before, self.level = self.level, self._level_now()
        if self.level is not before:
            for changed in self.changed:
                changed(self.level, before)

    def _level_now(self) -> Level:
        """A level is entered at its threshold and left a little below it."""
        share = self.used / self.limit
        entered = Level((share >= SLOW_AT) + (share >= SHED_AT))
        kept = Level((share >= SLOW_AT - _HYSTERESIS) + (share >= SHED_AT - _HYSTERESIS))
        return entered if entered > self.level else min(self.level, kept)
