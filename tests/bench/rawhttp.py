"""Just enough blocking HTTP/1.1 for the body upstream and the load generators: as cheap as Python
gets, so that the proxy between them stays the bottleneck.

Bodies are sent with sendfile(2) from memory and thrown away inside the kernel: on a TCP socket
`recv(…, MSG_TRUNC)` discards instead of copying (tcp(7)).
"""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass, field

PIECE = 1 << 20
_scratch = bytearray(PIECE)  # never written to: only its length matters with MSG_TRUNC
_CONTENT_SIZE = 8 << 20


class Closed(Exception):
    """The peer closed the connection, inside or between messages."""


@dataclass(slots=True)
class Head:
    """A start line split in three, and its fields: names in lower case, the last one wins."""

    start: tuple[str, str, str]
    fields: dict[str, str] = field(default_factory=dict)

    @property
    def length(self) -> int | None:
        """Content-Length, or None."""
        value = self.fields.get("content-length")
        return None if value is None else int(value)

    @property
    def chunked(self) -> bool:
        """Whether the body is framed in chunks."""
        return "chunked" in self.fields.get("transfer-encoding", "").lower()


class Connection:
    """A blocking socket with the few buffered bytes that came along with a head."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self._ahead = bytearray()

    def read_head(self) -> Head:
        """The next message's head. Raises Closed at the end of the stream."""
        while (end := self._ahead.find(b"\r\n\r\n")) < 0:
            self._more()
        lines = bytes(self._ahead[:end]).decode("latin-1").split("\r\n")
        del self._ahead[: end + 4]
        first = (*lines[0].split(" ", 2), "", "")
        head = Head((first[0], first[1], first[2]))
        for line in lines[1:]:
            name, _, value = line.partition(":")
            head.fields[name.lower()] = value.strip()
        return head

    def read_body(self, head: Head) -> bytes:
        """The whole body, in memory."""
        if not head.chunked:
            return self._take(head.length or 0)
        parts = []
        while size := int(self._line().split(b";")[0], 16):
            parts.append(self._take(size))
            self._line()
        while self._line():
            pass
        return b"".join(parts)

    def discard_body(self, head: Head) -> int:
        """Throw the body away; its length in bytes."""
        if not head.chunked:
            self.discard(head.length or 0)
            return head.length or 0
        total = 0
        while size := int(self._line().split(b";")[0], 16):
            self.discard(size)
            self._line()
            total += size
        while self._line():
            pass
        return total

    def discard(self, count: int) -> None:
        """Throw `count` bytes away without copying them out of the kernel."""
        ahead = min(count, len(self._ahead))
        del self._ahead[:ahead]
        count -= ahead
        while count:
            got = self.sock.recv_into(_scratch, min(count, PIECE), socket.MSG_TRUNC)
            if not got:
                raise Closed
            count -= got

    def send_content(self, content: int, count: int) -> None:
        """Send `count` bytes of the file that `open_content` made, over and over."""
        while count:
            sent = os.sendfile(self.sock.fileno(), content, 0, min(count, _CONTENT_SIZE))
            count -= sent

    def _line(self) -> bytes:
        while (end := self._ahead.find(b"\r\n")) < 0:
            self._more()
        line = bytes(self._ahead[:end])
        del self._ahead[: end + 2]
        return line

    def _take(self, count: int) -> bytes:
        while len(self._ahead) < count:
            self._more()
        data = bytes(self._ahead[:count])
        del self._ahead[:count]
        return data

    def _more(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise Closed
        self._ahead += data


def connect(port: int, timeout: int = 30) -> Connection:
    """A connection to the loopback address; any wait on it over `timeout` seconds is an OSError."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=timeout)
    # The kernel's own time-outs: Python's would make the descriptor non-blocking, and sendfile
    # would then return between pieces.
    sock.settimeout(None)
    limit = struct.pack("ll", timeout, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    return Connection(sock)


def open_content() -> int:
    """A descriptor of 8 MiB of bytes in memory, for `send_content`. The caller may leave it to
    the end of the process."""
    descriptor = os.memfd_create("content")
    os.write(descriptor, os.urandom(_CONTENT_SIZE))
    return descriptor
