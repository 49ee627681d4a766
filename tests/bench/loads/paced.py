"""Open-loop small GETs at a fixed rate; prints latency percentiles in microseconds.

1. Requests leave on schedule, whether or not earlier ones have been answered: each takes an idle
   connection or opens a new one. Latency counts from the scheduled moment, so a stall is seen by
   all requests that it delayed (no coordinated omission).
2. select(2) sleeps with microsecond precision where epoll rounds up to milliseconds; the last
   stretch before a send is spun away, so that a late timer does not count as latency.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import time

from tests.bench.stats import quantile

_SPIN = 300e-6
_REQUEST = b"GET /small HTTP/1.1\r\nHost: bench\r\n\r\n"
_END = b"\r\n\r\n"


class _Exchange:
    """One connection; a response is complete when head and Content-Length are in."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = 0.0
        self.data = b""

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, due: float) -> None:
        self.due, self.data = due, b""
        self.sock.sendall(_REQUEST)

    def complete(self) -> bool:
        """Read what is there. Raises ValueError on anything but a whole 200."""
        piece = self.sock.recv(65536)
        self.data += piece
        end = self.data.find(_END)
        if not piece or (end >= 0 and b" 200 " not in self.data[:16]):
            raise ValueError(f"not a whole 200: {self.data[:100]!r}")
        if end < 0:
            return False
        head = self.data[:end].lower()
        at = head.find(b"content-length:")
        if at < 0:  # chunked: the last chunk ends it
            return self.data.endswith(b"0\r\n\r\n")
        return len(self.data) >= end + 4 + int(head[at + 15 :].split(b"\r\n", 1)[0])


def measure(port: int, rate: float, seconds: float) -> list[float]:
    """Latencies in seconds of `rate * seconds` requests, after a tenth as many to warm up."""
    idle: list[_Exchange] = []
    busy: list[_Exchange] = []
    latencies: list[float] = []
    warm_up = int(rate * seconds / 10)
    start = time.perf_counter() + 0.05
    for number in range(warm_up + int(rate * seconds)):
        due = start + number / rate
        while (left := due - time.perf_counter()) > 0:
            if left > _SPIN or busy:
                _collect(idle, busy, latencies, max(0.0, left - _SPIN))
        exchange = idle.pop() if idle else _Exchange(port)
        exchange.send(due)
        busy.append(exchange)
    deadline = time.perf_counter() + 5
    while busy and time.perf_counter() < deadline:
        _collect(idle, busy, latencies, 0.1)
    if busy:
        raise ValueError(f"{len(busy)} requests were not answered within 5 s")
    return latencies[warm_up:]


def _collect(
    idle: list[_Exchange], busy: list[_Exchange], latencies: list[float], patience: float
) -> None:
    for exchange in select.select(busy, [], [], patience)[0]:
        if exchange.complete():
            latencies.append(time.perf_counter() - exchange.due)
            busy.remove(exchange)
            idle.append(exchange)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=4.0)
    args = parser.parse_args()
    found = measure(args.port, args.rate, args.seconds)
    print(
        json.dumps(
            {
                "count": len(found),
                "p50_us": quantile(found, 0.5) * 1e6,
                "p99_us": quantile(found, 0.99) * 1e6,
            }
        )
    )
