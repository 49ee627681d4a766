"""Requests whose clients leave at once: the upstream never works on more than it has places for."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.http1 import PATIENCE, Connection, Request, Site, get, respond, wait_until

PLACES = 3


@pytest.mark.parametrize("uploads", [False, True])
def test_requests_that_nobody_waits_for_keep_their_places(tmp_path: Path, uploads: bool) -> None:
    """Whoever asks next waits for the upstream's answer, not for the clients that left."""
    pool = {"max_connections": PLACES, "keep_abandoned": True}
    go = threading.Event()

    def work(connection: Connection, request: Request) -> None:
        """As an app does that does not look whether its caller is still there."""
        connection.body(request)
        go.wait(PATIENCE)
        connection.send(respond())

    raw = get("/", "Content-Length: 2", method="POST") + b"hi" if uploads else get("/")
    with Site(tmp_path, app={"pool": pool}) as site:
        upstream = site.upstream
        try:
            upstream.handler = work
            first = [site.connect() for _ in range(PLACES)]
            for client in first:  # leave kept connections, which take the shortest way
                client.send(get())
            upstream.wait_requests(PLACES)
            go.set()
            for client in first:
                assert client.response("GET").status == 200
                client.close()
            upstream.wait(lambda: not upstream.concurrent, "an idle upstream")
            go.clear()
            for number in range(4 * PLACES):
                client = site.connect()
                client.send(raw)
                if number < PLACES:
                    upstream.wait_requests(PLACES + number + 1)
                client.reset()
            wait_until(
                lambda: site.proxy.metric("proxy_client_connections", listener="front") == 0,
                "clients that have left",
            )
            with site.connect() as patient:
                patient.send(get("/patient"))
                wait_until(
                    lambda: site.proxy.metric("proxy_client_connections", listener="front") == 1,
                    "the client that waits",
                )
                assert upstream.concurrent == PLACES
                assert "/patient" not in upstream.targets
                go.set()
                assert patient.response("GET").status == 200
            assert upstream.most_concurrent == PLACES
        finally:
            go.set()
