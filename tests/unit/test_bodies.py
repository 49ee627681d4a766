"""Body framing: content and end are found wherever the network cuts, and nothing else passes."""

from __future__ import annotations

import asyncio
import contextlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.clock import ManualClock
from proxy.core.memory.budget import MemoryBudget
from proxy.http1.bodies import (
    PIECES_PER_TURN,
    ChunkedBody,
    Decoder,
    LengthBody,
    NoBody,
    chunk,
    last_chunk,
)
from proxy.http1.fields import ProtocolError
from proxy.http1.stream import Stream
from proxy.http1.turns import Turns


def feed(body: Decoder, data: bytes, cuts: list[int]) -> tuple[bytes, bytes]:
    """(content, rest) of `data` delivered in pieces that end at `cuts`."""
    content, rest = b"", b""
    edges = [0, *sorted(c for c in cuts if c < len(data)), len(data)]
    for start, end in pairwise(edges):
        if body.done:
            rest += data[start:end]
        else:
            pieces, rest = body.feed(data[start:end])
            content += b"".join(pieces)
    return content, rest


cuts = st.lists(st.integers(0, 200), max_size=20)


@given(st.binary(max_size=60), st.binary(max_size=10), cuts)
def test_length_body(content: bytes, rest: bytes, at: list[int]) -> None:
    """Exactly the announced bytes are content; what follows is the next message's."""
    body = LengthBody(len(content))
    got = feed(body, content + rest, at) if content else (b"", rest)
    assert got == (content, rest)
    assert body.done


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=6), st.binary(max_size=10), cuts)
def test_chunked_body_survives_any_cut(pieces: list[bytes], rest: bytes, at: list[int]) -> None:
    """What `chunk` writes, `ChunkedBody` reads, byte for byte, however it is delivered."""
    wire = b"".join(b"".join(chunk([piece])) for piece in pieces) + last_chunk([b"A: 1"])
    body = ChunkedBody()
    assert feed(body, wire + rest, at) == (b"".join(pieces), rest)
    assert body.done
    assert body.trailers == [b"A: 1"]


def feed_all(body: ChunkedBody, pieces: list[bytes]) -> None:
    """As turn by turn."""
    for piece in pieces:
        rest = piece
        while rest:
            _, rest = body.feed(rest)


@pytest.mark.parametrize(
    ("line", "size"),
    [(b"1;" + b"a=b;" * 200 + b"c", 1), (b"1;" + b"a;" * 20 + b"a", 1), (b"1;a=" + b"b" * 60, 1)],
    ids=["many", "some", "one"],
)
def test_extensions_may_not_be_most_of_a_body(line: bytes, size: int) -> None:
    """Chunks of a byte with extensions are refused when these have come to some kilobytes, in
    whatever pieces they come; between larger chunks there may be any number."""
    one = line + b"\r\n" + b"x" * size + b"\r\n"
    for pieces in ([one * 1000], [one] * 1000, [one[:50], one[50:]] * 1000):
        with pytest.raises(ProtocolError, match="extensions"):
            feed_all(ChunkedBody(), pieces)
    body = ChunkedBody()
    signed = b"1000;chunk-signature=" + b"f" * 64 + b"\r\n" + b"x" * 0x1000 + b"\r\n"
    feed_all(body, [signed] * 1000)
    body.feed(b"0;chunk-signature=" + b"f" * 64 + b"\r\n\r\n")
    assert body.done


def test_chunk_extensions_are_read_over() -> None:
    """Extensions are allowed (RFC 9112 §7.1.1) and dropped."""
    body = ChunkedBody()
    wire = b'3;a=b;c="d;\\"\r\nabc\r\n1 ; e\t=\tf ;g="\xe9"\r\nd\r\n0 ; x\r\n\r\n'
    wire = wire.replace(b'\\"', b'\\"\\\\"')
    assert feed(body, wire, list(range(len(wire)))) == (b"abcd", b"")
    assert body.done


MALFORMED = {
    "empty size": b"\r\n",
    "negative": b"-1\r\n",
    "hex prefix": b"0x5\r\nhello\r\n",
    "underscore": b"1_0\r\n",
    "plus": b"+5\r\nhello\r\n",
    "leading space": b" 5\r\nhello\r\n",
    "trailing space": b"5 \r\nhello\r\n",
    "bare LF": b"5\nhello\r\n",
    "overflow": b"F" * 17 + b"\r\n",
    "LF in extension": b"5;a\nb\r\nhello\r\n",
    "CR in extension": b"5;a\rb\r\nhello\r\n",
    "nameless extension": b"5;\r\nhello\r\n",
    "extension without a value": b"5;a=\r\nhello\r\n",
    "two values": b"5;a=b=c\r\nhello\r\n",
    "extension in words": b"5;a b\r\nhello\r\n",
    "extension that is no token": b"5;a@b\r\nhello\r\n",
    "open quote": b'5;a="b\r\nhello\r\n',
    "text behind a quote": b'5;a="b"c\r\nhello\r\n',
    "quoted name": b'5;"a"\r\nhello\r\n',
    "escaped end of a quote": b'5;a="b\\"\r\nhello\r\n',
    "space behind an extension": b"5;a \r\nhello\r\n",
    "long extension": b"5;" + b"a" * 2000 + b"\r\nhello\r\n",
    "endless size line": b"5;" + b"a" * 2000,
    "data too long": b"5\r\nhelloX\r\n",
    "data without CRLF": b"5\r\nhello5\r\n",
    "folded trailer": b"0\r\nA: b\r\n c\r\n\r\n",
    "trailer without colon": b"0\r\nA\r\n\r\n",
    "bare LF in trailer": b"0\r\nA: b\nC: d\r\n\r\n",
    "bare LF trailer unfinished": b"0\r\nA: b\n",
    "huge trailer": b"0\r\nA: " + b"b" * 20_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("step", [1, 10_000_000])
@pytest.mark.parametrize("wire", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_chunks(wire: bytes, step: int) -> None:
    """A chunked body that another parser could read differently is refused, also byte by byte."""
    with pytest.raises(ProtocolError):
        feed(ChunkedBody(), wire, list(range(0, min(len(wire), 3000), step)))


def test_forbidden_trailers_are_dropped() -> None:
    """A trailer can never set framing, routing or identity (RFC 9110 §6.5.1)."""
    body = ChunkedBody()
    body.feed(
        b"0\r\nContent-Length: 5\r\nHost: x\r\nX-Checksum: 1\r\nTransfer-Encoding: chunked\r\n"
        b"X-Forwarded-For: 1\r\nX-Correlation-ID: y\r\nx_forwarded_for: 1\r\nPath_Info: /\r\n\r\n"
    )
    assert body.trailers == [b"X-Checksum: 1"]


def test_no_body_leaves_everything() -> None:
    """A message without a body hands on all that follows."""
    assert NoBody().feed(b"GET") == ([], b"GET")


@given(st.binary(max_size=100))
def test_arbitrary_chunked_bytes_never_surprise(data: bytes) -> None:
    """Any bytes are content, wait for more, or raise `ProtocolError`."""
    with contextlib.suppress(ProtocolError):
        ChunkedBody().feed(data)


def test_thousands_of_chunks_take_several_turns() -> None:
    """A full inbox of tiny chunks does not hold up the event loop: the rest is handed back."""
    wire = b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\nGET"
    body, turns, content = ChunkedBody(), 0, 0
    while not body.done:
        pieces, wire = body.feed(wire)
        assert 0 < len(pieces) <= PIECES_PER_TURN
        content += len(pieces)
        turns += 1
    assert (content, turns, wire) == (20_000, -(-20_000 // PIECES_PER_TURN), b"GET")


class Notified(Stream):
    """A stream without a socket that counts its notifications."""

    def __init__(self) -> None:
        super().__init__(MemoryBudget(), Turns(ManualClock()))
        self.notified = 0

    def notify(self) -> None:
        self.notified += 1


async def test_chunks_in_many_packets_take_several_turns_too() -> None:
    """What arrived in pieces that are small each is no more than one turn's work either: the rest
    stays, and the stream is notified of it, once."""
    stream, body, content, turns = Notified(), ChunkedBody(), 0, 0
    for _ in range(40):
        stream.data_received(b"1\r\nx\r\n" * 500)
    stream.data_received(b"0\r\n\r\nGET")
    arrived = stream.notified
    while not body.done:
        for _ in range(2 if turns == 3 else 1):
            pieces = stream.read_body(body)
            assert len(pieces) <= 1, "pieces of a byte are joined"
            content += sum(map(len, pieces))
            assert content <= (turns + 2) * (PIECES_PER_TURN + 500)
        turns += 1
        await asyncio.sleep(0)
        assert stream.notified == arrived + turns - body.done
    assert (content, stream.take()) == (20_000, b"GET")
    assert stream.memory.used == 0
