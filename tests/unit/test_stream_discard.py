"""What a connection sends after its end is read in bounded amounts."""

from __future__ import annotations

import asyncio
from typing import cast

from proxy.core.clock import ManualClock
from proxy.core.memory.budget import MemoryBudget
from proxy.http1.stream import Stream
from proxy.http1.turns import Turns


class Transport:
    """Notes whether it reads."""

    reading = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return False


class Over(Stream):
    """A connection that nobody waits for."""

    def notify(self) -> None:
        raise AssertionError("nobody is notified of what nobody wants")


def test_rubbish_is_read_a_piece_at_a_time() -> None:
    """Reading rests after so many bytes until more are asked for; all of them are counted."""
    stream, transport = Over(MemoryBudget(), Turns(ManualClock())), Transport()
    stream.transport = cast(asyncio.Transport, transport)
    stream.drop(1000)
    stream.data_received(b"x" * 999)
    assert transport.reading
    stream.data_received(b"x" * 500)
    assert not transport.reading
    stream.drop_more(1000)
    assert transport.reading
    stream.data_received(b"x" * 999)
    assert transport.reading
    stream.data_received(b"x")
    assert not transport.reading
    assert stream.discarded == 2499


def test_the_rest_of_a_request_is_read_at_full_speed() -> None:
    """Who sends a long body that is refused early gets to its end without a rest."""
    stream, transport = Over(MemoryBudget(), Turns(ManualClock())), Transport()
    stream.transport = cast(asyncio.Transport, transport)
    stream.drop()
    for _ in range(100):
        stream.data_received(b"x" * 1_000_000)
    assert transport.reading
