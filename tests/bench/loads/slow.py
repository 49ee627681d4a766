"""Many large uploads in flight at once, announced whole but sent in part, then dropped.

`--pace N`: each client sends N bytes a second, in small pieces (slow clients). `--pace 0`: each
client pushes as fast as the proxy takes it (for a slow upstream: how much does the proxy hold?).
Prints the bytes that were taken in all.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import time

_PIECE = b"\0" * 16384
_TICK = 0.05


def measure(
    port: int, clients: int, size: int, pace: int, seconds: float, target: str
) -> dict[str, float]:
    """Keep `clients` uploads of `size` announced bytes going for `seconds`, then close them all.
    Raises ValueError when a proxy answers or closes early: then they were not in flight."""
    socks = []
    taken = dict.fromkeys(range(clients), 0)
    for _ in range(clients):
        sock = socket.create_connection(("127.0.0.1", port), timeout=10)
        sock.sendall(
            f"POST {target} HTTP/1.1\r\nHost: bench\r\nContent-Length: {size}\r\n\r\n".encode()
        )
        sock.setblocking(False)
        socks.append(sock)
    began = time.monotonic()
    while (elapsed := time.monotonic() - began) < seconds:
        allowed = min(int(elapsed * pace) if pace else size, size - 1)
        progress = False
        for number, sock in enumerate(socks):
            due = allowed - taken[number]
            if due <= 0:
                continue
            try:
                sent = sock.send(_PIECE[:due])
            except BlockingIOError:
                continue
            taken[number] += sent
            progress = True
        if not progress:
            time.sleep(_TICK)
    with selectors.DefaultSelector() as answers:
        for sock in socks:
            answers.register(sock, selectors.EVENT_READ)
        early = len(answers.select(0))
    for sock in socks:
        sock.close()
    if early:
        raise ValueError(f"{early} of {clients} uploads were answered or closed early")
    return {"bytes": sum(taken.values()), "clients": clients}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--size", type=int, default=50_000_000)
    parser.add_argument("--pace", type=int, default=300_000)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--target", default="/upload")
    args = parser.parse_args()
    print(
        json.dumps(
            measure(args.port, args.clients, args.size, args.pace, args.seconds, args.target)
        )
    )
