"""Large responses of the admin and metrics ports, within the memory budget and in small steps.

Operators send few requests, but anyone who reaches the port could send hundreds and read no
response. Rules:

1. The data read for a response, the response itself, and the part that a client has not received
   count in the budget's account `admin`. Below `FREE` bytes every request is answered, however
   short memory is, because operators need to see why. Above it, the budget must have room, and the
   account never gets more than a quarter of it; otherwise the answer is 503 `overloaded`.
2. Few responses are read at a time and one is encoded at a time, a few milliseconds in each turn of
   the event loop.
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

#: Bytes that the responses of both ports may always use; metrics may use more.
FREE, METRICS_FREE = 4 * 1024 * 1024, 8 * 1024 * 1024

#: Together they get at most 1/_SHARE of the budget.
_SHARE = 4

#: Responses that are read at a time, and how many may wait for their turn.
READ_AT_A_TIME, WAITING = 2, 64

#: Seconds of encoding per turn of the loop, and how many times as long it pauses after each: many
#: admin requests must not take the processor from proxied ones.
_TURN, _REST = 0.002, 3

#: Bytes of a piece that is written, and the longest list that is not split into a line per item.
_PIECE, _FEW = 64 * 1024, 20

Read = Callable[[], Awaitable[object]]


class Answers:
    """Bounds the responses of both ports together."""

    def __init__(self, memory: MemoryBudget) -> None:
        self._memory = memory
        self._account = memory.account("admin")
        self._reading = asyncio.Semaphore(READ_AT_A_TIME)
        self._writing = asyncio.Lock()
        self._waiting = 0

    def holding(self) -> Holding:
        """A holding for the unsent bytes of one connection."""
        return Holding(self._account)

    def admit(self, size: int, holding: Holding, free: int = FREE) -> None:
        """Let `holding` grow by `size` bytes. Raises `Overloaded` (rule 1)."""
        used = self._account.used + size
        if used <= free:
            holding.grow(size)
        elif used > self._memory.limit // _SHARE or not holding.try_grow(size):
            raise Overloaded(
                "The proxy lacks the memory for its response", retry_after=1, reason="memory"
            )

    async def send(self, request: web.Request, read: Read, size: int) -> web.StreamResponse:
        """Respond with the result of `read` as JSON, about `size` bytes. Raises `Overloaded`, and
        what `read` raises."""
        if self._waiting >= WAITING:
            raise Overloaded("Too many requests at once", retry_after=1, reason="queue_full")
        self._waiting += 1
        try:
            await self._reading.acquire()
        finally:
            self._waiting -= 1
        holding = self.holding()
        try:
            try:
                if request.transport is None:  # the client has left meanwhile
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
                    if encoded > holding.size:  # more than expected
                        self.admit(len(piece), holding)
                took = time.monotonic() - began
                if took >= _TURN:
                    await asyncio.sleep(_REST * took)
                    began = time.monotonic()
        holding.set(encoded)
        return pieces


#: The application's `Answers`.
ANSWERS = web.AppKey("answers", Answers)


def _pieces(document: object) -> Iterator[bytes]:
    """JSON in pieces. An empty piece is a moment at which to let others run."""
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
    """Indented JSON; long lists have one line per item."""
    if not isinstance(document, dict) or not document:
        yield _text(document) + "\n"
        return
    before = "{"
    for name, value in document.items():
        yield f"{before}\n  {_text(name)}: "
        before = ","
        if not isinstance(value, list) or len(value) <= _FEW:
            yield _text(value).replace("\n", "\n  ")  # strings in JSON contain no line breaks
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
    """Send `pieces` as fast as the client takes them, and release them from `holding`."""
    response = web.StreamResponse()
    response.content_type, response.charset = "application/json", "utf-8"
    response.content_length = sum(map(len, pieces))
    await response.prepare(request)
    with suppress(ConnectionError):  # the client has left
        while pieces and request.method != "HEAD":
            piece = pieces.popleft()
            holding.shrink(len(piece))  # the connection counts the unsent bytes
            await response.write(piece)
        await response.write_eof()
    return response
