"""Transfers of large bodies over kept-alive connections; prints the rate over all of them.

`--parallel N` connections at once, for `--seconds`, at most `--most` transfers on each.
"""

from __future__ import annotations

import argparse
import json
import threading
import time

from tests.bench.rawhttp import Connection, connect, open_content


def transfer(client: Connection, direction: str, size: int, content: int) -> None:
    """One whole transfer, checked: ValueError when the far end did not get or send `size`."""
    if direction == "up":
        client.sock.sendall(
            f"POST /upload HTTP/1.1\r\nHost: bench\r\nContent-Length: {size}\r\n\r\n".encode()
        )
        client.send_content(content, size)
        head = client.read_head()
        body = client.read_body(head)
        if head.start[1] != "200" or json.loads(body)["received"] != size:
            raise ValueError(f"upload answered {head.start[1]}: {body[:200]!r}")
    else:
        client.sock.sendall(f"GET /bytes/{size} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
        head = client.read_head()
        got = client.discard_body(head)
        if head.start[1] != "200" or got != size:
            raise ValueError(f"download answered {head.start[1]} and {got} bytes")


def measure(
    port: int, direction: str, size: int, parallel: int, seconds: float, most: int
) -> dict[str, float]:
    """Repeat transfers on `parallel` connections for `seconds`, at most `most` on each, after one
    each to warm up. Answers bytes, seconds and MB/s (10^6 bytes)."""
    content = open_content()
    together = threading.Barrier(parallel)
    ends: list[float] = []
    starts: list[float] = []
    done: list[int] = []
    errors: list[BaseException] = []

    def one() -> None:
        try:
            client = connect(port)
            if most > 1:
                transfer(client, direction, min(size, 8_000_000), content)
            together.wait(60)
            began = time.monotonic()
            starts.append(began)
            for _ in range(most):
                transfer(client, direction, size, content)
                done.append(size)
                if time.monotonic() - began >= seconds:
                    break
            ends.append(time.monotonic())
        except Exception as error:
            together.abort()
            errors.append(error)

    threads = [threading.Thread(target=one) for _ in range(parallel)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    elapsed = max(ends) - min(starts)
    return {"bytes": sum(done), "seconds": elapsed, "mb_per_s": sum(done) / elapsed / 1e6}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--direction", choices=["up", "down"], required=True)
    parser.add_argument("--size", type=int, default=50_000_000)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--most", type=int, default=1_000_000)
    args = parser.parse_args()
    print(
        json.dumps(
            measure(args.port, args.direction, args.size, args.parallel, args.seconds, args.most)
        )
    )
