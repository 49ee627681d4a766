"""Which targets of an upstream are usable: passive ejection and active health. Pure.

Rules
1. A target that fails `failures` times in a row is ejected for `eject_for`, and longer for each
   further ejection in a row; one success clears its record (Envoy's consecutive-failure detection).
2. At most half of the targets are ejected at a time (but one may always be), and never the last
   one: if most of them fail, the fault is hardly theirs.
3. `fall` failed health checks in a row take a target out, `rise` good ones bring it back (HAProxy).
   Targets start healthy.
4. If no usable target remains, all are tried: a response from an unhealthy target is better than
   none, and the health check itself may be wrong (Envoy's panic threshold).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from proxy.config.upstreams import Ejection as EjectionRules
from proxy.config.upstreams import Health as HealthRules

#: Seconds that repeated ejections last at most, unless `eject_for` is longer: Envoy's default.
LONGEST = 300.0


class _Record:
    __slots__ = ("bad", "ejected_until", "ejections", "failures", "good", "healthy")

    def __init__(self) -> None:
        self.failures = 0
        self.ejections = 0
        self.ejected_until = 0.0
        self.healthy = True
        self.good = 0
        self.bad = 0


class TargetHealth:
    """The records of the `targets` of one upstream, by label."""

    def __init__(
        self,
        targets: Iterable[str],
        ejection: EjectionRules | None,
        health: HealthRules | None,
    ) -> None:
        self._records = {target: _Record() for target in targets}
        self._ejection = ejection
        self._health = health

    def failure(self, target: str, now: float) -> bool:
        """Count a failed call (connect error, reset, timeout, failure status); whether that ejects
        the target."""
        rules = self._ejection
        record = self._records[target]
        if rules is None or record.ejected_until > now:
            return False
        record.failures += 1
        if record.failures < rules.failures or not self._may_eject(now):
            return False
        record.failures = 0
        record.ejections += 1
        lasts = min(rules.eject_for * record.ejections, max(LONGEST, rules.eject_for))
        record.ejected_until = now + lasts
        return True

    def success(self, target: str) -> None:
        """Count a successful call."""
        record = self._records[target]
        if record.failures or record.ejections:
            record.failures = record.ejections = 0

    def answered(self, target: str, well: bool) -> bool:
        """Count a health check's result; whether the target's health changed."""
        assert self._health is not None
        record = self._records[target]
        record.good = record.good + 1 if well else 0
        record.bad = 0 if well else record.bad + 1
        enough = record.good >= self._health.rise if well else record.bad >= self._health.fall
        if not enough or record.healthy is well:
            return False
        record.healthy = well
        return True

    def usable(self, now: float) -> Sequence[str]:
        """The targets to choose from at `now`; never empty."""
        well = [
            target
            for target, record in self._records.items()
            if record.healthy and record.ejected_until <= now
        ]
        return well or list(self._records)

    def ejected(self, now: float) -> list[str]:
        """The targets ejected at `now`."""
        return [name for name, record in self._records.items() if record.ejected_until > now]

    def unhealthy(self) -> list[str]:
        """The targets that are unhealthy by their checks."""
        return [name for name, record in self._records.items() if not record.healthy]

    def _may_eject(self, now: float) -> bool:
        count = len(self._records)
        allowed = min(count - 1, max(1, count // 2))
        return len(self.ejected(now)) < allowed
