"""Answers of Celery's workers, connections, results: read as they are, however hostile."""

from __future__ import annotations

import base64
import json
from typing import Any

from proxy.jobs.requeue.pidbox import (
    Consumers,
    Result,
    WorkerAnswer,
    answers,
    consumers,
    question,
    read_result,
)

SOLO = {"pool": {"implementation": "celery.concurrency.solo:TaskPool"}, "pid": 7}
PREFORK = {"pool": {"implementation": "celery.concurrency.prefork:TaskPool"}}
TASK = {"id": "t1", "args": [], "kwargs": {"job_id": "mv_1"}, "worker_pid": 7}


def reply(method: str, at: int, node: str, reply_of: Any) -> bytes:
    """As a worker pushes it into the mailbox (recorded)."""
    body = base64.b64encode(json.dumps({node: reply_of}).encode()).decode()
    headers = {"ticket": f"{method}-{at * 1000}-abc", "clock": 3}
    return json.dumps({"body": body, "headers": headers, "properties": {}}).encode()


def whole(at: int, node: str, active: Any, reserved: Any, stats: Any) -> list[bytes]:
    return [
        reply("active", at, node, active),
        reply("reserved", at, node, reserved),
        reply("stats", at, node, stats),
    ]


def test_what_a_worker_has_in_its_hands() -> None:
    """Task ids and job ids of both lists; the newest whole answer counts."""
    found = answers(whole(10, "a", [TASK], [{"id": "t2", "args": ["mv_2"]}], PREFORK))
    assert found == {"a": WorkerAnswer(10.0, frozenset({"t1", "mv_1", "t2", "mv_2"}))}
    newer = [*whole(10, "a", [TASK], [], PREFORK), *whole(20, "a", [], [], PREFORK)]
    assert answers(newer) == {"a": WorkerAnswer(20.0, frozenset())}
    partly = [*whole(10, "a", [TASK], [], PREFORK), reply("active", 20, "a", [])]
    assert answers(partly)["a"].asked_at == 10.0


def test_a_solo_worker_that_answers_works_on_nothing() -> None:
    """What it lists as active was left behind by a connection that broke (seen with Celery 5.7)."""
    assert answers(whole(10, "a", [TASK], [], SOLO)) == {
        "a": WorkerAnswer(10.0, frozenset(), solo=True)
    }
    prefetched = answers(whole(10, "a", [TASK], [{"id": "t2"}], SOLO))
    assert prefetched["a"].holds == frozenset({"t2"})


def test_hostile_replies() -> None:
    """No JSON, foreign tickets, wrong types: no answer, no error."""
    for raw in (
        b"",
        b"\xff",
        b"[]",
        b"{}",
        reply("reset", 1, "a", []),
        b'{"headers":{"ticket":1}}',
    ):
        assert answers([raw]) == {}
    assert answers(whole(10, "a", "x", {"y": 1}, [])) == {"a": WorkerAnswer(10.0, frozenset())}
    broken = json.loads(reply("active", 1, "a", []))
    broken["body"] = "%%%"
    assert answers([json.dumps(broken).encode()]) == {}


def test_a_question_is_a_whole_message() -> None:
    """A worker's consumer breaks off at a control message without its parts (kombu 5.7)."""
    envelope = json.loads(question("active", lambda: "id-1", 12.5))
    assert {"body", "content-type", "content-encoding", "headers", "properties"} <= set(envelope)
    assert envelope["properties"]["delivery_tag"] == "id-1"
    body = json.loads(base64.b64decode(envelope["body"]))
    assert body["ticket"] == "active-12500-id1"
    assert body["destination"] is None


def test_connections_that_take_messages() -> None:
    """BRPOP in this database; blocked ones wait for a message now."""
    listing = (
        b"id=1 addr=127.0.0.1:1 name= flags=b db=0 cmd=brpop user=default\n"
        b"id=2 addr=127.0.0.1:2 name= flags=N db=0 cmd=brpop user=default\n"
        b"id=3 addr=127.0.0.1:3 name=cmd=brpop flags=N db=0 cmd=ping user=default\n"
        b"id=4 addr=127.0.0.1:4 name= flags=b db=5 cmd=brpop user=default\n\xff\n"
    )
    assert consumers(listing, 0) == Consumers(all=2, idle=1)
    assert consumers(listing, 5) == Consumers(all=1, idle=1)


def test_results() -> None:
    """Who runs a task, or that it is over; a backend that writes something else says nothing."""
    started = b'{"status": "STARTED", "result": {"pid": 20964, "hostname": "celery@vm"}}'
    assert read_result(started) == Result("STARTED", "celery@vm", 20964)
    assert not Result("STARTED").ended
    done = read_result(b'{"status": "SUCCESS", "result": {"pid": 1, "hostname": "x"}}')
    assert done == Result("SUCCESS")
    assert done.ended
    assert read_result(b'{"status": "STARTED", "result": {"pid": true, "hostname": 5}}') == Result(
        "STARTED"
    )
    for raw in (None, b"", b"\xff", b"[]", b"{}", b'{"status":1}'):
        assert read_result(raw) is None
