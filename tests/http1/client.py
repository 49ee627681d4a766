"""A client that sends any bytes at all and reads answers strictly."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from types import TracebackType

from tests.http1.message import PATIENCE, Malformed, Response, Wire


class RawClient(Wire):
    """One connection. `interim` collects the 1xx responses read on the way."""

    def __init__(
        self,
        address: tuple[str, int],
        *,
        tls: ssl.SSLContext | None = None,
        server_name: str = "localhost",
        receive_buffer: int | None = None,
        source: str | None = None,
    ) -> None:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            if receive_buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            if source is not None:  # every address of 127.0.0.0/8 is ours
                sock.bind((source, 0))
            sock.settimeout(PATIENCE)
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                sock = tls.wrap_socket(sock, server_hostname=server_name)
        except BaseException:
            sock.close()
            raise
        super().__init__(sock)
        self.interim: list[Response] = []

    def __enter__(self) -> RawClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def send_lenient(self, data: bytes) -> None:
        """Send what the proxy takes: it may refuse and close before the end."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send(data)

    @contextlib.contextmanager
    def sending(self, data: bytes) -> Iterator[None]:
        """Send `data` beside the block, as far as the proxy takes it; then end the connection."""
        writer = threading.Thread(target=self.send_lenient, args=(data,), name="client-send")
        writer.start()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)  # wakes the writer, unlike close
            writer.join(PATIENCE)

    def response(self, method: str = "GET") -> Response:
        """The next final response, complete; 1xx before it go to `interim`."""
        response = self.response_head()
        return self.read_response_body(response, method)

    def response_head(self) -> Response:
        """The head of the next final response; the body is left on the wire."""
        while True:
            head = self.read_response_head()
            if head.status >= 200 or head.status == 101:
                return head
            if head.all("Transfer-Encoding") or head.all("Content-Length"):
                raise Malformed(f"framing field in a 1xx: {head.raw_head!r}")
            self.interim.append(head)

    def read_until(self, mark: bytes) -> bytes:
        """Raw bytes up to and with `mark`."""
        while (at := self.buffer.find(mark)) < 0:
            self._more(f"waiting for {mark!r}", bytes(self.buffer))
        return self.take(at + len(mark))

    def rest(self) -> bytes:
        """What still comes up to the end of the connection; RST counts as an end."""
        with contextlib.suppress(ConnectionResetError):
            while self.fill():
                pass
        return self.take(len(self.buffer))

    def assert_closed(self) -> None:
        """The proxy closes the connection, and nothing more comes before."""
        left = self.rest()
        if left:
            raise AssertionError(f"bytes after the last response: {left[:300]!r}")

    def silent_for(self, seconds: float) -> bool:
        """Whether nothing comes for `seconds` (only for proving that something is held back)."""
        if self.buffer:
            return False
        self.sock.settimeout(seconds)
        try:
            self.fill()
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(PATIENCE)
        return False
