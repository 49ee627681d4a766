"""The upstream of the body measurements and of the self-checks, one thread per connection.

`GET /bytes/N` answers N bytes with their Content-Length · `POST /upload` reads the whole body, then
answers its length; `?rate=R` reads R bytes a second · `/echo` answers the request's fields as JSON
· `POST /mirror` answers the body itself.

Threads that only sit in system calls leave Python's lock alone; measured directly the pair of this
and `loads.bodies` moves several times what any proxy here does.
"""

from __future__ import annotations

import argparse
import json
import socket
import threading
import time
from urllib.parse import parse_qs, urlsplit

from tests.bench.rawhttp import Closed, Connection, Head, open_content

_SLOW_PIECE = 16 << 10


def serve(port: int) -> None:
    """Accept for ever on the loopback address."""
    content = open_content()
    with socket.create_server(("127.0.0.1", port), backlog=1024) as listener:
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=_serve_client, args=(sock, content), daemon=True).start()


def _serve_client(sock: socket.socket, content: int) -> None:
    client = Connection(sock)
    try:
        while True:
            _answer(client, client.read_head(), content)
    except (Closed, OSError):
        pass  # the far end is done: what it got or sent is its own measurement
    finally:
        sock.close()


def _answer(client: Connection, head: Head, content: int) -> None:
    target = urlsplit(head.start[1])
    if head.fields.get("expect", "").lower() == "100-continue":
        client.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    if target.path.startswith("/bytes/"):
        size = int(target.path.removeprefix("/bytes/"))
        client.discard_body(head)
        _send_head(client, size, "application/octet-stream")
        client.send_content(content, size)
    elif target.path == "/mirror":
        _send(client, client.read_body(head), "application/octet-stream")
    elif target.path == "/upload":
        rate = int(parse_qs(target.query).get("rate", ["0"])[0])
        received = _slow_discard(client, head, rate) if rate else client.discard_body(head)
        _send_json(client, {"received": received})
    else:
        client.discard_body(head)
        _send_json(client, {"fields": head.fields})


def _slow_discard(client: Connection, head: Head, rate: int) -> int:
    left = head.length
    if left is None:
        # A proxy that turned the length into chunks: leave it all unread, which is slower still.
        time.sleep(60)
        return 0
    while left:
        count = min(left, _SLOW_PIECE)
        client.discard(count)
        left -= count
        time.sleep(count / rate)
    return head.length or 0


def _send_json(client: Connection, value: object) -> None:
    _send(client, json.dumps(value).encode(), "application/json")


def _send(client: Connection, body: bytes, kind: str) -> None:
    _send_head(client, len(body), kind)
    client.sock.sendall(body)


def _send_head(client: Connection, size: int, kind: str) -> None:
    client.sock.sendall(
        f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n\r\n".encode()
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    serve(parser.parse_args().port)
