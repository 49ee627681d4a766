"""How often an idle mirror asks Redis."""

from __future__ import annotations

from proxy.core.clock import ManualClock
from proxy.jobs.redis.activity import QUIET, Activity


def test_questions_grow_rare_when_nothing_happens() -> None:
    """A busy mirror asks at its pace; an idle one rarely, and not in step with others; one that is
    stirred asks at once."""
    clock, random = ManualClock(), [0.5]
    activity = Activity(clock, lambda: random[0])
    asked = clock.monotonic()
    clock.advance(0.5)
    assert activity.due(asked, 0.5, 15.0)
    clock.advance(QUIET)
    assert activity.idle
    asked = clock.monotonic()
    clock.advance(14.0)
    assert not activity.due(asked, 0.5, 15.0)
    random[0] = 0.0
    assert not activity.due(asked, 0.5, 15.0), "drawn once, or many draws would make it early"
    clock.advance(1.5)
    assert activity.due(asked, 0.5, 15.0)
    asked = clock.monotonic()
    random[0] = 0.99
    clock.advance(12.0)
    assert activity.due(asked, 0.5, 15.0)
    asked = clock.monotonic()
    clock.advance(18.0)
    assert not activity.due(asked, 0.5, 15.0)
    activity.touch()
    assert not activity.idle
    assert activity.due(asked, 0.5, 15.0)
