"""Answers of the admin and metrics ports that may be large: within the memory budget, in turns.

An operator's questions are few, but whoever reaches the port can ask them by the hundred and read
no answer. Rules:

1. What is read for an answer, the answer itself, and what a client has not taken of it count in the
   budget's account `admin`. Below `FREE` bytes everybody is answered, however short memory is: an
   operator wants to know why. Beyond that there must be room, and never more than a quarter of the
   budget; else it is 503 `overloaded`.
2. Few are read at a time, and one is written out at a time, a few milliseconds in each turn of the
   event loop.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

from aiohttp import web

from proxy.core.errors import Overloaded
from proxy.core.memory.budget import Holding, MemoryBudget

#: Bytes that the answers of both ports may always have, and those up to which metrics are among
#: them.
FREE, METRICS_FREE = 4 * 1024 * 1024, 8 * 1024 * 1024

#: The share of the budget that they have at most.
_SHARE = 4

#: Answers that are read at a time, and the most of them that wait for that.
READ_AT_A_TIME, WAITING = 2, 64

#: Seconds of one turn of the loop that writing an answer out may take, and how many times as long
#: it rests after each: a crowd at the port must not take the processor from the callers.
_TURN, _REST = 0.002, 3

#: Bytes of a piece that is written, and the items of a list that are not worth a line each.
_PIECE, _FEW = 64 * 1024, 20

Read = Callable[[], Awaitable[object]]


class Answers:
    """What the answers of both ports share."""

    def __init__(self, memory: MemoryBudget) -> None:
        self._memory = memory
        self._account = memory.account("admin")
        self._reading = asyncio.Semaphore(READ_AT_A_TIME)
        self._writing = asyncio.Lock()
        self._waiting = 0

    def holding(self) -> Holding:
        """For what one connection has not taken."""
        return Holding(self._account)

    def admit(self, size: int, holding: Holding, free: int = FREE) -> None:
        """Let `holding` grow by `size` bytes. Raises `Overloaded` (rule 1)."""
        used = self._account.used + size
        if used <= free:
            holding.grow(size)
        elif used > self._memory.limit // _SHARE or not holding.try_grow(size):
            raise Overloaded(
                "The proxy is short of memory for its answer", retry_after=1, reason="memory"
            )

    async def send(self, request: web.Request, read: Read, size: int) -> web.StreamResponse:
        """Answer with what `read` gives, as JSON; it is expected to be about `size` bytes. Raises
        `Overloaded`, and what `read` raises."""
        if self._waiting >= WAITING:
            raise Overloaded("Too many ask at once", retry_after=1, reason="queue_full")
        self._waiting += 1
        try:
            await self._reading.acquire()
        finally:
            self._waiting -= 1
        holding = self.holding()
        try:
            try:
                if request.transport is None:  # it left meanwhile
                    return web.Response()
                self.admit(size, holding)
                pieces = await self._encoded(await read(), holding)
            finally:
                self._reading.release()
            return await _sent(request, pieces, holding)
        finally:
            holding.clear()

    async def _encoded(self, document: object, holding: Holding) -> deque[bytes]:
        pieces: deque[bytes] = deque()
        encoded = 0
        async with self._writing:
            began = time.monotonic()
            for piece in _pieces(document):
                if piece:
                    pieces.append(piece)
                    encoded += len(piece)
                    if encoded > holding.size:  # more than was expected
                        self.admit(len(piece), holding)
                took = time.monotonic() - began
                if took >= _TURN:
                    await asyncio.sleep(_REST * took)
                    began = time.monotonic()
        holding.set(encoded)
        return pieces


#: Where an application has them.
ANSWERS = web.AppKey("answers", Answers)


def _pieces(document: object) -> Iterator[bytes]:
    """JSON in pieces; empty ones between them are a good moment for others."""
    lines: list[str] = []
    size = 0
    for line in _lines(document):
        lines.append(line)
        size += len(line)
        if size >= _PIECE:
            yield "".join(lines).encode()
            lines.clear()
            size = 0
        else:
            yield b""
    yield "".join(lines).encode()


def _lines(document: object) -> Iterator[str]:
    """JSON for people, indented, where long lists have a line for each item."""
    if not isinstance(document, dict) or not document:
        yield _text(document) + "\n"
        return
    before = "{"
    for name, value in document.items():
        yield f"{before}\n  {_text(name)}: "
        before = ","
        if not isinstance(value, list) or len(value) <= _FEW:
            yield _text(value).replace("\n", "\n  ")  # none is within a string of JSON
            continue
        between = "["
        for item in value:
            yield f"{between}\n    {json.dumps(item, default=str)}"
            between = ","
        yield "\n  ]"
    yield "\n}\n"


def _text(value: object) -> str:
    return json.dumps(value, indent=2, default=str)


async def _sent(request: web.Request, pieces: deque[bytes], holding: Holding) -> web.StreamResponse:
    """Send `pieces` as the client takes them; what it has, `holding` has no more."""
    response = web.StreamResponse()
    response.content_type, response.charset = "application/json", "utf-8"
    response.content_length = sum(map(len, pieces))
    await response.prepare(request)
    with suppress(ConnectionError):  # it left
        while pieces and request.method != "HEAD":
            piece = pieces.popleft()
            holding.shrink(len(piece))  # what is not taken, the connection counts
            await response.write(piece)
        await response.write_eof()
    return response
