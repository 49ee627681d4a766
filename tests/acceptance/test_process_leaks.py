"""Many connections, dying upstreams: afterwards everything is as before."""

from __future__ import annotations

import concurrent.futures
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http1 import (
    RawClient,
    Response,
    Site,
    Truncated,
    assert_problem,
    free_port,
    get,
    post,
    respond,
    wait_until,
)
from tests.http1.upstream import Connection, Request


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A fresh proxy, warmed up, for each count."""
    with Site(tmp_path, app={"pool": {"queue": 500}}) as site:
        for _ in range(20):
            assert site.ask(get()).status == 200
        yield site
        site.check()


def settle(site: Site, descriptors: int, threads: int) -> None:
    """Wait until nothing is left but the idle upstream connections."""
    wait_until(lambda: site.proxy.descriptors() <= descriptors + 2, "closed descriptors")
    assert site.proxy.threads() <= threads + 1


def test_two_thousand_connections_one_by_one(site: Site) -> None:
    """Good, bad and abandoned requests, a connection each; descriptors and memory stay."""
    kinds = [
        get("/", "Connection: close"),
        post(b"hello", "/", "Connection: close"),
        b"GET / HTTP/1.1\r\nHost : bad\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: exa",
        b"",
        post(b"hello")[:-2],
        get("/", "Connection: close", version="1.0"),
        get("/", method="TRACE"),
    ]
    descriptors, threads, memory = (
        site.proxy.descriptors(), site.proxy.threads(), site.proxy.memory()
    )  # fmt: skip
    for number in range(2000):
        raw = kinds[number % len(kinds)]
        with site.connect() as client:
            client.send_lenient(raw)
            if number % 3 and number % len(kinds) not in (3, 4, 5):
                assert client.response().status in (200, 400, 405)
    settle(site, descriptors, threads)
    assert site.proxy.memory() - memory < 15_000_000
    assert site.ask(get()).status == 200


def test_two_hundred_connections_at_once(site: Site) -> None:
    """All open together, several requests each, none refused; then all gone."""
    descriptors, threads = site.proxy.descriptors(), site.proxy.threads()
    clients = [site.connect() for _ in range(200)]
    try:
        for turn in range(3):
            for number, client in enumerate(clients):
                client.send(get(f"/{turn}/{number}"))
            for number, client in enumerate(clients):
                assert client.response().body == f"GET /{turn}/{number} 0".encode()
    finally:
        for client in clients:
            client.close()
    site.upstream.drop_connections()
    settle(site, descriptors, threads)


def test_aborted_streams_leave_nothing(site: Site) -> None:
    """A hundred clients that reset in the middle of an answer."""
    site.upstream.drop_connections()
    descriptors, threads = site.proxy.descriptors(), site.proxy.threads()

    def endless(connection: Connection, request: Request) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n" + b"x" * 65536)
        connection.wait_end()
        connection.close()

    site.upstream.handler = endless
    for _ in range(100):
        with site.connect() as client:
            client.send(get())
            assert client.response_head().status == 200
            client.reset()
    site.upstream.wait(lambda: site.upstream.concurrent == 0, "aborted upstream requests")
    settle(site, descriptors, threads)


ENDLESS = """
import socket, sys, threading
CHUNKED = b"Transfer-Encoding: chunked\\r\\n\\r\\n" + b"400\\r\\n" + b"x" * 1024 + b"\\r\\n"
LENGTH = b"Content-Length: 1000000000\\r\\n\\r\\n" + b"x" * 1024
def serve(sock):
    with sock:
        head = b""
        while b"\\r\\n\\r\\n" not in head:
            head += sock.recv(65536)
        if b" /silent" not in head:
            sock.sendall(b"HTTP/1.1 200 OK\\r\\n" + (CHUNKED if b" /chunked" in head else LENGTH))
        sock.recv(1)
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=128)
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()
"""


def test_upstream_killed_in_the_middle_of_fifty_streams(tmp_path: Path) -> None:
    """SIGKILL: each client has a clean 502 or a visibly cut body; none hangs, none looks whole."""
    port = free_port()
    paths = ["/chunked", "/length", "/silent"]
    with contextlib.ExitStack() as stack:
        upstream = subprocess.Popen(
            [sys.executable, "-c", ENDLESS, str(port)], stdout=subprocess.PIPE, text=True
        )
        stack.enter_context(upstream)
        stack.callback(upstream.kill)
        assert upstream.stdout is not None
        assert upstream.stdout.readline() == "ready\n"
        site = stack.enter_context(Site(tmp_path, app={"targets": [f"http://127.0.0.1:{port}"]}))
        descriptors = site.proxy.descriptors()
        streams: list[tuple[RawClient, Response | None]] = []
        for number in range(50):
            client = stack.enter_context(site.connect())
            path = paths[number % 3]
            client.send(get(path, version="1.0" if number % 7 == 0 else "1.1"))
            streams.append((client, None if path == "/silent" else client.response_head()))
        wait_until(lambda: site.proxy.descriptors() >= descriptors + 96, "fifty streams")
        upstream.kill()
        for client, head in streams:
            if head is None:
                assert client.response().status == 502
            else:
                with pytest.raises(Truncated):
                    client.read_response_body(head)
            client.close()
        wait_until(lambda: site.proxy.descriptors() <= descriptors + 2, "closed descriptors")
        site.check()


def test_upstream_that_resets_everything(site: Site) -> None:
    """300 requests in 20 threads to an upstream that resets at every stage: all answered."""

    def reset(connection: Connection, request: Request) -> None:
        stage = int(request.target[1:]) % 4
        if stage == 1:
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Le")
        elif stage == 2:
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello")
        elif stage == 3:
            connection.send(respond(b"whole"))
            return
        connection.reset()

    def one(number: int) -> Response | Truncated:
        try:
            return site.ask(get(f"/{number}"))
        except Truncated as cut:
            return cut

    site.upstream.handler = reset
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        results = list(pool.map(one, range(300)))
    for number, result in enumerate(results):
        if number % 4 == 3:
            assert isinstance(result, Response)
            assert result.body == b"whole"
        elif isinstance(result, Response):
            assert result.status == 502
        else:
            assert number % 4 == 2, f"{number}: {result}"


def test_who_has_asked_nothing_gives_way(tmp_path: Path) -> None:
    """A listener full of unfinished heads has a place for whoever comes with a request: the oldest
    of them goes, one for one; who has been served keeps its place."""
    with Site(tmp_path, {"front": {"limits": {"connections": 6}}}) as site:
        served = site.connect()
        served.send(get())
        assert served.response().status == 200
        silent = [site.connect() for _ in range(5)]
        try:
            for client in silent:
                client.send(b"GET / HTTP/1.1\r\nHost: a")

            def answered() -> bool:  # not before the silent ones have had their second
                with site.connect() as neighbour:
                    neighbour.send_lenient(get())
                    return neighbour.response().status == 200

            wait_until(answered, "a place for a neighbour")
            with contextlib.suppress(ConnectionResetError):
                silent[0].assert_closed()
            served.send(get())
            assert served.response().status == 200
        finally:
            for client in (served, *silent):
                client.close()
        site.check()


def test_connection_limit_refuses_politely(tmp_path: Path) -> None:
    """Beyond `limits.connections` a client gets a problem with its correlation ID, on record like
    any other; the others are served."""
    with Site(tmp_path, {"front": {"limits": {"connections": 10}}}) as site:
        clients = [site.connect() for _ in range(10)]
        try:
            for client in clients:
                client.send(get())
                assert client.response().status == 200
            with site.connect() as surplus:
                response = surplus.response()
                problem = assert_problem(response, 503, "overloaded")
                assert response.get("Retry-After") == "1"
                surplus.assert_closed()
            line = site.proxy.access_line(problem["correlation_id"])
            assert (line["status"], line["reason"]) == (503, "connections_full")
            clients[0].send(get())
            assert clients[0].response().status == 200
        finally:
            for client in clients:
                client.close()
        wait_until(lambda: site.ask(get()).status == 200, "room for the next")
        site.check()
