"""What goes wrong on the fast path goes to the general one: nothing is lost, sent twice or leaked.

Each of these once was.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from proxy.core.memory.budget import Holding, MemoryBudget
from proxy.forward.exchange import Exchange, Tee
from proxy.forward.routing.plan import Hooks, Trouble
from proxy.resilience.circuit.states import State
from tests.bench.exchange import REQUEST, RESPONSE
from tests.fast_path_kit import Asking, Rig

BREAKER = {"failure_threshold": 1, "open_for": "1s"}


@asynccontextmanager
async def sent(*hooks: Hooks, **upstream: object) -> AsyncIterator[Rig]:
    """A rig whose client has just sent a plain request, which was sent on."""
    rig = Rig([Asking(one) for one in hooks], **upstream)
    try:
        rig.client.data_received(REQUEST)
        assert rig.connections[0][1].written.startswith(b"GET /jobs/")
        yield rig
    finally:
        rig.close()


def half_open(rig: Rig) -> None:
    """Another process' failures have opened the circuit meanwhile, and its time is over."""
    assert rig.breaker is not None
    rig.breaker.shared = True
    rig.breaker._enter(State.HALF_OPEN, rig.clock.monotonic(), 0.0, "a test", "another")


def answer(rig: Rig, data: bytes = RESPONSE) -> None:
    """What the event loop does with an answer, and with a protocol that fails on it."""
    rig.connections[0][0].data_received(data)


@pytest.mark.parametrize("gone", ["left", "cut"])
async def test_a_circuit_that_opens_meanwhile_keeps_no_connection(gone: str) -> None:
    """A request that was sent waits for no lease: who gave up there never released the place."""
    async with sent(breaker=BREAKER) as rig:
        half_open(rig)
        if gone == "left":
            rig.client.connection_lost(None)
        else:
            rig.client.cut = True
            rig.client.notify()
        assert rig.pool.active_connections == 0
        assert rig.connections[0][1].closing


async def test_a_request_that_was_sent_asks_for_no_lease() -> None:
    """It would keep a lease from those who want to probe; its answer passes all the same."""
    async with sent(breaker=BREAKER) as rig:
        half_open(rig)
        answer(rig, RESPONSE[:20])
        assert rig.breaker is not None
        assert (rig.breaker.wanted, len(rig.breaker.callers)) == (0, 0)
        answer(rig, RESPONSE[20:])
        assert rig.answer.written.startswith(b"HTTP/1.1 200 ")
        assert rig.pool.idle_connections == 1


async def test_a_fallback_source_that_fails_is_a_defect_of_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """500 with a traceback, as on the general path, and not an upstream that broke off."""

    class Broken:
        needs_body = False

        def wants(self, x: Exchange, trouble: Trouble) -> bool:
            raise RuntimeError("broken on purpose")

        async def fallback(self, x: Exchange, trouble: Trouble) -> None:
            """Is never asked."""

    async with sent(Hooks(fallback_source=Broken())) as rig:
        answer(rig)
        assert rig.answer.written.startswith(b"HTTP/1.1 500 ")
        assert rig.pool.active_connections == 0
    assert "broken on purpose" in caplog.text


def _tee(x: Exchange) -> None:
    """Copy the answer, and fail at its end."""

    class Broken(Tee):
        def end(self) -> None:
            raise RuntimeError("broken on purpose")

    x.tee = Broken(1000, Holding(MemoryBudget().account("copies")))


async def test_a_copy_that_fails_sends_nothing_twice(caplog: pytest.LogCaptureFixture) -> None:
    """The client has its answer: the request must not go to the upstream again."""
    async with sent(Hooks(started=_tee)) as rig:
        answer(rig)
        await asyncio.sleep(0)
        assert rig.answer.written.count(b"HTTP/1.1 ") == 1
        assert rig.answer.closing
        assert [recorder.written.count(b"GET ") for _, recorder in rig.connections] == [1]
        assert rig.pool.active_connections == 0
    assert "broken on purpose" in caplog.text


async def test_a_breaker_that_fails_sends_nothing_twice(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Counting comes after the answer, so its failure must not look like the upstream's."""
    async with sent(breaker=BREAKER) as rig:

        def fail(now: float, duration: float) -> None:
            raise RuntimeError("broken on purpose")

        monkeypatch.setattr(rig.breaker, "succeeded", fail)
        answer(rig)
        await asyncio.sleep(0)
        assert rig.answer.written.count(b"HTTP/1.1 ") == 1
        assert [recorder.written.count(b"GET ") for _, recorder in rig.connections] == [1]
    assert "broken on purpose" in caplog.text


@pytest.mark.parametrize(
    "head",
    [
        lambda size: b"HTTP/1.1 200 " + b"a" * size,
        lambda size: b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * size,
    ],
    ids=["status line", "field"],
)
@pytest.mark.parametrize("size", [7000, 9000])
async def test_limits_of_a_response_are_the_same(head: Callable[[int], bytes], size: int) -> None:
    """A status line of over 8 KiB is refused, however quickly it comes."""
    whole = head(size) + b"\r\nContent-Length: 1\r\n\r\nx"
    written = []
    for pieces in ([whole], [whole[:5000], whole[5000:]]):
        async with sent() as rig:
            for piece in pieces:
                answer(rig, piece)
            written.append(rig.answer.written[:13])
    assert written[0] == written[1]
