"""Listening sockets change together or not at all."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import trustme

from proxy.config.listeners import Listener
from proxy.core.clock import SystemClock
from proxy.core.memory.budget import MemoryBudget
from proxy.forward.routing.plan import ListenerPlan
from proxy.http1.client import Limits
from proxy.http1.deadlines import Sweeper
from proxy.server.sockets import Sockets
from proxy.telemetry.metrics.counters import ListenerTally
from tests.http1 import RawClient, free_port

# Nobody is served here: what connects says nothing of TLS, and leaves.
PLAN = cast(ListenerPlan, SimpleNamespace(max_connections=0, header_timeout=10.0, shares=None))


def listener(port: int, pair: Path | None = None) -> Listener:
    """A listener on that port, with TLS where there is a certificate."""
    tls = None if pair is None else {"cert": str(pair), "key": str(pair)}
    route = {"name": "all", "path": "/", "upstream": "app"}
    return Listener.model_validate({"bind": f"127.0.0.1:{port}", "routes": [route], "tls": tls})


async def test_what_a_refused_change_opened_is_closed_again(tmp_path: Path) -> None:
    """A kept listener's certificate became unreadable after the check: nothing has changed."""
    clock = SystemClock()
    sockets = Sockets(clock, Sweeper(clock), MemoryBudget(), ListenerTally)
    pair = tmp_path / "pair.pem"
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pair)
    secure, extra = free_port(), free_port()
    old = {"secure": listener(secure, pair)}
    sockets.make(await sockets.prepare(old, {"secure": PLAN}), old, {"secure": PLAN})
    before = sockets.addresses()
    try:
        pair.write_text("no certificate")
        with pytest.raises(ssl.SSLError):
            await sockets.prepare(
                {**old, "extra": listener(extra)}, {"secure": PLAN, "extra": PLAN}
            )
        with pytest.raises(ConnectionRefusedError):
            RawClient(("127.0.0.1", extra))
        RawClient(("127.0.0.1", secure)).close()
        assert sockets.addresses() == before == {"secure": [f"127.0.0.1:{secure}"]}
    finally:
        await sockets.stop()


async def test_listeners_of_any_port_stay_apart() -> None:
    """A change keeps the socket of each, whatever was added before it in the file."""
    clock = SystemClock()
    sockets = Sockets(clock, Sweeper(clock), MemoryBudget(), ListenerTally)
    old = {"a": listener(0), "b": listener(0)}
    plans = dict.fromkeys("abc", PLAN)
    sockets.make(await sockets.prepare(old, plans), old, plans)
    before = sockets.addresses()
    try:
        new = {"c": listener(0), "b": listener(0), "a": listener(0)}
        sockets.make(await sockets.prepare(new, plans), new, plans)
        after = sockets.addresses()
        assert {name: after[name] for name in "ab"} == before
        assert after["c"] not in before.values()
    finally:
        await sockets.stop()


async def test_a_renamed_listener_counts_under_its_new_name() -> None:
    """Its socket and its connections stay; none is left behind under the old name."""
    clock = SystemClock()
    tallies: dict[str, ListenerTally] = {}

    def counters_of(name: str) -> ListenerTally:
        return tallies.setdefault(name, ListenerTally(name))

    def counts() -> dict[str, int]:
        return {name: one.open for name, one in tallies.items()}

    async def until(wanted: dict[str, int]) -> None:
        async with asyncio.timeout(30):
            while counts() != wanted:  # noqa: ASYNC110 (the proxy has nothing to tell us by)
                await asyncio.sleep(0.01)

    sockets = Sockets(clock, Sweeper(clock), MemoryBudget(), counters_of)
    old, new = {"old": listener(0)}, {"new": listener(0)}
    serving = cast(
        ListenerPlan,
        SimpleNamespace(
            max_connections=8, header_timeout=60.0, limits=Limits(8192, 8192, 8), shares=None
        ),
    )
    sockets.make(await sockets.prepare(old, {"old": serving}), old, {"old": serving})
    ((address,),) = sockets.addresses().values()
    host, _, port = address.rpartition(":")
    try:
        with RawClient((host, int(port))):
            await until({"old": 1})
            sockets.make(await sockets.prepare(new, {"new": serving}), new, {"new": serving})
            assert sockets.addresses() == {"new": [address]}
            assert counts() == {"old": 0, "new": 1}
        await until({"old": 0, "new": 0})
    finally:
        await sockets.stop()
