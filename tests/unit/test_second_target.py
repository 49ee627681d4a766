"""When a target refuses, the next one is asked: first for a connection that is open already."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from proxy.http1.upstream.pool import TargetPool
from tests.bench.exchange import REQUEST, RESPONSE
from tests.fast_path_kit import Rig


class TwoTargets(Rig):
    """The first target has an idle connection; the second refuses, and has its turn."""

    def __init__(self) -> None:
        super().__init__(targets=["http://127.0.0.1:1", "http://127.0.0.1:2"])
        self.other: TargetPool = self.plan.upstream.pools[1]
        self.asked_other = 0
        self.other._dial_for_waiting = self._refuse  # type: ignore[method-assign]
        self.plan.upstream._turn = self.other

    def _refuse(self) -> None:
        while self.other._waiting:
            self.asked_other += 1
            ticket = self.other._waiting.popleft()
            ticket.error = ConnectionRefusedError(111, "refused on purpose")
            ticket.owner.wake()


@pytest.fixture
async def rig() -> AsyncIterator[TwoTargets]:
    made = TwoTargets()
    made.client.data_received(REQUEST)
    yield made
    made.close()


async def settle() -> None:
    """Let everything run that is due."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_an_idle_connection_of_the_next_target_is_used(rig: TwoTargets) -> None:
    """The refusal costs no second connection to the target that has an idle one."""
    await settle()
    assert rig.asked_other == 1
    assert len(rig.connections) == 1
    stream, recorder = rig.connections[0]
    assert recorder.written.startswith(b"GET ")
    stream.data_received(RESPONSE)
    assert rig.answer.written.startswith(b"HTTP/1.1 200 ")
