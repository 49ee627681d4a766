"""Listening sockets change together or not at all."""

from __future__ import annotations

import ssl
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import trustme

from proxy.clock import SystemClock
from proxy.config.listeners import Listener
from proxy.pipeline.plan import ListenerPlan
from proxy.pipeline.sockets import Sockets
from proxy.telemetry.tally import ListenerTally
from proxy.wire.deadlines import Sweeper
from tests.http1 import RawClient, free_port

# Nobody is served here: what connects is one too many, and is told so.
PLAN = cast(ListenerPlan, SimpleNamespace(max_connections=0, header_timeout=5.0))


def listener(port: int, pair: Path | None = None) -> Listener:
    """A listener on that port, with TLS where there is a certificate."""
    tls = None if pair is None else {"cert": str(pair), "key": str(pair)}
    route = {"name": "all", "path": "/", "upstream": "app"}
    return Listener.model_validate({"bind": f"127.0.0.1:{port}", "routes": [route], "tls": tls})


async def test_what_a_refused_change_opened_is_closed_again(tmp_path: Path) -> None:
    """A kept listener's certificate became unreadable after the check: nothing has changed."""
    clock = SystemClock()
    sockets = Sockets(clock, Sweeper(clock), ListenerTally)
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
