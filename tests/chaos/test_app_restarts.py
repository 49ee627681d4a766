"""Twenty callers of an app that takes nine connections and ends itself again and again.

None of them may notice, and each upload becomes one job. The app is a real uvicorn, the upstream is
that of config/make-video.yaml. As a program: 3,000 polls, 60 uploads, an end every 1,000 requests.

    python -m tests.chaos.test_app_restarts
"""

from __future__ import annotations

import asyncio
import collections
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.http1 import ProxyProcess, free_port
from tests.restarting_app import Supervised

READY = Path(__file__).parents[2] / "config" / "make-video.yaml"
CALLERS = 20


@dataclass(frozen=True)
class Size:
    """How much of it."""

    polls: int
    uploads: int
    body: int
    limit_max_requests: int
    downtime: float


SMALL = Size(polls=648, uploads=36, body=200_000, limit_max_requests=120, downtime=0.5)
FULL = Size(polls=3000, uploads=60, body=2_000_000, limit_max_requests=1000, downtime=2.2)


def config(app_port: int) -> dict[str, Any]:
    """The ready config's upstream `make-video`, and one route."""
    upstream = yaml.safe_load(READY.read_text(encoding="utf-8"))["upstreams"]["make-video"]
    return {
        "listeners": {
            "ingress": {
                "bind": f"127.0.0.1:{free_port()}",
                "routes": [{"name": "all", "path": "/{rest:*}", "upstream": "make-video"}],
            }
        },
        "upstreams": {"make-video": {**upstream, "targets": [f"http://127.0.0.1:{app_port}"]}},
    }


class Caller:
    """One keep-alive client connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, raw: bytes) -> str:
        """The status, with the body where that is an error."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(raw)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        body = await reader.readexactly(int(length[1]) if length else 0)
        if b"connection: close" in head.lower():
            self.close()
        status = head.split(b" ", 2)[1].decode()
        return status if status.startswith("2") else f"{status} {body[:300]!r}"

    def close(self) -> None:
        """End the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def call_all(port: int, size: Size) -> collections.Counter[str]:
    """What the callers got, each upload between many polls."""
    every = size.polls // size.uploads
    work: list[bytes] = []
    for number in range(size.polls):
        work.append(f"GET /jobs/{number} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        if number % every == 0 and number // every < size.uploads:
            work.append(
                f"POST /make-video HTTP/1.1\r\nHost: x\r\nX-Upload: {number // every}\r\n"
                f"Content-Length: {size.body}\r\n\r\n".encode()
                + b"a" * size.body
            )
    work.reverse()
    got: collections.Counter[str] = collections.Counter()

    async def caller() -> None:
        client = Caller(port)
        while work:
            got[await client.ask(work.pop())] += 1
        client.close()

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return got


def run(folder: Path, size: Size) -> tuple[collections.Counter[str], list[str], int]:
    """What the callers got, the lines of the jobs that were made, and how often the app ended."""
    jobs = folder / "jobs"
    with Supervised(
        jobs, limit_max_requests=size.limit_max_requests, downtime=size.downtime
    ) as app:
        built = config(app.port)
        proxy = ProxyProcess(folder, built)
        try:
            port = int(built["listeners"]["ingress"]["bind"].rpartition(":")[2])
            got = asyncio.run(call_all(port, size))
        finally:
            code = proxy.stop()
        assert code == 0
        restarts = app.restarts
    return got, jobs.read_text(encoding="utf-8").split("\n")[:-1], restarts


def test_nobody_notices_the_restarts(tmp_path: Path) -> None:
    """Every poll 200, every upload 202 and exactly one job, over several ends of the app."""
    got, jobs, restarts = run(tmp_path, SMALL)
    assert got == {"200": SMALL.polls, "202": SMALL.uploads}
    assert sorted(jobs) == sorted(f"{number} {SMALL.body}" for number in range(SMALL.uploads))
    assert restarts >= 3


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        answers, made, ends = run(Path(name), FULL)
    for answer, count in answers.most_common():
        print(f"{count:6} {answer}")
    print(f"{len(made)} jobs of {len(set(made))} uploads, {ends} restarts")
    sys.exit(set(answers) != {"200", "202"} or len(made) != FULL.uploads)
