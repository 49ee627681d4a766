"""The proxy's half of a conversation with a probe process, without the proxy."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from typing import Any

from proxy.upload.transfer import Sender

_PIECE = 256 * 1024


def send_file(
    sock: socket.socket, data: bytes, piece: int = _PIECE
) -> tuple[dict[str, Any], float, int]:
    """Send `data`, less what the process says it can do without. Its last word, how many seconds
    after the end of the file it came, and how many bytes were sent. Raises `ValueError` where there
    is none."""
    sender, heard, crossed = Sender(), b"", 0
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before the end
        for at in range(0, len(data), piece):
            while select.select([sock], [], [], 0)[0] and (more := sock.recv(65_536)):
                *lines, rest = (heard + more).split(b"\n")
                for place in (json.loads(line).get("leave_out") for line in lines):
                    if place:
                        sender.leave_out(*place)
                heard = (lines[-1] + b"\n" if lines else b"") + rest
            crossed += _write(sock, sender.send(data[at : at + piece]))
        crossed += _write(sock, sender.go_on())
        sock.shutdown(socket.SHUT_WR)
    ended = time.perf_counter()
    with contextlib.suppress(ConnectionResetError):  # behind the last word
        while more := sock.recv(65_536):
            heard += more
    delay = time.perf_counter() - ended
    if not heard:
        raise ValueError("the process said nothing")
    answer: dict[str, Any] = json.loads(heard.splitlines()[-1])
    return answer, delay, crossed


def _write(sock: socket.socket, pieces: list[bytes | memoryview]) -> int:
    for piece in pieces:
        sock.sendall(piece)
    return sum(map(len, pieces))
