"""`python -m tests.bench.fleet`: how many idle sidecars one Redis bears.

1. A real sidecar with three breakers and a mirror idles, and MONITOR records what it sends.
2. These very commands are sent again, by many connections, at the rate of N sidecars. Redis' own
   account of its CPU time is read before and after.
3. A heartbeat is sent by one sidecar for all; what grows with N is its delivery to N subscribers,
   which is measured and added. From the sum follows the N at which a core is full.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import re
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis as blocking

from proxy.demo.redis_server import RedisServer
from tests.http1.process import ProxyProcess, free_port

#: What cannot be sent again, or is sent once at the start.
_NOT_AGAIN = frozenset(
    {"hello", "auth", "select", "client", "subscribe", "psubscribe", "info", "monitor", "publish"}
)
#: Seconds between two heartbeats of a whole fleet: the first of many to lose its patience.
_BEAT = 10.0
#: Connections that send: enough that each command comes by itself, as it does from a sidecar.
_SENDERS = 500


@dataclass(frozen=True)
class Recorded:
    """What one idle sidecar sent within `seconds`: the commands, and how many of each."""

    seconds: float
    commands: list[list[bytes]]
    counts: dict[str, int]

    @property
    def rate(self) -> float:
        """Commands a second."""
        return sum(self.counts.values()) / self.seconds


def record(server: RedisServer, folder: Path, settle: float, seconds: float) -> Recorded:
    """Watch one sidecar idle for `seconds`, `settle` after its start."""
    upstream = {"targets": ["http://127.0.0.1:9"], "breaker": {}}
    services = ("youtube-search", "video-downloader", "audio-transcriber")
    config: dict[str, Any] = {
        "listeners": {
            "ingress": {
                "bind": f"127.0.0.1:{free_port()}",
                "routes": [{"name": "all", "path": "/{rest:*}", "upstream": services[0]}],
            }
        },
        "upstreams": dict.fromkeys(services, upstream),
        "redis": {"url": server.url},
        "mirrors": {
            "make_video": {
                "key": "make_video:job:{job_id}",
                "index": "make_video:jobs:list",
                "sqlite": str(folder / "jobs.db"),
            }
        },
    }
    proxy = ProxyProcess(folder, config)
    lines: list[str] = []
    monitor_client = blocking.Redis.from_url(server.url, socket_timeout=None)
    try:
        time.sleep(settle)
        with monitor_client.monitor() as monitor:

            def listen() -> None:
                with contextlib.suppress(OSError, ValueError, blocking.RedisError):  # closed
                    for seen in monitor.listen():
                        if seen["client_type"] != "lua":
                            lines.append(seen["command"])

            thread = threading.Thread(target=listen, daemon=True)
            thread.start()
            time.sleep(seconds)
            kept = list(lines)
            if not thread.is_alive():
                raise RuntimeError("what was sent could not be recorded to the end")
    finally:
        proxy.stop()
        monitor_client.close()
    commands = [_words(line) for line in kept]
    counts: dict[str, int] = {}
    for words in commands:
        name = words[0].decode().lower()
        counts[name] = counts.get(name, 0) + 1
    again = [words for words in commands if words[0].decode().lower() not in _NOT_AGAIN]
    return Recorded(seconds, again, counts)


def _words(command: str) -> list[bytes]:
    """The arguments of a command as redis-py's MONITOR shows it: joined by spaces, unquoted."""
    json_at = command.find(" {")
    if json_at >= 0 and command.endswith("}"):  # a script's one argument
        return [*command[:json_at].encode().split(), command[json_at + 1 :].encode()]
    return command.encode().split()


def _packed(words: list[bytes]) -> bytes:
    parts = [b"*%d\r\n" % len(words)]
    parts += [b"$%d\r\n%s\r\n" % (len(word), word) for word in words]
    return b"".join(parts)


async def _send(port: int, recorded: Recorded, rate: float, until: float) -> int:
    """Send the recorded commands on one connection, `rate` a second; how many were sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sink = asyncio.create_task(reader.read(-1))
    packed = [_packed(words) for words in recorded.commands]
    loop = asyncio.get_running_loop()
    sent, due = 0, loop.time() + random.uniform(0, 1 / rate)
    while (now := loop.time()) < until:
        if due <= now:  # one at a time: sidecars do not send in pipelines
            writer.write(random.choice(packed))
            sent += 1
            due += random.expovariate(rate)
        await asyncio.sleep(max(0.0, min(due, until) - now))
    writer.close()
    sink.cancel()
    return sent


async def _subscribe(port: int, count: int) -> list[asyncio.StreamWriter]:
    writers = []
    for _ in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(_packed([b"SUBSCRIBE", b"cb:events"]))
        writer.get_extra_info("socket")
        asyncio.get_running_loop().create_task(_drain(reader))
        writers.append(writer)
    return writers


async def _drain(reader: asyncio.StreamReader) -> None:
    while await reader.read(65536):
        pass


async def load(server: RedisServer, recorded: Recorded, sidecars: int, seconds: float) -> float:
    """The share of a core that Redis takes for `sidecars` idle ones.

    Their heartbeats reach as many subscribers as the machine's descriptors allow; the rest of that
    cost is added in proportion."""
    port = int(re.search(r":(\d+)", server.url.rpartition("@")[2])[1])  # type: ignore[index]
    listening = min(sidecars, 800)
    subscribers = await _subscribe(port, listening)
    client = blocking.Redis.from_url(server.url)
    share = len(recorded.commands) / sum(recorded.counts.values())
    rate = recorded.rate * share * sidecars / _SENDERS

    def cpu() -> float:
        info: Any = client.info("cpu")
        return float(info["used_cpu_sys"]) + float(info["used_cpu_user"])

    loop = asyncio.get_running_loop()
    began, at = cpu(), loop.time()
    sent = sum(
        await asyncio.gather(*(_send(port, recorded, rate, at + seconds) for _ in range(_SENDERS)))
    )
    # One process may not manage the rate of ten thousand: what counts is the cost of a command.
    polls = (cpu() - began) / sent * rate * _SENDERS
    began = cpu()
    for _ in range(20):
        client.publish("cb:events", '{"by": "bench"}')
        await asyncio.sleep(0.02)
    delivery = (cpu() - began) / 20 / listening
    for writer in subscribers:
        writer.close()
    client.close()
    return polls + delivery * sidecars / _BEAT


def main() -> None:
    """Record, load, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fleet")
    parser.add_argument("--record", type=float, default=120.0, help="seconds of idling to record")
    parser.add_argument("--sidecars", type=int, nargs="*", default=[1000, 3000, 10000])
    parser.add_argument("--seconds", type=float, default=8.0, help="seconds of load for each N")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = RedisServer(folder / "redis", free_port())
        server.start()
        try:
            recorded = record(server, folder, settle=90.0, seconds=options.record)
            print(f"one idle sidecar, three breakers and a mirror: {recorded.rate:.2f} commands/s")
            for command, count in sorted(recorded.counts.items(), key=lambda item: -item[1]):
                print(f"  {command:<12} {count / recorded.seconds:.3f}/s")
            for sidecars in options.sidecars:
                took = asyncio.run(load(server, recorded, sidecars, options.seconds))
                full = sidecars / took if took else float("inf")
                print(f"{sidecars:>6} sidecars: {took:.1%} of a core; full at {full:,.0f}")
        finally:
            server.kill()


if __name__ == "__main__":
    main()
