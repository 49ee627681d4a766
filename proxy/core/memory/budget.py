"""One budget for everything that the process buffers for somebody.

Rules
1. Whoever holds bytes for longer than a callback counts them in a named `Account`, and takes them
   out when they are gone. A `Holding` does both for one holder and cannot leak.
2. Bytes that are here already (read from a socket, given by a decoder) are counted with `reserve`,
   which always succeeds. Bytes that need not be kept (a copy for a retry, a stale answer, a part of
   a spool) ask `try_reserve`, and there is a way to do without them.
3. The fuller the budget, the less one connection may hold: `allowance` is a fixed share of what is
   left (dynamic thresholds, as in the shared buffers of switches: Choudhury and Hahne, 1998). So a
   few may hold much, many hold little, and together they cannot reach the limit.
4. Above `SLOW_AT` the level is `slow`: optional copies are refused. Above `SHED_AT` it is `shed`:
   the greediest are turned away. Levels are left a tenth below where they are entered.

Pure and synchronous: a reservation is an addition and two comparisons.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Protocol

#: The limit where neither the config nor a cgroup names one.
DEFAULT_LIMIT = 256 * 1024 * 1024

#: The least and the most that follow from a cgroup's limit, of which buffers get half: the rest is
#: for the interpreter, the probes of uploads, SQLite, and pages of files.
_LEAST_LIMIT, _MOST_LIMIT = 32 * 1024 * 1024, 1024 * 1024 * 1024

#: The most and the least that one connection may hold in one direction, in bytes. The least is what
#: a request head and a piece of its body need, so that everybody gets on, however full it is; the
#: most is below what one read gives (256 KB), so that a connection holds one such read at a time.
MOST, LEAST = 192 * 1024, 16 * 1024

#: Parts of what is left that one connection may hold in one direction.
_PARTS = 512

#: Shares of the limit at which a level is entered, and how far below it is left again.
SLOW_AT, SHED_AT, _HYSTERESIS = 0.70, 0.85, 0.10

#: `allowance` and `level` follow `used` in steps of this share of the limit.
_STEPS = 128


def default_limit(allowed: int | None) -> int:
    """The limit where the config names none; `allowed` is what the cgroup allows."""
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
    """Who is slowed or shed for what is held: `held` is the sum of its holdings, in bytes; `who` is
    the client that it counts as, `""` where that has no address."""

    held: int

    @property
    def who(self) -> object:
        """The same for all connections of one client."""


class Account:
    """What one kind of holder has in the budget: `name` is its label in the metrics."""

    __slots__ = ("_budget", "name", "used")

    def __init__(self, budget: MemoryBudget, name: str) -> None:
        self._budget = budget
        self.name = name
        self.used = 0

    @property
    def allowance(self) -> int:
        """What one holder may have now, in bytes (rule 3)."""
        return self._budget.allowance

    def sibling(self, name: str) -> Account:
        """The account of that name in the same budget."""
        return self._budget.account(name)

    @property
    def left(self) -> int:
        """Bytes for which there is room where they could be done without."""
        return self._budget.left

    def reserve(self, size: int) -> None:
        """Count `size` bytes that are here already."""
        self.used += size
        self._budget.reserve(size)

    def try_reserve(self, size: int) -> bool:
        """Count `size` bytes if there is room for what could be done without."""
        if not self._budget.try_reserve(size):
            return False
        self.used += size
        return True

    def release(self, size: int) -> None:
        """Give back what was reserved here."""
        self.used -= size
        self._budget.release(size)


class Holding:
    """What one holder has in an account: grows, shrinks, and is given back by `clear`.

    `owner` (a client connection) is who has to answer for it.
    """

    __slots__ = ("_account", "_owner", "size")

    def __init__(self, account: Account, owner: Owner | None = None) -> None:
        self._account = account
        self._owner = owner
        self.size = 0

    def grow(self, size: int) -> None:
        """Count `size` more bytes that are here already."""
        self._account.reserve(size)
        self._add(size)

    def try_grow(self, size: int) -> bool:
        """Count `size` more bytes if there is room for what could be done without."""
        if not self._account.try_reserve(size):
            return False
        self._add(size)
        return True

    def shrink(self, size: int) -> None:
        """Give `size` bytes back."""
        self._account.release(size)
        self._add(-size)

    def set(self, size: int) -> None:
        """Hold exactly `size` bytes from now on."""
        if size > self.size:
            self.grow(size - self.size)
        elif size < self.size:
            self.shrink(self.size - size)

    def clear(self) -> None:
        """Give all of it back; may be called again."""
        if self.size:
            self.shrink(self.size)

    def _add(self, size: int) -> None:
        self.size += size
        if self._owner is not None:
            self._owner.held += size


class MemoryBudget:
    """`limit` and `used` in bytes; `level` and `allowance` follow `used` in small steps.

    `changed` are called with (new level, level before) at once, from within a reservation: they
    must not do more than make a note or schedule something.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self.limit = limit
        self.used = 0
        self.level = Level.NORMAL
        self.allowance = MOST
        self.changed: list[Callable[[Level, Level], None]] = []
        self._accounts: dict[str, Account] = {}
        self.inboxes = self.account("inboxes")  # of connections: what has come and is not used yet
        self.outboxes = self.account("outboxes")  # what has been written and not been taken yet
        #: Files in memory, which are not among what is resident.
        self.memory_files = self.account("memory_files")
        self._above = self._below = 0  # where `used` leaves the present step
        self._step()

    @property
    def left(self) -> int:
        """Bytes for which `try_reserve` would find room."""
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
        """Another limit from now on."""
        self.limit = limit
        self._step()

    # Accounts call these three; who has no account of its own may as well.

    def reserve(self, size: int) -> None:
        """Count `size` bytes that are here already."""
        self.used += size
        if self.used > self._above:
            self._step()

    def try_reserve(self, size: int) -> bool:
        """Count `size` bytes unless that would take `used` beyond the first level."""
        if size > self.left:
            return False
        self.reserve(size)
        return True

    def release(self, size: int) -> None:
        """Give back what was reserved."""
        self.used -= size
        if self.used < self._below:
            self._step()

    def _step(self) -> None:
        """`used` has left its step: see what follows."""
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
        """Levels are entered at their mark and left a little below it."""
        share = self.used / self.limit
        entered = Level((share >= SLOW_AT) + (share >= SHED_AT))
        kept = Level((share >= SLOW_AT - _HYSTERESIS) + (share >= SHED_AT - _HYSTERESIS))
        return entered if entered > self.level else min(self.level, kept)
