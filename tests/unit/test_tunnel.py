"""When a tunnel ends, without sockets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy.core.clock import ManualClock
from proxy.http1.client import ClientStream
from proxy.http1.deadlines import NEVER
from proxy.http1.tunnel import tunnel
from proxy.http1.upstream.connection import UpstreamStream


class End(SimpleNamespace):
    """One end of a tunnel, silent."""

    def __init__(self, **more: Any) -> None:
        still = {"eof": False, "lost": False, "shed": False, "write_paused": False, "closed": False}
        super().__init__(inbox=[], **still, **more)

    def close(self) -> None:
        """Closed in an orderly way."""
        self.closed = True


def test_a_tunnel_ends_with_the_drain() -> None:
    """When the proxy can wait no longer, a tunnel is closed; it does not wait to be torn off."""
    clock = ManualClock()
    waited: list[float] = []

    async def wait(deadline: float) -> None:
        waited.append(deadline)
        client.cut = True

    pool = SimpleNamespace(hold_up_tunnel=lambda *_: NEVER)
    client, upstream = End(cut=False, clock=clock, wait=wait), End(pool=pool, unwanted=False)
    with pytest.raises(StopIteration) as end:
        tunnel(cast(ClientStream, client), cast(UpstreamStream, upstream), 60.0).send(None)
    assert end.value.value == (0, 0)
    assert waited == [clock.monotonic() + 60.0]
    assert client.closed
    assert upstream.closed
