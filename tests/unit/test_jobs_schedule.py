"""Daily maintenance on days that have 23, 24 or 25 hours."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.clock import ManualClock
from proxy.jobs.schedule import Daily, is_due, next_run

BERLIN = ZoneInfo("Europe/Berlin")
AT = (3, 0)


def moment(text: str, zone: ZoneInfo = BERLIN, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).timestamp()


def test_an_ordinary_day() -> None:
    """Before three it is today's three, at three and later tomorrow's."""
    assert next_run(moment("2026-11-23T02:59:59"), AT, BERLIN) == moment("2026-11-23T03:00")
    assert next_run(moment("2026-11-23T03:00"), AT, BERLIN) == moment("2026-11-24T03:00")


def test_a_time_that_is_skipped_runs_once_behind_the_gap() -> None:
    """Berlin has no 02:30 on 29 March 2026: it runs at 03:30, and next day at 02:30 again."""
    first = next_run(moment("2026-03-28T23:00"), (2, 30), BERLIN)
    assert datetime.fromtimestamp(first, BERLIN).isoformat() == "2026-03-29T03:30:00+02:00"
    second = next_run(first, (2, 30), BERLIN)
    assert datetime.fromtimestamp(second, BERLIN).isoformat() == "2026-03-30T02:30:00+02:00"


def test_a_time_that_comes_twice_runs_once() -> None:
    """Berlin has two 02:30 on 25 October 2026: the first counts."""
    first = next_run(moment("2026-10-24T23:00"), (2, 30), BERLIN)
    assert datetime.fromtimestamp(first, BERLIN).isoformat() == "2026-10-25T02:30:00+02:00"
    second = next_run(first, (2, 30), BERLIN)
    assert datetime.fromtimestamp(second, BERLIN).isoformat() == "2026-10-26T02:30:00+01:00"


@settings(deadline=None)
@given(
    st.integers(1_600_000_000, 2_000_000_000),
    st.integers(0, 23),
    st.integers(0, 59),
    st.sampled_from(["Europe/Berlin", "America/Sao_Paulo", "Australia/Lord_Howe", "UTC"]),
)
def test_a_run_is_always_ahead_and_never_far(after: int, hour: int, minute: int, zone: str) -> None:
    """Strictly later, within 26 hours, and the run after it is on the next date."""
    tz = ZoneInfo(zone)
    first = next_run(after, (hour, minute), tz)
    assert after < first <= after + 26 * 3600
    second = next_run(first, (hour, minute), tz)
    dates = [datetime.fromtimestamp(one, UTC).timestamp() for one in (first, second)]
    assert 22 * 3600 <= dates[1] - dates[0] <= 26 * 3600


def test_a_missed_run_is_owed_and_a_first_start_owes_none() -> None:
    """Down at three o'clock: owed at the start. Never run: due at the next three."""
    assert is_due(moment("2026-11-22T03:00"), moment("2026-11-23T09:00"), AT, BERLIN)
    assert not is_due(moment("2026-11-23T03:00"), moment("2026-11-23T09:00"), AT, BERLIN)
    assert not is_due(None, moment("2026-11-23T09:00"), AT, BERLIN)


async def test_the_runner_makes_up_a_missed_run_and_repeats_a_failed_one() -> None:
    """Owed at the start: done at once; not done yet: tried again; then quiet until stopped."""
    clock = ManualClock(moment("2026-11-23T09:00"))
    runs: list[float] = []
    second = asyncio.Event()

    async def job() -> bool:
        runs.append(clock.time())
        if len(runs) == 2:
            second.set()
        return len(runs) == 2

    last = moment("2026-11-22T03:00")
    daily = Daily("clean-up", AT, job, clock, last=last, tz=BERLIN, nap=0.01)
    task = asyncio.create_task(daily.run())
    await asyncio.wait_for(second.wait(), 2)
    daily.stop()
    await asyncio.wait_for(task, 2)
    assert len(runs) == 2
    assert daily.next == moment("2026-11-24T03:00")
