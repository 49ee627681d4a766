"""Celery messages as kombu's Redis transport keeps them. Pure; never raises for hostile bytes.

1. A list per queue and priority holds envelopes in JSON; pushed on the left, popped on the right.
   What a worker has taken is in the hash `unacked`, delivery tag to `[envelope, exchange, key]`,
   and in the sorted set `unacked_index`, scored by the worker's clock.
2. The arguments are in the body: base64 of the JSON `[args, kwargs, embed]`. A compressed or
   pickled body is opaque; then `argsrepr` and `kwargsrepr` may still name the job.
3. A message that is pushed again is a new delivery: a new task id, because the old one may have a
   result that says SUCCESS, and a new delivery tag, because a late acknowledgement of the old one
   would remove the new one from `unacked`.
4. A message for another job is made only from one whose arguments are nothing but the job's id:
   anything else in them might belong to the other job.
"""

from __future__ import annotations

import base64
import copy
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from proxy.jobs.document import valid_job_id

MAX_MESSAGE = 1024 * 1024  # bytes; longer ones are opaque
MAX_IDS = 16
MAX_NODES = 10_000  # values looked at in one message
PRIORITY_STEPS = ("", "\x06\x163", "\x06\x166", "\x06\x169")
"""Suffixes of a queue's lists, as kombu's default `priority_steps` and `sep` make them."""

_QUOTED = re.compile(r"""['"]([A-Za-z0-9_.:-]{1,128})['"]""")
_TASK_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


@dataclass(frozen=True, slots=True)
class Message:
    """One Celery message.

    `place` is the key it was found in; `tag` its delivery tag; `job_ids` what in it may be the id
    of a job, likeliest first. `opaque`: its arguments cannot be read, so it may be anybody's.
    """

    raw: bytes
    place: str
    queue: str
    tag: str
    task_id: str
    task: str
    job_ids: tuple[str, ...]
    opaque: bool = False


def read_message(raw: bytes, place: str, queue: str) -> Message:
    """Parse an envelope. Never raises."""
    if len(raw) > MAX_MESSAGE:
        return Message(b"", place, queue, "", "", "", (), opaque=True)
    envelope = load_object(raw)
    if envelope is None:
        return Message(raw, place, queue, "", "", "", (), opaque=True)
    headers, properties = _part(envelope, "headers"), _part(envelope, "properties")
    arguments, readable = _arguments(envelope, properties)
    ids = dict.fromkeys(_ids(arguments))
    if not readable:
        for name in ("argsrepr", "kwargsrepr"):
            ids.update(dict.fromkeys(_QUOTED.findall(_text(headers.get(name))[:4096])))
    return Message(
        raw=raw,
        place=place,
        queue=queue,
        tag=_text(properties.get("delivery_tag"))[:256],
        task_id=_task_id(headers.get("id")),
        task=_text(headers.get("task"))[:256],
        job_ids=tuple(ids)[:MAX_IDS],
        opaque=not readable and not ids,
    )


def unpack_unacked(field: bytes) -> tuple[bytes, str] | None:
    """(envelope, queue) of a value of the `unacked` hash; None for anything else."""
    if len(field) > MAX_MESSAGE:
        return None
    try:
        envelope, exchange, routing_key = json.loads(field)
    except (ValueError, TypeError, RecursionError):
        return None
    queue = routing_key or exchange
    if not isinstance(envelope, dict) or not isinstance(queue, str):
        return None
    return json.dumps(envelope).encode(), queue


def list_of(queue: str, raw: bytes) -> str:
    """The list that kombu puts a message of that queue into, by its priority."""
    envelope = load_object(raw) or {}
    priority = _part(envelope, "properties").get("priority")
    if not isinstance(priority, int) or isinstance(priority, bool):
        return queue
    return queue + PRIORITY_STEPS[min(3, max(0, priority) // 3)]


def redelivered(raw: bytes) -> bytes | None:
    """The envelope as kombu restores it: marked in headers and delivery info, else unchanged."""
    envelope = load_object(raw)
    if envelope is None:
        return None
    headers, properties = envelope.get("headers"), envelope.get("properties")
    if isinstance(headers, dict):
        headers["redelivered"] = True
        info = properties.get("delivery_info") if isinstance(properties, dict) else None
        if isinstance(info, dict):
            info["redelivered"] = True
    return json.dumps(envelope).encode()


def delivered_anew(raw: bytes, new_id: Callable[[], str]) -> bytes | None:
    """The same message as a new delivery (rule 3); None if it cannot be redelivered."""
    envelope = load_object(raw)
    if envelope is None:
        return None
    headers, properties = envelope.get("headers"), envelope.get("properties")
    if not isinstance(headers, dict) or not isinstance(properties, dict):
        return None
    old, new = headers.get("id"), new_id()
    for part, name in ((headers, "id"), (headers, "root_id"), (properties, "correlation_id")):
        if part.get(name) == old:
            part[name] = new
    headers.update(retries=0, origin="reliability-proxy")
    for name in ("eta", "expires"):  # an old limit would have the worker revoke it unread
        if headers.get(name) is not None:
            headers[name] = None
    headers.pop("redelivered", None)
    properties["delivery_tag"] = new_id()
    if isinstance(info := properties.get("delivery_info"), dict):
        info.pop("redelivered", None)
    return json.dumps(envelope).encode()


def for_another_job(raw: bytes, old: str, new: str, new_id: Callable[[], str]) -> bytes | None:
    """A message for job `new` in the shape of one for job `old`; None where rule 4 forbids it."""
    fresh = delivered_anew(raw, new_id)
    envelope = load_object(fresh) if fresh is not None else None
    if envelope is None:
        return None
    headers, properties = envelope["headers"], envelope["properties"]
    if any(headers.get(name) for name in ("parent_id", "group", "eta", "expires", "shadow")):
        return None
    if headers.get("root_id") not in (None, headers.get("id")):
        return None
    arguments, readable = _arguments(envelope, properties)
    if not readable or not isinstance(arguments, list) or len(arguments) != 3:
        return None
    embed = arguments[2]
    if not isinstance(embed, dict) or any(embed.values()):
        return None  # callbacks, a chain, a chord: part of something larger
    changed = [_replaced(one, old, new) for one in arguments[:2]]
    if None in changed or changed == arguments[:2]:
        return None
    body = json.dumps([*changed, embed])
    encoded = properties.get("body_encoding", "base64") == "base64"
    envelope["body"] = base64.b64encode(body.encode()).decode() if encoded else body
    for name in ("argsrepr", "kwargsrepr"):
        if isinstance(shown := headers.get(name), str):
            headers[name] = _with_id(shown, old, new)
    return json.dumps(envelope).encode()


def _replaced(value: Any, old: str, new: str) -> Any:
    """The same structure for the other job; None if it holds more than the job's id."""
    result = copy.deepcopy(value)
    nodes: list[Any] = [result]
    for _ in range(MAX_NODES):
        if not nodes:
            return result
        node = nodes.pop()
        pairs = node.items() if isinstance(node, dict) else enumerate(node)
        for name, child in list(pairs):
            if isinstance(child, dict | list):
                nodes.append(child)
            elif child == old:
                node[name] = new
            elif child is not None and not isinstance(child, bool):
                return None
    return None


def _with_id(shown: str, old: str, new: str) -> str:
    return re.sub(rf"(?<![A-Za-z0-9_.:-]){re.escape(old)}(?![A-Za-z0-9_.:-])", new, shown)


def _arguments(envelope: dict[str, Any], properties: dict[str, Any]) -> tuple[Any, bool]:
    """The decoded body, and whether it could be read."""
    body = envelope.get("body")
    try:
        if properties.get("body_encoding", "base64") == "base64":
            body = base64.b64decode(body, validate=True)  # type: ignore[arg-type]
        return json.loads(body), True  # type: ignore[arg-type]
    except (ValueError, TypeError, RecursionError):
        return None, False


def _ids(arguments: Any) -> Iterator[str]:
    """Strings that may be job ids, those under a key that names one first.

    Words such as "queued" pass as well: the job store knows which of them is a job.
    """
    # [args, kwargs, embed]: the last is Celery's own (callbacks, chains).
    own = arguments[:2] if isinstance(arguments, list) else arguments
    likely: list[str] = []
    others: list[str] = []
    nodes = [own]
    for _ in range(MAX_NODES):
        if not nodes:
            break
        node = nodes.pop()
        if isinstance(node, str):
            others.append(node)
        elif isinstance(node, list):
            nodes.extend(node)
        elif isinstance(node, dict):
            for name, child in node.items():
                if name in ("job_id", "id") and isinstance(child, str):
                    likely.append(child)
                else:
                    nodes.append(child)
    yield from (text for text in (*likely, *others) if valid_job_id(text))


def load_object(raw: bytes | str | None) -> dict[str, Any] | None:
    """A JSON object; None for anything else, however hostile."""
    try:
        value = json.loads(raw or b"")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _part(envelope: dict[str, Any], name: str) -> dict[str, Any]:
    value = envelope.get(name)
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _task_id(value: object) -> str:
    """A task id becomes part of a Redis key, so only what is safe there passes."""
    return value if isinstance(value, str) and _TASK_ID.fullmatch(value) else ""
