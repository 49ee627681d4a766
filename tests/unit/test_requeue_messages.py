"""Celery's messages: read without harm, delivered anew under new ids, copied only where safe."""

from __future__ import annotations

import base64
import json
from typing import Any

from proxy.jobs.requeue.messages import (
    delivered_anew,
    for_another_job,
    list_of,
    read_message,
    redelivered,
    unpack_unacked,
)

OLD, NEW = "mv_aaaaaaaaaa", "mv_bbbbbbbbbb"
TASK_ID = "7cb54c79-f512-4ff9-bff9-23840cb70958"


def ids() -> Any:
    """Ids one after the other."""
    numbers = iter(range(100))
    return lambda: f"new-{next(numbers)}"


def message(
    args: list[Any] | None = None,
    kwargs: dict[str, Any] | None = None,
    embed: dict[str, Any] | None = None,
    **headers: Any,
) -> bytes:
    """As Celery 5 writes it (recorded), for job `OLD` by default."""
    args = [] if args is None else args
    kwargs = {"job_id": OLD} if kwargs is None else kwargs
    nothing = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    body = json.dumps([args, kwargs, embed or nothing])
    return json.dumps(
        {
            "body": base64.b64encode(body.encode()).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {
                "lang": "py",
                "task": "app.infrastructure.celery_tasks.process_make_video",
                "id": TASK_ID,
                "shadow": None,
                "eta": None,
                "expires": None,
                "group": None,
                "group_index": None,
                "retries": 0,
                "timelimit": [None, None],
                "root_id": TASK_ID,
                "parent_id": None,
                "argsrepr": repr(tuple(args)),
                "kwargsrepr": repr(kwargs),
                "origin": "gen20960@vm",
                "ignore_result": False,
                **headers,
            },
            "properties": {
                "correlation_id": TASK_ID,
                "reply_to": "4acac51a-be7a-3fd4-848b-0f7c0e4e9d5b",
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": "make_video_queue"},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": "7d017a18-7747-4234-b9ef-0d99862b3327",
            },
        }
    ).encode()


def read(raw: bytes) -> Any:
    return read_message(raw, "q", "q")


def test_the_job_is_found_wherever_it_is_named() -> None:
    """In args, in kwargs, in a whole job document; what is called `job_id` or `id` comes first."""
    assert read(message()).job_ids == (OLD,)
    assert read(message([OLD], {})).job_ids == (OLD,)
    assert read(message([{"status": "queued", "id": OLD}], {})).job_ids[0] == OLD
    assert read(message()).task_id == TASK_ID
    assert not read(message([], {})).opaque


def test_a_body_that_cannot_be_read_is_opaque_unless_its_repr_names_the_job() -> None:
    """Compressed and pickled bodies: the representations still name the job."""
    envelope = json.loads(message())
    envelope["body"] = base64.b64encode(b"\x1f\x8bgzip").decode()
    named = read(json.dumps(envelope).encode())
    assert OLD in named.job_ids
    assert not named.opaque
    envelope["headers"]["kwargsrepr"] = "{...}"
    opaque = read(json.dumps(envelope).encode())
    assert opaque.opaque
    assert opaque.job_ids == ()


def test_hostile_bytes_are_read_without_harm() -> None:
    """No JSON, wrong types, endless nesting, endless numbers: opaque, and never an error."""
    for raw in (b"", b"\xff", b"[]", b"{}", b'{"body":1}', b'{"headers":3}', b"[" * 100_000):
        assert read(raw).job_ids == ()
        assert unpack_unacked(raw) is None
        assert redelivered(raw) is None or raw.startswith(b"{")
        assert delivered_anew(raw, ids()) is None
        assert for_another_job(raw, OLD, NEW, ids()) is None
    deep = base64.b64encode(b"[[" + b"[" * 500 + b"]" * 500 + b"],{}]").decode()
    assert read(json.dumps({"body": deep}).encode()).job_ids == ()
    assert read(json.dumps({"headers": {"id": "a b\n"}}).encode()).task_id == ""


def test_restored_as_kombu_restores() -> None:
    """Marked as redelivered in both places, all else as it was."""
    raw = redelivered(message())
    assert raw is not None
    envelope = json.loads(raw)
    assert envelope["headers"].pop("redelivered") is True
    assert envelope["properties"]["delivery_info"].pop("redelivered") is True
    assert envelope == json.loads(message())


def test_a_new_delivery_has_new_ids_and_no_old_limits() -> None:
    """New task id everywhere, new delivery tag; an `expires` that is over would revoke it."""
    raw = delivered_anew(message(expires="2020-01-01T00:00:00Z", retries=2), ids())
    assert raw is not None
    headers, properties = json.loads(raw)["headers"], json.loads(raw)["properties"]
    assert headers["id"] == headers["root_id"] == properties["correlation_id"] == "new-0"
    assert properties["delivery_tag"] == "new-1"
    assert headers["expires"] is None
    assert headers["retries"] == 0
    assert read(raw).job_ids == (OLD,)


def test_the_shape_of_another_job() -> None:
    """No trace of the other job is left: not in the body, nor in a header or property."""
    for raw in (message(), message([OLD], {})):
        shaped = for_another_job(raw, OLD, NEW, ids())
        assert shaped is not None
        assert read(shaped).job_ids == (NEW,)
        envelope = json.loads(shaped)
        body = base64.b64decode(envelope.pop("body")).decode()
        assert OLD not in body
        assert OLD not in json.dumps(envelope)
        assert TASK_ID not in json.dumps(envelope)
        assert NEW in envelope["headers"]["argsrepr"] + envelope["headers"]["kwargsrepr"]


def test_what_may_belong_to_the_other_job_is_never_copied() -> None:
    """Other arguments, whole documents, chains, callbacks, parents: no shape."""
    for raw in (
        message([OLD, 10], {}),
        message([OLD, "data/raw/audio/x.mp3"], {}),
        message([{"id": OLD, "query": "cats"}], {}),
        message([f"data/{OLD}.mp3"], {}),
        message(["mv_other"], {}),
        message(embed={"callbacks": [{"task": "next"}]}),
        message(parent_id="p"),
        message(root_id="another"),
        message(group="g"),
    ):
        assert for_another_job(raw, OLD, NEW, ids()) is None, raw


def test_an_id_inside_a_longer_word_is_not_replaced() -> None:
    """`mv_1` is not part of `mv_10`."""
    shaped = for_another_job(
        message(["mv_1"], {}, argsrepr="('mv_1',) 'mv_10' mv_1-x"), "mv_1", "mv_2", ids()
    )
    assert shaped is not None
    assert json.loads(shaped)["headers"]["argsrepr"] == "('mv_2',) 'mv_10' mv_1-x"


def test_priorities_have_lists_of_their_own() -> None:
    """0 to 2 the plain list, then a list for each step of three, as kombu has them."""

    def of(priority: Any) -> str:
        return list_of("q", json.dumps({"properties": {"priority": priority}}).encode())

    assert [of(p) for p in (0, 2, 3, 6, 9, 99, None, "x", True)] == [
        *("q", "q", "q\x06\x163", "q\x06\x166", "q\x06\x169", "q\x06\x169"),
        *("q", "q", "q"),
    ]
