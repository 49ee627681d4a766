"""An upstream of scripts: each request goes to the handler of the moment, which may misbehave.

1. `upstream.handler` is looked up per request, so pooled connections of earlier tests are no trap.
2. A handler has the head; it reads the body itself (`connection.body(request)`) or not at all.
3. `requests` records what arrived. `faults` records what no proxy may send (and handler mistakes):
   `Site.check` fails the test that caused one.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

from proxy.demo.ports import free_port
from tests.http1.message import PATIENCE, Malformed, Request, Truncated, Wire

Handler = Callable[["Connection", Request], None]


def respond(
    body: bytes = b"ok", status: str = "200 OK", *fields: str, version: str = "1.1"
) -> bytes:
    """A plain response with `Content-Length`."""
    lines = [f"HTTP/{version} {status}", *fields, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


class Connection(Wire):
    """One accepted connection; `number` counts from 1 over the life of the upstream."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        super().__init__(sock)
        self.number = number
        self.served = 0
        self.open = True

    def body(self, request: Request) -> bytes:
        """Read the body of `request` to its end."""
        if not request.complete:
            self.read_request_body(request)
        return request.body

    def close(self) -> None:
        """FIN, at once."""
        self.open = False
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def reset(self) -> None:
        """RST."""
        self.open = False
        super().reset()

    def wait_end(self, seconds: float = PATIENCE) -> bool:
        """Whether the proxy ends the connection (FIN or RST) within `seconds`."""
        self.sock.settimeout(seconds)
        try:
            while self.fill():
                pass
        except TimeoutError:
            return False
        except OSError:
            return True
        return True


def ok(connection: Connection, request: Request) -> None:
    """Read all, answer 200 with `METHOD TARGET BODYLENGTH`."""
    body = connection.body(request)
    connection.send(respond(f"{request.method} {request.target} {len(body)}".encode()))


def answer(raw: bytes, *, then: str = "keep") -> Handler:
    """A handler that reads the request and sends `raw`, then `keep`s, `close`s or `reset`s."""

    def handler(connection: Connection, request: Request) -> None:
        connection.body(request)
        connection.send(raw)
        if then == "close":
            connection.close()
        elif then == "reset":
            connection.reset()

    return handler


class Upstream:
    """A listener on a free port of `host` (or a unix `path`), one thread per connection."""

    def __init__(
        self, host: str = "127.0.0.1", *, port: int = 0, path: Path | None = None,
        tls: ssl.SSLContext | None = None, backlog: int = 512,
    ) -> None:  # fmt: skip
        if path is not None:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(path))
            self.url = f"unix:{path}"
        else:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.socket(family)
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Not the kernel's choice: once we have stopped, nobody else is to answer there.
            self._listener.bind((host, port or free_port(host)))
            self.port: int = self._listener.getsockname()[1]
            shown = f"[{host}]" if ":" in host else host
            self.url = f"{'https' if tls else 'http'}://{shown}:{self.port}"
        self._listener.listen(backlog)
        self._tls = tls
        self._changed = threading.Condition()
        self._connections: dict[int, Connection] = {}
        self._threads: list[threading.Thread] = []
        self.accepted = 0
        self.concurrent = 0
        self.most_concurrent = 0
        self.handler: Handler = ok
        self.requests: list[Request] = []
        self.faults: list[str] = []
        self._acceptor = threading.Thread(target=self._accept, name="upstream-accept")
        self._acceptor.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,), name="upstream-serve")
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        if sock.family != socket.AF_UNIX:
            # What a handler has sent must be under way, or "sent before" proves nothing.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            try:
                sock = self._tls.wrap_socket(sock, server_side=True)
            except OSError:
                sock.close()
                return
        with self._changed:
            self.accepted += 1
            connection = Connection(sock, self.accepted)
            self._connections[connection.number] = connection
            self._changed.notify_all()
        try:
            while connection.open and self._serve_one(connection):
                pass
        except (Truncated, OSError):
            pass  # the proxy left: what a test expects of it shows in `requests`
        except Malformed as error:
            self._fault(f"malformed request: {error}")
        except Exception as error:
            self._fault(f"handler failed: {error!r}")
        finally:
            connection.close()
            with self._changed:
                del self._connections[connection.number]
                self._changed.notify_all()

    def _serve_one(self, connection: Connection) -> bool:
        request = connection.read_request_head()
        if request is None:
            return False
        request.connection = connection.number
        with self._changed:
            self.requests.append(request)
            self.concurrent += 1
            self.most_concurrent = max(self.most_concurrent, self.concurrent)
            self._changed.notify_all()
        try:
            self.handler(connection, request)
            connection.served += 1
            if connection.open and not request.complete:
                connection.body(request)
        finally:
            with self._changed:
                self.concurrent -= 1
                self._changed.notify_all()
        return True

    def _fault(self, text: str) -> None:
        with self._changed:
            self.faults.append(text)
            self._changed.notify_all()

    def fresh(self) -> None:
        """Forget what was recorded and behave well again."""
        with self._changed:
            self.handler = ok
            self.requests = []
            self.faults = []
            self.most_concurrent = self.concurrent

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
        """Wait until `condition` holds; it is asked whenever something happened here."""
        with self._changed:
            if not self._changed.wait_for(condition, seconds):
                raise AssertionError(f"upstream waited {seconds} s in vain for {what}")

    def wait_requests(self, count: int) -> None:
        """Until `count` request heads have arrived."""
        self.wait(lambda: len(self.requests) >= count, f"{count} requests")

    def drop_connections(self) -> None:
        """Close every open connection, as an upstream does that tires of idle ones."""
        with self._changed:
            connections = list(self._connections.values())
        for connection in connections:
            connection.close()
        self.wait(lambda: not self._connections, "closed connections")

    @property
    def open(self) -> int:
        """Connections that have not ended."""
        return len(self._connections)

    @property
    def targets(self) -> list[str]:
        """The targets of all requests so far."""
        return [request.target for request in self.requests]

    @property
    def only(self) -> Request:
        """The one request of this test."""
        assert len(self.requests) == 1, f"upstream saw {self.targets}"
        return self.requests[0]

    def stop(self) -> None:
        """Close everything and wait for every thread."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join(PATIENCE)
        with self._changed:
            connections = list(self._connections.values())
        for connection in connections:
            connection.close()
        for thread in self._threads:
            thread.join(PATIENCE)
