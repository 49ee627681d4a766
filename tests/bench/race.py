"""The order of events: self-checks, then rounds in which each contender has its turn, then memory.

1. A contender runs only during its own turn, freshly started and warmed up, so that no other one's
   timers or memory disturb it.
2. The order rotates from round to round: what drifts (temperature, neighbours) hits all alike.
3. What fails is remarked and left out; the race goes on.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from os import geteuid
from pathlib import Path

from proxy.demo.redis_server import free_port
from tests.bench import children, self_check, small_upstream, wrk
from tests.bench.children import Child, ChildError, Cores
from tests.bench.contenders.base import Contender, Place, Running
from tests.bench.measures import CONNECTIONS, DIRECT, PARALLEL, SIZES_MB, Results

_MB = 1_000_000
_BODY = 50 * _MB


@dataclass(frozen=True, slots=True)
class Pace:
    """How long everything takes; seconds, but for `rounds` and `slow_clients`."""

    rounds: int = 3
    wrk: float = 3.0
    warm_up: float = 1.0
    paced: float = 4.0
    bodies: float = 1.0
    slow: float = 5.0
    slow_clients: int = 100
    sizes: tuple[int, ...] = SIZES_MB
    limit: float = 12 * 60.0


QUICK = Pace(
    rounds=1,
    wrk=1.0,
    warm_up=1.0,
    paced=1.0,
    bodies=0.3,
    slow=1.0,
    slow_clients=20,
    sizes=(1, 50),
    limit=120.0,
)


class Race:
    """One run of the benchmark. `say` gets a line for each step."""

    def __init__(
        self,
        contenders: Sequence[Contender],
        pace: Pace,
        cores: Cores,
        workdir: Path,
        report: Callable[[str], None],
    ) -> None:
        self.results = Results()
        self.rounds = 0
        self._contenders = list(contenders)
        self._pace = pace
        self._cores = cores
        self._workdir = workdir
        self._report = report
        self._deadline = time.monotonic() + pace.limit
        self._has_wrk = shutil.which("wrk") is not None

    def run(self) -> None:
        """Everything; at most about `pace.limit` seconds, by leaving out rounds."""
        with ExitStack() as stack:
            self._small = stack.enter_context(self._upstream("small"))
            self._bodies = stack.enter_context(self._upstream("bodies"))
            self._contenders = [c for c in self._contenders if self._fit(c)]
            for number in range(self._pace.rounds):
                began = time.monotonic()
                self._round(number)
                self.rounds += 1
                took = time.monotonic() - began
                # Memory takes about one round.
                if time.monotonic() + 2 * took > self._deadline:
                    if self.rounds < self._pace.rounds:
                        self._remark(DIRECT, f"stopped after {self.rounds} rounds: time is up")
                    break
            for contender in self._contenders:
                self._memory(contender)
        self.results.subtract(DIRECT, "paced", "added")
        for name, share in self.results.disturbed().items():
            self._remark(
                name, f"other programs took {share:.0f} % of its core: its figures are noise"
            )

    # --- turns ------------------------------------------------------------------------------

    def _fit(self, contender: Contender) -> bool:
        reason = contender.available()
        if reason is None:
            self._report(f"self-check: {contender.name}")
            try:
                with self._started(contender, self._bodies) as (running, port):
                    self_check.check(running, port, contender.id_header)
            except (ChildError, self_check.SelfCheckError) as error:
                reason = str(error)
        if reason is not None:
            self._remark(contender.name, f"left out: {reason}")
        return reason is None

    def _round(self, number: int) -> None:
        self._turn(DIRECT, number, self._direct_turn)
        shift = number % max(1, len(self._contenders))
        for contender in self._contenders[shift:] + self._contenders[:shift]:
            self._turn(contender.name, number, partial(self._contender_turn, contender))

    def _turn(self, name: str, number: int, act: Callable[[], None]) -> None:
        self._report(f"round {number + 1} of {self._pace.rounds}: {name}")
        try:
            act()
        except (ChildError, ValueError) as error:
            self._remark(name, f"round {number + 1}: {error}")

    def _direct_turn(self) -> None:
        self._paced(DIRECT, self._small)
        self._small_gets(DIRECT, self._small, None)
        self._transfers(DIRECT, self._bodies)

    def _contender_turn(self, contender: Contender) -> None:
        with self._started(contender, self._small) as (running, port):
            # The paced one first: with 256 connections left in its pool a proxy is another one.
            self._paced(contender.name, port)
            requests = self._small_gets(contender.name, port, running.child)
            if not self_check.logged_all(running.access_log, requests):
                self._remark(contender.name, "its access log misses requests: it does less work")
        with self._started(contender, self._bodies) as (_, port):
            self._transfers(contender.name, port)

    # --- measures ---------------------------------------------------------------------------

    def _small_gets(self, name: str, port: int, child: Child | None) -> int:
        """Answers how many requests were made."""
        if not self._has_wrk:
            return 0
        total = self._wrk(port, 32, self._pace.warm_up).requests
        for connections in CONNECTIONS:
            cpu, began = (child.cpu_seconds() if child else 0.0), time.monotonic()
            all_cpu = children.core_seconds(self._cores.proxy)
            found = self._wrk(port, connections, self._pace.wrk)
            elapsed = time.monotonic() - began
            key = f"get{connections}"
            self._add(name, f"{key}.rps", found.requests_per_s)
            self._add(name, f"{key}.p50_ms", found.p50_us / 1000)
            self._add(name, f"{key}.p99_ms", found.p99_us / 1000)
            if found.errors:
                self._remark(
                    name, f"{connections} connections: {found.errors} of {found.requests} failed"
                )
            if child and found.requests:
                cpu = child.cpu_seconds() - cpu
                others = max(0.0, children.core_seconds(self._cores.proxy) - all_cpu - cpu)
                self._add(name, f"{key}.cpu_us", cpu / found.requests * 1e6)
                self._add(name, f"{key}.busy", cpu / elapsed * 100)
                self._add(name, f"{key}.others", others / elapsed * 100)
            total += found.requests
        return total

    def _wrk(self, port: int, connections: int, seconds: float) -> wrk.WrkResult:
        argv = wrk.command(f"http://127.0.0.1:{port}/jobs/mv_0123456789", connections, seconds)
        text = children.run(
            "wrk", argv, core=self._cores.load, workdir=self._workdir, timeout=seconds + 15
        )
        return wrk.parse(text)

    def _paced(self, name: str, port: int) -> None:
        found = self._load("paced", port, f"--seconds={self._pace.paced}")
        for key in ("p50_us", "p99_us"):
            self._add(name, f"paced.{key}", found[key])

    def _transfers(self, name: str, port: int) -> None:
        for way in ("up", "down"):
            for parallel in PARALLEL:
                found = self._load(
                    "bodies",
                    port,
                    f"--direction={way}",
                    f"--size={_BODY}",
                    f"--parallel={parallel}",
                    f"--seconds={self._pace.bodies}",
                )
                self._add(name, f"{way}{parallel}.mbps", found["mb_per_s"])

    def _memory(self, contender: Contender) -> None:
        self._report(f"memory: {contender.name}")
        slow = (f"--clients={self._pace.slow_clients}", f"--seconds={self._pace.slow}")
        scenes: dict[str, tuple[str, ...]] = {
            "slow_clients": (*slow, "--pace=300000"),
            "slow_upstream": (*slow, "--pace=0", "--target=/upload?rate=100000"),
        }
        for scene, arguments in scenes.items():
            with self._memory_scene(contender) as (child, port):
                self._load("slow", port, *arguments)
                self._add(contender.name, f"memory.{scene}", child.rss_peak() / _MB)
        for way in ("up", "down"):
            with self._memory_scene(contender) as (child, port):
                for size in self._pace.sizes:
                    self._load(
                        "bodies", port, f"--direction={way}", f"--size={size * _MB}", "--most=1"
                    )
                    self._add(contender.name, f"memory.{way}{size}", child.rss_peak() / _MB)

    @contextmanager
    def _memory_scene(self, contender: Contender) -> Iterator[tuple[Child, int]]:
        """A fresh start each time: a peak never sinks again."""
        try:
            with self._started(contender, self._bodies) as (running, port):
                self._add(contender.name, "memory.idle", running.child.rss() / _MB)
                yield running.child, port
        except (ChildError, ValueError) as error:
            self._remark(contender.name, f"memory: {error}")

    # --- processes --------------------------------------------------------------------------

    @contextmanager
    def _upstream(self, kind: str) -> Iterator[int]:
        port = free_port()
        argv = (
            small_upstream.command(port, self._workdir, root=geteuid() == 0)
            if kind == "small"
            else children.module("tests.bench.upstream", f"--port={port}")
        )
        child = children.start(
            f"upstream-{kind}", argv, core=self._cores.upstream, workdir=self._workdir
        )
        with children.running(child, port):
            yield port

    @contextmanager
    def _started(self, contender: Contender, upstream_port: int) -> Iterator[tuple[Running, int]]:
        place = Place(
            listen_port=free_port(),
            extra_port=free_port(),
            upstream_port=upstream_port,
            workdir=self._workdir / contender.name,
            core=self._cores.proxy,
        )
        place.workdir.mkdir(parents=True)
        try:
            running = contender.start(place)
            with children.running(running.child, place.listen_port):
                yield running, place.listen_port
        finally:
            # Access logs of a fast contender are large: gone before the next one's turn.
            shutil.rmtree(place.workdir, ignore_errors=True)

    def _load(self, name: str, port: int, *arguments: str) -> dict[str, float]:
        return children.run_json(
            name,
            children.module(f"tests.bench.loads.{name}", f"--port={port}", *arguments),
            core=self._cores.load,
            workdir=self._workdir,
            timeout=90,
        )

    def _add(self, name: str, key: str, value: float) -> None:
        self.results.add(name, key, value)

    def _remark(self, name: str, text: str) -> None:
        self.results.remark(name, text)
        self._report(f"  {name}: {text}")
