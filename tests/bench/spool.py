"""`python -m tests.bench.spool`: 50 MB through the spool, beside the same as a stream.

Uploads wait whole before the upstream is asked, so that their rate is at most half of a stream's
that is as fast on both sides; downloads are taken as they come, by a client that keeps up (nothing
touches a file) and by one that reads nothing until the upstream is done (all of it does). A
neighbour asks for a byte all the while: the longest that it waited is the spool's pause.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.bench.loads.bodies import measure, transfer
from tests.bench.rawhttp import connect, open_content
from tests.http1.process import ProxyProcess, free_port, wait_until

SIZE = 50_000_000
_TARGET = 0.5  # of the streaming rate


class Neighbour(threading.Thread):
    """Asks for one byte through the proxy, every 5 ms; `worst` is the longest wait, in seconds."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._client = connect(port)
        self._over = threading.Event()
        self.worst = 0.0

    def run(self) -> None:
        content = open_content()
        while not self._over.wait(0.005):
            began = time.perf_counter()
            transfer(self._client, "down", 1, content)
            self.worst = max(self.worst, time.perf_counter() - began)

    def stop(self) -> float:
        """How long it waited at most."""
        self._over.set()
        self.join()
        return self.worst


def slow_reader(port: int, upstream_done: float) -> float:
    """MB/s of a client that begins to read `upstream_done` seconds late."""
    client = connect(port)
    client.sock.sendall(f"GET /bytes/{SIZE} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
    time.sleep(upstream_done)
    began = time.perf_counter()
    head = client.read_head()
    assert client.discard_body(head) == SIZE
    return SIZE / (time.perf_counter() - began) / 1e6


def main() -> int:
    """0 when uploads through the spool reach the target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each measurement")
    parser.add_argument("--dir", default=tempfile.gettempdir(), help="the spool's directory")
    args = parser.parse_args()
    upstream_port, stream, spooled = free_port(), free_port(), free_port()
    upstream = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.upstream", "--port", str(upstream_port)]
    )
    target = {"targets": [f"http://127.0.0.1:{upstream_port}"], "connect_patience": "20s"}
    route = {"name": "all", "path": "/{rest:*}"}
    config = {
        "listeners": {
            name: {"bind": f"127.0.0.1:{port}", "routes": [route | {"upstream": name}]}
            for name, port in (("stream", stream), ("spooled", spooled))
        },
        "upstreams": {
            "stream": target,
            "spooled": target | {"buffering": {"request": True, "response": True}},
        },
        "spool": {"dir": args.dir},
    }
    with tempfile.TemporaryDirectory(prefix="bench-spool-") as workdir:
        proxy = ProxyProcess(Path(workdir), config)
        try:
            rates = {}
            for name, port in (("stream", stream), ("spooled", spooled)):
                for direction in ("up", "down"):
                    neighbour = Neighbour(stream)
                    neighbour.start()
                    rate = measure(port, direction, SIZE, 1, args.seconds, 1_000_000)["mb_per_s"]
                    rates[name, direction] = rate
                    pause = neighbour.stop() * 1000
                    print(f"{name:8} {direction:5} {rate:7.0f} MB/s   neighbour {pause:5.1f} ms")
            rate = slow_reader(spooled, 1.0)
            print(f"spooled  late  {rate:7.0f} MB/s   (read back, by a client that came late)")
            written = proxy.metric("proxy_spool_written_bytes_total") or 0
            print(f"written to files: {written / 1e6:.0f} MB")
            wait_until(lambda: proxy.metric("proxy_spool_bytes") == 0, "an empty spool")
        finally:
            proxy.stop()
            upstream.kill()
            upstream.wait()
    share = rates["spooled", "up"] / rates["stream", "up"]
    print(f"uploads: {share:.0%} of the streaming rate (target {_TARGET:.0%})")
    return 0 if share >= _TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
