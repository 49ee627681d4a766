"""Bulkhead, ejection, health and stale answers."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from proxy.config.listeners import StaticAnswer
from proxy.config.upstreams import Bulkhead as BulkheadRules
from proxy.config.upstreams import Ejection, Health
from proxy.core.errors import Overloaded
from proxy.core.memory.budget import Holding, MemoryBudget
from proxy.resilience.bulkhead import Bulkhead
from proxy.resilience.outlier_ejection import TargetHealth
from proxy.resilience.stale_cache import StaleAnswer, StaleCache

NOW = 100.0


def nothing() -> None:
    """Nobody waits."""


@pytest.mark.parametrize("name", ["Content-Length", "transfer-encoding", "Date"])
def test_a_set_answer_cannot_frame_itself(name: str) -> None:
    """Framing in the config would contradict ours: that is response splitting."""
    with pytest.raises(ValidationError, match="does not set"):
        StaticAnswer.model_validate({"headers": {name: "3"}})


def test_a_full_bulkhead_queues_then_refuses() -> None:
    """Two run, one waits, the next is refused; who leaves hands its place to who waits."""
    bulkhead = Bulkhead("svc", BulkheadRules(max_concurrent=2, queue=1))
    ready: list[str] = []
    one = bulkhead.enter(NOW, nothing)
    bulkhead.enter(NOW, nothing)
    third = bulkhead.enter(NOW, lambda: ready.append("third"))
    assert third.waiting
    with pytest.raises(Overloaded) as caught:
        bulkhead.enter(NOW, nothing)
    assert caught.value.reason == "queue_full"
    bulkhead.leave(one)
    assert ready == ["third"]
    assert not third.waiting
    assert bulkhead.running == 2


def test_who_waits_too_long_leaves_the_queue_with_an_error() -> None:
    """The place in the queue is free again and nobody is handed a slot for nothing."""
    bulkhead = Bulkhead("svc", BulkheadRules(max_concurrent=1, queue=1))
    one = bulkhead.enter(NOW, nothing)
    second = bulkhead.enter(NOW, nothing)
    assert second.deadline == NOW + 1.0
    assert bulkhead.refuse(second).reason == "queue_timeout"
    bulkhead.leave(second)
    bulkhead.leave(one)
    assert (bulkhead.running, bulkhead.waiting) == (0, 0)


def test_a_reload_that_widens_lets_the_queue_in() -> None:
    """More slots are handed out at once."""
    bulkhead = Bulkhead("svc", BulkheadRules(max_concurrent=1, queue=2))
    bulkhead.enter(NOW, nothing)
    second = bulkhead.enter(NOW, nothing)
    bulkhead.configure(BulkheadRules(max_concurrent=2))
    assert not second.waiting


def test_a_failing_target_is_left_out_for_longer_each_time() -> None:
    """Five failures eject it for 30 s, five more for 60 s; a success wipes the record."""
    health = TargetHealth(["a", "b"], Ejection(), None)
    for _ in range(4):
        assert not health.failure("a", NOW)
    assert health.failure("a", NOW)
    assert list(health.usable(NOW + 29.9)) == ["b"]
    assert list(health.usable(NOW + 30.0)) == ["a", "b"]
    for _ in range(5):
        health.failure("a", NOW + 30.0)
    assert health.ejected(NOW + 89.9) == ["a"]
    health.success("a")
    for _ in range(5):
        health.failure("a", NOW + 100.0)
    assert health.ejected(NOW + 129.9) == ["a"]
    assert health.ejected(NOW + 130.0) == []


@pytest.mark.parametrize(("count", "out"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2)])
def test_never_more_than_the_share_and_never_all(count: int, out: int) -> None:
    """Half of the targets at most, one at least, the last one never."""
    targets = [str(number) for number in range(count)]
    health = TargetHealth(targets, Ejection(failures=1), None)
    for target in targets:
        health.failure(target, NOW)
    assert len(health.ejected(NOW)) == out


def test_health_checks_take_out_after_fall_and_bring_back_after_rise() -> None:
    """Three bad answers in a row, then two good ones."""
    health = TargetHealth(["a", "b"], None, Health(path="/health"))
    changes = [health.answered("a", well) for well in (False, False, True, False, False, False)]
    assert changes == [False, False, False, False, False, True]
    assert list(health.usable(NOW)) == ["b"]
    assert [health.answered("a", True) for _ in range(2)] == [False, True]
    assert list(health.usable(NOW)) == ["a", "b"]


def test_when_all_targets_are_unwell_all_are_tried() -> None:
    """An answer from a sick target is better than none."""
    health = TargetHealth(["a", "b"], None, Health(path="/health", fall=1))
    health.answered("a", False)
    health.answered("b", False)
    assert list(health.usable(NOW)) == ["a", "b"]


def cache(**limits: int) -> StaleCache:
    """A cache of ten minutes."""
    return StaleCache(
        600.0,
        limits.get("max_bytes", 10_000),
        limits.get("max_body", 2_000),
        Holding(MemoryBudget().account("stale_answers")),
    )


def test_the_same_get_finds_its_last_good_answer_with_its_age() -> None:
    """Until it is ten minutes old."""
    stale = cache()
    key = stale.key("GET", "/a?b=1", b"h", [b"Accept: text/html"])
    assert key is not None
    assert stale.keep(key, [b"Content-Type: text/html"], b"body", NOW)
    answer = stale.get(key, NOW + 59.5)
    assert answer is not None
    assert (answer.body, answer.age(NOW + 59.5)) == (b"body", 59)
    assert stale.get(key, NOW + 600.1) is None
    assert stale.used == 0


def test_nobody_gets_the_answer_to_anothers_credentials() -> None:
    """Authorization, cookies and API keys are part of the key, in any order of fields."""
    stale = cache()
    keys = {
        stale.key("GET", "/a", b"h", lines)
        for lines in (
            [],
            [b"Authorization: Bearer a"],
            [b"Authorization: Bearer b"],
            [b"Cookie: a"],
            [b"X-API-Key: a"],
        )
    }
    assert len(keys) == 5
    assert stale.key("GET", "/a", b"h", [b"cookie: a", b"Accept: b"]) == stale.key(
        "GET", "/a", b"h", [b"accept:b", b"Cookie:a"]
    )


def test_what_must_not_be_kept_is_not() -> None:
    """Other methods, ranges, no-store, unknown Vary, cookies, long bodies."""
    stale = cache()
    assert stale.key("POST", "/", b"h", []) is None
    assert stale.key("GET", "/", b"h", [b"Range: bytes=0-1"]) is None
    for line in (b"Cache-Control: private, no-store", b"Vary: User-Agent", b"Set-Cookie: a=b"):
        assert not stale.keep(b"k", [line], b"", NOW)
    assert stale.keep(b"k", [b"Vary: Accept, Accept-Encoding"], b"", NOW)
    assert not stale.keep(b"k", [], b"x" * 2001, NOW)
    assert len(stale) == 0


def test_memory_is_bounded_and_the_least_used_goes_first() -> None:
    """Ten thousand bytes hold what they hold, whatever comes."""
    stale = cache()
    for number in range(100):
        stale.keep(b"%d" % number, [], b"x" * 1000, NOW)
        stale.get(b"0", NOW)
        assert stale.used <= 10_000
    assert stale.get(b"0", NOW) is not None
    assert stale.get(b"1", NOW) is None


@pytest.mark.parametrize(("passed", "age"), [(-1.0, 0), (0.0, 0), (0.99, 0), (1.0, 1), (61.5, 61)])
def test_the_age_of_a_stale_answer_is_in_whole_seconds(passed: float, age: int) -> None:
    """Rounded down, and never negative."""
    assert StaleAnswer((), b"", stored=100.0).age(100.0 + passed) == age
