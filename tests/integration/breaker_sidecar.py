"""One sidecar process of test_circuit_breaker_distributed.py: fifty callers, and all they see.

    python -m tests.integration.breaker_sidecar REDIS_URL OWNER SECONDS LOG

The upstream is a function of the machine's monotonic clock, so that it flaps for all processes at
the same time; log times are of that clock too. After SECONDS nobody calls any more; the process
stays until its standard input ends, so that one can see whether all come to agree.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import uvloop
from prometheus_client import CollectorRegistry

from proxy.config.schema import Redis
from proxy.config.upstreams import Upstream
from proxy.core.errors import CircuitOpen
from proxy.resilience.circuit.circuit import CircuitBreaker
from proxy.resilience.circuit.messages import Transition
from proxy.resilience.circuit.permits import ProbePermit
from proxy.resilience.circuit.registry import BreakerRegistry
from proxy.resilience.circuit.states import State

CALLERS = 50
LEASE = 1.0
RULES = {"open_for": "250ms", "max_open_for": "500ms"}


def upstream_is_well(now: float) -> bool:
    """Two seconds of every three."""
    return now % 3.0 < 2.0


class Recorder:
    """Writes one JSON line per event, at once, so that a kill loses nothing."""

    def __init__(self, log: TextIO, owner: str) -> None:
        self._log = log
        self._owner = owner

    def __call__(self, event: str, **facts: Any) -> None:
        line = {"at": time.monotonic(), "who": self._owner, "event": event, **facts}
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()


async def caller(breaker: CircuitBreaker, record: Recorder, end: float) -> None:
    """Calls until `end`; one in twenty leaves before the answer."""
    now = time.monotonic
    while now() < end:
        try:
            permit = breaker.admit(now())
        except CircuitOpen:
            await asyncio.sleep(random.uniform(0.02, 0.08))
            continue
        probe = isinstance(permit, ProbePermit)
        if isinstance(permit, ProbePermit):
            record("probe", lease=permit.lease)
        began = now()
        await asyncio.sleep(random.uniform(0.02, 0.08))
        if random.random() < 0.05:
            permit.cancel()
        elif upstream_is_well(now()):
            permit.success(now(), now() - began)
        else:
            permit.failure(now(), "503")
        if isinstance(permit, ProbePermit):
            record("probe-end", lease=permit.lease)
        if not probe:
            await asyncio.sleep(0.02)


async def watch(registry: BreakerRegistry, record: Recorder) -> None:
    """Record what this sidecar believes whenever that changes, until cancelled."""
    breaker = registry.get("svc")
    assert breaker is not None
    before: Any = None
    while True:
        belief = (breaker.generation, breaker.state.value, breaker.shared)
        if belief != before:
            record("belief", generation=belief[0], state=belief[1], shared=belief[2])
            before = belief
        await asyncio.sleep(0.002)


async def main(url: str, owner: str, seconds: float, path: Path) -> None:
    """Run for `seconds`."""
    with path.open("w") as log:
        record = Recorder(log, owner)
        times = {"connect": "1ms", "response": f"{LEASE - 0.001:g}s"}  # a lease, together
        upstream = Upstream.model_validate(
            {"targets": ["http://h"], "timeouts": times, "breaker": RULES}
        )
        redis = Redis.model_validate(
            {"url": url, "connect_timeout": "500ms", "command_timeout": "500ms"}
        )
        registry = BreakerRegistry(
            {"svc": upstream}, registry=CollectorRegistry(), redis=redis, owner=owner
        )
        breaker = registry.get("svc")
        assert breaker is not None
        count = registry.metrics.transition

        def count_transition(which: CircuitBreaker, made: Transition) -> None:
            count(which, made)
            record(
                "transition",
                tid=made.tid,
                mine=made.mine,
                by=made.by,
                restored=made.restored,
                generation=made.generation,
                change=f"{made.from_state}>{made.to_state}",
            )

        enter = breaker._enter

        def entered(state: State, now: float, until: float, reason: str, by: str) -> None:
            enter(state, now, until, reason, by)
            record("enter", state=state, generation=breaker.generation, shared=breaker.shared)

        breaker._on_transition, breaker._enter = count_transition, entered  # type: ignore[method-assign]
        await registry.start()
        end = time.monotonic() + seconds
        watching = asyncio.create_task(watch(registry, record), name="watch")
        await asyncio.gather(*(caller(breaker, record, end) for _ in range(CALLERS)))
        await asyncio.to_thread(sys.stdin.read)
        watching.cancel()
        await registry.stop()
        record("bye")


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3]), Path(sys.argv[4])))
