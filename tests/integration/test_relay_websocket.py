"""A real WebSocket client and server with the proxy between them."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus
from websockets.http11 import Request, Response
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

from tests.http1 import PATIENCE, ProxyProcess, free_port, wait_until


class Tunnel:
    """A WebSocket server, the proxy before it, and what the server saw."""

    def __init__(self, directory: Path) -> None:
        self.paths: list[str] = []
        self.closes: list[int | None] = []
        self.server = serve(self._talk, "127.0.0.1", 0, max_size=None, process_request=self._admit)
        port = self.server.socket.getsockname()[1]
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        self.port, self.narrow = free_port(), free_port()
        self.proxy = ProxyProcess(
            directory,
            {
                "listeners": {
                    "front": {
                        "bind": f"127.0.0.1:{self.port}",
                        "timeouts": {"body": "500ms", "idle": "500ms", "header": "500ms"},
                        "routes": [{"name": "all", "path": "/{rest:*}", "upstream": "app"}],
                    },
                    "narrow": {
                        "bind": f"127.0.0.1:{self.narrow}",
                        "routes": [{"name": "all", "path": "/{rest:*}", "upstream": "few"}],
                    },
                },
                "upstreams": {
                    "app": {
                        "targets": [f"http://127.0.0.1:{port}"],
                        "timeouts": {"response": "5s", "idle": "3s"},
                    },
                    "few": {
                        "targets": [f"http://127.0.0.1:{port}"],
                        "pool": {"max_connections": 4},
                    },
                },
            },
        )

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        self.paths.append(request.path)
        if request.path == "/forbidden":
            return connection.respond(403, "no\n")
        return None

    def _talk(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        if connection.request.path == "/server-closes":
            connection.close(4001, "enough")
            return
        if connection.request.path == "/server-dies":
            connection.socket.close()
            return
        try:
            for message in connection:
                connection.send(message)
        except ConnectionClosedError:
            self.closes.append(connection.close_code)

    @contextmanager
    def talk(
        self, path: str = "/", *, narrow: bool = False, **options: object
    ) -> Iterator[ClientConnection]:
        """A client connected through the proxy."""
        port = self.narrow if narrow else self.port
        with connect(
            f"ws://127.0.0.1:{port}{path}", max_size=None, proxy=None, **options
        ) as client:
            yield client

    def stop(self) -> None:
        """End proxy and server."""
        self.proxy.stop()
        self.server.shutdown()
        self.thread.join(PATIENCE)


@pytest.fixture(scope="module")
def tunnel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    """One proxy, one server."""
    tunnel = Tunnel(tmp_path_factory.mktemp("proxy"))
    yield tunnel
    tunnel.stop()


def test_messages_pass_both_ways(tunnel: Tunnel) -> None:
    """Text, binary and empty messages come back as sent, many on one connection."""
    with tunnel.talk("/chat?room=1") as client:
        for message in ("hello", "", "Grüße", b"\x00\xff" * 100):
            client.send(message)
            assert client.recv(PATIENCE) == message
        for number in range(200):
            client.send(str(number))
        assert [client.recv(PATIENCE) for _ in range(200)] == [str(n) for n in range(200)]
    assert "/chat?room=1" in tunnel.paths


def test_big_frame_passes(tunnel: Tunnel) -> None:
    """5 MB in one message, both ways."""
    message = bytes(range(256)) * 20_000
    with tunnel.talk(compression=None) as client:
        client.send(message)
        assert client.recv(PATIENCE) == message


def test_fragments_and_pings_pass(tunnel: Tunnel) -> None:
    """A fragmented message and a ping behind it."""
    with tunnel.talk() as client:
        client.send(["one ", "two ", "three"])
        assert client.recv(PATIENCE) == "one two three"
        assert client.ping().wait(PATIENCE)


def test_client_close_reaches_the_server(tunnel: Tunnel) -> None:
    """The closing handshake with its code goes through."""
    with tunnel.talk() as client:
        client.send("x")
        client.recv(PATIENCE)
        client.close(4002, "bye")
    wait_until(lambda: 4002 in tunnel.closes, "the close code")


def test_server_close_reaches_the_client(tunnel: Tunnel) -> None:
    """The same from the other side."""
    with tunnel.talk("/server-closes") as client:
        with pytest.raises((ConnectionClosedOK, ConnectionClosedError)):
            client.recv(PATIENCE)
        assert client.close_code == 4001


def test_server_that_dies_ends_the_tunnel(tunnel: Tunnel) -> None:
    """No closing handshake, just the end: the client sees it at once."""
    with tunnel.talk("/server-dies") as client, pytest.raises(ConnectionClosedError):
        client.recv(PATIENCE)


def test_refusal_by_the_server_passes(tunnel: Tunnel) -> None:
    """403 instead of 101 arrives as a plain response."""
    with pytest.raises(InvalidStatus) as refusal, tunnel.talk("/forbidden"):
        pass
    assert refusal.value.response.status_code == 403
    assert refusal.value.response.body == b"no\n"


def test_quiet_tunnel_outlives_http_timeouts(tunnel: Tunnel) -> None:
    """A tunnel is not a request: 500 ms for heads and bodies do not end it while quiet for 1 s."""
    with tunnel.talk() as client:
        with pytest.raises(TimeoutError):
            client.recv(1.0)
        client.send("still there")
        assert client.recv(PATIENCE) == "still there"


def test_access_line_of_a_tunnel(tunnel: Tunnel) -> None:
    """One line with status 101 when the tunnel has ended."""
    with tunnel.talk(additional_headers={"X-Correlation-ID": "ws-1"}) as client:
        assert client.response is not None
        assert client.response.headers["X-Correlation-ID"] == "ws-1"
        client.send("x")
        client.recv(PATIENCE)
    assert tunnel.proxy.access_line("ws-1")["status"] == 101
    tunnel.proxy.assert_sane()


def test_tunnels_do_not_hold_all_connections(tunnel: Tunnel) -> None:
    """Four of them, where there are four: the one that has moved least gives way to a request."""
    name = {"X-Correlation-ID": "ws-gives-way"}
    with contextlib.ExitStack() as stack:
        quiet = stack.enter_context(tunnel.talk(narrow=True, additional_headers=name))
        busy = [stack.enter_context(tunnel.talk(narrow=True)) for _ in range(3)]
        for one in busy:
            one.send("x" * 100_000)
            assert len(one.recv(PATIENCE)) == 100_000
        other = http.client.HTTPConnection(
            "127.0.0.1", tunnel.narrow, timeout=PATIENCE, source_address=("127.0.0.2", 0)
        )
        with contextlib.closing(other):
            other.request("GET", "/forbidden")
            assert other.getresponse().status == 403
        with pytest.raises(ConnectionClosedError):
            quiet.recv(PATIENCE)
        for one in busy:
            one.send("still there")
            assert one.recv(PATIENCE) == "still there"
    assert tunnel.proxy.access_line("ws-gives-way")["gave_way"]
