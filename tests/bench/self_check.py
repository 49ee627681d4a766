"""Before a contender is measured: does it really do what the others do?

A proxy without an access log or without IDs would win every race, so each has to show: the client's
ID kept, sent on and returned; an ID made when there is none; a body unchanged; its access lines
valid JSON with status and ID; its metrics served.
"""

from __future__ import annotations

import json
import os
import time
import urllib.request
from pathlib import Path

from tests.bench.contenders.base import Running
from tests.bench.rawhttp import Closed, Connection, Head, connect

_GIVEN = "bench-self-check.1"
_FLUSHED_WITHIN = 6.0  # seconds; the slowest here writes its log once a second


class SelfCheckError(Exception):
    """A contender does less than the others; the message says what is missing."""


def check(running: Running, port: int, id_header: str) -> None:
    """Exercise the contender on `port`, in front of `tests.bench.upstream`.

    Raises SelfCheckError.
    """
    client = connect(port, timeout=10)
    try:
        kept = _echoed_id(client, id_header, f"{id_header}: {_GIVEN}\r\n")
        if kept != _GIVEN:
            raise SelfCheckError(f"the client's ID {_GIVEN} became {kept!r}")
        made = _echoed_id(client, id_header, "")
        if not made or made == _GIVEN:
            raise SelfCheckError("made no ID of its own")
        _check_body(client)
    except (Closed, OSError, ValueError) as error:
        raise SelfCheckError(f"did not answer: {error!r}") from error
    finally:
        client.sock.close()
    _check_log(running.access_log, (_GIVEN, made))
    if running.metrics_url is not None:
        _check_metrics(running.metrics_url)


def _echoed_id(client: Connection, id_header: str, extra: str) -> str:
    """The ID in the response, which must be what the upstream was sent."""
    client.sock.sendall(f"GET /echo HTTP/1.1\r\nHost: bench\r\n{extra}\r\n".encode())
    head = client.read_head()
    seen = json.loads(client.read_body(_ok(head)))["fields"].get(id_header.lower())
    returned = head.fields.get(id_header.lower(), "")
    if seen != returned:
        raise SelfCheckError(f"sent the upstream the ID {seen!r}, the client {returned!r}")
    return returned


def _check_body(client: Connection) -> None:
    body = os.urandom(1 << 20)
    client.sock.sendall(
        f"POST /mirror HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    )
    client.sock.sendall(body)
    if client.read_body(_ok(client.read_head())) != body:
        raise SelfCheckError("changed a body of 1 MiB")


def _ok(head: Head) -> Head:
    if head.start[1] != "200":
        raise SelfCheckError(f"answered {' '.join(head.start)}")
    return head


def access_lines(text: str) -> list[dict[str, object]]:
    """The JSON objects of a log that are access lines: they have a status.

    Raises SelfCheckError on a
    complete line that is not JSON.
    """
    found = []
    for line in text[: text.rfind("\n") + 1].splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            raise SelfCheckError(f"logged a line that is not JSON: {line[:120]!r}") from None
        if isinstance(entry, dict) and "status" in entry:
            found.append(entry)
    return found


def logged_all(path: Path, requests: int) -> bool:
    """Whether the log holds at least one line per request, once it has had time to flush."""
    deadline = time.monotonic() + _FLUSHED_WITHIN
    lines = 0
    with path.open("rb") as log:
        while True:
            while piece := log.read(1 << 20):
                lines += piece.count(b"\n")
            if lines >= requests or time.monotonic() > deadline:
                return lines >= requests
            time.sleep(0.1)


def _check_log(path: Path, ids: tuple[str, ...]) -> None:
    deadline = time.monotonic() + _FLUSHED_WITHIN
    while True:
        entries = access_lines(path.read_text()) if path.exists() else []
        logged = {entry.get("correlation_id") for entry in entries if entry["status"] == 200}
        if logged.issuperset(ids):
            return
        if time.monotonic() > deadline:
            raise SelfCheckError(f"its access log has no line with status 200 and each of {ids}")
        time.sleep(0.05)


def _check_metrics(url: str) -> None:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            if not answer.read(1):
                raise SelfCheckError("serves empty metrics")
    except OSError as error:
        raise SelfCheckError(f"serves no metrics: {error}") from error
