"""A fleet under faults: real proxies, a flapping upstream, Redis killed, stopped, a proxy killed.

    python -m tests.bench.faults --seconds 20 --processes 3 --callers 50

Callers ask without pause for thought longer than half a second. The upstream is well and sick in
turns. Checked afterwards, from what the upstream saw, what callers got and what the proxies logged:

1. Callers get 200, the sick upstream's own 503, or `circuit_open`: never anything else, but from
   the proxy that was killed.
2. In a sick phase, once the circuit is open, no more than three calls are at the upstream at one
   time (three per proxy while Redis is in trouble, for then each decides alone).
3. A sick phase costs the upstream no more than the threshold, what was under way, and the probes.
4. Away from trouble with Redis every transition is logged by exactly one process, and each begins
   where the one before it ended.
5. No caller waits for Redis: the slowest refusal and the slowest answer are shown.

Ends with 1 when 1 to 4 do not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from proxy.demo.redis_server import RedisServer, free_port
from tests.http1.process import ProxyProcess

THRESHOLD, PROBES, OPEN_FOR = 5, 3, 0.5
SICK_TAKES = 0.03
"""Seconds that the sick upstream takes for its 503."""
SETTLED = 0.5
"""Seconds after which the circuit is open everywhere."""
AFTERMATH = 1.5
"""Seconds after trouble with Redis until all are of one mind again."""


@dataclass
class Phase:
    """A time in which the upstream was sick, and what it saw meanwhile."""

    began: float
    ended: float = 0.0
    calls: int = 0
    most_settled: int = 0


@dataclass
class Run:
    """What happened. Times are Unix seconds."""

    phases: list[Phase] = field(default_factory=list)
    troubles: list[tuple[str, float, float]] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    refusals: list[float] = field(default_factory=list)
    good: list[float] = field(default_factory=list)

    def troubled(self, began: float, ended: float) -> bool:
        """Whether Redis was in trouble at some moment of that time, or had just been."""
        return any(a < ended and began < b + AFTERMATH for _, a, b in self.troubles)


class Flapping:
    """The upstream."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.sick: Phase | None = None
        self.inside = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a proxy."""
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                self.inside += 1
                try:
                    writer.write(await self._answer())
                finally:
                    self.inside -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self) -> bytes:
        phase = self.sick
        if phase is None:
            await asyncio.sleep(0.005)
            return b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        phase.calls += 1
        if time.time() - phase.began > SETTLED:
            phase.most_settled = max(phase.most_settled, self.inside)
        await asyncio.sleep(SICK_TAKES)
        return b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nsick"

    async def flap(self) -> None:
        """Well and sick in turns."""
        while True:
            await asyncio.sleep(random.uniform(1.0, 2.0))
            self.sick = Phase(time.time())
            self.run.phases.append(self.sick)
            await asyncio.sleep(random.uniform(1.5, 2.5))
            self.sick.ended = time.time()
            self.sick = None


async def call(run: Run, port: int, alive: Callable[[], bool]) -> None:
    """One caller at one proxy, until it is cancelled or the proxy was killed."""
    writer: asyncio.StreamWriter | None = None
    try:
        while alive():
            await asyncio.sleep(random.uniform(0.05, 0.45))
            began = time.perf_counter()
            try:
                if writer is None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
            except (OSError, asyncio.IncompleteReadError) as error:
                if alive():
                    run.answers[repr(error)] += 1
                return
            took = time.perf_counter() - began
            if b"circuit_open" in body:
                run.answers["circuit_open"] += 1
                run.refusals.append(took)
            else:
                run.answers[body.decode()] += 1
                run.good.append(took - (SICK_TAKES if body == b"sick" else 0.005))
    finally:
        if writer is not None:
            writer.close()


def config(port: int, upstream: int, redis: RedisServer) -> dict[str, Any]:
    """One proxy's."""
    routes = [{"name": "all", "path": "/{rest:*}", "upstream": "app"}]
    return {
        "listeners": {"front": {"bind": f"127.0.0.1:{port}", "routes": routes}},
        "upstreams": {
            "app": {
                "targets": [f"http://127.0.0.1:{upstream}"],
                "timeouts": {"connect": "1s", "response": "1s"},
                "breaker": {"failure_threshold": THRESHOLD, "open_for": f"{OPEN_FOR * 1000:.0f}ms"},
            }
        },
        "redis": {"url": redis.url},
        "logging": {"level": "WARNING"},
    }


async def trouble(run: Run, seconds: float, redis: RedisServer, kill: Callable[[], None]) -> None:
    """Redis killed and started empty, Redis stopped in its tracks, a proxy killed."""

    async def dead() -> None:
        await asyncio.to_thread(redis.kill)
        await asyncio.sleep(random.uniform(0.5, 1.5))
        await asyncio.to_thread(redis.start)

    async def stopped() -> None:
        assert redis.pid is not None
        os.kill(redis.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(random.uniform(0.5, 1.5))
        finally:
            os.kill(redis.pid, signal.SIGCONT)

    kinds: list[tuple[str, Callable[[], Awaitable[None]]]] = [("dead", dead), ("stopped", stopped)]
    random.shuffle(kinds)
    for name, happen in kinds:
        await asyncio.sleep(seconds * random.uniform(0.2, 0.3))
        began = time.time()
        await happen()
        run.troubles.append((name, began, time.time()))
    await asyncio.sleep(seconds * 0.1)
    kill()


async def play(seconds: float, processes: int, callers: int, folder: Path) -> dict[str, Any]:
    """The run and its report."""
    run = Run()
    redis = RedisServer(folder / "redis")
    await asyncio.to_thread(redis.start)
    upstream = Flapping(run)
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    upstream_port = server.sockets[0].getsockname()[1]
    proxies: list[ProxyProcess] = []
    killed: set[int] = set()
    tasks: list[asyncio.Task[None]] = []
    try:
        ports = [free_port() for _ in range(processes)]
        for port in ports:
            place = folder / str(port)
            place.mkdir()
            given = config(port, upstream_port, redis)
            proxies.append(await asyncio.to_thread(ProxyProcess, place, given))

        def kill() -> None:
            killed.add(ports[-1])
            proxies[-1].process.kill()

        tasks = [
            asyncio.create_task(call(run, port, lambda port=port: port not in killed))  # type: ignore[misc]
            for port in ports
            for _ in range(callers)
        ]
        tasks.append(asyncio.create_task(upstream.flap()))
        troubles = asyncio.create_task(trouble(run, seconds, redis, kill))
        await asyncio.sleep(seconds)
        await troubles
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        delays = [await asyncio.to_thread(delay, proxy) for proxy in proxies[:-1]]
        for proxy in proxies[:-1]:
            proxy.assert_sane()
    finally:
        for proxy in proxies:
            await asyncio.to_thread(proxy.stop)
        redis.kill()
        server.close()
    lines = [
        line | {"at": datetime.fromisoformat(line["timestamp"]).timestamp()}
        for proxy in proxies
        for line in proxy.log()
        if line.get("event") == "breaker_transition"
    ]
    return report(run, sorted(lines, key=lambda line: line["at"]), processes * callers) | {
        "known elsewhere after, ms (mean, count)": delays
    }


def delay(proxy: ProxyProcess) -> tuple[float, int]:
    """From a transition in Redis to its arrival: mean in milliseconds, and of how many."""
    count = proxy.metric("proxy_breaker_propagation_seconds_count") or 0.0
    total = proxy.metric("proxy_breaker_propagation_seconds_sum") or 0.0
    return round(total / max(count, 1.0) * 1000, 2), int(count)


def report(run: Run, lines: list[dict[str, Any]], callers: int) -> dict[str, Any]:
    """Numbers, and under `broken` what does not hold."""
    broken: list[str] = []
    allowed = {"ok", "sick", "circuit_open"}
    if strange := {name: n for name, n in run.answers.items() if name not in allowed}:
        broken.append(f"callers got {strange}")
    phases = [phase for phase in run.phases if phase.ended]
    for phase in phases:
        troubled = run.troubled(phase.began, phase.ended)
        probes = PROBES * (3 if troubled else 1)
        if phase.most_settled > probes:
            broken.append(f"{phase.most_settled} calls at once in an open circuit, {troubled=}")
        rounds = 1 + (phase.ended - phase.began) / OPEN_FOR
        if phase.calls > THRESHOLD + callers + probes * rounds:
            broken.append(f"a sick phase cost {phase.calls} calls")
    counted: Counter[str] = Counter()
    chain: list[dict[str, Any]] = []
    for line in lines:
        counted[f"{line['from_state']}>{line['to_state']}"] += 1
        if run.troubled(line["at"] - 0.2, line["at"] + 0.2):
            chain = []
            continue
        if chain and line["generation"] <= chain[-1]["generation"]:
            broken.append(f"counted twice, or late: {line}")
        elif chain and line["from_state"] != chain[-1]["to_state"]:
            broken.append(f"one is missing between {chain[-1]} and {line}")
        chain.append(line)
    return {
        "broken": broken,
        "answers": dict(run.answers),
        "sick phases": len(phases),
        "calls in a sick phase": [phase.calls for phase in phases],
        "at once, once open": [phase.most_settled for phase in phases],
        "troubles": [f"Redis {name} for {b - a:.1f} s" for name, a, b in run.troubles],
        "transitions": dict(counted),
        "refusal ms (median, p99, max)": spread(run.refusals),
        "answer, less the upstream's time, ms (median, p99, max)": spread(run.good),
    }


def spread(seconds: list[float]) -> tuple[float, float, float]:
    """Median, 99th percentile and maximum, in milliseconds."""
    if len(seconds) < 2:
        return (0.0, 0.0, 0.0)
    ms = [second * 1000 for second in seconds]
    p99 = statistics.quantiles(ms, n=100)[98]
    return round(statistics.median(ms), 2), round(p99, 2), round(max(ms), 2)


def main() -> int:
    """Run once, print the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--callers", type=int, default=50, help="at each process")
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.randrange(1 << 30)
    random.seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(play(given.seconds, given.processes, given.callers, Path(folder)))
    print(json.dumps({"seed": seed} | found, indent=1))
    return 1 if found["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
