"""Whether to retry, and after how long. Pure: takes `now`, waits for nothing.

Rules, in the order in which they are applied:
1. Only failures that `on` lists are retried, up to `attempts` attempts in all. A circuit that
   opened in between, a refusal by the proxy and a client that left are never retried.
2. The retry must be safe (RFC 9110 §9.2.2): the method is idempotent, or nothing was sent, or the
   request carries `Idempotency-Key` and the upstream is configured to honour it.
3. The body must be complete: unread, or kept in the spool.
4. The wait is random between 0 and a range that doubles (full jitter spreads a herd best and costs
   no more than other schemes). `Retry-After` is a minimum; one above `max_backoff` means that the
   upstream does not want to be asked again now.
5. No attempt begins after the deadline. A backoff that would end after it is shortened, so that the
   remaining time is used. An attempt that was held by an open circuit does not count as one of the
   `attempts`: the circuit has paced it, and the deadline bounds it.
6. The budget, shared by all requests to the upstream, is checked last, because only a retry that
   will happen may spend it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from proxy.config.upstreams import Retry as RetryRules
from proxy.core.clock import parse_http_date
from proxy.core.headers import IDEMPOTENT
from proxy.resilience.rate_limit import TokenBucket

#: The largest share of the remaining time that a shortened wait takes; the attempt needs the rest.
_LAST_WAIT = 0.75

#: The budget's window in seconds; ten, like Linkerd's.
BUDGET_WINDOW = 10


@dataclass(frozen=True, slots=True)
class Ended:
    """How an attempt ended. `kind` is `connect`, `reset`, `timeout`, the status as text, or another
    word for a failure that is never retried. `sent`: a byte of the request may have reached the
    upstream. `body_whole`: the body can be sent from its beginning. `retry_after` is in seconds."""

    kind: str
    sent: bool
    body_whole: bool = True
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class RetryDecision:
    """Retry after `wait` seconds; or None, and `reason` tells why not: `kind`, `attempts`,
    `unsafe`, `body`, `retry_after`, `deadline` or `budget`."""

    wait: float | None
    reason: str


class RetryBudget:
    """Limits the retries to one upstream: to a share of its calls in the last 10 s, or a fixed
    rate.

    Either of two allowances suffices: the retries in the window stay within `share` of the calls,
    or a bucket of `per_second` tokens, refilled at that rate, still has one. Every retry takes a
    token, so the two do not add up.
    """

    def __init__(self, share: float, per_second: int) -> None:
        self._share = share
        self._bucket = TokenBucket(per_second, per_second)
        self._calls = [0] * BUDGET_WINDOW
        self._retries = [0] * BUDGET_WINDOW
        self._second: int | None = None

    def configure(self, share: float, per_second: int) -> None:
        """Apply new rules at a reload; what was spent stays spent."""
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
        """Count a request to the upstream, once for all its attempts."""
        self._calls[self._turn(now)] += 1

    def spend(self, now: float) -> bool:
        """Spend one retry; False if the budget has none."""
        slot = self._turn(now)
        within_share = sum(self._retries) + 1 <= self._share * sum(self._calls)
        if not within_share and self._bucket.tokens(now) < 1.0:
            return False
        self._bucket.take_what_is_left(now)
        self._retries[slot] += 1
        return True


class RetryPolicy:
    """The compiled retry rules of one upstream, with its budget. Lives as long as the upstream."""

    def __init__(self, rules: RetryRules, rng: random.Random | None = None) -> None:
        self._random = rng or random.Random()  # noqa: S311 (jitter)
        self.budget = RetryBudget(rules.budget, rules.min_per_second)
        self.configure(rules)

    def configure(self, rules: RetryRules) -> None:
        """Apply new rules at a reload; the budget continues."""
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
        """Plan the attempts of a request that began at `now`. `idempotency_key`: it carries that
        field; `counted`: the budget has counted it already; `repeatable`: its route says so."""
        if not counted:
            self.budget.call(now)
        keyed = idempotency_key and self.rules.idempotency_key
        safe = repeatable or keyed or method in IDEMPOTENT
        return RetryPlan(self, safe, now + self.rules.deadline)

    def retries(self, kind: str) -> bool:
        """Whether `on` lists this kind of failure."""
        return kind in self._on

    def backoff(self, retry: int) -> float:
        """Seconds to wait before the `retry`-th retry (from 1), with full jitter."""
        rules = self.rules
        reach = min(rules.max_backoff, rules.backoff * 2.0 ** min(retry - 1, 30))
        return self._random.uniform(0.0, reach)


class RetryPlan:
    """One request's attempts. `retries` counts its retries, `held` those of them that an open
    circuit held."""

    __slots__ = ("_policy", "deadline", "held", "repeatable", "retries")

    def __init__(self, policy: RetryPolicy, repeatable: bool, deadline: float) -> None:
        self._policy = policy
        self.repeatable = repeatable
        self.deadline = deadline
        self.retries = 0
        self.held = 0

    def covers(self, kind: str) -> bool:
        """Whether this kind of failure is retried at all."""
        return self._policy.retries(kind)

    def after(self, ended: Ended, now: float) -> RetryDecision:
        """Decide after an attempt that failed at `now`."""
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
            wait += ended.retry_after  # plus jitter: all callers got the same value
        elif wait > left >= rules.backoff:
            wait = left * _LAST_WAIT
        if wait > left:
            return RetryDecision(None, "deadline")
        if not policy.budget.spend(now):
            return RetryDecision(None, "budget")
        self.retries += 1
        return RetryDecision(wait, "again")


def parse_retry_after(value: str, today: float) -> float | None:
    """`Retry-After` (RFC 9110 §10.2.3) in seconds from `today` (Unix seconds): 0 for a date in the
    past, None if it cannot be parsed."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:12])
    moment = parse_http_date(value)
    return None if moment is None else max(0.0, moment - today)
