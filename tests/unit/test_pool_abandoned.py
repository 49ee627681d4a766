"""What becomes of a connection whose client has left while the upstream works on its request."""

from __future__ import annotations

from typing import cast

import pytest

from proxy.config.units import TargetAddress
from proxy.config.upstreams import Pool
from proxy.core.clock import ManualClock
from proxy.core.memory.budget import MemoryBudget
from proxy.http1.client import ClientStream
from proxy.http1.deadlines import Sweeper
from proxy.http1.upstream.connection import UpstreamStream
from proxy.http1.upstream.pool import ConnectionRequest, TargetPool
from proxy.http1.upstream.target import Target

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
INTERIM = b"HTTP/1.1 103 Early Hints\r\n\r\n"


class Client:
    """A client as the pool knows it."""

    def __init__(self, host_ip: str) -> None:
        self.who = host_ip

    def wake(self) -> None:
        """Its turn has come; the ticket shows it."""


class Socket:
    """A transport that is open until it is closed."""

    def __init__(self) -> None:
        self.closed = False

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    close = abort

    def get_extra_info(self, _: str) -> None:
        """Nothing to be known."""


class Case:
    """A pool of two connections, both in use by one client, which leaves; its time is 10 s."""

    def __init__(self, *, keep: bool = True) -> None:
        self.clock = ManualClock()
        self.sweeper = Sweeper(self.clock)
        self.pool = TargetPool(
            Target(TargetAddress("http", "10.0.0.1", 8000), 1.0),
            Pool(max_connections=2, keep_abandoned=keep),
            self.clock,
            self.sweeper,
            MemoryBudget(),
            lambda _: None,
        )
        self.greedy = cast(ClientStream, Client("192.0.2.1"))
        self.streams = [UpstreamStream(self.pool) for _ in range(2)]
        for stream in self.streams:
            stream.transport = Socket()  # type: ignore[assignment]
            self.pool.adopt(stream)
            assert self.pool.checkout(self.greedy) is stream
        if keep:
            self.leave()

    def leave(self) -> None:
        """The client goes."""
        for stream in self.streams:
            self.pool.abandon(stream, self.greedy, self.clock.monotonic() + 10)

    def ask(self, host_ip: str = "192.0.2.2") -> ConnectionRequest:
        """Somebody else wants a connection."""
        return self.pool.ask(cast(ClientStream, Client(host_ip)))


def test_the_place_is_kept_until_the_answer_has_come() -> None:
    """A whole answer, after an interim one and in pieces, frees the connection for the next one."""
    case = Case()
    ticket = case.ask()
    first = case.streams[0]
    for piece in (INTERIM, WHOLE[:20]):
        first.data_received(piece)
        assert ticket.pending
        assert case.pool.active_connections == 2
    first.data_received(WHOLE[20:])
    assert ticket.stream is first
    assert not first.transport.is_closing()
    case.clock.advance(11)
    case.sweeper.sweep()  # the time was that of the one before
    assert ticket.stream.owner is ticket.owner
    assert not first.transport.is_closing()


@pytest.mark.parametrize(
    "answer",
    [
        WHOLE[:-1],
        WHOLE + b"x",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"no answer at all\r\n\r\n",
        INTERIM * 40,
    ],
)
def test_an_answer_that_is_not_all_there_ends_the_connection(answer: bytes) -> None:
    """Nothing is read for nobody but the head."""
    case = Case()
    first = case.streams[0]
    first.data_received(answer)
    assert first.transport.is_closing()
    assert case.pool.active_connections == 1
    assert case.pool.idle_connections == 0


def test_an_end_frees_the_place() -> None:
    """The upstream gave up too, in an orderly way or not."""
    case = Case()
    case.streams[0].eof_received()
    case.streams[1].connection_lost(ConnectionResetError())
    assert case.pool.active_connections == 0


def test_time_frees_the_place() -> None:
    """An upstream that never answers has the place no longer than for a client that waits."""
    case = Case()
    case.clock.advance(9)
    case.sweeper.sweep()
    assert case.pool.active_connections == 2
    case.clock.advance(2)
    case.sweeper.sweep()
    assert case.pool.active_connections == 0
    assert all(stream.transport.is_closing() for stream in case.streams)


def test_a_closed_pool_keeps_none() -> None:
    """Those it has end at once, and so do those that are abandoned later."""
    case = Case()
    case.pool.close()
    assert case.pool.active_connections == 0
    assert all(stream.transport.is_closing() for stream in case.streams)
    late = Case(keep=False)
    late.pool.close()
    late.leave()
    assert late.pool.active_connections == 0


def test_places_are_free_at_once_unless_they_are_to_be_kept() -> None:
    """The default: the upstream is to see that nobody waits."""
    case = Case(keep=False)
    case.leave()
    assert case.pool.active_connections == 0
    assert all(stream.transport.is_closing() for stream in case.streams)


def test_what_a_client_abandons_counts_as_its_turns() -> None:
    """Its next request waits behind the first ones of others that came later."""
    case = Case()
    again = case.pool.ask(case.greedy)
    others = [case.ask("192.0.2.2"), case.ask("192.0.2.3")]
    for stream in case.streams:
        stream.data_received(WHOLE)
    assert all(other.stream is not None for other in others)
    assert again.pending
