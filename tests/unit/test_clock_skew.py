"""How far other clocks are from ours."""

from __future__ import annotations

import pytest

from proxy.core.clock_skew import EVERY, ClockSkews

NOW = 1_795_450_757.25  # 2026-11-23 16:19:17 GMT
THEN = "Mon, 23 Nov 2026 {} GMT"


@pytest.mark.parametrize(
    ("date", "ahead"),
    [
        (THEN.format("16:19:17"), 0.0),  # within its second
        (THEN.format("16:04:17"), -899.25),
        (THEN.format("16:34:17"), 899.75),
    ],
)
def test_a_date_is_its_second(date: str, ahead: float) -> None:
    """Any moment within the second is no skew."""
    skews = ClockSkews(lambda: NOW)
    skews.note_date("app", date)
    assert skews.seconds == {"app": pytest.approx(ahead)}


@pytest.mark.parametrize("date", ["", "yesterday", "Mon, 99 Foo 2026 16:04:17 GMT", "\u00e4" * 300])
def test_what_is_no_date_says_nothing(date: str) -> None:
    """A service may write anything."""
    skews = ClockSkews(lambda: NOW)
    skews.note_date("app", date)
    assert skews.seconds == {}


def test_dates_are_looked_at_once_in_a_while() -> None:
    """Each upstream has its turn; Redis says its time by itself."""
    skews = ClockSkews(lambda: NOW)
    assert [skews.wants("a", moment) for moment in (1.0, 2.0, 1.0 + EVERY)] == [True, False, True]
    assert skews.wants("b", 2.0)
    skews.note("redis", NOW - 900.0)
    assert skews.seconds == {"redis": -900.0}
