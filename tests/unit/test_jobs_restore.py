"""What absence means, and what is put back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.jobs.redis.replies import ServerInfo, notifies, parse_info
from proxy.jobs.redis.restore_rules import (
    Absence,
    Continuity,
    continuity,
    explain_absence,
    index_entries,
    put_back,
    replace,
    same_history,
)
from proxy.jobs.store.records import Row

NOW = 1_795_450_902.0
SAME = ServerInfo("run-a", 2, 0, loading=False)


def row(deadline: float | None) -> Row:
    created = "2026-11-23 16:21:42.670528"
    return Row("mv_1", "queued", 0.0, b"{}", created, NOW, deadline, b"d", 1, NOW)


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (SAME, SAME, Continuity.SAME),
        (None, SAME, Continuity.BROKEN),
        (SAME, ServerInfo("run-b", 2, 0, False), Continuity.BROKEN),
        (SAME, ServerInfo("run-a", 3, 0, False), Continuity.BROKEN),
        (SAME, ServerInfo("run-a", 0, 0, False), Continuity.BROKEN),
        (SAME, ServerInfo("run-a", None, 0, False), Continuity.BROKEN),
        (ServerInfo(None, 2, 0, False), ServerInfo(None, 2, 0, False), Continuity.BROKEN),
        (SAME, ServerInfo("run-a", 2, 7, False), Continuity.EVICTING),
        (SAME, ServerInfo("run-a", 2, None, False), Continuity.EVICTING),
        (
            ServerInfo("run-a", 2, None, False),
            ServerInfo("run-a", 2, None, False),
            Continuity.EVICTING,
        ),
        # The statistics were reset in between: the same numbers, by chance.
        (
            ServerInfo("run-a", 2, 5, False, commands=900),
            ServerInfo("run-a", 2, 5, False, commands=12),
            Continuity.EVICTING,
        ),
    ],
)
def test_only_a_provably_same_server_has_the_same_data(
    before: ServerInfo | None, now: ServerInfo, expected: Continuity
) -> None:
    """Another run, another count of flushes, or silence: the data may be others."""
    assert continuity(before, now) is expected


def test_absence_is_explained() -> None:
    """Past its deadline: expired, whatever happened. Else it depends on what the server did."""
    assert explain_absence(NOW - 1, NOW, Continuity.BROKEN) is Absence.EXPIRED
    assert explain_absence(NOW + 60, NOW, Continuity.SAME) is Absence.DELETED
    assert explain_absence(NOW + 60, NOW, Continuity.EVICTING) is Absence.EVICTED
    assert explain_absence(NOW + 60, NOW, Continuity.BROKEN) is Absence.LOST
    assert explain_absence(None, NOW, Continuity.SAME) is Absence.DELETED


@pytest.mark.parametrize("link", list(Continuity))
def test_the_last_event_of_a_key_explains_it(link: Continuity) -> None:
    """What the server said of this very key outweighs its counters, unless all was lost."""
    lost = link is Continuity.BROKEN
    for event in ("del", "rename_from", "move_from"):
        expected = Absence.LOST if lost else Absence.DELETED
        assert explain_absence(None, NOW, link, event) is expected
    expected = Absence.LOST if lost else Absence.EVICTED
    assert explain_absence(None, NOW, link, "evicted") is expected
    assert explain_absence(None, NOW, link, "set") is explain_absence(None, NOW, link)


def test_a_promoted_server_has_another_history() -> None:
    """A master that was a replica meanwhile has another's data; an older memory does not say."""
    before = ServerInfo("run-a", 2, 0, False, replication="a")
    assert same_history(before, before)
    assert not same_history(before, ServerInfo("run-a", 2, 0, False, replication="b"))
    assert same_history(SAME, before)


@settings(deadline=None)
@given(st.none() | st.floats(NOW - 1e6, NOW + 1e6))
def test_nothing_comes_back_with_more_life_than_it_had(deadline: float | None) -> None:
    """The TTL is what was left; nothing without any left; never over an existing key."""
    command = put_back(row(deadline), "k", NOW)
    if deadline is None:
        assert command == ("SET", "k", b"{}", "NX")
    elif command is None:
        assert deadline - NOW < 0.001
    else:
        assert command[:5] == ("SET", "k", b"{}", "NX", "PX")
        assert 0 < command[5] <= (deadline - NOW) * 1000


def test_a_replacement_depends_on_the_old_value_and_keeps_the_longer_life() -> None:
    """Compare-and-set, with the store's TTL or the present one."""
    assert replace(row(NOW + 100), "k", b"old", 5_000, NOW)[3:] == ("k", b"old", b"{}", 100_000)
    assert replace(row(NOW + 1), "k", b"old", 5_000, NOW)[3:] == ("k", b"old", b"{}", 5_000)
    assert replace(row(NOW + 1), "k", b"old", -1, NOW)[3:] == ("k", b"old", b"{}", 0)
    assert replace(row(None), "k", b"old", 5_000, NOW)[3:] == ("k", b"old", b"{}", 0)


def test_the_index_gets_the_time_of_creation() -> None:
    """One ZADD NX, score as the app writes it."""
    command = index_entries([row(None)], "index")
    assert command[:3] == ("ZADD", "index", "NX")
    assert command[3] == pytest.approx(1795450902.670528)
    assert command[4] == "mv_1"


def test_info_is_read_or_not_believed() -> None:
    """Flushes are counted from the statistics; a missing section leaves None, not zero."""
    info = (
        "run_id:abc\r\nevicted_keys:4\r\nloading:1\r\n"
        "cmdstat_get:calls=10\r\ncmdstat_flushall:calls=2,usec=1\r\ncmdstat_flushdb:calls=1,x=1\r\n"
    )
    assert parse_info(info) == ServerInfo("abc", 3, 4, loading=True)
    assert parse_info("") == ServerInfo(None, None, None, loading=False)
    assert parse_info("cmdstat_get:calls=1").flushes == 0


@pytest.mark.parametrize(
    ("flags", "expected"),
    [(b"KA", True), (b"Kg$x", True), (b"AKE", True), (b"EA", False), (b"Kg$", False), (b"", False)],
)
def test_notification_flags(flags: bytes, expected: bool) -> None:
    """Keyspace events of writes, removals and expiry are needed, or those of all kinds."""
    assert notifies({b"notify-keyspace-events": flags}) is expected
    assert notifies(None) is False
