"""Whether to try again, and after how long. Pure: takes `now`, waits for nothing.

Rules, in the order in which they are asked:
1. Only what `on` lists is tried again, and no more than `attempts` times in all. A circuit that
   opened in between, a refusal of ours and a client that left never are.
2. Only what is safe (RFC 9110 §9.2.2): the method is idempotent, or nothing was sent, or the
   request carries `Idempotency-Key` and the upstream is configured to heed it.
3. The body must still be whole: not touched, or kept in the spool.
4. The wait is random between 0 and a range that doubles (full jitter: it spreads a herd best, and
   costs no more than any other). `Retry-After` is a floor under it; one beyond `max_backoff` means
   that the upstream does not want to be asked again now.
5. No attempt begins after the deadline. A wait of our own choice that would end after it is
   shortened, so that the time is used to its end. An attempt that an open circuit held back is not
   one of the `attempts`: the circuit has paced it, and the deadline bounds it.
6. The budget, shared by all requests to the upstream, is asked last, for only a retry that will
   happen may spend it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from proxy.config.upstreams import Retry as RetryRules
from proxy.core.headers import IDEMPOTENT
from proxy.resilience.rate_limit import TokenBucket

#: Share of the time left that a wait takes at most: the attempt needs some of it.
_LAST_WAIT = 0.75

#: Seconds that the budget looks back over; ten, as Linkerd's.
BUDGET_WINDOW = 10


@dataclass(frozen=True, slots=True)
class Ended:
    """How an attempt ended. `kind` is `connect`, `reset`, `timeout`, the status as text, or any
    other word for what is never tried again. `sent`: a byte of the request may have reached the
    upstream. `body_whole`: the body can be sent from its beginning. `retry_after` is in seconds."""

    kind: str
    sent: bool
    body_whole: bool = True
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class RetryDecision:
    """`wait` seconds and try again; or None, and `reason` is why not: `kind`, `attempts`,
    `unsafe`, `body`, `retry_after`, `deadline` or `budget`."""

    wait: float | None
    reason: str


class RetryBudget:
    """How many retries one upstream bears: a share of its calls of the last 10 s, or a fixed rate.

    Two allowances, either is enough: retries in the window stay within `share` of the calls in it;
    or a bucket of `per_second` tokens, refilled at that rate, still has one. Every retry empties
    the bucket by one, so the two do not add up.
    """

    def __init__(self, share: float, per_second: int) -> None:
        self._share = share
        self._bucket = TokenBucket(per_second, per_second)
        self._calls = [0] * BUDGET_WINDOW
        self._retries = [0] * BUDGET_WINDOW
        self._second: int | None = None

    def configure(self, share: float, per_second: int) -> None:
        """Take new rules at a reload; what was spent stays spent."""
        self._share = share
        self._bucket.configure(per_second, per_second)

    def _turn(self, now: float) -> int:
        second = int(now)
        if self._second is None or second - self._second >= BUDGET_WINDOW:
            self._calls = [0] * BUDGET_WINDOW
            self._retries = [0] * BUDGET_WINDOW
        else:
            for passed in range(self._second + 1, second + 1):
                self._calls[passed % BUDGET_WINDOW] = 0
                self._retries[passed % BUDGET_WINDOW] = 0
        self._second = second
        return second % BUDGET_WINDOW

    def call(self, now: float) -> None:
        """Count a request to the upstream: once, not once per attempt."""
        self._calls[self._turn(now)] += 1

    def spend(self, now: float) -> bool:
        """Take leave for one retry; False where there is none."""
        slot = self._turn(now)
        within_share = sum(self._retries) + 1 <= self._share * sum(self._calls)
        if not within_share and self._bucket.tokens(now) < 1.0:
            return False
        self._bucket.take_what_is_left(now)
        self._retries[slot] += 1
        return True


class RetryPolicy:
    """The rules of one upstream, compiled, with its budget. Lives as long as the upstream."""

    def __init__(self, rules: RetryRules, rng: random.Random | None = None) -> None:
        self._random = rng or random.Random()  # noqa: S311 (jitter)
        self.budget = RetryBudget(rules.budget, rules.min_per_second)
        self.configure(rules)

    def configure(self, rules: RetryRules) -> None:
        """Take new rules at a reload; the budget goes on."""
        self.rules = rules
        self._on = frozenset(str(kind) for kind in rules.on)
        self.budget.configure(rules.budget, rules.min_per_second)

    def begin(
        self,
        method: str,
        now: float,
        *,
        idempotency_key: bool,
        counted: bool = False,
        repeatable: bool = False,
    ) -> RetryPlan:
        """Follow one request that came at `now`. `idempotency_key`: it carries that field;
        `counted`: the budget knows of it already; `repeatable`: its route says so."""
        if not counted:
            self.budget.call(now)
        keyed = idempotency_key and self.rules.idempotency_key
        safe = repeatable or keyed or method in IDEMPOTENT
        return RetryPlan(self, safe, now + self.rules.deadline)

    def retries(self, kind: str) -> bool:
        """Whether `on` lists this kind: a response of such a status is worth holding back."""
        return kind in self._on

    def backoff(self, retry: int) -> float:
        """Seconds before the `retry`-th retry (from 1): full jitter."""
        rules = self.rules
        reach = min(rules.max_backoff, rules.backoff * 2.0 ** min(retry - 1, 30))
        return self._random.uniform(0.0, reach)


class RetryPlan:
    """One request's attempts. `retries` is how many retries it had, `held` how many of them an open
    circuit held back."""

    __slots__ = ("_policy", "deadline", "held", "repeatable", "retries")

    def __init__(self, policy: RetryPolicy, repeatable: bool, deadline: float) -> None:
        self._policy = policy
        self.repeatable = repeatable
        self.deadline = deadline
        self.retries = 0
        self.held = 0

    def covers(self, kind: str) -> bool:
        """Whether an attempt that ended so is one to repeat at all."""
        return self._policy.retries(kind)

    def after(self, ended: Ended, now: float) -> RetryDecision:
        """What to do after an attempt ended at `now` without a good answer."""
        policy = self._policy
        rules = policy.rules
        if not policy.retries(ended.kind):
            return RetryDecision(None, "kind")
        if self.retries - self.held + 1 >= rules.attempts:
            return RetryDecision(None, "attempts")
        if ended.sent and not self.repeatable:
            return RetryDecision(None, "unsafe")
        if not ended.body_whole:
            return RetryDecision(None, "body")
        wait = policy.backoff(self.retries + 1)
        left = self.deadline - now
        if ended.retry_after is not None:
            if ended.retry_after > rules.max_backoff:
                return RetryDecision(None, "retry_after")
            wait += ended.retry_after  # the jitter on top: all were told the same second
        elif wait > left >= rules.backoff:
            wait = left * _LAST_WAIT
        if wait > left:
            return RetryDecision(None, "deadline")
        if not policy.budget.spend(now):
            return RetryDecision(None, "budget")
        self.retries += 1
        return RetryDecision(wait, "again")


def parse_retry_after(value: str, today: float) -> float | None:
    """`Retry-After` (RFC 9110 §10.2.3) in seconds from `today` (Unix seconds); a date in the past
    is 0, and None stands for what cannot be read."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:12])
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, IndexError, TypeError):
        return None
    try:
        return max(0.0, moment.timestamp() - today)
    except (ValueError, OverflowError):
        return None
