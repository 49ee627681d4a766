"""No spelling gets around a guarding route: real routers are asked what they would run.

The property, for each framework: whenever one of its handlers runs, our route of the same name took
the request, or we refused it.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings

from proxy.core.errors import BadRequest, MethodNotAllowed, NoRoute
from proxy.demo.ports import free_port
from proxy.forward.routing.router import RouteTable
from proxy.http1.fields import ProtocolError
from proxy.http1.heads import find_head_end
from proxy.http1.request_head import parse_request
from tests.routers import HANDLERS, Router
from tests.routers.python import (
    bottle_router,
    django_router,
    flask_router,
    starlette_router,
)
from tests.routers.rules import express_rules, go_rules, nginx_config
from tests.routers.spellings import METHODS, TARGETS, product_of_two

ROUTES = [([method] if method else None, path, name) for name, method, path in HANDLERS]
TABLE = RouteTable([*ROUTES, (None, "/{rest:*}", "-")], guards=lambda name: name != "-")
#: The same with nothing behind the guards, and with routes above them that take much.
ALONE = RouteTable(ROUTES, guards=lambda name: name != "-")
BELOW = RouteTable(
    [(["GET", "HEAD", "POST"], "/{x}/{y}/{z}", "-"), (None, "/make-video/{rest:*}", "-"), *ROUTES],
    guards=lambda name: name != "-",
)

PATIENCE = 30.0


@cache
def ours(method: str, target: str, table: RouteTable[str] = TABLE, fields: str = "") -> str | None:
    """The route that we would choose; None for what we refuse."""
    data = f"{method} {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n".encode()
    try:
        head = parse_request(data, find_head_end(data, 8192, 32768), 128)
        return table.match(head.method, head.target, head.overrides)[0]
    except (ProtocolError, BadRequest, NoRoute, MethodNotAllowed):
        return None


def forwarded(method: str, target: str) -> str | None:
    """The target as we would send it on."""
    data = f"{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    try:
        return parse_request(data, len(data) - 4, 128).target
    except ProtocolError:
        return None


@cache
def router(name: str) -> Router:
    """One of each, made when it is needed."""
    return {
        "starlette": starlette_router,
        "flask": lambda: flask_router(strict_slashes=True, merges=False),
        "flask, not strict, http.server": lambda: flask_router(strict_slashes=False, merges=True),
        "bottle": bottle_router,
        "django": lambda: django_router(merges=False),
        "django, http.server": lambda: django_router(merges=True),
        "express, by its rules": express_rules,
        "go, by its rules": go_rules,
    }[name]()


FRAMEWORKS = (
    "starlette",
    "flask",
    "flask, not strict, http.server",
    "bottle",
    "django",
    "django, http.server",
    "express, by its rules",
    "go, by its rules",
)


def gaps(asked: Iterable[tuple[str, str, str | None]]) -> list[tuple[str, str, str, str]]:
    """(method, target, the handler that runs, our route) wherever these differ."""
    found = []
    for method, target, ran in asked:
        if ran is None:
            continue
        for table in (TABLE, ALONE, BELOW):
            route = ours(method, target, table)
            if route not in (None, ran):
                found.append((method, target, ran, route))
    return found


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_no_spelling_gets_around_a_guard(name: str) -> None:
    """Every pair of mutations of every guarded path reaches the guard, or nobody."""
    ask = router(name)
    asked = []
    for method, target in product_of_two():
        sent = forwarded(method, target)
        if sent is not None:
            asked.append((method, target, ask(method, sent)))
    assert sum(ran is not None for _, _, ran in asked) > 50
    assert gaps(asked) == []


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_no_chance_spelling_gets_around_a_guard(name: str) -> None:
    """Nor does what hypothesis puts together."""
    ask = router(name)

    @settings(max_examples=300, deadline=None)
    @given(method=METHODS, target=TARGETS)
    @example(method="POST", target="/make-video%0a")
    @example(method="post", target="/make-video")
    @example(method="GET", target="/jobs/%2F")
    def check(method: str, target: str) -> None:
        sent = forwarded(method, target)
        if sent is not None:
            assert gaps([(method, target, ask(method, sent))]) == []

    check()


def test_the_mutations_are_worth_it() -> None:
    """Without the guards' readings, each framework would be reached around the route by some."""
    bare = RouteTable([*ROUTES, (None, "/{rest:*}", "-")])
    for name in FRAMEWORKS:
        if name == "bottle" and find_spec("bottle") is None:
            continue
        ask = router(name)
        around = any(
            ran
            for method, target in product_of_two()
            if (sent := forwarded(method, target)) is not None
            and ours(method, target, bare) == "-"
            and (ran := ask(method, sent)) is not None
        )
        if name != "starlette":  # of which, control characters aside, we read the path as it does
            assert around, name


@pytest.mark.parametrize("kind", ["url", "express"])
def test_node(kind: str) -> None:
    """The same for servers in Node: by `new URL`, and with Express where it is."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on the PATH")
    asked = [
        (method, sent)
        for method, target in product_of_two()
        if (sent := forwarded(method, target)) is not None
    ]
    done = subprocess.run(
        [node, str(Path(__file__).parents[1] / "routers/node.js"), kind, json.dumps(HANDLERS)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "Cannot find module" in done.stderr:
        pytest.skip(f"{kind} is not installed")
    assert done.returncode == 0, done.stderr
    answers: list[str | None] = json.loads(done.stdout)
    assert sum(ran is not None for ran in answers) > 50
    assert gaps((*one, ran) for one, ran in zip(asked, answers, strict=True)) == []


def test_nginx(tmp_path: Path) -> None:
    """nginx as the application, or in front of it: its locations are met by our guards."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if nginx is None:
        pytest.skip("no nginx on the PATH")
    asked = [
        (method, target, sent)
        for method, target in product_of_two()
        if (sent := forwarded(method, target)) is not None and ours(method, target) is not None
    ]
    with _nginx(nginx, tmp_path) as port:
        answers = _bodies(port, [sent for _, _, sent in asked])
    ran = [
        (method, target, dict(pair.split("=") for pair in names.split(",") if "=" in pair))
        for (method, target, _), names in zip(asked, answers, strict=True)
    ]
    reached = [
        (method, target, names.get("GET" if method == "HEAD" else method))
        for method, target, names in ran
    ]
    assert sum(name is not None for _, _, name in reached) > 50
    assert gaps(reached) == []


@contextmanager
def _nginx(program: str, place: Path) -> Iterator[int]:
    """Its port."""
    port = free_port()
    (place / "nginx.conf").write_text(nginx_config(port))
    command = [program, "-p", str(place), "-c", "nginx.conf", "-e", "stderr"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            give_up = time.monotonic() + PATIENCE
            while True:
                with (
                    suppress(ConnectionRefusedError),
                    socket.create_connection(("127.0.0.1", port)),
                ):
                    break
                assert process.poll() is None
                assert time.monotonic() < give_up
                time.sleep(0.02)
            yield port
        finally:
            process.terminate()


def _bodies(port: int, targets: list[str]) -> list[str]:
    """The bodies of the answers to GETs, `-` for errors. Some are pipelined; where nginx closes the
    connection with a 400, what is left goes on another."""
    bodies: list[str] = []
    while len(bodies) < len(targets):
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
            stream: Any = sock.makefile("rb")
            open_ = True
            while open_ and len(bodies) < len(targets):
                some = targets[len(bodies) : len(bodies) + 20]
                heads = (f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n" for target in some)
                sock.sendall("".join(heads).encode())
                for _ in some:
                    body, open_ = _answer(stream)
                    bodies.append(body)
                    if not open_:
                        break
    return bodies


def _answer(stream: Any) -> tuple[str, bool]:
    """Body of one answer, and whether the connection stays open."""
    status, length, open_ = stream.readline().split()[1], 0, True
    while (line := stream.readline().lower()) != b"\r\n":
        assert line, "nginx closed the connection"
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
        elif line == b"connection: close\r\n":
            open_ = False
    body = stream.read(length).decode()
    return body if status == b"200" else "-", open_


@pytest.mark.parametrize(
    ("method", "target", "fields", "expected"),
    [
        ("POST", "/jobs/mv_1", "X-HTTP-Method-Override: DELETE\r\n", None),
        ("POST", "/jobs/mv_1", "x_http_method_override: delete\r\n", None),
        ("POST", "/jobs/mv_1", "X-Method-Override: PATCH\r\n", "-"),
        ("PUT", "/make-video", "X-HTTP-Method: post\r\n", None),
        ("POST", "/make-video", "X-HTTP-Method: POST\r\n", "create"),
        ("POST", "/jobs/mv_1", "X-HTTP-Method-Override: DELETE, PATCH\r\n", None),
        ("POST", "/jobs/mv_1", "X-HTTP-Method-Override: PATCH ,\tdelete\r\n", None),
        ("POST", "/health", "X-HTTP-Method-Override: DELETE, PATCH\r\n", "-"),
        ("POST", "/health", "X-HTTP-Method-Override: DELETE\r\n", "-"),
        ("delete", "/jobs/mv_1", "", None),
        ("Delete", "/health", "", "-"),
        ("HEAD", "/jobs/mv_1", "", "read"),
        ("PUT", "/jobs/mv_1", "", "-"),
    ],
)
def test_methods(method: str, target: str, fields: str, expected: str | None) -> None:
    """What some framework would take for a guarded method is refused, the rest passes."""
    assert ours(method, target, fields=fields) == expected


def test_many_overrides_cost_no_more_than_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head full of them, over a path that takes a millisecond to read, is read a few times."""
    chosen: list[str] = []
    choose = RouteTable._choose

    def count(table: RouteTable[str], method: str, *rest: Any) -> Any:
        chosen.append(method)
        return choose(table, method, *rest)

    monkeypatch.setattr(RouteTable, "_choose", count)
    any_method = RouteTable([(None, "/make-video", "any"), *ROUTES], guards=lambda _: True)
    fields = [f"m{number},delete,PUT,Post, GET".encode() for number in range(100)]
    for table in (TABLE, any_method):
        chosen.clear()
        with pytest.raises(BadRequest):
            table.match("GET", "/jobs/mv%5f1", fields)
        with suppress(BadRequest, NoRoute):
            table.match("GET", "/nothing", fields)
        assert len(chosen) <= 12
    with pytest.raises(BadRequest):
        any_method.match("GET", "/make-video", [b"anything"])


def test_a_refused_method_names_those_of_every_reading() -> None:
    """`Allow` is the same for all spellings of a path, and GET brings HEAD along."""
    for target in ("/jobs/a", "/jobs/a/", "//jobs/a", "/JOBS/a", "/jobs;x/a", "/jobs%2fa"):
        with pytest.raises(MethodNotAllowed) as refusal:
            ALONE.match("PATCH", target)
        assert refusal.value.allow == "GET, HEAD, DELETE"


def test_an_exception_above_a_guard_stays_one() -> None:
    """A route above a guard, with a path of its own, keeps that path, and that path alone."""
    table = RouteTable(
        [(None, "/jobs/search", "-"), (None, "/files", "-"), *ROUTES],
        guards=lambda name: name != "-",
    )
    assert table.match("GET", "/jobs/search")[0] == "-"
    assert table.match("GET", "/jobs/search/")[0] == "read"  # whatever else it may be
    assert table.match("PUT", "/files")[0] == "-"
    assert table.match("PUT", "/files/")[0] == "file"


def test_parameters_are_what_the_application_sees() -> None:
    """An ID is decoded once, in whatever reading its route was found."""
    for target, job_id in [
        ("/jobs/mv%5f1", "mv_1"),
        ("//jobs/mv_1", "mv_1"),
        ("/JOBS/Mv_1/", "Mv_1"),
        ("/jobs/a%2Fb", "a/b"),
        ("/jobs/mv_1;x", "mv_1;x"),
        ("/jobs/mv%255f1", "mv%5f1"),
    ]:
        assert TABLE.match("GET", target) == ("read", {"id": job_id})
